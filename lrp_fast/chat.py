"""Chat messages, and what a tokenizer's chat template makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .tokenizer import Tokenizer, plain_text

_TRIED = 50  # messages of a chat, at most, that are written once more each to see what becomes of them
_WRITE = 'write {"role": "user", "content": "..."}'


class Written(NamedTuple):
    """A chat as a template has written it.

    Attributes:
        notes: a sentence each that the reader should know.
        text: what was written; None of a tokenizer that writes ids alone.
        messages: in the form that the template took.
    """

    ids: list[int]
    notes: list[str]
    text: str | None
    messages: list[dict]


def is_chat(given) -> bool:
    """Whether it looks like a list of messages; a list of what a tokenizer returned does not."""
    first = given[0] if isinstance(given, list | tuple) and len(given) else None
    return isinstance(first, Mapping) and "input_ids" not in first


def read(given, tokenizer: Tokenizer) -> Written:
    """A chat as the tokenizer's template writes it.

    What comes next is the assistant's answer, or the rest of it where the last message is the assistant's.

    Raises:
        TypeError, ValueError: one sentence, for what is no chat of texts, and for what the template does not take.
    """
    messages = [_message(i, one) for i, one in enumerate(given)]
    best, failed, left_out = None, None, None
    for form in _forms(messages) if tokenizer.has_chat_template else [messages]:
        try:
            ids, text = tokenizer.chat(form), _rendered(form, tokenizer)
        except Exception as error:  # the template is foreign code
            failed = failed or error
            continue
        missing = _left_out(text, form, tokenizer)
        if best is None or len(missing) < len(left_out):
            best, left_out = (form, ids, text), missing
        if not missing:
            break
    if best is None:
        if not tokenizer.has_chat_template:
            raise ValueError("the tokenizer has no chat template: write the prompt as a string") from failed
        why = str(failed).strip().splitlines() or [type(failed).__name__]
        raise ValueError(f"the tokenizer's chat template does not take these messages: {why[0]}") from failed
    form, ids, text = best
    if not ids:
        raise ValueError("the tokenizer's chat template makes no token of these messages: write the prompt as a string")
    notes = [f"The tokenizer's chat template has written the prompt, {_end(form, ids, tokenizer)}."]
    if left_out:
        notes.append(f"The template leaves out the text of message {_listed(left_out)}, or changes it.")
    for key, numbers in _without_trace(text, form, tokenizer).items():
        notes.append(f"The template leaves out {key!r} of message {_listed(numbers)}.")
    return Written(ids, notes, text, form)


def places(messages: list[dict], tokenizer: Tokenizer, text: str) -> list[tuple[int, int] | None]:
    """Of each message, where its text begins and ends in the ``text`` that the template has written of them; None for
    one without any. What the template writes around it belongs to no message.

    The template is given marks in place of the texts: what it writes between these are its own words, which have to
    stand between the texts as well.

    Raises:
        ValueError: for a template that changes a text, or writes other words around it than around a mark.
    """
    mark = "qz"
    while mark in text:
        mark += "z"
    parts = [(i, part) for i, one in enumerate(messages) for part in _texts(one) if part]
    signs = iter(f"{mark}{k}q" for k in range(len(parts)))
    written = _changed([_replaced(one, signs) for one in messages], tokenizer)
    found: list[tuple[int, int] | None] = [None] * len(messages)
    at = 0
    for k, (i, part) in enumerate(parts):
        own, there, written = (written or "").partition(f"{mark}{k}q")
        start = at + len(own)
        part = next((one for one in (part, part.strip()) if text.startswith(one, start)), None)
        if not there or not text.startswith(own, at) or part is None:
            break
        at = start + len(part)
        found[i] = (start if found[i] is None else found[i][0], at)
    else:
        if text[at:] == written:
            return found
    raise ValueError(
        "the chat template does not write the messages' texts as they are, or other words around some, so that their "
        "turns cannot be told apart: give sources as a dict of spans"
    )


def _replaced(message: dict, signs: Iterator[str]) -> dict:
    """The message with the next of the signs in place of every text that is not empty."""
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [{**part, "text": next(signs)} if part["text"] else part for part in content]}
    return {**message, "content": next(signs)} if content else message


def _rendered(messages: list[dict], tokenizer: Tokenizer) -> str | None:
    """What the template writes; None of a tokenizer that writes ids alone."""
    try:
        return tokenizer.chat(messages, render=True)
    except Exception:  # the template is foreign code, as above
        if tokenizer.has_chat_template:
            raise
        return None


def _end(messages: list[dict], ids: list[int], tokenizer: Tokenizer) -> str:
    if messages[-1]["role"] == "assistant":
        return "up to where the last message is to be continued"
    try:
        is_same = tokenizer.chat(messages, opens=False) == ids
    except Exception:  # foreign code, as above
        is_same = False
    if is_same:
        return "the same whether or not it is to begin the assistant's answer"
    return "up to where the assistant's answer is to begin"


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _message(i: int, given) -> dict:
    name = f"message {i} of the chat"
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise TypeError(f"{name} has no role: {_WRITE}")
    content = given.get("content")
    if content is None and given.get("tool_calls"):
        return dict(given)
    if isinstance(content, str):
        return {**given, "content": plain_text(content, name)}
    if not isinstance(content, list | tuple):
        raise TypeError(f"{name} has no text as its content, but {content!r}: {_WRITE}")
    found = []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f"{name} holds a part of type {kind!r}, and lrp_fast writes chats of text alone: leave it out, or "
                "give what the processor's apply_chat_template returns (tokenize=True, return_dict=True)"
            )
        found.append({**part, "text": plain_text(part["text"], name)})
    return {**given, "content": found}


def _forms(messages: list[dict]) -> list[list[dict]]:
    """The messages as they are, and with all contents as strings, and as lists: templates take the one or the other."""

    def joined(content):
        return "".join(part["text"] for part in content) if isinstance(content, list) else content

    def apart(content):
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    return [messages] + [[{**one, "content": do(one.get("content"))} for one in messages] for do in (joined, apart)]


def _left_out(rendered: str | None, messages: list[dict], tokenizer: Tokenizer) -> list[int]:
    """The numbers of the messages whose text is not in what the template wrote."""
    if rendered is None:
        return []
    spelt_out = re.compile(r"""['"]type['"]: ?['"]text['"]""")  # a list that was written out as Python or JSON has it
    if spelt_out.search(rendered) and not spelt_out.search(texts_of(messages)):
        return list(range(len(messages)))
    mark = "qz"
    while mark in rendered:
        mark += "z"
    marked = [_marked(one, f"{mark}{i}q") for i, one in enumerate(messages)]
    together = _changed(marked, tokenizer) or ""
    found, tries = [], 0
    for i, one in enumerate(messages):
        count = len(one["content"]) if isinstance(one.get("content"), list) else 1
        gone = any(text.strip() not in rendered for text in _texts(one))
        if not gone and any(_texts(one)) and together.count(f"{mark}{i}q") < count:
            # All marks together may have taken another way through the template than this one alone.
            tries += 1
            gone = tries > _TRIED or _changed([*messages[:i], marked[i], *messages[i + 1 :]], tokenizer) == rendered
        found += [i] * gone
    return found


def _without_trace(rendered: str | None, messages: list[dict], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Of each key beside role and content, the messages that the template writes alike without it."""
    found: dict[str, list[int]] = {}
    keys = {key: None for one in messages for key in one if key not in ("role", "content")}
    for key in keys if rendered is not None else ():
        numbers = [i for i, one in enumerate(messages) if one.get(key)]

        def without(several: list[int], key=key) -> bool:
            cut = [{k: v for k, v in one.items() if k != key or i not in several} for i, one in enumerate(messages)]
            return _changed(cut, tokenizer) == rendered

        if numbers and not without(numbers):
            numbers = [i for i in numbers[:_TRIED] if without([i])]
        if numbers:
            found[key] = numbers
    return found


def _changed(messages: list[dict], tokenizer: Tokenizer) -> str | None:
    """What the template writes of messages that nobody asked about; None where it takes none such."""
    try:
        return tokenizer.chat(messages, render=True)
    except Exception:  # the template is foreign code, as above
        return None


def _marked(message: dict, mark: str) -> dict:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [{**part, "text": part["text"] + mark} for part in content]}
    return {**message, "content": content + mark} if content else message


def _texts(message: dict) -> list[str]:
    content = message.get("content")
    return [part["text"] for part in content] if isinstance(content, list) else [content or ""]


def texts_of(messages: list[dict]) -> str:
    return "\n".join(text for one in messages for text in _texts(one))

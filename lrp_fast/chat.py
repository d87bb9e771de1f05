"""Chat messages, and what a tokenizer's chat template makes of them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .tokenizer import Tokenizer, plain_text

_WRITE = 'write {"role": "user", "content": "..."}'


def is_chat(given) -> bool:
    """Whether it looks like a list of messages; a list of what a tokenizer returned does not."""
    first = given[0] if isinstance(given, list | tuple) and len(given) else None
    return isinstance(first, Mapping) and "input_ids" not in first


def read(given, tokenizer: Tokenizer) -> tuple[list[int], list[str]]:
    """Ids of a chat as the tokenizer's template writes it, and a sentence each that the reader should know.

    What comes next is the assistant's answer, or the rest of it where the last message is the assistant's.

    Raises:
        TypeError, ValueError: one sentence, for what is no chat of texts, and for what the template does not take.
    """
    messages = [_message(i, one) for i, one in enumerate(given)]
    forms, failed, left_out = _forms(messages) if tokenizer.has_chat_template else [messages], None, []
    best = None
    for form in forms:
        try:
            missing = _left_out(tokenizer.chat(form, render=True), messages) if len(forms) > 1 else []
            if best is None or len(missing) < len(left_out):
                best, left_out = tokenizer.chat(form), missing
        except Exception as error:  # the template is foreign code
            failed = failed or error
            continue
        if not missing:
            break
    if best is None:
        if not tokenizer.has_chat_template:
            raise ValueError("the tokenizer has no chat template: write the prompt as a string") from failed
        why = str(failed).strip().splitlines() or [type(failed).__name__]
        raise ValueError(f"the tokenizer's chat template does not take these messages: {why[0]}") from failed
    goes_on = messages[-1]["role"] == "assistant"
    end = "the last message is to be continued" if goes_on else "the assistant's answer is to begin"
    notes = [f"The tokenizer's chat template has written the prompt, up to where {end}."]
    if left_out:
        which = ", ".join(map(str, left_out))
        notes.append(f"The template leaves out the text of message {which}, or changes it.")
    return best, notes


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
            raise ValueError(f"{name} holds a part of type {kind!r}: lrp_fast explains text alone, leave it out")
        found.append({**part, "text": plain_text(part["text"], name)})
    return {**given, "content": found}


def _forms(messages: list[dict]) -> list[list[dict]]:
    """The messages as they are, and with all contents as strings, and as lists: templates take the one or the other."""

    def joined(content):
        return "".join(part["text"] for part in content) if isinstance(content, list) else content

    def apart(content):
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    return [messages] + [[{**one, "content": do(one.get("content"))} for one in messages] for do in (joined, apart)]


def _left_out(rendered: str, messages: list[dict]) -> list[int]:
    """The numbers of the messages whose text is not in what the template wrote."""
    texts = [
        [part["text"] for part in content] if isinstance(content, list) else [content or ""]
        for content in (one.get("content") for one in messages)
    ]
    spelt_out = re.compile(r"""['"]type['"]: ?['"]text['"]""")  # a list that was written out as Python or JSON has it
    if spelt_out.search(rendered) and not any(spelt_out.search(one) for several in texts for one in several):
        return list(range(len(messages)))
    return [i for i, several in enumerate(texts) if any(one.strip() not in rendered for one in several)]

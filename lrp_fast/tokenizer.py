"""What is asked of a tokenizer, whoever wrote it: ids of texts, texts of ids, which ids are special, chats."""

from __future__ import annotations

import copy
import operator
import os
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property

import tokenizers
import torch

_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # special tokens, each with a table entry of its own
BLANK = "\u2581"  # SentencePiece's, before a word
_NO_CHARACTER = "\U0010fffd"
TRIED = 200  # characters of a text, at most, that are encoded alone to see whether they make a token
_PROBES = ("a", "0", ".", "\u4e00")  # texts, one of which makes a token


class Tokenizer:
    """A tokenizer of transformers, of the tokenizers library, of remote code, or anything else that makes ids of texts.

    What it lacks, or raises an error at, is left out (``None``, or nothing) wherever that only costs the reader words.

    Attributes:
        own: the tokenizer itself.
    """

    def __init__(self, own, template: str | None = None):
        self.own = own
        self._template = template  # of the processor that holds it

    def encode(self, text: str, name: str, added: bool = True) -> list[int]:
        """Ids of ``text``, with what the tokenizer puts around every text or without it; ``name`` is the text's.

        Raises:
            TypeError, ValueError: one sentence, for a tokenizer that makes no ids of this text.
        """
        ids = self._made(text, name, added)
        if added or not text:
            return ids
        front, back = self._always
        start = len(front) if ids[: len(front)] == front else 0
        end = len(ids) - (len(back) if ids[start:][-len(back) :] == back else 0)
        return ids[start:end]

    def _made(self, text: str, name: str, added: bool) -> list[int]:
        encode = self.own.encode if _has(self.own, "encode") else self.own
        if not callable(encode):
            raise TypeError(
                f"{name} is a string, and tokenizer= cannot encode one (it is a {_kind(self.own)}): hand in token ids, "
                "or a tokenizer that AutoTokenizer.from_pretrained(...) has loaded"
            )
        failed = []
        for options in ({"add_special_tokens": added}, {}, {"bos": added, "eos": False}):
            try:
                found = encode(text, **options)
                break
            except Exception as error:  # foreign code: any error means that it is not called so, or not for this text
                failed.append(error)
        else:
            why = next((one for one in failed if not isinstance(one, TypeError)), failed[0])
            raise ValueError(f"the tokenizer cannot encode {name} ({_said(why)}): hand in token ids") from why
        ids = _flat(found)
        if ids is None:
            raise TypeError(
                f"the tokenizer makes no ids of {name}, but {str(found)[:60]!r}: hand in token ids, or a tokenizer "
                "that does"
            )
        return ids

    @cached_property
    def _always(self) -> tuple[list[int], list[int]]:
        """What it puts before and behind a text though it is told not to, or cannot be told: all it makes of none."""
        try:
            every = self._made("", "a text", added=False)
            if all(map(self._is_blank, every)):  # a word's beginning, or nothing
                return [], []
            probes = [self._made(one, "a text", added=False) for one in _PROBES]
        except (TypeError, ValueError):
            return [], []
        ids = next((one for one in probes if len(one) > len(every)), every)
        for cut in range(len(every), -1, -1):
            front, back = every[:cut], every[cut:]
            if ids[:cut] == front and ids[len(ids) - len(back) :] == back:
                return front, back
        return [], []

    @cached_property
    def added(self) -> tuple[list[int], list[int]]:
        """What it puts before and behind a text, always or as long as nobody tells it not to."""
        for probe in _PROBES:
            try:
                plain = self.encode(probe, "a text", added=False)
                if plain:
                    return around(self.encode(probe, "a text"), plain) or ([], [])
            except (TypeError, ValueError):
                continue
        return [], []

    def decode(self, ids: list[int]) -> str | None:
        """The text of all ids together, as the tokenizer has it; None if it fails."""
        all_of_it = {"skip_special_tokens": False}
        for options in (all_of_it | {"clean_up_tokenization_spaces": False}, all_of_it, {}):
            try:
                found = self.own.decode(list(ids), **options)
            except Exception:  # foreign code: it has no such method, or no text for these ids
                continue
            if isinstance(found, str):
                return found
        return None

    def pieces(self, ids: list[int]) -> list[str | None]:
        """The tokenizer's own spelling of each id; None where it has none."""
        return [self._piece(one) for one in ids]

    def _piece(self, one: int) -> str | None:
        if isinstance(self.own, tokenizers.Tokenizer):
            return self.own.id_to_token(one) if 0 <= one < 2**32 else None
        try:
            (found,) = self.own.convert_ids_to_tokens([one])
        except Exception:  # foreign code, as above
            return self._spelled_bytes(one)
        return found.decode("utf-8", "backslashreplace") if isinstance(found, bytes) else found and str(found)

    def _spelled_bytes(self, one: int) -> str | None:
        try:  # tiktoken
            return "".join(_byte(value) for value in bytes(self.own.decode_single_token_bytes(one)))
        except Exception:  # foreign code, as above
            return None

    def text(self, ids: list[int]) -> str | None:
        """What ids stand for in running text; the tokenizer's own spelling where they are no whole characters.

        An id without a token (a row of the head beyond the vocabulary) is spelled <id>. None if the tokenizer fails.
        """
        text, pieces = self.decode(ids), self.pieces(ids)
        if not text or "\ufffd" in text:
            if text is None and None in pieces:
                return None
            known = any(piece is not None for piece in pieces)
            if text and not known:  # half a character, and nobody says which half
                return text
            found = "".join(f"<{i}>" if one is None else _spelled(one) for i, one in zip(ids, pieces, strict=True))
            return found.replace(BLANK, " ") if text is None else found
        return _behind(text, pieces)

    def behind(self, ids: list[int]) -> str:
        """What ids stand for behind other text, the space before a first word included; "" if the tokenizer fails."""
        return _behind(self.decode(ids) or "", self.pieces(ids[:1]))

    def _is_blank(self, one: int) -> bool:
        return not (self.text([one]) or "?").strip(f" {BLANK}")

    def named(self, ids: list[int]) -> str:
        """For a sentence: the text in quotes, or the ids where there is none."""
        text = self.text(ids)
        return repr(text) if text is not None else ", ".join(f"token {one}" for one in ids)

    @cached_property
    def special_ids(self) -> frozenset[int] | None:
        """Control tokens, chat headers included, which only the table of added tokens marks; None without a table."""
        listed = _ids(self._table("all_special_ids"))
        found = set(listed or ())
        added = self._table("added_tokens_decoder")
        if isinstance(self.own, tokenizers.Tokenizer):
            added = self.own.get_added_tokens_decoder()
        if isinstance(added, Mapping):
            for one, token in added.items():
                if isinstance(one, int) and _is_special(token):
                    found.add(one)
        named = {self.id_of(name) for name in _NAMED} - {None}
        if listed is None and not isinstance(added, Mapping) and not named:
            return None
        return frozenset(found | named)

    def id_of(self, name: str) -> int | None:
        """The id of "bos", "eos", "unk", ...; None if the tokenizer does not say."""
        if isinstance(self.own, tokenizers.Tokenizer):
            unknown = getattr(self.own.model, "unk_token", None) if name == "unk" else None
            return None if unknown is None else self.own.token_to_id(unknown)
        found = _ids([self._table(f"{name}_token_id")]) or _ids([self._table(f"{name}_id")])
        return found[0] if found and found[0] >= 0 else None

    @cached_property
    def unknown(self) -> tuple[int, str] | None:
        """The id that stands for what it does not know, and how a text spells that id by name."""
        one = self.id_of("unk")
        if one is None:  # where no table tells
            left = [one for one in self.of_no_character if not self._is_blank(one)]
            if len(left) != 1 or _NO_CHARACTER in (self.text(left) or ""):
                return None  # several: it falls back to bytes
            one = left[0]
        spelling = self._table("unk_token")
        return one, str(spelling) if spelling else self._piece(one) or self.text([one]) or f"<{one}>"

    @cached_property
    def of_no_character(self) -> list[int]:
        """What it makes of a character that no vocabulary holds: its unknown token, bytes, or nothing."""
        try:
            return self.encode(_NO_CHARACTER, "a text", added=False)
        except (TypeError, ValueError):
            return []

    @property
    def gives_token_types(self) -> bool:
        """Whether it gives a model token_type_ids besides the ids, as transformers' tokenizers say they do."""
        names = self._table("model_input_names")
        return isinstance(names, list | tuple) and "token_type_ids" in names

    def dropped(self, text: str, ids: list[int]) -> list[str]:
        """Characters of ``text`` that its ``ids`` do not spell and that make no token, if among the first.

        Case, accents, width, and blanks other than line ends may change.
        """
        special = self.special_ids or frozenset()
        for one in special & set(ids):  # written by name, or by a template
            text = text.replace(self._piece(one) or "", "")
        special |= set((self.unknown or ())[:1])
        kept = _signs(self.decode([one for one in ids if one not in special]) or "")
        missing = [sign for sign in dict.fromkeys(text) if not _signs(sign) <= kept]
        return [sign for sign in missing[:TRIED] if self._makes_nothing(sign)]

    def _makes_nothing(self, sign: str) -> bool:
        try:
            return all(map(self._is_blank, self.encode(sign, "a text", added=False)))
        except (TypeError, ValueError):
            return False

    def _table(self, name: str):
        """An entry of the tokenizer's tables: some write it as a method, some leave it out, some raise an error."""
        found = _part(self.own, name)
        try:
            return found() if callable(found) else found
        except Exception:  # foreign code
            return None

    def chat(self, messages: list[dict], render: bool = False, opens: bool = True):
        """What the chat template makes of messages: ids, or the text if ``render``. Its errors are its own.

        What comes next is the assistant's answer, if it ``opens`` one, or the rest of it where the last message is the
        assistant's.
        """
        goes_on = messages[-1]["role"] == "assistant"
        how = {"continue_final_message": True} if goes_on else {"add_generation_prompt": opens}
        if self._template is not None and not self._table("chat_template"):
            how["chat_template"] = self._template
        if render:
            return self.own.apply_chat_template(messages, tokenize=False, **how)
        return _flat(self.own.apply_chat_template(messages, tokenize=True, return_dict=False, **how))

    @property
    def has_chat_template(self) -> bool:
        """Whether a template is told; some tokenizers write chats without one."""
        return bool(self._table("chat_template") or self._template)


def _behind(text: str, pieces: list[str | None]) -> str:
    """SentencePiece marks a word's beginning by a sign, and drops the space that it stands for at a text's front."""
    begins = bool(pieces) and (pieces[0] or "").startswith(BLANK)
    return f" {text}" if begins and not text.startswith(" ") else text


def read(given) -> Tokenizer | None:
    """What was handed in as ``tokenizer=``, checked as far as that goes without a text.

    Raises:
        TypeError: for a name, a class, or what is no tokenizer at all.
    """
    if given is None or isinstance(given, Tokenizer):
        return given
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        raise TypeError(f"tokenizer is a name: load it first, with AutoTokenizer.from_pretrained({name!r})")
    if isinstance(given, type):
        how = ".from_pretrained(...)" if hasattr(given, "from_pretrained") else "(...)"
        raise TypeError(f"tokenizer is the class {given.__name__}: hand in one of it, {given.__name__}{how}")
    own, template = given, None
    for _ in range(3):  # a pipeline has a processor, which has the tokenizer
        inner = _part(own, "tokenizer")
        if inner is None or isinstance(inner, str) or (_has(own, "encode") and _has(own, "decode")):
            break
        template = template or _part(own, "chat_template")
        own = inner
    if isinstance(own, tokenizers.implementations.BaseTokenizer):
        own = own._tokenizer
    if isinstance(own, torch.nn.Module) or not any(_has(own, name) for name in ("encode", "decode", "__call__")):
        raise TypeError(
            f"tokenizer must be a tokenizer, not {_kind(given)}: load one with AutoTokenizer.from_pretrained(...)"
        )
    if isinstance(own, tokenizers.Tokenizer) and (own.truncation is not None or own.padding is not None):
        try:
            own = copy.deepcopy(own)  # the caller's keeps what it is set to
        except Exception as error:  # parts of it are Python's
            raise TypeError(
                "tokenizer truncates or pads, and cannot be copied without that: call its no_truncation() and "
                "no_padding() first"
            ) from error
        own.no_truncation()
        own.no_padding()
    return Tokenizer(own, template if isinstance(template, str) else None)


def plain_text(given: str, name: str) -> str:
    """``given`` as a plain string.

    Raises:
        ValueError: if it holds half of a character, as JSON from the web may; no tokenizer takes it.
    """
    plain = str.__str__(given)
    place = next((i for i, sign in enumerate(plain) if "\ud800" <= sign <= "\udfff"), None)
    if place is not None:
        raise ValueError(
            f"{name} is no text: it holds half of a character (a lone surrogate), {plain[place]!r}, at index {place}; "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') mends it"
        )
    return plain


def token_texts(ids: list[int], tokenizer) -> tuple[list[str] | None, str]:
    """One string a token, as it reads in the text, and what the reader should know of them; None without any.

    Tokens that are part of a character come as the tokenizer spells them.
    """
    tokenizer = read(tokenizer)
    known = {one: tokenizer.text([one]) for one in dict.fromkeys(ids)}
    if all(text is None for text in known.values()):
        return None, "The tokenizer cannot turn ids into text, so that the result carries no token texts."
    without = [one for one, text in known.items() if text in (None, f"<{one}>") and tokenizer.pieces([one]) == [None]]
    note = ""
    if without:
        note = f"The tokenizer has no text for {_several(len(without), 'id')} of the prompt, {without[0]} first."
    return [f"<{one}>" if known[one] is None else known[one] for one in ids], note


def special_flags(ids: list[int], tokenizer) -> tuple[list[bool] | None, str]:
    """Whether each id is a special token, and what the reader should know; None if the tokenizer does not say."""
    tokenizer = read(tokenizer)
    special, put = tokenizer.special_ids, {*tokenizer.added[0], *tokenizer.added[1]}
    silent = "The tokenizer does not say which of its tokens are special, so that "
    if special is None and not put:
        return None, silent + "none is marked."
    note = silent + "only those are marked that it puts around a text." if special is None else ""
    return [one in put or one in (special or ()) for one in ids], note


def around(whole: list[int], plain: list[int]) -> tuple[list[int], list[int]] | None:
    """What lies before ``plain`` in ``whole``, as much as may be, and behind it; None if it is not there."""
    for start in range(len(whole) - len(plain), -1, -1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return None


def _signs(text: str) -> set[str]:
    """Its characters, without their case, width and accents, and the line ends alone of its blanks."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", "".join(set(text))).casefold())
    return {one for one in plain if not (one in "\t \u2581" or unicodedata.category(one) == "Zs" or _is_accent(one))}


def _is_accent(sign: str) -> bool:
    return "\u0300" <= sign <= "\u036f"


def _flat(found) -> list[int] | None:
    """The ids of whatever an encode gives back; None if there are none in it."""
    if isinstance(found, Mapping):
        found = found.get("input_ids")
    found = getattr(found, "ids", found)
    found = found.tolist() if hasattr(found, "tolist") else found
    if isinstance(found, Iterable) and not isinstance(found, str | bytes | Mapping):
        found = list(found)
        if len(found) == 1 and isinstance(found[0], list | tuple):
            found = list(found[0])
        return _ids(found)
    return None


def _ids(found) -> list[int] | None:
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping):
        return None
    try:
        ids = [None if isinstance(one, bool) else operator.index(one) for one in found]
    except TypeError:
        return None
    return None if None in ids else ids


def _is_special(token) -> bool:
    return bool(token.get("special") if isinstance(token, Mapping) else getattr(token, "special", False))


def _has(given, name: str) -> bool:
    return callable(_part(given, name))


def _part(given, name: str):
    try:
        return getattr(given, name, None)
    except Exception:  # foreign code
        return None


def _kind(given) -> str:
    return type(given).__name__


def _said(error: Exception) -> str:
    """Its name, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _spelled(piece: str) -> str:
    r"""A piece of a byte-level vocabulary that is no whole characters, its bytes past ASCII as \xNN."""
    if not all(sign in _BYTES for sign in piece):
        return piece
    return "".join(_byte(_BYTES[sign]) for sign in piece)


def _byte(value: int) -> str:
    return chr(value) if 32 <= value < 127 else f"\\x{value:02x}"


def _byte_signs() -> dict[str, int]:
    """The sign that byte-level BPE (Radford et al. 2019) writes for a byte: itself where it prints, or U+0100 on."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_signs()

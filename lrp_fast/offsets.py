"""Where a prompt's tokens stand in its text."""

from __future__ import annotations

import re

import numpy as np
import tokenizers
import torch

from .tokenizer import _BYTES, BLANK, Tokenizer

# What `lrp_fast.tokenizer.token_texts` shows of a part of a character: its bytes past ASCII, or that there is one.
_PART = re.compile(r"\\x[89a-f][0-9a-f]|<0x[89A-F][0-9A-F]>|\ufffd")


def anchors(text: str, ids: list[int], tokenizer: Tokenizer) -> np.ndarray | None:
    """(N,) int64: of each token the index in ``text`` of its first character that is no blank (of its first, where all
    are), -1 of a token that stands for no characters. None where the tokenizer does not tell, and its tokens' texts
    do not follow each other as in ``text``."""
    spans = _told(text, ids, tokenizer)
    if spans is None:
        spans = _followed(text, ids, tokenizer)
    return None if spans is None else np.array([_first(text, *span) for span in spans], np.int64)


def decoded(ids: list[int], tokenizer: Tokenizer) -> tuple[str, np.ndarray | None] | None:
    """The text that the tokenizer makes of all ids together, special ones included, and their `anchors` in it: None
    where they cannot be told. None of both where it makes no text."""
    text = tokenizer.decode(ids)
    if text is None:
        return None
    for find in (_told, _by_bytes, _followed):
        spans = find(text, ids, tokenizer)
        if spans is not None:
            return text, np.array([_first(text, *span) for span in spans], np.int64)
    return text, None


def part_of_a_character(tokens: list[str]) -> int | None:
    """The first of the tokens' texts that spells a part of a character, as `lrp_fast.tokenizer` does; None of none."""
    return next((i for i, one in enumerate(tokens) if _PART.search(one)), None)


def joined(tokens: list[str]) -> tuple[str, np.ndarray]:
    """The texts of tokens as one, and their `anchors` in it; none of them is a part of a character."""
    ends = np.cumsum([len(one) for one in tokens])
    text = "".join(tokens)
    spans = zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)
    return text, np.array([_first(text, *span) for span in spans], np.int64)


def _first(text: str, start: int, end: int) -> int:
    if end <= start:
        return -1
    return start + (end - start - len(text[start:end].lstrip()) if text[start:end].strip() else 0)


def _told(text: str, ids: list[int], tokenizer: Tokenizer) -> list[tuple[int, int]] | None:
    """By the tokenizer itself, if it makes these ids of the text: fast ones tell."""
    own = tokenizer.own
    for added in (True, False):
        try:
            if isinstance(own, tokenizers.Tokenizer):
                found = own.encode(text, add_special_tokens=added)
                made, spans = found.ids, found.offsets
            else:
                found = own(text, add_special_tokens=added, return_offsets_mapping=True)
                made, spans = found["input_ids"], found["offset_mapping"]
            if list(made) == ids:
                return [(int(start), int(end)) for start, end in spans]
        except Exception:  # foreign code: it has no offsets, or is not called so
            continue
    return None


def _followed(text: str, ids: list[int], tokenizer: Tokenizer) -> list[tuple[int, int]] | None:
    """By the texts of the tokens, one behind the other; special ones need not stand there."""
    special, known = tokenizer.special_ids or frozenset(), {}
    spans, at = [], 0
    for one in ids:
        if one not in known:
            known[one] = tokenizer.text([one])
        piece = known[one]
        if piece is None:
            return None
        start = at
        if not text.startswith(piece, at):
            if one in special:
                spans.append((at, at))
                continue
            piece = piece.strip()  # blanks may be the tokenizer's own, or be left out by it
            start = len(text) - len(text[at:].lstrip())
            if not text.startswith(piece, start):
                return None
        spans.append((start, start + len(piece)))
        at = start + len(piece)
    return None if text[at:].strip() else spans


def _by_bytes(text: str, ids: list[int], tokenizer: Tokenizer) -> list[tuple[int, int]] | None:
    """By the bytes that the tokens stand for, if together they are the text's: a token may be part of a character, and
    begins with the one that its first byte is of."""
    whole, special = text.encode("utf-8", "surrogatepass"), tokenizer.special_ids or frozenset()
    pieces = {one: tokenizer.pieces([one])[0] for one in dict.fromkeys(ids)}
    for spelled in (_byte_level, _sentencepiece):
        known = {one: b"" if piece is None else spelled(piece) for one, piece in pieces.items()}
        parts = [known[one] for one in ids]
        if b"".join(parts) != whole:  # the blank before a text's first word is the tokenizer's own
            first = next((i for i, one in enumerate(ids) if one not in special and known[one]), None)
            if first is None or not parts[first].startswith(b" "):
                continue
            parts[first] = parts[first][1:]
        if b"".join(parts) == whole:
            begun = np.cumsum((np.frombuffer(whole, np.uint8) & 0xC0) != 0x80)  # characters, up to each byte
            ends = np.cumsum([len(one) for one in parts]).tolist()
            places = zip([0, *ends[:-1]], ends, strict=True)
            return [(int(begun[at]) - 1, int(begun[end - 1])) if end > at else (0, 0) for at, end in places]
    return None


def _byte_level(piece: str) -> bytes:
    """Of byte-level BPE (Radford et al. 2019): a sign a byte, but for added tokens of other signs."""
    if all(sign in _BYTES for sign in piece):
        return bytes(_BYTES[sign] for sign in piece)
    return piece.encode("utf-8", "surrogatepass")


def _sentencepiece(piece: str) -> bytes:
    """Of SentencePiece with byte fallback (Kudo and Richardson 2018): words as they are, and single bytes as <0xNN>."""
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(BLANK, " ").encode("utf-8", "surrogatepass")


def runs(inside: torch.Tensor) -> list[tuple[int, int]]:
    """Where (N,) truth values are true, one behind the other: start, and one past the end."""
    steps = torch.nn.functional.pad(inside.int(), (1, 1)).diff()
    starts, ends = ((steps == step).nonzero().flatten().tolist() for step in (1, -1))
    return list(zip(starts, ends, strict=True))

"""The prompt, as given or from a file: what of a file's bytes is the prompt, and what an editor put around it."""

from __future__ import annotations

import argparse
import codecs
import sys
from pathlib import Path

# Longest first: UTF-32's mark begins as UTF-16's does. The codecs named here drop the mark, and one alone.
_MARKS = [
    (codecs.BOM_UTF32_LE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF32_BE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF8, "UTF-8", "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "UTF-16", "utf-16"),
    (codecs.BOM_UTF16_BE, "UTF-16", "utf-16"),
]


def _read_prompt(options: argparse.Namespace) -> str:
    if options.prompt is not None:
        if any("\ud800" <= sign <= "\udfff" for sign in options.prompt):
            raise ValueError("--prompt is no text in this locale's encoding: use a UTF-8 locale, or --prompt-file")
        return options.prompt
    name = "standard input" if options.prompt_file == "-" else options.prompt_file
    text = _decoded(_read_bytes(options.prompt_file), name)
    if "\0" in text:
        mend = "if it is UTF-16, save it with a byte-order mark, or as UTF-8"
        print(f"the prompt in {name} keeps its NUL characters: {mend}", file=sys.stderr)
    return _with_plain_line_ends(text, name)


def _read_bytes(file: str) -> bytes:
    try:
        if file != "-":
            return Path(file).read_bytes()
        if sys.stdin is None:
            raise ValueError("--prompt-file -: there is no standard input; name a file, or give --prompt")
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ValueError(f"cannot read the prompt: {error}") from error


def _decoded(data: bytes, name: str) -> str:
    kind, codec = next(((kind, codec) for mark, kind, codec in _MARKS if data.startswith(mark)), ("UTF-8", "utf-8"))
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        found = "" if codec == "utf-8" else ", though it begins with that encoding's byte-order mark"
        raise ValueError(f"the prompt in {name} is no {kind} text{found}: {error}") from error


def _with_plain_line_ends(text: str, name: str) -> str:
    """Without the one at its end, which editors and echo write; CR LF within becomes LF where there is no other."""
    text = text[: -1 - text.endswith("\r\n")] if text.endswith("\n") else text
    if "\r" not in text:
        return text
    plain = text.replace("\r\n", "")
    if "\r" not in plain and "\n" not in plain:
        print(f"the line ends in {name} are Windows' (CR LF): in the prompt they are LF", file=sys.stderr)
        return text.replace("\r\n", "\n")
    ends = {"CR LF": "\r\n" in text, "LF": "\n" in plain, "CR": "\r" in plain}
    kinds = " and ".join(end for end, there in ends.items() if there)
    print(f"the line ends in {name} are {kinds}: they stay as they are, and are part of the prompt", file=sys.stderr)
    return text

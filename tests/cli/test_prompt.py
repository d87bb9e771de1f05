"""Prompt files: what of a file is the prompt."""

import argparse
import codecs
import io
import json

import pytest

from lrp_fast.cli import _read_prompt


@pytest.fixture
def read(tmp_path, capsys, monkeypatch):
    """``read(data)``: the prompt that the bytes hold, in a file and through standard input, and what stderr says."""

    def call(data):
        (tmp_path / "case.txt").write_bytes(data)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        found = []
        for file in (str(tmp_path / "case.txt"), "-"):
            prompt = _read_prompt(argparse.Namespace(prompt=None, prompt_file=file))
            found.append((prompt, capsys.readouterr().err.replace(file if file != "-" else "standard input", "FILE")))
        assert found[0] == found[1]
        return found[0]

    return call


TEXT = "Wer hat das Café\nam Ende — 😀?"
BOMS = {
    "utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE,
}  # fmt: skip


@pytest.mark.parametrize("codec", BOMS)
def test_a_byte_order_mark_is_not_part_of_the_prompt(codec, read):
    assert read(BOMS[codec] + TEXT.encode(codec)) == (TEXT, "")
    assert read(BOMS[codec] + (TEXT + "\n").encode(codec)) == (TEXT, "")
    assert read(BOMS[codec] * 2 + TEXT.encode(codec)) == ("\ufeff" + TEXT, "")  # a second one is a character
    assert read(BOMS[codec]) == ("", "")
    prompt, err = read(BOMS[codec] + (TEXT + "\n").replace("\n", "\r\n").encode(codec))
    assert prompt == TEXT and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "prompt", "said"),
    [
        ("a", "a", ""),
        ("a\n", "a", ""),
        ("a\r\n", "a", ""),
        ("a\n\n", "a\n", ""),
        (" a \t\n", " a \t", ""),
        ("a\nb\r\n", "a\nb", ""),
        ("\n", "", ""),
        ("\r\n", "", ""),
        ("a\r\nb\r\n", "a\nb", "are Windows' (CR LF): in the prompt they are LF"),
        ("a\r\nb\n", "a\nb", "are Windows' (CR LF)"),
        ("a\r\n\r\n", "a\n", "are Windows' (CR LF)"),
        ("a\r\nb\nc\n", "a\r\nb\nc", "are CR LF and LF: they stay as they are, and are part of the prompt"),
        ("a\r\nb\rc", "a\r\nb\rc", "are CR LF and CR: they stay"),
        ("a\rb\r", "a\rb\r", "are CR: they stay"),
        ("a\r\r\n", "a\r", "are CR: they stay"),
        ("a\r\n\n", "a\n", "are Windows' (CR LF)"),
        ("a\u2028b\x85\x0b\n", "a\u2028b\x85\x0b", ""),
    ],
)
def test_line_ends(text, prompt, said, read):
    found, err = read(text.encode())
    assert found == prompt
    assert (said in err and err.startswith("the line ends in FILE ") and err.count("\n") == 1) if said else err == ""


def test_text_in_utf_16_without_a_mark_keeps_its_nuls_and_that_is_said(read):
    prompt, err = read("a b".encode("utf-16-le"))
    assert prompt == "a\0 \0b\0" and "keeps its NUL characters" in err and "save it with a byte-order mark" in err
    assert read(codecs.BOM_UTF16_LE + "a b".encode("utf-16-le")) == ("a b", "")  # the mend


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"caf\xe9", "is no UTF-8 text: 'utf-8' codec"),
        (codecs.BOM_UTF16_LE + b"a", "is no UTF-16 text, though it begins with that encoding's byte-order mark"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8", "is no UTF-16 text"),
        (codecs.BOM_UTF32_BE + b"\x7f\xff\xff\xff", "is no UTF-32 text"),
    ],
)
def test_what_is_no_text_is_refused(data, message, read):
    with pytest.raises(ValueError, match=message):
        read(data)


def test_without_standard_input_there_is_no_prompt(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match="there is no standard input; name a file, or give --prompt"):
        _read_prompt(argparse.Namespace(prompt=None, prompt_file="-"))


def test_a_newline_at_the_end_of_a_prompt_file_is_not_part_of_the_prompt(run, tmp_path):
    for text in (b"the capital of australia is", b"\xef\xbb\xbfthe capital of australia is\r\n"):
        (tmp_path / "case.txt").write_bytes(text)
        status, out, _ = run("--prompt-file", "case.txt", "--json")
        assert status == 0 and len(json.loads(out)["tokens"]) == 5

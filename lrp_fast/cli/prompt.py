"""The prompt, as given or from a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def _read_prompt(options: argparse.Namespace) -> str:
    if options.prompt is not None:
        if any("\ud800" <= sign <= "\udfff" for sign in options.prompt):
            raise ValueError("--prompt is no text in this locale's encoding: use a UTF-8 locale, or --prompt-file")
        return options.prompt
    try:
        data = sys.stdin.buffer.read() if options.prompt_file == "-" else Path(options.prompt_file).read_bytes()
        return data.decode("utf-8").removesuffix("\n")  # editors and echo end a file so
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt in {options.prompt_file} is no UTF-8 text: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read the prompt: {error}") from error

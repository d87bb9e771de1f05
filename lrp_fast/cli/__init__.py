"""The command line: ``lrp-fast attribute``, ``lrp-fast graph``, ``lrp-fast plan`` and ``lrp-fast doctor``.

Results go to stdout, progress to stderr; the exit status is 0, 1 (failed), 2 (asked wrongly) or 130 (interrupted).
"""

from __future__ import annotations

import os
import sys

from .parser import build
from .prompt import _read_prompt

__all__ = ["_read_prompt", "main"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a token is anything: no terminal's encoding may fail on it
        stream.reconfigure(errors="backslashreplace")
    options = build().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("lrp-fast: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError) as error:  # lrp_fast's own words for input that cannot be honoured
        print(f"lrp-fast: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough; Python must not complain of it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, RuntimeError) as error:
        print(f"lrp-fast: failed: {error}", file=sys.stderr)
        return 1

"""Where ``lrp-fast`` begins: ``lrp-fast attribute``, ``graph``, ``study``, ``plan`` and more.

Results go to stdout, progress to stderr; the exit status is 0, 1 (failed), 2 (asked wrongly) or 130 (interrupted).
`import lrp_fast` brings torch and transformers with it, which takes seconds. This package lies beside it and needs
neither: help is shown, and an option that does not exist refused, before it imports the command.
"""

from __future__ import annotations

import importlib
import os
import sys

from .parser import build


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a token is anything: no terminal's encoding may fail on it
        stream.reconfigure(errors="backslashreplace")
    options = build().parse_args(arguments)
    options.command_line = ["lrp-fast", *(sys.argv[1:] if arguments is None else arguments)]
    try:
        return importlib.import_module(f"lrp_fast.cli.{options.command}").run(options)
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

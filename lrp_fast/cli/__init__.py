"""The commands of the command line, one a file: ``run(options)`` does it, and returns the exit status.

What can be asked for, and `main`, are in the package ``lrp_fast_cli``: importing this one takes seconds.
"""

from lrp_fast_cli import main

from .prompt import _read_prompt

__all__ = ["_read_prompt", "main"]

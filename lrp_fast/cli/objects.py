"""JSON objects that options name."""

from __future__ import annotations

from pathlib import Path


def read_object(option: str, given: str | Path, of: str) -> dict:
    """The object of an option, in the file that it names or, where a string looks like JSON, in the option itself.

    Raises:
        ValueError: in one sentence.
    """
    from ..reading import parsed

    itself = isinstance(given, str) and given.lstrip().startswith(("{", "["))
    name = option if itself else f"{option} {given}"
    try:
        found = parsed(given if itself else Path(given).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {option}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} must hold a JSON object of {of}")
    return found

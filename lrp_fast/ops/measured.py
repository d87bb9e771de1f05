"""What ``lrp-fast tune`` measured on this machine: one small file a device, in the user's cache, that `auto` obeys.

Whoever wrote it may have had another driver, Triton or lrp_fast: a file of others is not used. Nothing in it can make a
result wrong, but other tiles sum in another order, so that the last bits are those of the machine that was tuned.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import torch

from ..files import user_cache, write_atomically
from ..reading import cut, parsed, whole_of

FORMAT = "lrp_fast.tuned/1"
_MOST_BYTES = 1_000_000
_TOLD = "entries of tiles and paths that were measured to be fastest; with others, the last bits of results differ"
_KEYS = ("format", "about", "device", "capability", "torch", "triton", "lrp_fast", "tiles", "paths")
_PATHS = ("vendor", "cudnn", "triton")


class Device(NamedTuple):
    """What a measurement belongs to."""

    name: str
    capability: tuple[int, int]
    shared: int  # bytes of shared memory that a block may have


class Tile(NamedTuple):
    """A row's entry, as tiles.json has it, and the bytes of shared memory that it takes by Triton's account."""

    entry: list[int]
    shared: int


class Measured(NamedTuple):
    """By row of tiles.json a tile; by "attention backward, head_dim 128, 2 bytes" and its like "vendor", "cudnn" or
    "triton"."""

    tiles: dict[str, Tile]
    paths: dict[str, str]


class Found(NamedTuple):
    """What is to be obeyed, and where it is from.

    Attributes:
        state: "used"; "absent"; "other", of another device or version; "broken".
        told: the state in one sentence.
    """

    measured: Measured
    state: str
    told: str


NOTHING = Measured({}, {})


def device_of(device: torch.device) -> Device:
    known = torch.cuda.get_device_properties(device)
    return Device(known.name, (known.major, known.minor), known.shared_memory_per_block_optin)


def file_of(device: Device) -> Path:
    """Where the file of a device lies: one for each kind, since a home may be shared by several machines.

    Raises:
        OSError: as `user_cache`.
    """
    return user_cache() / f"tuned-{re.sub(r'[^a-z0-9]+', '-', device.name.lower()).strip('-')}.json"


def read(device: Device, table: dict) -> Found:
    """What was measured on ``device`` with what is installed here; never raises.

    Args:
        table: tiles.json, whose rows alone may have entries.
    """
    try:
        path = file_of(device)
    except OSError as error:
        return Found(NOTHING, "absent", f"nothing that was measured is read: {error}")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it takes {path.stat().st_size:,} bytes")
        told = parsed(path.read_text("utf-8"))
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise ValueError("it is no file that `lrp-fast tune` wrote")
        whole_of(told, _KEYS)
        for name, value in _key(device).items():
            if told[name] != value:
                other = f"{path} was measured with {name} {cut(str(told[name]))}, and this is {value}"
                return Found(NOTHING, "other", f"{other}: it is not used; run `lrp-fast tune` again")
        return Found(_checked(told, device, table), "used", f"tiles and paths as measured, {path}")
    except FileNotFoundError:
        return Found(NOTHING, "absent", f"nothing was measured on this {device.name} yet: `lrp-fast tune` does")
    except (OSError, ValueError) as error:
        why = f"{path} is not used: {cut(str(error)).rstrip('.')}"
        return Found(NOTHING, "broken", f"{why}; delete it, or run `lrp-fast tune` again")


def write(device: Device, measured: Measured) -> Path:
    """Replaces the file of ``device``, whole or not at all.

    Raises:
        OSError: if it cannot be written; in one sentence.
    """
    path = file_of(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = {row: tile._asdict() for row, tile in measured.tiles.items()}
    told = {"format": FORMAT, "about": _TOLD, **_key(device), "tiles": tiles, "paths": measured.paths}
    write_atomically(path, (json.dumps(told, indent=1) + "\n").encode())
    return path


def fits(entry: list[int], like: list[int]) -> str | None:
    """Why ``entry`` can be none of a row whose entries are ``like``; None where it can."""
    if not isinstance(entry, list) or len(entry) != len(like) or not all(type(one) is int for one in entry):
        return f"is no list of {len(like)} whole numbers"
    *blocks, warps, stages = entry
    if not all(16 <= one <= 256 and one & (one - 1) == 0 for one in blocks):
        return "has a block that is no power of two from 16 to 256"
    if warps not in (1, 2, 4, 8, 16):
        return "has warps that are not 1, 2, 4, 8 or 16"
    return None if 1 <= stages <= 8 else "has stages that are not 1 to 8"


def _key(device: Device) -> dict[str, str]:
    from .. import __version__  # which imports this package first

    return {
        "device": device.name,
        "capability": ".".join(map(str, device.capability)),
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__,
        "lrp_fast": __version__,
    }


def _checked(told: dict, device: Device, table: dict) -> Measured:
    tiles, paths = told["tiles"], told["paths"]
    if not isinstance(tiles, dict) or not isinstance(paths, dict):
        raise ValueError("its tiles and paths are no JSON objects")
    for row, tile in tiles.items():
        name = cut(repr(row))
        if row not in table:
            raise ValueError(f"it has tiles for {name}, which is no row of tiles.json")
        if not isinstance(tile, dict) or set(tile) != set(Tile._fields) or type(tile["shared"]) is not int:
            raise ValueError(f"its tile for {name} is no entry with the shared memory that it takes")
        if (why := fits(tile["entry"], next(iter(table[row].values())))) is not None:
            raise ValueError(f"its entry for {name} {why}")
        if not 0 <= tile["shared"] <= device.shared:
            raise ValueError(
                f"its entry for {name} takes {tile['shared']:,} bytes of shared memory, and a block has "
                f"{device.shared:,} here"
            )
    for row, path in paths.items():
        if not re.fullmatch(r"attention (forward|backward), head_dim (64|128|256), 2 bytes", row) or path not in _PATHS:
            raise ValueError(f"its path for {cut(repr(row))} is {cut(repr(path))}")
    return Measured({row: Tile(**tile) for row, tile in tiles.items()}, dict(paths))

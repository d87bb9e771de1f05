"""The table of tile configurations, tiles.json: a row a kernel, element size and shape; an entry a kind of device.

An entry is what the kernel is launched with: the fields of `attention.Tiles` or `linear.Tiles`. "small" is for devices
that give a block 101376 bytes of shared memory (sm_80, with more, sm_86, sm_89 and sm_120), "large" for those that give
it 232448 (sm_90, sm_100). One for an exact compute capability, "9.0", goes before both.

``lrp-fast tune`` times neighbours of the entries on the GPU that it runs on; what it finds goes to the user's cache,
and from there into the table that launchers are given. Whoever changes an entry here lets the compile gate compare its
shared memory and stack with what the devices have.
"""

import json
from pathlib import Path

Table = dict[str, dict[str, list[int]]]

FILE = Path(__file__).with_name("tiles.json")


def find(table: Table, row: str, on: tuple[int, int]) -> list[int]:
    """The entry of ``row`` for a device of compute capability ``on``."""
    entries = table[row]
    exact = exactly(on)
    return entries[exact if exact in entries else "large" if on[0] in (9, 10) else "small"]


def exactly(on: tuple[int, int]) -> str:
    return f"{on[0]}.{on[1]}"


def replaced(table: Table, row: str, on: tuple[int, int], entry: list[int]) -> Table:
    """A table with another entry for exactly the capability ``on``."""
    return table | {row: table[row] | {exactly(on): list(entry)}}


TABLE: Table = json.loads(FILE.read_text())

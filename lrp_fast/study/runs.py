"""Runs that have ended, as they are read to be compared."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import measures
from .folder import Folder
from .table import spelled_out, table

FIGURES = ("value", "target_rank", "contrast_rank", *measures.NAMES)
WIDE = ("target_rank", "contrast_rank", "early_late")  # over orders of magnitude


@dataclass(frozen=True)
class Run:
    """A run that is compared.

    Attributes:
        name: its folder's name, with as much of the path before it as tells it from the others.
        folder, manifest: see `lrp_fast.study.folder`.
        table: a DataFrame, `lrp_fast.study.table` with the id as index, and a column for each of ``figures``.
        figures: `FIGURES` and, where there are graphs, "graph.NAME": the mean over the layers of each of their
            `lrp_fast.graph.measures`.
        asked: what each case asks, by id; None where that is not known.
    """

    name: str
    folder: Folder
    manifest: dict
    table: object
    figures: list[str]
    asked: dict[str, object]


def read_runs(given) -> list[Run]:
    """The runs in some folders.

    Raises:
        FileNotFoundError, ValueError: as `lrp_fast.study.compare`.
    """
    folders = [one if isinstance(one, Folder) else Folder(one) for one in given]
    paths = [one.path.resolve() for one in folders]
    found = []
    for folder, name in zip(folders, _names(paths), strict=True):
        manifest = folder.manifest()
        if not folder.table.is_file():
            raise FileNotFoundError(
                f"the run in {os.fspath(folder.path)!r} has no table yet: the command that began it goes on where it "
                "was, and writes it at the end"
            )
        rows = table(folder).set_index("id")
        graphs = _of_graphs(rows)
        asked = {case.id: case.fields.get("asked", case.prompt) for case in folder.cases()}
        found.append(Run(name, folder, manifest, rows.assign(**graphs), [*FIGURES, *graphs], asked))
    return found


def _names(paths: list[Path]) -> list[str]:
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"the folder {twice.name!r} is given twice: a run is compared with others")
    return [spelled_out("/".join(_ending(path, paths))) for path in paths]


def _ending(path: Path, paths: list[Path]) -> tuple[str, ...]:
    """The shortest that no other path has."""
    counts = range(1, len(path.parts) + 1)
    return next(path.parts[-n:] for n in counts if sum(one.parts[-n:] == path.parts[-n:] for one in paths) == 1)


def _of_graphs(rows) -> dict[str, list[float]]:
    graphs = [one if isinstance(one, dict) else {} for one in rows.get("graph", [])]
    names = dict.fromkeys(name for one in graphs for name in one if name != "layer")
    return {f"graph.{name}": [float(np.mean(one.get(name, math.nan))) for one in graphs] for name in names}

"""A comparison as files, in a folder of its own.

    summary.json        what was compared, and the figures below in brief: see `summary`
    TABLE.csv, .parquet of each of the tables that `lrp_fast.study.comparison` names
    *.svg               the plots of `lrp_fast.study.plots.pictures`

Each is written aside and renamed, the summary last. A folder that holds an earlier comparison is written over: what
that one had written, by its summary, and this one has not, is taken away.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from ..files import aside, without_infinity, write_atomically
from . import plots
from .comparison import Comparison
from .table import check_installed

FORMAT = "lrp_fast.comparison/1"
_MANIFEST = ("model", "revision", "fingerprint", "dtype", "device", "rules", "tolerance", "graph", "versions")
_FLIPS = ("sign", "preferred", "finding", "status")


def check_folder(folder: str | os.PathLike) -> None:
    """ValueError for a folder that holds something else than an earlier comparison."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{os.fspath(path)!r} is no folder: name a new one")
    if path.is_dir() and any(path.iterdir()) and _written(path) is None:
        raise ValueError(f"the folder {os.fspath(path)!r} holds other things than a comparison: name a new one")


def write(comparison: Comparison, folder: str | os.PathLike) -> list[str]:
    """Write a comparison into a folder; the names of its files.

    Raises:
        ValueError: for a folder that holds something else than an earlier comparison.
        OSError: if it cannot be written.
        ModuleNotFoundError: without matplotlib (the extra ``study``).
    """
    check_installed("matplotlib")
    check_folder(folder)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    before = _written(path) or []
    names = []
    for name, table in comparison.tables().items():
        with aside(path / f"{name}.parquet") as part:
            table.to_parquet(part, index=False)
        write_atomically(path / f"{name}.csv", table.to_csv(index=False).encode())
        names += [f"{name}.parquet", f"{name}.csv"]
    for name, picture in plots.pictures(comparison).items():
        write_atomically(path / name, f'<?xml version="1.0" encoding="utf-8"?>\n{picture}'.encode())
        names.append(name)
    text = json.dumps({"format": FORMAT} | summary(comparison) | {"files": names}, ensure_ascii=False, allow_nan=False)
    write_atomically(path / "summary.json", f"{text}\n".encode("utf-8", "backslashreplace"))
    for name in set(before) - set(names):
        with suppress(FileNotFoundError):
            (path / name).unlink()
    return [*names, "summary.json"]


def _written(path: Path) -> list[str] | None:
    """What an earlier comparison wrote; None if there is none."""
    try:
        found = json.loads((path / "summary.json").read_text("utf-8"))
        if found["format"] == FORMAT:
            return [name for name in found["files"] if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def summary(comparison: Comparison) -> dict:
    """A comparison in brief, as JSON holds it; what is not defined is null.

        runs        of each its name; model, revision, fingerprint, dtype, device, rules, tolerance, graph, versions
                    and seed as in its manifest; how many cases it has, and how many are done, failed and refused
        differ      which of those of the manifest, but for the seed, are not the same in all
        seed        of the intervals
        cases       how many ids there are, in one run or another; ``shared``, how many are compared in every run
        pairs       of the first run (base) and each other (run): how many cases are compared; of how many the tokens
                    are others (other_tokens); what is left_out, a list of ids by what is in the way; figures by their
                    names, and segments, as the tables have them; flips, a list of ids by what has changed
        segments    by run, as the table has them
    """
    cases = comparison.cases
    manifests = [run.manifest for run in comparison.runs]
    runs = []
    for run in comparison.runs:
        status = cases[f"status.{run.name}"]
        counts = {one: int((status == one).sum()) for one in ("done", "failed", "refused")}
        told = {name: run.manifest.get(name) for name in (*_MANIFEST, "seed")}
        runs.append({"name": run.name, **told, "cases": len(run.table), **counts})
    found = {
        "runs": runs,
        "differ": [name for name in _MANIFEST if any(one.get(name) != manifests[0].get(name) for one in manifests)],
        "seed": comparison.seed,
        "cases": len(cases),
        "shared": int(cases.shared.sum()),
        "pairs": [_pair(comparison, run.name) for run in comparison.runs[1:]],
        "segments": {run.name: _rows(comparison.segments, run.name, "segment", ("run",)) for run in comparison.runs},
    }
    return without_infinity(found)


def _pair(comparison: Comparison, run: str) -> dict:
    compared = comparison.cases[f"compared.{run}"]
    left_out, flips = (one[one.run == run] for one in (comparison.left_out, comparison.flips))
    drop = ("base", "run")
    return {
        "base": comparison.runs[0].name,
        "run": run,
        "compared": int(compared.sum()),
        "other_tokens": int((compared & ~comparison.cases[f"same_tokens.{run}"]).sum()),
        "left_out": {what: left_out.id[left_out.what == what].tolist() for what in dict.fromkeys(left_out.what)},
        "figures": _rows(comparison.figures, run, "figure", drop),
        "segments": _rows(comparison.segment_differences, run, "segment", drop),
        "flips": {what: flips.id[flips.what == what].tolist() for what in _FLIPS},
    }


def _rows(table, run: str, key: str, drop: tuple[str, ...]) -> dict[str, dict]:
    rows = table[table.run == run].drop(columns=list(drop)).to_dict("records")
    return {row.pop(key): row for row in rows}

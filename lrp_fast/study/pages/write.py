"""Which pages are written, and where."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...attribution import load
from ...files import write_atomically
from ...report.html import as_page, case_page, templates
from .. import folder as folders
from ..cases import Case
from ..comparison import compare as compare_runs
from ..folder import Folder
from ..statistics import read_seed
from ..table import check_installed, plain_fields, spelled_out
from . import index, overview, seen, side_by_side

FORMAT = "lrp_fast.study.pages/1"
_OURS = {"index.html", "comparison.html", "cases", "runs", "pages.json", ".lock"}
_END = b"</html>\n"
_FACTS, _FACT = 12, 300  # of a case's fields on its page, and characters of one


def page(
    run: str | os.PathLike | Folder,
    compare: str | os.PathLike | Folder | Sequence[str | os.PathLike | Folder] = (),
    out: str | os.PathLike | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the pages of a run, and of others compared with it, into a folder of their own.

    A run that has not ended, or is running, has pages too, of what is there; it is compared when it has its table. A
    case without a result is a row that says why, and so is one whose result is torn.

    Args:
        run: the folder of a run.
        compare: that of another, or those of others.
        out: a new folder, or one that holds pages of the same run; RUN/pages if left out.
        seed: of the bootstrap intervals, as of `lrp_fast.study.compare`.
        progress: called after every case with how many are behind, and of how many, of all the runs.

    Returns:
        The path of index.html.

    Raises:
        FileNotFoundError, ValueError: for a folder that is no study's, one that holds other things, and one that
            another process writes; and as of `lrp_fast.study.compare`.
        OSError: if the disk is full, or something else is wrong with it. What is written stays.
        ModuleNotFoundError: without matplotlib, pandas and pyarrow (the extra ``study``).
    """
    check_installed("matplotlib", "pandas", "pyarrow")
    read_seed(seed)
    others = [compare] if isinstance(compare, str | os.PathLike | Folder) else compare
    runs = [one if isinstance(one, Folder) else Folder(one) for one in (run, *others)]
    for one in runs:
        one.manifest()  # which says so of a folder that is no study's
    cases = [one.cases() for one in runs]
    compared = compare_runs(*runs, seed=seed) if others else None
    out = runs[0].path / "pages" if out is None else Path(out)
    names = [one.name for one in compared.runs] if compared else [runs[0].path.resolve().name]
    places = ["", *(f"runs/{_which(one)}/" for one in runs[1:])]
    count, behind = sum(map(len, cases)), 0

    def tell() -> None:
        nonlocal behind
        behind += 1
        if progress is not None:
            progress(behind, count)

    with _writing(out, runs[0]) as since:
        there = compared or (out / "comparison.html").is_file()
        links = [("Comparison", "comparison.html")] if there else []
        rows = [_write(runs[0], names[0], cases[0], out, since, links, seed, tell)]
        for one, name, own, place in zip(runs[1:], names[1:], cases[1:], places[1:], strict=True):
            links = [(names[0], "../../index.html"), ("Comparison", "../../comparison.html")]
            with _writing(out / place, one) as since:
                rows.append(_write(one, name, own, out / place, since, links, seed, tell))
        if compared:
            write_atomically(out / "comparison.html", as_page("study", side_by_side.data(compared, rows, places)))
    return out / "index.html"


def _which(run: Folder) -> str:
    """A digest of what was begun; a run that has gone on is the same."""
    begun = {name: one for name, one in run.manifest().items() if name not in ("packs", "command")}
    return hashlib.sha256(json.dumps(begun, sort_keys=True).encode()).hexdigest()[:20]


@contextmanager
def _writing(out: Path, run: Folder) -> Iterator[int]:
    """Within the block the folder is there, for pages of this run, and this process's alone.

    Gives the time, in ns as of `os.stat`, at which the oldest of its pages that still hold can have been written.
    """
    marker = out / "pages.json"
    made = {kind: hashlib.sha256(text.encode()).hexdigest() for kind, text in templates("page").items()}
    own = {"format": FORMAT, "run": _which(run), "made_from": made}
    if out.is_dir() and not marker.is_file():
        others = sorted(one.name for one in out.iterdir() if one.name not in _OURS and not folders.is_part(one))
        if others:
            raise ValueError(f"the folder {os.fspath(out)!r} holds other things, {others[0]!r}: name a new one")
    folders.make(out)
    with folders.locked(out):
        found = _read(marker)
        if found is not None and found.get("run") != own["run"]:
            raise ValueError(f"the folder {os.fspath(out)!r} holds the pages of another run: name a new one")
        (out / "cases").mkdir(exist_ok=True)
        for place in (out, out / "cases"):
            folders.sweep(place)
        if found != own:
            write_atomically(marker, (json.dumps(own, indent=1) + "\n").encode())
        yield marker.stat().st_mtime_ns


def _read(marker: Path) -> dict | None:
    try:
        found = json.loads(marker.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(
    run: Folder,
    name: str,
    cases: list[Case],
    out: Path,
    since: int,
    links: list[tuple[str, str]],
    seed: int,
    tell: Callable[[], None],
) -> list[index.Row]:
    """The pages of one run; its rows."""
    statuses, told, observe, rows = run.statuses(), index.told(run), run.manifest().get("observe"), []
    for case in cases:
        more = told.get(spelled_out(case.id), {})
        rows.append(_case(run, case, statuses.get(case.id), more, out / "cases", since, observe))
        tell()
    write_atomically(out / "index.html", as_page("study", overview.data(run, name, rows, links, seed)))
    return rows


def _case(
    run: Folder, case: Case, entry: dict | None, told: dict, place: Path, since: int, observe: dict | None
) -> index.Row:
    """A row, and its page where there is none that holds."""
    if entry is None:
        return index.Row.of(case, "waiting", "the run has not come to it", None, told)
    if entry["status"] != "done":
        return index.Row.of(case, entry["status"], entry["why"], None, told)
    path, page = run.result(case.id), place / f"{folders.key(case.id)}.html"
    try:
        result = load(path)
        if not _holds(page, max(since, path.stat().st_mtime_ns, seen.changed(run, case))):
            links = [("All cases", "../index.html")]
            facts = [*_facts(case), *seen.facts(run, case, result, observe)]
            write_atomically(page, case_page(result, links, facts), sweep=False)
        return index.Row.of(case, "done", None, result, told)
    except FileNotFoundError:
        if path.exists():
            raise
        why = "its result is missing: start the run again, and it is made again"
    except ValueError as error:
        why = str(error).replace(repr(os.fspath(path)), "its result")  # pages are passed on: no paths
    return index.Row.of(case, "lost", why, None, told)


def _holds(page: Path, since: int) -> bool:
    """Whether a page is there, younger than that, to its end: a loss of power may have cut it."""
    try:
        with open(page, "rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END and os.fstat(file.fileno()).st_mtime_ns >= since
    except OSError:
        return False


def _facts(case: Case) -> list[tuple[str, str]]:
    """The case's id and its fields that are plain."""
    fields = plain_fields([case])
    cut = {name: str(one) for name, (one,) in fields.items()}
    told = [(name, one if len(one) <= _FACT else one[: _FACT - 1] + "…") for name, one in cut.items()]
    return [("Case", case.id), *told[:_FACTS]]

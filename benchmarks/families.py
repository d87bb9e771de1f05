"""The README's table of models: what the tests show of each of transformers' decoders, by its ``model_type``.

    python benchmarks/run.py families      # runs the tests that show something, writes results/families.json
    python benchmarks/families.py          # makes the README's table of results/families*.json (`make families`: both)

A test says by its marker, ``shows("graph")`` say, which column it speaks for, and by its parameter ``model_type`` or
``family``, or the marker's argument of that name, of which model. A test that one is refused says why by its property
``refused``. tests/conftest.py counts how they come out. `make gpu` writes results/families-gpu.json, for the column
"gpu".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lrp_fast.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
# what a test may show: the column's heading
COLUMNS = {
    "attribution": "attribution", "graph": "graph", "streaming": "streaming", "quantised": "quantised",
    "adapters": "adapters", "gpu": "on a GPU",
}  # fmt: skip
MARKS = ("<!-- families: made by benchmarks/families.py -->\n\n", "\n\n<!-- end of families -->")


def measure() -> dict:
    """How the tests came out that need no GPU: model_type -> column -> outcome -> number of tests. In two processes."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{shard}.json" for shard in range(2)]
        options = ["-q", "-p", "no:cacheprovider", "-m", "shows and not gpu", "--ignore=tests/kernels", "tests"]
        command = [sys.executable, "-P", "-m", "pytest", *options]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        running = [
            subprocess.Popen(
                [*command, f"--families={path}", f"--shard={shard}/{len(paths)}"],
                cwd=ROOT, stdout=sys.stderr, env=one_thread,
            )
            for shard, path in enumerate(paths)
        ]  # fmt: skip
        for process in running:
            process.wait()
        if not all(path.is_file() for path in paths):
            raise RuntimeError("pytest did not run to its end: nothing is said about the families")
        return added_up(json.loads(path.read_text()) for path in paths)


def added_up(counts: Iterable[dict]) -> dict:
    """Several such counts as one."""
    total = {}
    for one in counts:
        for family, columns in one.items():
            for column, outcomes in columns.items():
                total.setdefault(family, {}).setdefault(column, Counter()).update(outcomes)
    return total


def table(results: dict) -> str:
    """A row for each decoder of transformers, those that are covered first.

    Raises:
        ValueError: for a model or a column that the table does not have.
    """
    shown, known = results["shown"], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    columns = {column for found in shown.values() for column in found}
    for name in {*shown} - {*known} | columns - {*COLUMNS, "refused"}:
        raise ValueError(f"a test shows {name!r}, which is no decoder of transformers, nor one of {', '.join(COLUMNS)}")
    lines = [f"| model_type | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    rows = {}
    for name in sorted(known):
        found = shown.get(name, {})
        cells = [verdict(found.get(column, {})) for column in COLUMNS]
        if "refused" in found:
            cells = [f"no: {', '.join(found['refused'])}", *["no"] * (len(COLUMNS) - 1)]
        rows[name] = cells
    for name, cells in sorted(rows.items(), key=lambda row: row[1][0] != "yes"):
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(results: dict) -> str:
    """How many of them."""
    shown, known = results["shown"], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    of = {column: sum(verdict(found.get(column, {})) == "yes" for found in shown.values()) for column in COLUMNS}
    return (
        f"Of the {len(known)} causal language models of transformers, {of['attribution']} have attributions that agree "
        f"with an independent oracle, {of['graph']} have graphs, and "
        f"{sum('refused' in found for found in shown.values())} are refused with a reason."
    )


def verdict(outcomes: dict[str, int]) -> str:
    """"yes" where every test passed, and there was one; one that was skipped shows nothing."""
    if outcomes.get("failed"):
        return "**fails**"
    return "yes" if outcomes.get("passed") and not outcomes.get("skipped") else "not yet"


def section(reports: list[dict]) -> str:
    """What stands between the marks: the table, and a line for each report that it is made of."""
    results = {"shown": added_up(report["results"]["shown"] for report in reports)}
    lines = [summary(results), "", "<details><summary>Each of them</summary>", "", table(results), "", "</details>", ""]
    for report in reports:
        versions = ", ".join(f"{name} {report['versions'][name]}" for name in ("torch", "transformers"))
        device = report["results"].get("gpu", "CPU")
        lines.append(f"Commit {report['commit']}, {versions}, {device}.")
    return "\n".join(lines)


def committed() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob("families*.json"))]


def between_marks(readme: str, marks: tuple[str, str] = MARKS) -> tuple[str, str, str]:
    """What comes before them, the first included, what stands between them, and what comes after it."""
    before, _, rest = readme.partition(marks[0])
    inside, mark, after = rest.partition(marks[1])
    if not mark:
        raise ValueError(f"README.md lacks the lines {marks[0].strip()} and {marks[1].strip()}, in this order")
    return before + marks[0], inside, mark + after


if __name__ == "__main__":
    readme = ROOT / "README.md"
    before, _, after = between_marks(readme.read_text("utf-8"))
    write_atomically(readme, f"{before}{section(committed())}{after}".encode())

"""What `make gpu` measured, for the README: results/model*.json and results/kernels.json.

python benchmarks/gpu_tables.py      # writes what stands between the README's marks
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from families import put_between

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKS = ("<!-- gpu: made by benchmarks/gpu_tables.py -->\n\n", "\n\n<!-- end of gpu -->")
# Here, as model_times.py, which measures them, wants Triton.
CALLS = {
    "forward": "plain forward",
    "ours": "ours",
    "ours_graph": "ours with a graph",
    "ours_lean": "ours in 40 GB",
    "lxt_checkpointing": "LXT + checkpointing",
}
MODEL_HEAD = "| model | tokens |  | seconds | over its forward | peak above the model | relevance, gap to ours |"
KERNEL_HEAD = "| operation | size | ours | rate, of what the machine reaches | time of others over ours |"


def section() -> str:
    """What stands between the marks, of the files that there are."""
    models = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("model*.json")) if _is_of(path, "model")]
    parts = []
    if models:
        rows = [row for report in models for row in _model_rows(report["results"])]
        parts += [_table(MODEL_HEAD, rows), *map(_about, models)]
    if (path := RESULTS / "kernels.json").is_file():
        report = json.loads(path.read_text())
        parts += [_table(KERNEL_HEAD, _kernel_rows(report["results"])), _about(report)]
    return "\n\n".join(parts)


def _is_of(path: Path, benchmark: str) -> bool:
    return json.loads(path.read_text()).get("benchmark") == benchmark


def _model_rows(results: dict) -> Iterator[str]:
    for row in results["rows"]:
        for name in (name for name in CALLS if name in row):
            one, head = row[name], f"| {row['model']} | {row['n_tokens']:,} | {CALLS[name]} |"
            if "failed" in one:
                yield f"{head} {one['failed']} |  |  |  |"
                continue
            ratio = f"{one['ratio']:.2f}" if "ratio" in one else ""
            gap = f"{one['relevance_gap_to_ours']:.1%}" if "relevance_gap_to_ours" in one else ""
            seconds = statistics.median(one["seconds"])
            yield f"{head} {seconds:.3g} | {ratio} | {one['peak_mb'] / 1000:.1f} GB | {gap} |"


def _kernel_rows(results: dict) -> Iterator[str]:
    for row in results["rows"]:
        ours = row["contenders"]["ours"]
        others = [
            f"{name} {one['median_ms'] / ours['median_ms']:.2f}"
            for name, one in row["contenders"].items()
            if name != "ours"
        ]
        rate = f"{ours['rate']:,.0f} {row['unit']}, {row['share_of_ceiling']:.0%}"
        yield f"| {row['what']} | {row['size']:,} | {ours['median_ms']:.3g} ms | {rate} | {', '.join(others)} |"


def _table(head: str, rows: Iterator[str]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])


def _about(report: dict) -> str:
    found, versions = report["results"], report["versions"]
    ceilings = ", ".join(f"{one['rate']:,.0f} {unit}" for unit, one in found["ceilings"].items())
    left = f"; left out for want of time, {len(found['left_out'])} cases" if found["left_out"] else ""
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "transformers"))
    return (
        f"Commit {report['commit']}, {found['gpu']}, {found['memory_bytes'] / 1e9:.0f} GB, {packages}. The machine "
        f"reaches {ceilings}{left}."
    )


def main() -> None:
    put_between(MARKS, section())


if __name__ == "__main__":
    main()

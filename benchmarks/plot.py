"""docs/context.svg from results/context.json: peak memory and time over the context length. Needs matplotlib.

python benchmarks/plot.py [context.json [context.svg]]
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib
from context import CONTENDERS

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "lrp_fast", "font.size": 9})  # the same figures give the same file
from matplotlib import pyplot  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
LOOKS = {
    "ours": {"color": "#1f77b4", "marker": "o"},
    "ours_budget": {"color": "#1f77b4", "marker": "s", "linestyle": "--"},
    "lxt": {"color": "#d62728", "marker": "o"},
    "lxt_checkpointing": {"color": "#d62728", "marker": "s", "linestyle": "--"},
}


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    report = json.loads(Path(given.get(0, ROOT / "benchmarks" / "results" / "context.json")).read_text())
    draw(report["results"], Path(given.get(1, ROOT / "docs" / "context.svg")))


def draw(results: dict, path: Path) -> None:
    figure, (memory, seconds) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    rows = results["rows"]
    for name, label in CONTENDERS.items():
        done = [row for row in rows if "seconds" in row.get(name, {})]
        lengths = [row["n_tokens"] for row in done]
        memory.plot(lengths, [row[name]["peak_mb"] / 1000 for row in done], label=label, **LOOKS[name])
        seconds.plot(lengths, [statistics.median(row[name]["seconds"]) for row in done], label=label, **LOOKS[name])
        if failed := [row["n_tokens"] for row in rows if "failed" in row.get(name, {})]:
            limit, color = results["limit_bytes"] / 1e9, LOOKS[name]["color"]
            memory.plot(failed, [limit] * len(failed), color=color, marker="x", markersize=9, linewidth=0)
            text = f"{label}: fails beyond {limit:.0f} GB"
            memory.annotate(text, (failed[0], limit), (-8, -3), textcoords="offset points", ha="right", color=color)
    forward = [statistics.median(row["forward"]["seconds"]) for row in rows]
    seconds.plot([row["n_tokens"] for row in rows], forward, color="#777777", marker=".", label="plain forward pass")
    for axes, title in ((memory, "peak memory above the model, GB"), (seconds, "time, s")):
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("tokens")
        axes.set_xticks([row["n_tokens"] for row in rows], [f"{row['n_tokens']:,}" for row in rows])
        axes.set_ylim(0)
        axes.grid(color="#dddddd", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    seconds.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()

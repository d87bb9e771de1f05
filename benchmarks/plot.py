"""docs/context.svg and docs/tolerance.svg: peak memory and time over the context length, time against error.

python benchmarks/plot.py [folder of results [folder of pictures]]        # needs matplotlib
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from results import RESULTS, ROOT, read
from tables import MODELS, Cases, cases
from workers import LIMIT_BYTES

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "lrp_fast", "font.size": 9})  # the same figures give the same file
from matplotlib import pyplot  # noqa: E402

LOOKS = {
    "ours": {"color": "#1f77b4", "marker": "o"},
    "ours, tolerance": {"color": "#2ca02c", "marker": "o"},
    "ours, small budget": {"color": "#1f77b4", "marker": "s", "linestyle": "--"},
    "LXT": {"color": "#d62728", "marker": "o"},
    "LXT + checkpointing": {"color": "#d62728", "marker": "s", "linestyle": "--"},
    "forward": {"color": "#777777", "marker": "."},
}
LABELS = {"forward": "plain forward pass"}


def main() -> None:
    given = dict(enumerate(sys.argv[1:] if Path(sys.argv[0]).name == "plot.py" else []))
    results, pictures = Path(given.get(0, RESULTS)), Path(given.get(1, ROOT / "docs"))
    for draw, groups, name in ((context, "attribution", "context.svg"), (tolerance, "error", "tolerance.svg")):
        files = [name for name in (groups, f"{groups}_long") if (results / f"{name}.json").is_file()]
        if files:
            draw([one for name in files for one in cases(read(name, results))], pictures / name)


def length(one: Cases) -> int:
    return int(one.group.rpartition(", ")[2].partition(" ")[0])


def context(groups: list[Cases], path: Path) -> None:
    figure, (memory, seconds) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for name, looks in LOOKS.items():
        done, label = [one for one in groups if name in one.found], LABELS.get(name, name)
        lengths = [length(one) for one in done]
        if name != "forward":
            memory.plot(lengths, [one.info(name)["peak_mb"] / 1000 for one in done], label=label, **looks)
        seconds.plot(lengths, [one.seconds(name) for one in done], label=label, **looks)
        failed = [length(one) for one in groups if one.missing.get(name, "").startswith("out of memory")]
        if failed:
            limit = LIMIT_BYTES / 1e9
            memory.plot(failed, [limit] * len(failed), color=looks["color"], marker="x", markersize=9, linewidth=0)
            text = f"{label}: fails beyond {limit:.0f} GB"
            memory.annotate(
                text, (failed[0], limit), (-8, -3), textcoords="offset points", ha="right", color=looks["color"]
            )
    for axes, title in ((memory, "peak memory above the model, GB"), (seconds, "time, s")):
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("tokens")
        shown = [length(one) for one in groups if length(one) >= max(map(length, groups)) / 8]  # others lie too close
        axes.set_xticks(shown, [f"{number:,}" for number in shown])
        axes.set_ylim(0)
        axes.grid(color="#dddddd", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    seconds.legend(frameon=False)
    save(figure, path)


def tolerance(groups: list[Cases], path: Path) -> None:
    """A line for each model and length, from the exact pass at 1 downwards."""
    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    furthest = 0.0
    for one in groups:
        names = [name for name in one.found if name.startswith("tolerance")]
        if not names or "exact" not in one.found:
            continue
        errors = [0.0, *(100 * one.info(name)["error_summed"] for name in names)]
        if not any(errors):  # so short that nothing is left out
            continue
        furthest = max(furthest, *errors)
        times = [1.0, *(one.seconds(name) / one.seconds("exact") for name in names)]
        model = one.group.split(", ")[1]
        (line,) = axes.plot(errors, times, marker=".", label=f"{MODELS[model]}, {length(one):,}")
        if "bfloat16" in one.found:
            axes.axvline(
                100 * one.info("bfloat16")["error_summed"], color=line.get_color(), linestyle=":", linewidth=0.8
            )
    if furthest:  # what bfloat16 does beyond the curves would make them a line
        axes.set_xlim(-furthest / 30, furthest * 1.05)
    axes.set_xlabel("Σ |error| / Σ |relevance|, %     (dotted: bfloat16's, where it is as near)")
    axes.set_ylabel("time over the exact pass's")
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7)
    save(figure, path)


def save(figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()

"""The README's figures, tables and plot of benchmarks/results/*.json.

    python benchmarks/tables.py      # writes what stands between the README's marks, and docs/*.svg (`make bench` does)

A ratio is taken turn by turn: what a turn does to one case it does to the one beside it. Its median is given, and in
brackets its least and greatest, or its quartiles where there are at least `MANY` turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from families import put_between
from results import RESULTS, read

MARKS = ("<!-- figures: made by benchmarks/tables.py -->\n\n", "\n\n<!-- end of figures -->")
# file: its title in the README; in this order, those of one title in one table
GROUPS = {
    "attribution": "attribution", "attribution_long": "attribution", "error": "error", "error_long": "error",
    "batch": "batch", "targets": "targets", "graph": "graph", "peers": "peers", "linear": "linear",
    "answers": "answers", "hybrids": "hybrids", "before": "before", "graph_algorithms": "graph_algorithms",
    "study": "study",
}  # fmt: skip
MANY = 5
MODELS = {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma 3 270M"}


class Cases:
    """The cases of one of pytest-benchmark's groups, by name."""

    def __init__(self, group: str, benchmarks: Iterable[dict], not_counted: Iterable[dict]):
        self.group = group
        self.found = {one["extra_info"]["case"]: one for one in benchmarks if one["group"] == group}
        self.missing = {one["name"]: one["why"] for one in not_counted if one["group"] == group}

    @property
    def names(self) -> list[str]:
        return [*self.found, *(name for name in self.missing if name not in self.found)]

    def seconds(self, name: str) -> float:
        return self.found[name]["stats"]["median"]

    def info(self, name: str) -> dict:
        return self.found[name]["extra_info"]

    def ratios(self, name: str, over: str) -> list[float] | None:
        """Turn by turn; None where either is missing."""
        if name not in self.found or over not in self.found:
            return None
        mine, others = (self.found[one]["stats"]["data"] for one in (name, over))
        return [a / b for a, b in zip(mine, others, strict=False)]


def spread(ratios: list[float] | None) -> str:
    if not ratios:
        return ""
    middle = f"{statistics.median(ratios):.2f}"
    if len(ratios) == 1:
        return middle
    low, *_, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) >= MANY else sorted(ratios)
    return f"{middle} ({low:.2f}–{high:.2f})"


def cases(report: dict) -> list[Cases]:
    """In the order in which they were run, which is that of the file."""
    names = dict.fromkeys(one["group"] for one in (*report["benchmarks"], *report["not_counted"]))
    return [Cases(name, report["benchmarks"], report["not_counted"]) for name in names]


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headings = list(headings)
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def tokens(group: str) -> str:
    """The part of a group's name behind the last comma."""
    number = group.rpartition(", ")[2].partition(" ")[0]
    return f"{int(number):,}" if number.isdigit() else number


def short(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"


def attribution(groups: list[Cases]) -> str:
    headings = ("tokens", "", "median", "over its own forward", "over ours: whole time", "by own forwards",
                "peak above the model", "agreement")  # fmt: skip
    rows = []
    for one in groups:
        for name in one.names:
            if name in one.missing:
                rows.append([tokens(one.group), name, one.missing[name], *[""] * (len(headings) - 3)])
                continue
            info, own, whole, by_forwards = one.info(name), None, None, None
            if not name.endswith("forward"):
                own = one.ratios(name, info["own_forward"])
                if name != "ours":
                    whole, ours = one.ratios(name, "ours"), one.ratios("ours", "forward")
                    by_forwards = own and ours and [a / b for a, b in zip(own, ours, strict=False)]
            rows.append([
                tokens(one.group), name, f"{short(one.seconds(name))} s", spread(own), spread(whole),
                spread(by_forwards), f"{info['peak_mb'] / 1000:.2f} GB", agreement(info),
            ])  # fmt: skip
    return table(headings, rows)


def agreement(info: dict) -> str:
    if "against" not in info:
        return ""
    if info["case"].endswith("tolerance"):
        return f"{100 * info['error_summed']:.2f} % of the sum"
    return f"{info['error_greatest']:.0e}"


def error(groups: list[Cases]) -> str:
    rows = []
    for one in groups:
        _, model, _ = one.group.split(", ")
        for name in one.names:
            if name in one.missing:
                rows.append([MODELS[model], tokens(one.group), name, one.missing[name], "", "", ""])
                continue
            info, of_exact = one.info(name), name == "exact"
            rows.append([
                MODELS[model], tokens(one.group), name, f"{short(one.seconds(name))} s",
                "" if of_exact or name == "bfloat16" else spread(one.ratios(name, "exact")),
                "" if of_exact else f"{100 * info['error_summed']:.2f} %",
                "" if of_exact else f"{100 * info['error_greatest']:.2f} %",
            ])  # fmt: skip
    headings = (
        "model",
        "tokens",
        "",
        "time",
        "of the exact pass's",
        "Σ error / Σ relevance",
        "max error / max relevance",
    )
    return table(headings, rows)


def batch(groups: list[Cases]) -> str:
    (one,) = groups
    base = "ours, one by one"
    rows = [
        [name, one.missing[name], "", ""] if name in one.missing else
        [name, f"{1000 * one.seconds(name) / one.info(name)['prompts']:.0f} ms", spread(one.ratios(base, name)),
         spread(one.ratios(name, "forward, one batch"))]
        for name in one.names
    ]  # fmt: skip
    return table(("16 prompts of 54 tokens", "each", "throughput over one by one", "over the batch's forward"), rows)


def targets(groups: list[Cases]) -> str:
    rows = []
    for one in groups:
        for name in one.names:
            if name in one.missing:
                rows.append([tokens(one.group), name, one.missing[name], "", ""])
                continue
            count, further = one.info(name).get("targets"), ""
            if count and count > 1 and "1 target" in one.found:
                alone, several, plain = (one.found[which]["stats"]["data"] for which in ("1 target", name, "forward"))
                each = [(b - a) / (count - 1) / f for a, b, f in zip(alone, several, plain, strict=False)]
                further = spread(each)
            over = "" if name == "forward" else spread(one.ratios(name, "forward"))
            rows.append([tokens(one.group), name, f"{short(one.seconds(name))} s", over, further])
    return table(("tokens", "", "median", "over the forward", "each further one, over the forward"), rows)


def answers(groups: list[Cases]) -> str:
    rows = []
    for one in groups:
        for name in one.names:
            if name in one.missing:
                rows.append([tokens(one.group), name, one.missing[name], "", ""])
                continue
            over = "" if name == "forward" else spread(one.ratios(name, "forward"))
            peak = f"{one.info(name)['peak_mb'] / 1000:.2f} GB"
            rows.append([tokens(one.group), name, f"{short(one.seconds(name))} s", over, peak])
    return table(("tokens of the answer", "", "median", "over the forward", "peak above the model"), rows)


def graph(groups: list[Cases]) -> str:
    rows = []
    for one in groups:
        base = "alone" if "alone" in one.names else "closed form"
        what = "attribution" if base == "alone" else "all edges of one transition"
        for name in one.names:
            if name in one.missing:
                rows.append([what, tokens(one.group), name, one.missing[name], ""])
            else:
                over = "" if name == base else spread(one.ratios(name, base))
                rows.append([what, tokens(one.group), name, f"{short(one.seconds(name))} s", over])
    return table(("", "tokens", "", "median", "over the first"), rows)


def hybrids(groups: list[Cases]) -> str:
    rows = []
    for one in groups:
        name = one.group.partition(",")[0].removeprefix("hybrid ")
        for case in one.names:
            if case in one.missing:
                rows.append([name, tokens(one.group), case, one.missing[case], "", ""])
                continue
            over = "" if case == "forward" else spread(one.ratios(case, "forward"))
            gigabytes = f"{one.info(case)['peak_mb'] / 1000:.2f} GB"
            rows.append([name, tokens(one.group), case, f"{short(one.seconds(case))} s", over, gigabytes])
    return table(("random model of", "tokens", "", "median", "over its forward", "peak above the model"), rows)


def before(groups: list[Cases]) -> str:
    rows = []
    for one in groups:
        _, name, _ = one.group.split(", ")
        found = [one.missing.get(case) or spread(one.ratios(case, "forward")) for case in ("before", "ours")]
        name = MODELS.get(name, f"random {name}")
        rows.append([name, tokens(one.group), *found, spread(one.ratios("ours", "before"))])
    return table(("model", "tokens", "before, over the forward", "now, over the forward", "now over before"), rows)


def peers(groups: list[Cases]) -> str:
    rows = []
    for one in groups:
        for name in one.names:
            if name in one.missing:
                rows.append([tokens(one.group), name, one.missing[name], "", "", ""])
                continue
            info = one.info(name)
            over = "" if name == "forward" else spread(one.ratios(name, "forward"))
            ours = "" if name in ("forward", "ours") else spread(one.ratios(name, "ours"))
            held = f"{info['error_greatest']:.0e}, {info['against']}" if "against" in info else ""
            rows.append([tokens(one.group), name, f"{short(one.seconds(name))} s", over, ours, held])
    return table(("tokens", "", "median", "over the plain forward", "over ours, whole time", "agreement, with"), rows)


def linear(groups: list[Cases]) -> str:
    names = list(dict.fromkeys(name for one in groups for name in one.names))
    rows = [[name, *(one.missing.get(name) or spread(one.ratios(name, "plain")) for one in groups)] for name in names]
    return table(("forward + backward, over plain", *(one.group.partition(", ")[2] for one in groups)), rows)


def graph_algorithms(groups: list[Cases]) -> str:
    rows = []
    for one in groups:
        for name in one.names:
            if name in one.missing:
                rows.append([name, one.missing[name], ""])
            else:
                rows.append([name, f"{short(one.seconds(name))} s", spread(one.ratios(name, f"{name}, scipy"))])
    return table(("", "median", "over scipy"), rows)


def study(groups: list[Cases]) -> str:
    rows = []
    for one in groups:
        base = "attribute_batch"
        for name in one.names:
            if name in one.missing:
                rows.append(["", "", name, one.missing[name], ""])
                continue
            info = one.info(name)
            each = 1000 * one.seconds(name) / info["prompts"]
            model = MODELS.get(info["model"], "4 layers, 64 features")
            ratio = "" if name == base else spread(one.ratios(name, base))
            rows.append([model, f"{info['prompts']:,}", name, f"{each:.2f} ms", ratio])
    return table(("model", "cases", "", "each", "over attribute_batch"), rows)


TITLES = {
    "attribution": "Attribution of one prompt. Agreement: greatest difference over the greatest relevance.",
    "error": "What a tolerance costs and saves, against the exact pass in float32; bfloat16 beside it.",
    "batch": "Many short prompts.",
    "targets": "Several targets of one context.",
    "answers": "An answer behind a prompt of 512 tokens.",
    "graph": "Graphs.",
    "peers": "Other packages, on short prompts; what is held against nothing is a method that nothing here defines.",
    "linear": "The ε and γ rules on one linear map.",
    "hybrids": "Layers that carry a state: small random models (`benchmarks/hybrids.py`), float32.",
    "before": "Models of attention alone, against this package of an older commit (`BEFORE` in the Makefile).",
    "graph_algorithms": "Algorithms on a synthetic graph of 47 million edges.",
    "study": "Studies: what files, log and table of a run cost above the passes, of cases of 8 to 32 tokens.",
}


def section(folder: Path = RESULTS) -> str:
    """What stands between the marks, of the files that there are."""
    reports = {name: read(name, folder) for name in GROUPS if (folder / f"{name}.json").is_file()}
    parts = []
    for title, says in TITLES.items():
        mine = [report for name, report in reports.items() if GROUPS[name] == title]
        if mine:
            parts += [says, globals()[title]([one for report in mine for one in cases(report)]), made(mine)]
    return "\n\n".join(parts) or "There are none of this code: `make bench`."


def made(reports: list[dict]) -> str:
    """Of which commit, with what."""
    said = []
    for report in reports:
        machine, versions, of = report["machine_info"], report["versions"], report["commit_info"]
        named = [
            f"{name} {version}" for name, version in versions.items() if version and name not in ("lrp-fast", "numpy")
        ]
        dirty = " (changed)" if of["dirty"] else ""
        line = f"Commit {of['id']}{dirty}, {machine['cpu']}, {machine['threads']} threads, {', '.join(named)}."
        said += [line] if line not in said else []
    return "\n".join(said)


def main() -> None:
    import plot

    put_between(MARKS, section())
    plot.main()


if __name__ == "__main__":
    main()

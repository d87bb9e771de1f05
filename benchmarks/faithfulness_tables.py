"""The README's tables of benchmarks/results/evaluate-*.json.

    python benchmarks/faithfulness_tables.py      # writes what stands between the README's marks (`make evaluate` does)
"""

from __future__ import annotations

from pathlib import Path

from families import put_between
from results import RESULTS, ROOT, read
from tables import MODELS, table

MARKS = ("<!-- evaluate: made by benchmarks/faithfulness_tables.py -->\n\n", "\n\n<!-- end of evaluate -->")
# part: what it says of it, and of each protocol the measures that are shown
SHOWN = {
    "short": {"flip": ("flipped_at", "share"), "recovery": ("recovery", "rank")},
    "curves": {
        "morf_lerf": ("area", "comprehensiveness", "sufficiency"), "contextcite": ("lds", "drop_1"),
        "agreement": ("spearman",), "disrupt_recover": ("total",), "graph_cuts": ("edges_gain", "edges_sign"),
    },
}  # fmt: skip
HEADINGS = {
    "flipped_at": "tokens to flip", "share": "of all", "recovery": "gold in the best 10 %", "rank": "best gold's rank",
    "spearman": "with leave-one-out", "area": "LeRF − MoRF", "comprehensiveness": "comprehensiveness",
    "sufficiency": "sufficiency", "lds": "LDS", "drop_1": "log p drop, 1 token",
    "total": "recover − disrupt", "edges_gain": "edges cut, against others", "edges_sign": "edges' signs that hold",
}  # fmt: skip
# Tokens to flip as arXiv 2604.17761 gives them.
DIFFERS = (
    "The paper's ([2604.17761](https://arxiv.org/abs/2604.17761)) are over 60 failures of larger models; what stands in"
    " for a masked token there, and which tokens are masked, may differ from this: zeros, and all but special ones."
)
PAPER = {"attnlrp": "1.7", "cp": "2", "gradient": "3.7"}


def section(folder: Path = RESULTS) -> str:
    """What stands between the marks, of the files that there are."""
    parts = [of_model(name, read(f"evaluate-{name}", folder)) for name in MODELS if _is_there(name, folder)]
    return "\n\n".join(parts) or "There are none of this code: `make evaluate`."


def _is_there(name: str, folder: Path) -> bool:
    return (folder / f"evaluate-{name}.json").is_file()


def of_model(name: str, found: dict) -> str:
    paragraphs = [f"**{MODELS[name]}.** {said(found)}"]
    for part, shown in SHOWN.items():
        paragraphs += [judged(found["parts"][part], shown), cases_of(found["parts"][part])]
        paragraphs += [f"{never(found['parts'][part])} {DIFFERS}".strip()] if "flip" in shown else []
        paragraphs += [f"The curves have {found['steps']} steps."] if "morf_lerf" in shown else []
    if "needles" in found["parts"]:
        paragraphs += [needles(found), picture(name, "needles", "Rank of the needle by depth and length")]
    paragraphs += [picture(name, "curves", "Preference over the share of tokens that is gone"), made(found)]
    return "\n\n".join(filter(None, paragraphs))


def said(found: dict) -> str:
    search = found["search"]
    return (
        f"{len(found['kinds'])} prompts; of {len(found['turned'])} it prefers the mistake (turned, without gold spans)."
        f" On {len(search['cases'])}, held out, `{search['method']}` is the best of {len(search['table'])} ε and γ by"
        f" {search['measure']}; the others judge all methods. Mean [95 % interval], the best bold; † differs from the"
        " best by the paired test, p < 0.05."
    )


def judged(part: dict, shown: dict[str, tuple[str, ...]]) -> str:
    """A row a method, the best by the first measure first."""
    by = {(row["protocol"], row["measure"], row["method"]): row for row in part["table"]}
    columns = [(protocol, measure) for protocol, measures in shown.items() for measure in measures]
    first, sign = columns[0], 1 if part["better"][columns[0][0]][columns[0][1]] == "lower" else -1
    methods = sorted(
        part["about"]["methods"], key=lambda name: sign * by[*first, name]["mean"] if (*first, name) in by else 1e9
    )
    headings = [f"{HEADINGS[measure]} {_arrow(part, protocol, measure)}" for protocol, measure in columns]
    paper = first == ("flip", "flipped_at")
    most = {column: max((row["n"] for key, row in by.items() if key[:2] == column), default=0) for column in columns}
    rows = [
        [
            f"`{name}`",
            *(cell(by.get((*column, name)), most[column]) for column in columns),
            *([PAPER.get(name, "")] if paper else []),
        ]
        for name in methods
    ]
    return table(("method", *headings, *(["the paper's"] if paper else [])), rows)


def _arrow(part: dict, protocol: str, measure: str) -> str:
    return {"lower": "↓", "higher": "↑"}[part["better"][protocol][measure]]


def cell(row: dict | None, most: int) -> str:
    """``most``: the cases of the method that has most of them."""
    if row is None or row["mean"] is None:
        return ""
    text = f"{row['mean']:.3g}"
    if row["low"] is not None:
        text += f" [{row['low']:.3g}, {row['high']:.3g}]"
    if row["best"]:
        text = f"**{text}**"
    elif row["p"] is not None and row["p"] < 0.05:
        text += " †"
    return text if row["n"] == most else f"{text} of {row['n']:,}"


def never(part: dict) -> str:
    """How often nothing flips, which the means take for all of the prompt's tokens."""
    shares = {row["method"]: 1 - row["mean"] for row in part["table"] if row["measure"] == "flipped"}
    if not any(shares.values()):
        return ""
    least, most = min(shares, key=shares.get), max(shares, key=shares.get)
    return (
        f"What never flips counts with all of its tokens: from {shares[least]:.0%} of the cases (`{least}`) to "
        f"{shares[most]:.0%} (`{most}`)."
    )


def cases_of(part: dict) -> str:
    """Over how many cases each protocol's means are."""
    counts = {}
    for row in part["table"]:
        counts.setdefault(row["protocol"], set()).add(row["n"])
    words = [f"`{name}` {min(of):,}{'' if len(of) == 1 else f' to {max(of):,}'}" for name, of in counts.items()]
    return f"Cases: {', '.join(words)}."


def needles(found: dict) -> str:
    """Mean ranks of needles by length."""
    measures = found["parts"]["needles"]["measures"]["recovery"]
    lengths = sorted({length for length, _ in found["needles"].values()})
    ranks = {
        (method, length): [one["rank"] for case, one in by_case.items() if found["needles"][case][0] == length]
        for method, by_case in measures.items()
        for length in lengths
    }
    most = {length: max(len(ranks[method, length]) for method in measures) for length in lengths}
    rows = []
    for method in measures:
        cells = []
        for length in lengths:
            mine = ranks[method, length]
            text = f"{sum(mine) / len(mine):.3g}" if mine else ""
            cells.append(text if len(mine) in (0, most[length]) else f"{text} of {len(mine)}")
        rows.append([f"`{method}`", *cells])
    headings = (f"{length:,} tokens, {most[length]} case{'s' * (most[length] != 1)}" for length in lengths)
    return table(("rank of the needle's best token", *headings), rows)


def picture(name: str, what: str, title: str) -> str:
    path = Path("docs") / f"evaluate-{name}-{what}.svg"
    return f"![{title}, {MODELS[name]}]({path})" if (ROOT / path).is_file() else ""


def made(found: dict) -> str:
    of, machine = found["commit_info"], found["machine_info"]
    dirty = " (changed)" if of["dirty"] else ""
    kept = {name: found["versions"][name] for name in ("torch", "transformers") if found["versions"].get(name)}
    with_what = ", ".join(f"{name} {version}" for name, version in kept.items())
    return f"Commit {of['id']}{dirty}, {machine['cpu']}, {with_what}."


def main() -> None:
    put_between(MARKS, section())


if __name__ == "__main__":
    main()

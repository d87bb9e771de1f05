"""What `make study` found: benchmarks/results/worked_study.json, a picture, and the README's table.

    python benchmarks/worked_study.py      # reads build/study
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from families import put_between
from results import RESULTS, ROOT, commit, machine, read, versions
from tables import MODELS, table

MARKS = ("<!-- study: made by benchmarks/worked_study.py -->\n\n", "\n\n<!-- end of study -->")
BUILD = ROOT / "build" / "study"
RUNS = {"smollm2": MODELS["smollm2"], "gemma3": MODELS["gemma3"], "smollm2-chat": "SmolLM2-135M-Instruct, as a chat"}
PICTURE = Path("docs") / "study-segments.svg"
BECAME = {"right": "right", "pair": "explained", "below": "Δℓ below 1", "none": "no pair"}


def found(build: Path = BUILD) -> dict:
    """Of each run, by kind of prompt, what became of how many; findings; and what segments carry."""
    from lrp_fast.study import read_cases, table
    from lrp_fast.study.averages import segment_means

    told = {"commit_info": commit(), "machine_info": machine(), "versions": versions(), "runs": {}}
    for name in RUNS:
        kinds: dict[str, Counter] = {}
        for case in read_cases(build / f"pairs-{name}.jsonl"):
            kinds.setdefault(case.fields["kind"], Counter())[became(case.left_out)] += 1
        rows = table(build / f"run-{name}")
        means = segment_means({name: rows})
        told["runs"][name] = {
            "kinds": kinds,
            "findings": rows.finding.value_counts().to_dict(),
            "segments": [{key: of(one) for key, one in row.items()} for row in means.to_dict("records")],
        }
    return told


def became(left_out: str | None) -> str:
    """One of `BECAME`, of a case of `lrp-fast study pairs`."""
    if left_out is None:
        return "pair"
    if left_out.startswith("the answer is right"):
        return "right"
    return "below" if "is not above the bound" in left_out else "none"


def of(value):
    return None if value != value else float(f"{value:.4g}") if isinstance(value, float) else value


def picture(told: dict) -> str:
    import pandas

    from lrp_fast.study import plots

    rows = [
        row | {"run": RUNS[name]}
        for name, run in told["runs"].items()
        if name != "smollm2-chat"
        for row in run["segments"]
    ]
    return plots.segment_means(pandas.DataFrame(rows))


def section(folder: Path = RESULTS) -> str:
    told = read("worked_study", folder)
    parts = []
    for name, run in told["runs"].items():
        kinds = {kind: Counter(one) for kind, one in run["kinds"].items()}
        kinds["all"] = sum(kinds.values(), Counter())
        rows = [[kind, f"{one.total():,}", *(f"{one[what]:,}" for what in BECAME)] for kind, one in kinds.items()]
        parts.append(table((RUNS[name], "prompts", *BECAME.values()), rows))
        if run["findings"]:
            counts = ", ".join(f"{what} {number}" for what, number in run["findings"].items())
            parts.append(f"Findings of its instructions: {counts}.")
    parts.append(f"![What segments carry, in both models]({PICTURE})")
    kept = {name: told["versions"][name] for name in ("torch", "transformers") if told["versions"].get(name)}
    with_what = ", ".join(f"{name} {version}" for name, version in kept.items())
    dirty = " (changed)" if told["commit_info"]["dirty"] else ""
    parts.append(f"Commit {told['commit_info']['id']}{dirty}, {told['machine_info']['cpu']}, {with_what}.")
    return "\n\n".join(parts)


def main() -> None:
    from lrp_fast.files import write_atomically

    told = found()
    write_atomically(RESULTS / "worked_study.json", (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(ROOT / PICTURE, picture(told).encode())
    put_between(MARKS, section())


if __name__ == "__main__":
    main()

"""What executing the kernels' compiled code on a CPU found: results/executed.json, and what the README says of it.

    make test-ptx-all                                  # executes, then does the next
    python benchmarks/executed.py build/executed       # adds up the records in that folder, of the kernels as they are
    python benchmarks/executed.py                      # the README's lines anew, which say what changed since

No GPU takes part: tests/ptx executes the PTX that Triton makes of the kernels, tests/kernels/test_shipped.py says of
which, and judges the results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

from families import put_between

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "executed.json"
MARKS = ("<!-- executed: made by benchmarks/executed.py -->\n\n", "\n\n<!-- end of executed -->")
WHAT = (
    "PTX of the kernels, executed on a CPU by tests/ptx and judged by the float64 definitions. No GPU took part: "
    "neither ptxas nor the hardware was tested."
)
REPORTS = "reports"  # how a case failed that only the executor's reports speak against
HEADINGS = ("target", "Triton", "programs", "launches", "values checked", "worst error, of what is allowed", "reported")


def sources() -> dict[str, str]:
    """A digest of each file that the kernels' code comes from."""
    folder = ROOT / "kernels"
    files = [*sorted(folder.glob("**/*.py")), folder / "tiles.json"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def digest(sources: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def runs(folder: Path, sources: str) -> list[dict]:
    """What the records in ``folder`` say of kernels with that digest: an entry for each target, Triton and dtype.

    Of a case that ran several times, the last run counts.
    """
    needed, cases = {}, {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            if line["sources"] == sources:
                run = line["target"], line["triton"], line["dtype"]
                if "case" in line:
                    cases.setdefault(run, {})[line["case"]] = line
                else:
                    needed[run] = line["needed"]
    return [_added_up(run, cases.get(run, {}), needed.get(run, {})) for run in sorted({*cases, *needed})]


def _added_up(run, cases, needed):
    programs = {}
    for case in cases.values():
        programs |= case["programs"]
    target, triton, dtype = run
    failed = {name: case["failed"] for name, case in sorted(cases.items()) if case["failed"] not in (None, REPORTS)}
    return {
        "target": target,
        "triton": triton,
        "dtype": dtype,
        "cases": len(cases),
        "programs": len(programs),
        "kernels": dict(sorted(Counter(programs.values()).items())),
        "launches": sum(case["launches"] for case in cases.values()),
        "values": sum(case["values"] for case in cases.values()),
        "worst": round(max((case["worst"] for case in cases.values()), default=0.0), 3),
        "reports": _kinds(cases.values()),
        "failed": failed,
        "not executed": sorted(name for program, name in needed.items() if program not in programs),
        "seconds": round(sum(case["seconds"] for case in cases.values())),
    }


def _kinds(cases):
    """"kernel: kind" of what the executor reported, and how many cases have it; where is said behind the last colon."""
    found = Counter()
    for case in cases:
        found.update({report.rpartition(": ")[0] for report in case["reports"]})
    return dict(sorted(found.items()))


def table(runs: list[dict]) -> str:
    """A row for each target and Triton, over its dtypes."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for target, triton in sorted({(run["target"], run["triton"]) for run in runs}):
        mine = [run for run in runs if (run["target"], run["triton"]) == (target, triton)]
        sums = [sum(run[what] for run in mine) for what in ("programs", "launches", "values")]
        worst, reported = max(run["worst"] for run in mine), any(run["reports"] for run in mine)
        cells = [target, triton, *(f"{number:,}" for number in sums), f"{worst:.2f}"]
        cells.append("**see below**" if reported else "nothing")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def section(report: dict, now: dict[str, str]) -> str:
    """What stands between the marks; ``now``: the `sources` of today's kernels."""
    found = report["results"]["runs"]
    kernels = sorted({name for run in found for name in run["kernels"]})
    lines = [table(found), "", f"Kernels: {', '.join(f'`{name}`' for name in kernels)}.", ""]
    for run in found:
        what = [f"{report} ({count} of {run['cases']} cases)" for report, count in run["reports"].items()]
        what += [f"`{case}` failed" for case in run["failed"]]
        what += [f"`{name}` was not executed" for name in run["not executed"]]
        if what:
            where = f"{run['target']}, Triton {run['triton']}, {run['dtype']}"
            lines += [f"**With {where}: {'; '.join(what)}.**", ""]
    then = report["results"]["sources"]
    changed = [f"`kernels/{name}`" for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    since = f"**Changed since: {', '.join(changed)}.**" if changed else "The kernels are as they were."
    return "\n".join([*lines, f"Commit {report['commit']}, {report['cpu']}. {since}"])


def main() -> None:
    from run import provenance

    from lrp_fast.files import write_atomically

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="?", help="the folder of pytest's --executed")
    options = parser.parse_args()
    now = sources()
    if options.records:
        found = runs(options.records, digest(now))
        if not found:
            parser.error(f"no record in {options.records} is of the kernels as they are")
        report = {"benchmark": "executed", "what": WHAT, **provenance()}
        report["results"] = {"sources": now, "runs": found}
        write_atomically(RESULT, (json.dumps(report, indent=1) + "\n").encode())
    put_between(MARKS, section(json.loads(RESULT.read_text()), now))


if __name__ == "__main__":
    main()

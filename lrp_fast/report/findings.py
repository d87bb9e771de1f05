"""What `lrp_fast.doctor.examine` found, as plain text for a terminal."""

from __future__ import annotations

from ..doctor import Check
from ..hf import Coverage


def findings(found: list[Coverage], weights: str | None, checks: list[Check]) -> str:
    """A row a module class, a line for what is not covered, a row a check. Ends without a newline.

    ``weights``: why the checkpoint's cannot be read, and what to do; None where they can.
    """
    rows = [("module", "count", "rule", "on CUDA")]
    rows += [
        (one.name, str(one.count), one.rule or f"NOT COVERED: {one.path or 'the model'}", one.kernel) for one in found
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"{name:{widths[0]}}  {count:>{widths[1]}}  {rule:{widths[2]}}  {kernel}".rstrip()
        for name, count, rule, kernel in rows
    ]
    mends: dict[str, list[str]] = {}
    for one in found:
        if one.rule is None:
            mends.setdefault(one.mend, []).append(one.name)
    if weights is not None:
        lines += ["", f"weights NOT COVERED: {weights}"]
    if mends:
        lines += ["", "what to do:"]
    for mend, (first, *others) in mends.items():
        lines.append(f"  {first}{f' and {len(others)} more' if others else ''}: {mend}")
    if checks:
        lines += ["", "on a small random copy, float64:"]
        lines += [
            f"  {'ok  ' if one.passed else 'FAIL'}  {one.what}: {one.gap:.1e}, at most {one.allowed:.0e} allowed"
            for one in checks
        ]
    return "\n".join(lines)

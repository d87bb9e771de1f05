"""A comparison of runs as plain text for a terminal, of its summary (`lrp_fast.study.compared.summary`)."""

from __future__ import annotations

from .table import _pad, _printable, cut

_IDS = 4  # named of each kind; the files name all
_INTERVAL = "[   0.95, by bootstrap   ]"
_FLIPS = {
    "sign": "sign of the value", "preferred": "the model's first choice", "finding": "finding", "status": "status",
}  # fmt: skip


def table(summary: dict) -> str:
    """What each run is, what of each pair is compared and what is not, figures, segments and flips.

    Ends without a newline.
    """
    lines = [*_runs(summary)]
    for pair in summary["pairs"]:
        lines += ["", *_pair(pair)]
    if any(summary["segments"].values()):
        lines += ["", *_segments(summary)]
    return "\n".join(lines)


def _runs(summary: dict) -> list[str]:
    lines = []
    for one in summary["runs"]:
        counts = ", ".join(f"{one[what]:,} {what}" for what in ("done", "failed", "refused") if one[what])
        about = [_printable(str(one["model"])), (one["rules"] or {}).get("name"), one["dtype"]]
        about = ", ".join(part for part in about if part)
        lines.append(f"{_name(one['name'])}  {_cases(one['cases'])}: {counts or 'none done'}; {about}")
    words = ["weights" if one == "fingerprint" else one for one in summary["differ"]]
    lines.append(f"they differ in {', '.join(words)}" if words else "they are of the same model, rules and versions")
    if len(summary["runs"]) > 2:
        lines.append(f"{_cases(summary['shared'])} compared in all of them")
    return lines


def _pair(pair: dict) -> list[str]:
    lines = [f"{_printable(pair['run'])} against {_printable(pair['base'])}: {_cases(pair['compared'])} compared"]
    if pair["other_tokens"]:
        lines.append(f"  of {pair['other_tokens']:,} of them the tokens compared (target, contrast) are not the same")
    left_out = pair["left_out"]
    if left_out:
        lines.append(f"  {sum(map(len, left_out.values())):,} not compared:")
        lines += [f"    {_named(what, ids)}" for what, ids in left_out.items()]
    rows = {name: one for name, one in pair["figures"].items() if one["pairs"]}
    if rows:
        means = f"{_right(pair['base'])}  {_right(pair['run'])}   difference  {_INTERVAL}"
        lines += ["", f"  {'figure':22}  cases  {means}  Pearson  Spearman"]
    for name, one in rows.items():
        means = "  ".join(_number(one[which]) for which in ("base_mean", "run_mean", "difference"))
        line = f"  {_pad(name, 22)}  {one['pairs']:5d}  {means}  [{_number(one['low'])}, {_number(one['high'])}]"
        lines.append(f"{line}  {_correlation(one['pearson']):>7}  {_correlation(one['spearman']):>8}")
    for name, one in rows.items():
        if one["not_finite"]:
            lines.append(f"  {name}: {one['not_finite']:,} more are not finite")
    for why in dict.fromkeys(one["why"] for one in rows.values() if one["why"]):
        names = [name for name, one in rows.items() if one["why"] == why]
        lines.append(f"  no correlation of {'any figure' if len(names) == len(rows) else ', '.join(names)}: {why}")
    lines += ["", "  otherwise than in the first:"]
    lines += [f"    {_named(_FLIPS[what], ids)}" for what, ids in pair["flips"].items()]
    return lines


def _segments(summary: dict) -> list[str]:
    rows = [f"  {'segment':22}  {'run':16}  cases    relevance  {_INTERVAL}  share of |relevance|"]
    names = dict.fromkeys(name for one in summary["segments"].values() for name in one)
    for name in names:
        for run, found in summary["segments"].items():
            if one := found.get(name):
                interval = f"[{_number(one['relevance_low'])}, {_number(one['relevance_high'])}]"
                line = f"  {_pad(_printable(name), 22)}  {_name(run)}  {one['cases']:5d}  {_number(one['relevance'])}"
                rows.append(f"{line}  {interval}  {_number(one['share'])}")
    return [f"segments, the mean over the {_cases(summary['shared'])} that all runs share", *rows]


def _named(what: str, ids: list[str]) -> str:
    if not ids:
        return f"{what}: 0"
    more = f" and {len(ids) - _IDS:,} more" if len(ids) > _IDS else ""
    return f"{_printable(what)}: {len(ids):,} ({', '.join(map(_printable, ids[:_IDS]))}{more})"


def _cases(count: int) -> str:
    return f"{count:,} case{'s' * (count != 1)}"


def _name(name: str) -> str:
    return _pad(_printable(name), 16)


def _right(name: str) -> str:
    """Above a column of numbers."""
    return " " * max(0, 11 - len(name)) + cut(_printable(name), 11)


def _number(value: float | None) -> str:
    return f"{'-':>11}" if value is None else f"{value:11.4g}"


def _correlation(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 2) + 0.0:.2f}"  # without -0

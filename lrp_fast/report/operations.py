"""What `lrp_fast.doctor.operations` found, as plain text for a terminal."""

from __future__ import annotations

from ..doctor import Setting
from ..operations import Held

_HEADS = ("operation", "form", "dtype", "computed by", "error", "allowed", "same bits", "")
_NUMBERS = (4, 5)
_VENDOR = "vendor: PyTorch's own attention, whose backward pass may give other last bits from call to call."
_TILES = "Tiles are queries x keys (of the gamma rule rows x columns), w warps, s stages."


def operations_table(setting: Setting, held: list[Held]) -> str:
    """Where it ran, a row an operation, and what it comes to. Ends without a newline."""
    lines = [heading(setting), *(f"note: {note}" for note in setting.notes), ""]
    rows = [_HEADS, *map(_row, held)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADS))]
    for row in rows:
        aligned = (f"{cell:{'>' if i in _NUMBERS else ''}{widths[i]}}" for i, cell in enumerate(row))
        lines.append("  ".join(aligned).rstrip())
    lines += ["", *_legend(held), verdict(held)]
    return "\n".join(lines)


def heading(setting: Setting) -> str:
    """The device and what drives it, in a line."""
    capability = f", compute capability {setting.capability}" if setting.capability else ""
    triton = f"Triton {setting.triton}" if setting.triton else "no Triton"
    return f"operations on {setting.device}{capability}, {setting.dtype}, PyTorch {setting.torch}, {triton}"


def verdict(held: list[Held]) -> str:
    failed = [one for one in held if not one.passed]
    if not failed:
        return f"All {len(held)} operations are as they are defined, within rounding."
    told = f"{len(failed)} of {len(held)} operations FAILED: do not trust relevance that is computed on this device"
    return f"{told}. Please report it with this table."


def _legend(held: list[Held]) -> list[str]:
    legend = [_TILES] * any(one.tiles for one in held)
    return [*legend, *[_VENDOR] * any(one.path == "vendor" for one in held)]


def _row(one: Held) -> tuple[str, ...]:
    by = " ".join(filter(None, (one.path, ", ".join(one.tiles))))
    if one.failed:
        return (one.operation, one.form, one.dtype, by, "", "", "", f"FAIL: {one.failed}")
    if one.passed:
        told = "ok"
    elif one.repeats:
        told = "FAIL: further off than rounding explains"
    else:
        told = "FAIL: other bits the second time"
    same = "yes" if one.same_bits else "no"
    return (one.operation, one.form, one.dtype, by, f"{one.error:.1e}", f"{one.allowed:.1e}", same, told)

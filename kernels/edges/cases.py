"""What the compile gate compiles of edges."""

import itertools

import torch
import triton

from ..attention.arguments import unit
from ..attention.prepare import compact_kernel, prepare_kernel
from ..common import Case, record
from .given import prepare
from .listed import MOST, strongest
from .whole import tile


def compile_cases(on: tuple[int, int] = (9, 0)) -> list[Case]:
    """Every row of tiles.json that is for edges, in the forms that need most, and as many edges as may be kept."""
    calls = {}
    for dim in (64, 80, 128, 256):
        for dtype in (torch.bfloat16, torch.float32) if dim in (64, 128) else (torch.bfloat16,):
            forms = ("plain", "cp", "parts", "all flags", "kept", "kept all flags")
            for form in forms if dim != 80 else ("plain",):
                name = f"{dim}-{str(dtype)[6:]}-{form}".replace(" ", "-")
                calls[name] = lambda dim=dim, dtype=dtype, form=form: _both(dim, dtype, form)
    calls["128-float16-plain"] = lambda: _both(128, torch.float16, "plain")
    singles = [*itertools.product((64, 128, 256), ("plain", "all flags")), (64, "kept"), (128, "parts")]
    for dim, form in singles:  # of heads that share no keys
        name = f"{dim}-bfloat16-single-{form}".replace(" ", "-")
        calls[name] = lambda dim=dim, form=form: _both(dim, torch.bfloat16, form, groups=1)
    cases = record(calls, on)
    return [
        (f"{case[0]}-{case[1].fn.__name__}", *case[1:])
        for case in cases
        if case[1] not in (compact_kernel, prepare_kernel)
    ]


def _both(dim, dtype, form, groups=4):
    """A tile and lists of edges of a prompt that has no memory; of the tiles that are kept, if "kept"."""
    bounded, form = form.startswith("kept"), form.removeprefix("kept").strip() or "plain"
    meta = {"dtype": dtype, "device": "meta"}
    query, key = (torch.empty(1, 4096, heads, dim, **meta).transpose(1, 2) for heads in (32, 32 // groups))
    full = form == "all flags"
    part = key if full or form == "parts" else None
    kept = None
    if bounded:
        m, n = unit(query, full, full)
        kept = torch.empty(1, 32, triton.cdiv(4096, m), triton.cdiv(4096, n), dtype=torch.bool, device="meta")
    given = prepare(
        query, query, key, key, query, torch.empty(1, 32, 4096, device="meta"), query if full else None,
        key_part=part, value_part=part,
        scale=0.1, causal=True, window=1024 if full else None, softcap=30.0 if full else None,
        value_share=0.5, score_share=0.0 if form == "cp" else 0.25, ratio=True, gamma=0.1 * full, kept=kept,
    )  # fmt: skip
    rows = torch.empty(4096, dtype=torch.int64, device="meta")
    strongest(given, rows, MOST if full else 16)
    tile(given, rows, slice(0, 4096), torch.empty(2**24, device="meta"))

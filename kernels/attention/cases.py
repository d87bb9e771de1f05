"""What the compile gate compiles of attention."""

import torch
import triton

from ..common import DTYPES, Case, record
from .arguments import unit
from .backward_pass import backward
from .forward_pass import forward
from .masses import tile_masses


def compile_cases(on: tuple[int, int] = (9, 0)) -> list[Case]:
    """Every row of tiles.json, in the forms that need most: all flags, none, and dV alone."""
    half, full = DTYPES[1:]
    calls = {}
    for dim in (64, 80, 96, 128, 256):
        narrow = dim in (80, 96)  # features beside a wider tile
        for dtype in (half,) if narrow else (half, full):
            forms = ("plain", "all flags", "cp", *(["capped"] if dtype == half else []))
            forms = (*(("plain",) if narrow else forms), "kept", *(("kept all flags",) if not narrow else ()))
            for form in (*forms, *(("kept capped",) if "capped" in forms else ())):
                name = f"{dim}-{str(dtype)[6:]}-{form}".replace(" ", "-")
                calls[name] = lambda dim=dim, dtype=dtype, form=form: _both(dim, dtype, form)
    for form in ("gradient", "all flags"):
        calls[f"128-float16-{form}".replace(" ", "-")] = lambda form=form: _both(128, torch.float16, form)
    for form in ("epsilon", "cp gamma", "both ways", "kept cp"):
        calls[f"128-bfloat16-{form}".replace(" ", "-")] = lambda form=form: _both(128, half, form)
    calls["128-bfloat16-far-features"] = lambda: _both(128, half, "plain", far=True)
    cases, seen = [], []
    for case in record(calls, on):
        if case[1:] not in seen:
            seen.append(case[1:])
            cases.append((f"{case[0]}-{case[1].fn.__name__}", *case[1:]))
    return cases


def _both(dim, dtype, form, far=False):
    """A forward and a backward pass over tensors that have no memory, a bounded one if "kept", with its masses;
    ``far``: a token's features lie 4097 apart."""
    form, bounded = form.removeprefix("kept").strip() or "plain", form.startswith("kept")
    meta = {"dtype": dtype, "device": "meta"}
    query, key, value, g = (torch.empty(2, 4097, h, dim, **meta).transpose(1, 2) for h in (32, 8, 8, 32))
    if far:
        query, key, value, g = (t.mT.contiguous().mT for t in (query, key, value, g))
    flags = {"scale": 0.1, "causal": form != "both ways", "window": None, "softcap": None}
    rest = {"value_share": 0.5, "score_share": 0.0 if form.startswith("cp") else 0.25, "ratio": form != "gradient"}
    extra = {}
    if form == "all flags":
        flags |= {"window": 1024, "softcap": 30.0, "bounds": torch.empty(2, 2, dtype=torch.int64, device="meta")}
        rest |= {"epsilon": 0.1, "gamma": 0.1}
        extra = {"sinks": torch.empty(32, **meta), "absolute": True}
    elif form in ("capped", "gradient"):
        flags["softcap"] = 30.0
    elif form == "epsilon":
        rest["epsilon"] = 0.1
    elif form == "cp gamma":
        rest["gamma"] = 0.1
        extra["absolute"] = True
    out, lse, size = forward(query, key, value, **flags, **extra)
    if bounded:
        m, n = unit(query, "gamma" in rest, flags["softcap"] is not None)
        rest["kept"] = torch.empty(2, 32, triton.cdiv(4097, m), triton.cdiv(4097, n), dtype=torch.bool, device="meta")
        stabilisers = {name: rest[name] for name in ("epsilon", "gamma") if name in rest}
        tile_masses(g, query, key, out, lse, size, **flags, **stabilisers)
    backward(g, query, key, value, out, lse, size, **flags, **rest)

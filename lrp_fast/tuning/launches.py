"""What a row of tiles.json is for: the kernel, and a call that launches it as it is mostly used."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from ..ops.backend import kernels

TOKENS = 4096
DTYPES = {2: torch.bfloat16, 4: torch.float32}

_ATTENTION = r"(forward|dkv|dq|masses)( gamma| capped)?, head_dim (\d+), (\d) bytes"
_EDGES = r"edges( parts| gamma)?, head_dim (\d+), (\d) bytes"
_LINEAR = r"gamma_(forward|backward), (\d) bytes(, few rows)?"

Run = Callable[[dict], tuple[Tensor | None, ...]]


def work(row: str, seldom: bool = False, *, tokens: int = TOKENS) -> tuple[object, Callable[[str], Run]]:
    """The kernel that ``row`` is for, and what prepares, on a device, a call that launches it by a table's entry: as it
    is mostly used or, where ``seldom``, as the row serves too: dV alone, as cp wants it, and whole tiles of edges.
    """
    if match := re.fullmatch(_ATTENTION, row):
        step, form, head_dim, itemsize = match.groups()
        kernel = getattr(kernels("attention"), f"{step}_kernel")
        given = (step, form, tokens, int(head_dim), DTYPES[int(itemsize)])
        return kernel, lambda device: _attention(*given, device, cp=seldom)
    if match := re.fullmatch(_EDGES, row):
        form, head_dim, itemsize = match.groups()
        given = (form, tokens, int(head_dim), DTYPES[int(itemsize)])
        kernel = kernels("edges").tile_kernel if seldom else kernels("edges").strongest_kernel
        return kernel, lambda device: _edges(*given, device, whole=seldom)
    if match := re.fullmatch(_LINEAR, row):
        step, itemsize, few = match.groups()
        kernel = getattr(kernels("linear"), f"gamma_{step}_kernel")
        given = (step, 16 if few else tokens, tokens, DTYPES[int(itemsize)])
        return kernel, lambda device: _linear(*given, device)
    raise ValueError(f"the tuner does not know what the row {row!r} is for")


def case_of(row: str) -> tuple[str, str, int, torch.dtype]:
    """The operation and form that ``row`` serves, its head_dim and dtype: what is held against its definition."""
    if match := re.fullmatch(_ATTENTION, row):
        step, form, head_dim, itemsize = match.groups()
        operation = "attention" if step == "forward" else "attention backward"
        name = {" gamma": "gamma", " capped": "soft-cap"}.get(form, f"attnlrp, head_dim {head_dim}")
    elif match := re.fullmatch(_EDGES, row):
        form, head_dim, itemsize = match.groups()
        operation, plain = "edges, lists", f"attnlrp, head_dim {head_dim}"
        name = {" parts": "with parts", " gamma": "epsilon and gamma, with parts"}.get(form, plain)
    else:
        step, itemsize, few = re.fullmatch(_LINEAR, row).groups()
        operation = "linear" if step == "forward" else "linear backward"
        head_dim, name = 64, "epsilon and gamma, few rows" if few else "gamma"
    return operation, name, int(head_dim), DTYPES[int(itemsize)]


def _heads(tokens, head_dim, dtype, device) -> list[Tensor]:
    """query, key, value and the output's gradient."""
    generator = _generator(device)
    return [
        torch.randn(1, tokens, heads, head_dim, dtype=dtype, device=device, generator=generator).transpose(1, 2)
        for heads in (16, 4, 4, 16)
    ]


def _attention(step, form, tokens, head_dim, dtype, device, cp) -> Run:
    attention = kernels("attention")
    query, key, value, g = _heads(tokens, head_dim, dtype, device)
    gamma = form == " gamma"
    flags = {"scale": head_dim**-0.5, "causal": True, "window": None, "softcap": 30.0 if form == " capped" else None}
    if step == "forward":
        return lambda table: attention.forward(query, key, value, **flags, absolute=gamma, table=table)
    kept = attention.forward(query, key, value, **flags, absolute=gamma)
    if step == "masses":
        return lambda table: (attention.tile_masses(g, query, key, *kept, **flags, table=table),)
    shares = {"value_share": 1.0, "score_share": 0.0} if cp else {"value_share": 0.5, "score_share": 0.25}
    rule = {**shares, "ratio": True, "gamma": 0.25 * gamma}
    return lambda table: attention.backward(g, query, key, value, *kept, **flags, **rule, table=table)


def _edges(form, tokens, head_dim, dtype, device, whole) -> Run:
    edges = kernels("edges")
    query, key, value, g = _heads(tokens, head_dim, dtype, device)
    gamma = form == " gamma"
    flags = {"scale": head_dim**-0.5, "causal": True, "window": None, "softcap": None}
    kept = kernels("attention").forward(query, key, value, **flags, absolute=gamma)
    rule = {"value_share": 0.5, "score_share": 0.25, "ratio": True, "gamma": 0.25 * gamma}
    parts = {"key_part": key, "value_part": value} if form == " parts" else {"key_part": None, "value_part": None}
    given = edges.prepare(g, query, key, value, *kept, **parts, **flags, **rule)
    rows = torch.arange(tokens, device=device)
    if whole:
        found = torch.empty(tokens**2, device=device)
        return lambda table: (edges.tile(given, rows, slice(0, tokens), found, table),)

    def run(table):
        _, weights, dropped = edges.strongest(given, rows, 16, table)
        return weights.abs().sort().values, dropped  # whichever of two nearly equal ones was kept

    return run


def _linear(step, rows, tokens, dtype, device) -> Run:
    linear = kernels("linear")
    generator, ins, outs = _generator(device), tokens, 7 * tokens // 2  # as in the MLP of a model of 8 billion weights
    x, weight, g = (
        torch.randn(*shape, dtype=dtype, device=device, generator=generator)
        for shape in ((rows, ins), (outs, ins), (rows, outs))
    )
    if step == "forward":
        return lambda table: linear.gamma_forward(x, weight, None, 0.0, 0.25, table=table)
    _, t = linear.gamma_forward(x, weight, None, 0.0, 0.25)
    return lambda table: (linear.gamma_backward(g, x, t, weight, 0.25, table=table),)


def _generator(device):
    return None if device == "meta" else torch.Generator(device).manual_seed(0)

"""Softmax attention under the propagation rules: the rule's arithmetic, and who computes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..rules import Rules, as_rules
from . import (
    attention_bounded,
    attention_chunks,
    attention_cudnn,
    attention_flash,
    attention_native,
    attention_tempered,
    attention_tiled,
    attention_vendor,
    bounded,
)
from .attention_chosen import Chosen
from .backend import fused, kernels, preferred, table
from .once import once
from .rows import active_rows


class Reach(NamedTuple):
    """Which keys a query reads, and how a score is formed from the two."""

    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    # Plain PyTorch alone takes these.
    chosen: Chosen | None = None
    until: Tensor | None = None  # (B, S), one past the last key that a query reads, where that may not be itself

    @property
    def is_plain(self) -> bool:
        """Whether which keys are read does not hang on the prompt."""
        return self.chosen is None and self.until is None

    def of(self, rows: slice, tokens: slice) -> Reach:
        """That of some prompts, and of a run of their tokens."""
        chosen = None if self.chosen is None else self.chosen.of(rows, tokens)
        until = self.until
        if until is not None:
            start, end, _ = tokens.indices(until.shape[1])
            until = (until[rows, tokens] - start).clamp(max=end - start)
        return self._replace(chosen=chosen, until=until)

    def for_kernels(self) -> dict:
        """As they take it, where it `is_plain`."""
        return {name: value for name, value in self._asdict().items() if name not in ("chosen", "until")}


class Kept(NamedTuple):
    """What a backward pass needs of the forward one: with it, nothing of size T x S is computed twice.

    It is the same, but for rounding, whoever computed it, and any backward pass takes it.
    """

    out: Tensor  # (B, H, T, D)
    lse: Tensor  # (B, H, T), float32 at least
    size: Tensor | None  # (B, H, T, D) P |V| for the gamma rule
    chosen: Tensor | None = None  # as `attention` takes it


class Trace(NamedTuple):
    """One backward pass through an attention, as `attention_edges` needs it."""

    g: Tensor  # (B, H, T, D), the relevance gradient at the output
    query: Tensor
    key: Tensor
    value: Tensor
    kept: Kept
    g_key: Tensor | None  # what the pass handed back; None where attention weights are constants
    g_value: Tensor
    reach: Reach
    rules: Rules
    # Of a bounded pass: what was not left out of each prompt, (H, tiles of queries, tiles of keys) bool; None: all.
    tiles: list[Tensor | None] | None = None
    unit: tuple[int, int] | None = None  # queries and keys of a tile
    chunk: int | None = None  # tokens of a chunk, outside of which nothing is read

    def of(self, prompt: int, start: int, end: int) -> Trace:
        """That of one prompt of a batch, whose tokens are ``start`` ... ``end`` - 1 of as many queries as keys."""
        kept, *rest = (self.kept, self.g, self.query, self.key, self.value, self.g_key, self.g_value)
        kept = Kept(*(None if t is None else t[prompt : prompt + 1, :, start:end] for t in kept))
        g, query, key, value, *back = (None if t is None else t[prompt : prompt + 1, :, start:end] for t in rest)
        tiles = None if self.tiles is None else self.tiles[prompt]
        if tiles is not None:  # they are divided from the first token on
            rows, columns = (-(-(end - start) // size) for size in self.unit)
            tiles = tiles[:, :rows, :columns]
        reach = self.reach.of(slice(prompt, prompt + 1), slice(start, end))
        whole = (query, key, value, kept, *back, reach, self.rules)
        bounded_by = (None, None) if tiles is None else ([tiles], self.unit)  # a prompt beside bounded ones may not be
        return Trace(g, *whole, *bounded_by, self.chunk)


class _Back(NamedTuple):
    """What comes of a backward pass."""

    grads: tuple[Tensor | None, Tensor | None, Tensor]  # of query, key (None where they are constants) and value
    tiles: list[Tensor | None] | None = None  # as in `Trace`, with
    unit: tuple[int, int] | None = None
    dropped: list[float] | None = None  # one a prompt; None: nothing


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    rule: str | Rules = "attnlrp",
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    chunk: int | None = None,
    bounds: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    chosen: Tensor | Callable[[], Tensor] | None = None,
    block: int = 1,
    until: Tensor | None = None,
    impl: str = "auto",
    kept: Kept | None = None,
    traces: list[Trace] | None = None,
    tolerance: float = 0.0,
    dropped: list[Tensor] | None = None,
) -> Tensor:
    """Attention whose backward pass hands relevance gradients to query, key and value.

    attnlrp: half of the relevance goes to the values; the other half through the plain softmax Jacobian to queries and
    keys, a quarter each (Achtibat et al. 2024). cp: attention weights are constants, so the values get all. gradient:
    the plain gradient. gim: as attnlrp, with the softmax's Jacobian at half the scores. ``Rules.attention_epsilon`` and
    ``Rules.attention_gamma`` act on the product of weights and values. Nothing of size T x S is kept.

    Args:
        query: (B, H, T, D), any strides. Query t sits at position S - T + t.
        key, value: (B, H_kv, S, D), H a multiple of H_kv.
        scale: of the scores, D ** -0.5 by default.
        causal: query i reads no key after i. window: it reads no key before i - window + 1, and none after
            i + window - 1.
        chunk: a query reads keys of its own chunk alone, which are of as many tokens, from the row's first on. With
            ``traces``, a pass over chunks is exact whatever the tolerance.
        bounds: (B, 2) int64 for padded batches: the real tokens of row b are bounds[b, 0] ... bounds[b, 1] - 1; the
            others neither read nor are read, and their output is zero.
        softcap: scores become softcap * tanh(score / softcap); attnlrp passes it by the identity rule.
        sinks: (H,) one extra logit a head in the softmax denominator, gets no gradient.
        chosen: (B, 1 or H_kv, T, K) of integers, or what returns them: of the keys that a query reaches, it reads those
            of these blocks of ``block`` keys alone. What was not chosen passes nothing, and nothing is explained of the
            choice. It is made in plain PyTorch, by tiles of queries, on any device. None: all.
        until: (B, S) of whole numbers above 0, 1, ... S - 1, of as many queries as keys, causal: query i reads the keys
            behind it up to until[i] - 1 as well, whatever the window, as the tokens of an image do. It is made as what
            is chosen.
        impl: as in `activation`; the kernels take head_dim up to 256. Or "vendor": PyTorch's FlashAttention on CUDA,
            for attnlrp and gradient in 16 bits, without stabilisers, soft-cap, sinks and bounds; or "cudnn", for as
            many queries as keys and no window. "auto" is what `lrp-fast tune` found fastest on the device, or else
            "vendor" where it serves, but the kernels for head_dim 64 and 128 at compute capability 9.0, where they were
            measured to be. It goes back by the kernels where so many queries carry no relevance that these, which skip
            them, compute less. With "vendor" and "cudnn" the query's gradient may differ in its last bits from call to
            call: under ``torch.use_deterministic_algorithms(True)``, "auto" goes back by the kernels, whose bits
            repeat.
        kept: what `attention_forward` returned for the same arguments; then the forward pass is not computed again.
        traces: every backward pass appends what it used and handed back, for `attention_edges`.
        tolerance: above 0, the backward pass is bounded: of each prompt, it leaves out the tiles of queries and keys of
            least mass, as many as hold no more than this share of all mass (`ops.bounded` says what that is). Where
            that would cost more than it saves, nothing is left out. 0 is the exact pass.
        dropped: every backward pass appends the share of the mass that was left out, (B,) float64 on the CPU; of
            chunks the largest one's.

    Returns:
        (B, H, T, D) in the dtype of the three.

    Raises:
        ValueError: for shapes that do not fit, more queries than keys, or a window or softcap that is not positive; for
            what ``impl`` does not take; for traces or a tolerance under gim.
    """
    rules = as_rules(rule)
    if rules.treatment.temperature != 1:
        if tolerance or traces is not None:
            raise ValueError(f"{rules.name} takes neither traces nor a tolerance: leave them out, or take attnlrp")
        given = {"scale": scale, "softcap": softcap, "sinks": sinks, "chosen": chosen, "kept": kept, "dropped": dropped}
        given |= {"causal": causal, "window": window, "chunk": chunk, "bounds": bounds, "until": until}
        given |= {"block": block, "impl": impl}
        return attention_tempered.attention(attention, query, key, value, treatment=rules.treatment, **given)
    reach = _read(query, key, value, scale, causal, window, bounds, softcap, sinks)
    reach = _choosing(reach, chosen if kept is None else kept.chosen, block, query, key)
    reach, chunk = _ahead(reach, until, chunk, query, key), _chunk(chunk, query, key, bounds)
    tolerance = bounded.read_tolerance(tolerance)
    if tolerance and impl in _VENDORS:
        raise ValueError(f"{_CALLED[impl]} leaves nothing out: with a tolerance, use impl='auto'")
    if tolerance and traces is not None and bounds is not None and chunk is None:
        raise ValueError("traces of a bounded backward pass are of prompts without bounds: leave out bounds=")
    given = (query, key, value, sinks, bounds)
    paths = _paths(*given, reach, rules, chunk, impl)
    return _Attention.apply(*given, _How(reach, rules, paths, kept, traces, tolerance, dropped, chunk))


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    rule: str | Rules = "attnlrp",
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    chunk: int | None = None,
    bounds: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    chosen: Tensor | Callable[[], Tensor] | None = None,
    block: int = 1,
    until: Tensor | None = None,
    impl: str = "auto",
) -> Kept:
    """The forward pass of `attention` by itself, with the same arguments, not differentiable."""
    reach = _read(query, key, value, scale, causal, window, bounds, softcap, sinks)
    reach = _ahead(_choosing(reach, chosen, block, query, key), until, chunk, query, key)
    chunk = _chunk(chunk, query, key, bounds)
    given = (query, key, value, sinks, bounds, reach, as_rules(rule))
    with torch.no_grad():
        kept = _forward(*given, _paths(*given, chunk, impl).forward, chunk)
    return kept if reach.chosen is None else kept._replace(chosen=reach.chosen.index)


class _Paths(NamedTuple):
    """Who computes: "vendor", "cudnn", "triton" or "torch"."""

    forward: str
    backward: str
    settled: bool  # whatever gradient comes


class _How(NamedTuple):
    """What a call of `attention` says besides its tensors."""

    reach: Reach
    rules: Rules
    paths: _Paths
    kept: Kept | None
    traces: list[Trace] | None
    tolerance: float
    dropped: list[Tensor] | None
    chunk: int | None


# PyTorch's own, on CUDA.
_VENDORS = {"vendor": attention_vendor, "cudnn": attention_cudnn}
_CALLED = {"vendor": "PyTorch's FlashAttention", "cudnn": "cuDNN's attention"}


def _paths(query, key, value, sinks, bounds, reach, rules, chunk, impl) -> _Paths:
    by_tiles = not reach.is_plain
    if by_tiles and impl in (*_VENDORS, "triton"):
        what = "keys behind a query" if reach.chosen is None else "chosen keys"
        raise ValueError(f"{what} are read in plain PyTorch, not by {impl!r}: use impl='auto'")
    bounds = bounds if chunk is None else None  # chunks are cut out of their rows
    ours = impl not in _VENDORS
    if by_tiles or (ours and not fused(query, impl, served=query.shape[-1] <= 256, also=tuple(_VENDORS))):
        return _Paths("torch", "torch", True)
    if impl == "triton":
        return _Paths("triton", "triton", True)
    given = (query, key, value, sinks, bounds, reach, rules)
    if impl == "auto":
        steps = [_first(preferred(f"attention {step}", query), given) for step in ("forward", "backward")]
        return _Paths(*steps, False)
    if (refusal := _VENDORS[impl].refusal(*given)) is not None:
        raise ValueError(f"{_CALLED[impl]} does not serve here: {refusal}. Use impl='auto'")
    return _Paths(impl, impl, True)


def _first(names: tuple[str, ...], given: tuple) -> str:
    """Of those that are preferred, the first that serves."""
    return next(name for name in names if name == "triton" or _VENDORS[name].refusal(*given) is None)


def _read(query, key, value, scale, causal, window, bounds, softcap, sinks) -> Reach:
    _check(query, key, value, window, bounds, softcap, sinks)
    if window is not None and window >= key.shape[2]:
        window = None
    return Reach(query.shape[-1] ** -0.5 if scale is None else scale, causal, window, softcap)


def _choosing(reach: Reach, chosen, block: int, query: Tensor, key: Tensor) -> Reach:
    index = chosen() if callable(chosen) else chosen
    return reach if index is None else reach._replace(chosen=Chosen.read(index, block, query, key))


def _ahead(reach: Reach, until: Tensor | None, chunk: int | None, query: Tensor, key: Tensor) -> Reach:
    if until is None:
        return reach
    if not reach.causal or chunk is not None or not until.shape == key.shape[::2] == query.shape[::2]:
        raise ValueError(
            f"until is (B, S), of as many queries as keys, causal and without chunks; got {tuple(until.shape)} for "
            f"query {tuple(query.shape)}, key {tuple(key.shape)}"
        )
    until = until.to(query.device)
    if not (until > torch.arange(key.shape[2], device=until.device)).all():
        raise ValueError("until must let each query read itself: give one past the query, or past a later one")
    return reach._replace(until=until)


def _chunk(chunk: int | None, query: Tensor, key: Tensor, bounds: Tensor | None) -> int | None:
    """None where no row is longer than one."""
    if chunk is None:
        return None
    if chunk < 1 or query.shape[2] != key.shape[2]:
        counts = f"{query.shape[2]} queries and {key.shape[2]} keys"
        raise ValueError(f"chunks are of at least 1 token, and of as many queries as keys, not {chunk} of {counts}")
    return chunk if attention_chunks.longest(bounds, key.shape[2]) > chunk else None


def _check(query, key, value, window, bounds, softcap, sinks):
    def shapes() -> str:
        return f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"

    if query.ndim != 4 or key.shape != value.shape or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"attention takes query (B, H, T, D) and key, value (B, H_kv, S, D), not {shapes()}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"the number of heads must be a multiple of that of the key/value heads: {shapes()}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key and value must have one dtype, not {query.dtype}, {key.dtype} and {value.dtype}")
    if query.shape[2] > key.shape[2] or query.shape[2] == 0:
        raise ValueError(f"attention takes 1 ... S queries over S keys: {shapes()}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
    if sinks is not None and sinks.shape != query.shape[1:2]:
        raise ValueError(f"sinks must be one number a head, ({query.shape[1]},), not {tuple(sinks.shape)}")
    if bounds is not None and (bounds.shape != (query.shape[0], 2) or query.shape[2] != key.shape[2]):
        given = tuple(bounds.shape)
        raise ValueError(f"bounds must be (B, 2), with as many queries as keys; got {given} for {shapes()}")
    keys = key.shape[2]
    for start, end in () if bounds is None else bounds.tolist():
        if not 0 <= start <= end <= keys:
            raise ValueError(f"bounds must lie within the {keys} tokens, first ... one past the last: {start}, {end}")


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, sinks, bounds, how):
        ctx.how, kept = how._replace(kept=None), how.kept
        if kept is None:
            kept = _forward(query, key, value, sinks, bounds, how.reach, how.rules, how.paths.forward, how.chunk)
        ctx.save_for_backward(query, key, value, kept.out, kept.lse, kept.size, bounds, sinks)
        return kept.out.view_as(kept.out)

    @staticmethod
    @once
    def backward(ctx, g):
        *saved, bounds, sinks = ctx.saved_tensors
        how, path = ctx.how, ctx.how.paths.backward
        if path in _VENDORS and (how.tolerance or not (how.paths.settled or attention_vendor.is_better(g))):
            path = "triton"
        back = _backward(path, g, saved, bounds, sinks, how)
        if how.dropped is not None:
            how.dropped.append(torch.tensor(back.dropped or [0.0] * len(g), dtype=torch.float64, device="cpu"))
        if how.traces is not None:
            query, key, value, *kept = [None if t is None else t.detach() for t in saved]
            trace = (g, query, key, value, Kept(*kept), *back.grads[1:], how.reach, how.rules, back.tiles, back.unit)
            how.traces.append(Trace(*trace, how.chunk))
        return *back.grads, None, None, None


def _forward(query, key, value, sinks, bounds, reach, rules, path, chunk=None) -> Kept:
    if chunk is not None:
        each = partial(_forward, sinks=sinks, bounds=None, reach=reach, rules=rules, path=path)
        return Kept(*attention_chunks.together(lambda _, *given: each(*given), (query, key, value), bounds, chunk))
    if path == "torch":
        return _torch_forward(query, key, value, sinks, bounds, reach, rules)
    if path in _VENDORS:
        return Kept(*_VENDORS[path].forward(query, key, value, reach), None)
    given = {"sinks": sinks, "bounds": bounds, "absolute": rules.attention_gamma > 0}
    given |= reach.for_kernels()
    return Kept(*kernels("attention").forward(query, key, value, **given, table=table(query)))


def _backward(path, g, saved, bounds, sinks, how) -> _Back:
    own, shared = _BACKWARDS[path], (sinks, how.reach, how.rules)
    if how.chunk is None:
        return own(g, *saved, bounds, *shared, how.tolerance)
    most = torch.zeros(len(g), dtype=torch.float64)

    def each(rows, *given):
        back = own(*given, None, *shared, how.tolerance if how.traces is None else 0.0)
        if back.dropped is not None:
            most[rows] = most[rows].maximum(torch.tensor(back.dropped, dtype=torch.float64))
        return back.grads

    grads = attention_chunks.together(each, (g, *saved), bounds, how.chunk)
    return _Back(tuple(grads), dropped=most.tolist())


def _fused_backward(g, query, key, value, out, lse, size, bounds, sinks, reach, rules, tolerance) -> _Back:
    shared = reach.for_kernels() | {"bounds": bounds, "table": table(query)}
    shared |= {"epsilon": rules.attention_epsilon, "gamma": rules.attention_gamma}
    treatment = rules.treatment
    shares = {"value_share": treatment.value, "score_share": treatment.score, "ratio": treatment.ratio}
    chosen, tiles = [], None
    if tolerance:
        chosen = _fused_choices((g, query, key, out, lse, size), shared, tolerance, bounded.worth(treatment.score != 0))
    if any(chosen):
        there = next(filter(None, chosen)).kept
        tiles = torch.stack([torch.ones_like(there) if one is None else one.kept for one in chosen])
    grads = kernels("attention").backward(g, query, key, value, out, lse, size, **shared, **shares, kept=tiles)
    if tiles is None:
        return _Back(grads)
    unit = kernels("attention").unit(query, rules.attention_gamma > 0, reach.softcap is not None, table(query))
    dropped = [0.0 if one is None else one.dropped for one in chosen]
    return _Back(grads, [None if one is None else one.kept for one in chosen], unit, dropped)


def _fused_choices(given: tuple, shared: dict, tolerance: float, most: float) -> list[bounded.Chosen | None]:
    """For each prompt the tiles that the kernels are to visit; None where a look at some shows that too many stay."""
    masses = kernels("attention").tile_masses
    look = masses(*given, **shared, first=bounded.SAMPLED // 2, step=bounded.SAMPLED)
    worth = [bounded.kept_share(one, tolerance) <= most for one in look]
    if not any(worth):
        return [None] * len(worth)
    whole = masses(*given, **shared)
    return [bounded.choose(one, tolerance) if wanted else None for one, wanted in zip(whole, worth, strict=True)]


def _vendor_backward(g, query, key, value, out, lse, size, bounds, sinks, reach, rules, tolerance, by) -> _Back:
    return _Back(by.backward(g, query, key, value, out, lse, reach, rules))


def _torch_forward(query, key, value, sinks, bounds, reach, rules) -> Kept:
    """Plain PyTorch, by the CPU's flash kernels or by tiles."""
    if bounds is None:
        return _span_forward(query, key, value, sinks, reach, rules)
    out, lse = torch.zeros_like(query), None
    size = torch.zeros_like(query) if rules.attention_gamma else None
    for rows, real in _spans(bounds):
        own = (t[rows, :, real] for t in (query, key, value))
        kept = _span_forward(*own, sinks, reach.of(rows, real), rules)
        out[rows, :, real] = kept.out
        lse = kept.lse.new_zeros(query.shape[:3]) if lse is None else lse
        lse[rows, :, real] = kept.lse
        if size is not None:
            size[rows, :, real] = kept.size
    return Kept(out, lse, size)


def _torch_backward(g, query, key, value, out, lse, size, bounds, sinks, reach, rules, tolerance) -> _Back:
    given = (g, query, key, value, out, lse, size)
    if bounds is not None:
        spans = _spans(bounds)
    elif tolerance and len(g) > 1:  # each prompt chooses its own tiles
        spans = [(slice(b, b + 1), slice(None)) for b in range(len(g))]
    else:
        return _span_backward(*given, sinks, reach, rules, tolerance)
    explained = (query, key, value) if rules.treatment.score else (None, None, value)
    grads = tuple(torch.zeros_like(t) if t is not None else None for t in explained)
    tiles, unit, dropped = [None] * len(g), None, [0.0] * len(g)
    for rows, real in spans:
        part = [None if t is None else t[rows, :, real] for t in given]
        back = _span_backward(*part, sinks, reach.of(rows, real), rules, tolerance)
        if back.tiles is not None:
            tiles[rows], unit, dropped[rows] = back.tiles, back.unit, back.dropped
        for whole, piece in zip(grads, back.grads, strict=True):
            if piece is not None:
                whole[rows, :, real] = piece
    return _Back(grads, None if unit is None else tiles, unit, dropped)


_BACKWARDS = {name: partial(_vendor_backward, by=by) for name, by in _VENDORS.items()}
_BACKWARDS |= {"triton": _fused_backward, "torch": _torch_backward}


def _spans(bounds: Tensor) -> list[tuple[slice, slice]]:
    """(batch row, real tokens) of a padded batch."""
    return [(slice(b, b + 1), slice(start, end)) for b, (start, end) in enumerate(bounds.tolist()) if end > start]


def _span_forward(query, key, value, sinks, reach, rules) -> Kept:
    backend = attention_flash if attention_flash.serves(query, reach) else attention_tiled
    out, lse = _with_sinks(*backend.forward(query, key, value, reach), sinks)
    if not rules.attention_gamma:
        return Kept(out, lse, None)
    # The sum of |P V| that the gamma rule needs: one more attention over |value|, which shares lse.
    return Kept(out, lse, _with_sinks(*backend.forward(query, key, value.abs(), reach), sinks)[0])


def _with_sinks(out: Tensor, lse: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    if sinks is None:
        return out, lse
    with_sinks = torch.logaddexp(lse, sinks.to(lse.dtype).view(1, -1, 1))
    return (out * torch.exp(lse - with_sinks).unsqueeze(-1)).to(out.dtype), with_sinks


def _span_backward(g, query, key, value, out, lse, size, sinks, reach, rules, tolerance) -> _Back:
    treatment, gamma = rules.treatment, rules.attention_gamma
    rows = active_rows(g.transpose(0, 2))  # of any prompt
    g, out, wide = at_values(g, out, value, size, rules)
    given, how = (g, query, key, wide, out, lse, reach), {"scores": treatment.score != 0, "ratio": treatment.ratio}
    flash = not gamma and rows is None and treatment.score != 0 and attention_flash.serves(query, reach)
    few = flash and key.shape[2] <= attention_native.FEW
    native = rows is None and not few and attention_native.serves(query, wide, reach)
    less = None
    if tolerance and rows is None and reach.is_plain:
        less = attention_bounded.backward(*given, sinks=sinks, tolerance=tolerance, **how)
    if less is not None:
        dq, dk, dv, tiles, dropped = less
    elif native:
        dq, dk, dv = attention_native.backward(*given, scores=how["scores"])
    elif flash:
        dq, dk, dv = attention_flash.backward(*given)
    else:
        dq, dk, dv = attention_tiled.backward(*given, rows=rows, **how)
    if gamma:
        plus, same = dv.chunk(2, -1)
        dv = plus + value.sign() * same
    dv.mul_(treatment.value)
    grads = (dq.mul_(treatment.score), dk.mul_(treatment.score), dv) if treatment.score else (None, None, dv)
    return _Back(grads) if less is None else _Back(grads, [tiles], (attention_bounded.TILE,) * 2, [dropped])


def at_values(g, out, value, size, rules):
    """Gradient, output and values of the plain product P V whose gradients are those of the epsilon and gamma rules."""
    epsilon, gamma = rules.attention_epsilon, rules.attention_gamma
    if gamma:
        # P V with the signed gamma rule is attention over the wider values [V, |V|] (P >= 0, so |P V| = P |V|).
        t = out.abs().mul_(1 + gamma / 2).add_(size, alpha=gamma / 2).add_(epsilon)
        t = g * out / t.masked_fill_(t == 0, 1)  # sigma s
        sigma = torch.where(out < 0, -1.0, 1.0).to(out.dtype)
        g = torch.cat([t * sigma * (1 + gamma / 2), t * (gamma / 2)], -1)
        return g, torch.cat([out, size], -1), torch.cat([value, value.abs()], -1)
    if epsilon:
        g = g * (out.abs() / (out.abs() + epsilon).clamp_(min=torch.finfo(out.dtype).tiny))
    return g, out, value

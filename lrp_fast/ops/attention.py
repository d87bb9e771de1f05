"""Softmax attention under the propagation rules: the rule's arithmetic, and who computes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..rules import Rules, as_rules
from . import attention_flash, attention_tiled, attention_vendor
from .backend import fused, kernels, preferred, table
from .once import once
from .rows import active_rows


class Reach(NamedTuple):
    """Which keys a query reads, and how a score is formed from the two."""

    scale: float
    causal: bool
    window: int | None
    softcap: float | None


class Kept(NamedTuple):
    """What a backward pass needs of the forward one: with it, nothing of size T x S is computed twice.

    It is the same, but for rounding, whoever computed it, and any backward pass takes it.
    """

    out: Tensor  # (B, H, T, D)
    lse: Tensor  # (B, H, T), float32 at least
    size: Tensor | None  # (B, H, T, D) P |V| for the gamma rule


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

    def of(self, prompt: int, start: int, end: int) -> Trace:
        """That of one prompt of a batch, whose tokens are ``start`` ... ``end`` - 1 of as many queries as keys."""
        kept, *rest = (self.kept, self.g, self.query, self.key, self.value, self.g_key, self.g_value)
        kept = Kept(*(None if t is None else t[prompt : prompt + 1, :, start:end] for t in kept))
        g, query, key, value, *back = (None if t is None else t[prompt : prompt + 1, :, start:end] for t in rest)
        return Trace(g, query, key, value, kept, *back, self.reach, self.rules)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    rule: str | Rules = "attnlrp",
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    bounds: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    impl: str = "auto",
    kept: Kept | None = None,
    traces: list[Trace] | None = None,
) -> Tensor:
    """Attention whose backward pass hands relevance gradients to query, key and value.

    attnlrp: half of the relevance goes to the values; the other half through the plain softmax Jacobian to queries and
    keys, a quarter each (Achtibat et al. 2024). cp: attention weights are constants, so the values get all. gradient:
    the plain gradient. ``Rules.attention_epsilon`` and ``Rules.attention_gamma`` act on the product of weights and
    values. Nothing of size T x S is kept.

    Args:
        query: (B, H, T, D), any strides. Query t sits at position S - T + t.
        key, value: (B, H_kv, S, D), H a multiple of H_kv.
        scale: of the scores, D ** -0.5 by default.
        causal: query i reads no key after i. window: it reads no key before i - window + 1.
        bounds: (B, 2) int64 for padded batches: the real tokens of row b are bounds[b, 0] ... bounds[b, 1] - 1; the
            others neither read nor are read, and their output is zero.
        softcap: scores become softcap * tanh(score / softcap); attnlrp passes it by the identity rule.
        sinks: (H,) one extra logit a head in the softmax denominator, gets no gradient.
        impl: as in `activation`; the kernels take head_dim up to 256. Or "vendor": PyTorch's FlashAttention on CUDA,
            for attnlrp and gradient in 16 bits, without stabilisers, soft-cap, sinks and bounds. "auto" is that where
            it serves, but goes back by the kernels where so many queries carry no relevance that these, which skip
            them, compute less. With "vendor" the query's gradient may differ in its last bits from call to call: under
            ``torch.use_deterministic_algorithms(True)``, "auto" goes back by the kernels, whose bits repeat.
        kept: what `attention_forward` returned for the same arguments; then the forward pass is not computed again.
        traces: every backward pass appends what it used and handed back, for `attention_edges`.

    Returns:
        (B, H, T, D) in the dtype of the three.

    Raises:
        ValueError: for shapes that do not fit, more queries than keys, or a window or softcap that is not positive; for
            what ``impl`` does not take.
    """
    reach = _read(query, key, value, scale, causal, window, bounds, softcap, sinks)
    given = (query, key, value, sinks, bounds, reach, as_rules(rule))
    return _Attention.apply(*given, _paths(*given, impl), kept, traces)


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    rule: str | Rules = "attnlrp",
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    bounds: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    impl: str = "auto",
) -> Kept:
    """The forward pass of `attention` by itself, with the same arguments, not differentiable."""
    reach = _read(query, key, value, scale, causal, window, bounds, softcap, sinks)
    given = (query, key, value, sinks, bounds, reach, as_rules(rule))
    with torch.no_grad():
        return _forward(*given, _paths(*given, impl).forward)


class _Paths(NamedTuple):
    """Who computes: "vendor", "triton" or "torch"."""

    forward: str
    backward: str
    settled: bool  # whatever gradient comes


def _paths(query, key, value, sinks, bounds, reach, rules, impl) -> _Paths:
    if impl != "vendor" and not fused(query, impl, served=query.shape[-1] <= 256, also=("vendor",)):
        return _Paths("torch", "torch", True)
    if impl == "triton":
        return _Paths("triton", "triton", True)
    refusal = attention_vendor.refusal(query, key, value, sinks, bounds, reach, rules)
    if refusal is None and impl == "auto":
        return _Paths(*(preferred(f"attention {step}", query) for step in ("forward", "backward")), False)
    if refusal is None:
        return _Paths("vendor", "vendor", True)
    if impl == "auto":
        return _Paths("triton", "triton", True)
    raise ValueError(f"PyTorch's FlashAttention does not serve here: {refusal}. Use impl='auto'")


def _read(query, key, value, scale, causal, window, bounds, softcap, sinks) -> Reach:
    _check(query, key, value, window, bounds, softcap, sinks)
    if window is not None and window >= key.shape[2] and causal:
        window = None
    return Reach(query.shape[-1] ** -0.5 if scale is None else scale, causal, window, softcap)


def _check(query, key, value, window, bounds, softcap, sinks):
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.ndim != 4 or key.shape != value.shape or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"attention takes query (B, H, T, D) and key, value (B, H_kv, S, D), not {shapes}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"the number of heads must be a multiple of that of the key/value heads: {shapes}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key and value must have one dtype, not {query.dtype}, {key.dtype} and {value.dtype}")
    if query.shape[2] > key.shape[2] or query.shape[2] == 0:
        raise ValueError(f"attention takes 1 ... S queries over S keys: {shapes}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
    if sinks is not None and sinks.shape != query.shape[1:2]:
        raise ValueError(f"sinks must be one number a head, ({query.shape[1]},), not {tuple(sinks.shape)}")
    if bounds is not None and (bounds.shape != (query.shape[0], 2) or query.shape[2] != key.shape[2]):
        raise ValueError(f"bounds must be (B, 2), with as many queries as keys; got {tuple(bounds.shape)} for {shapes}")
    keys = key.shape[2]
    for start, end in [] if bounds is None else bounds.tolist():
        if not 0 <= start <= end <= keys:
            raise ValueError(f"bounds must lie within the {keys} tokens, first ... one past the last: {start}, {end}")


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, sinks, bounds, reach, rules, paths, kept, traces):
        if kept is None:
            kept = _forward(query, key, value, sinks, bounds, reach, rules, paths.forward)
        ctx.reach, ctx.rules, ctx.paths, ctx.traces = reach, rules, paths, traces
        ctx.save_for_backward(query, key, value, *kept, bounds)
        return kept.out.view_as(kept.out)

    @staticmethod
    @once
    def backward(ctx, g):
        *saved, bounds = ctx.saved_tensors
        path = ctx.paths.backward
        if path == "vendor" and not ctx.paths.settled and not attention_vendor.is_better(g):
            path = "triton"
        grads = _BACKWARDS[path](g, *saved, bounds, ctx.reach, ctx.rules)
        if ctx.traces is not None:
            query, key, value, *kept = [None if t is None else t.detach() for t in saved]
            ctx.traces.append(Trace(g, query, key, value, Kept(*kept), *grads[1:], ctx.reach, ctx.rules))
        return *grads, None, None, None, None, None, None, None


def _forward(query, key, value, sinks, bounds, reach, rules, path) -> Kept:
    if path == "torch":
        return _torch_forward(query, key, value, sinks, bounds, reach, rules)
    if path == "vendor":
        return Kept(*attention_vendor.forward(query, key, value, reach), None)
    given = {"sinks": sinks, "bounds": bounds, "absolute": rules.attention_gamma > 0}
    return Kept(*kernels("attention").forward(query, key, value, **reach._asdict(), **given, table=table(query)))


def _fused_backward(g, query, key, value, out, lse, size, bounds, reach, rules):
    return kernels("attention").backward(
        g,
        query,
        key,
        value,
        out,
        lse,
        size,
        **reach._asdict(),
        bounds=bounds,
        value_share=rules.treatment.value,
        score_share=rules.treatment.score,
        ratio=rules.treatment.ratio,
        epsilon=rules.attention_epsilon,
        gamma=rules.attention_gamma,
        table=table(query),
    )


def _vendor_backward(g, query, key, value, out, lse, size, bounds, reach, rules):
    return attention_vendor.backward(g, query, key, value, out, lse, reach, rules)


def _torch_forward(query, key, value, sinks, bounds, reach, rules) -> Kept:
    """Plain PyTorch, by the CPU's flash kernels or by tiles."""
    out = torch.zeros_like(query) if bounds is not None else None
    # The sum of |P V| that the gamma rule needs: one more attention over |value|, which shares lse.
    size = torch.zeros_like(query) if bounds is not None and rules.attention_gamma else None
    lse = None
    for rows, real in _spans(bounds, key.shape[2]):
        q, k, v = (t[rows, :, real] for t in (query, key, value))
        o, part = _span_forward(q, k, v, sinks, reach)
        a = _span_forward(q, k, v.abs(), sinks, reach)[0] if rules.attention_gamma else None
        if bounds is None:
            return Kept(o, part, a)
        out[rows, :, real] = o
        lse = part.new_zeros(query.shape[:3]) if lse is None else lse
        lse[rows, :, real] = part
        if a is not None:
            size[rows, :, real] = a
    return Kept(out, lse, size)


def _torch_backward(g, query, key, value, out, lse, size, bounds, reach, rules):
    explained = (query, key, value) if rules.treatment.score else (None, None, value)
    grads = [torch.zeros_like(t) if bounds is not None and t is not None else None for t in explained]
    for rows, real in _spans(bounds, key.shape[2]):
        part = [None if t is None else t[rows, :, real] for t in (g, query, key, value, out, lse, size)]
        found = _span_backward(*part, reach, rules)
        if bounds is None:
            return found
        for whole, piece in zip(grads, found, strict=True):
            if piece is not None:
                whole[rows, :, real] = piece
    return grads


_BACKWARDS = {"vendor": _vendor_backward, "triton": _fused_backward, "torch": _torch_backward}


def _spans(bounds: Tensor | None, length: int) -> list[tuple[slice, slice]]:
    """(batch rows, real tokens) to be computed together: all at once, or a padded batch row by row."""
    if bounds is None:
        return [(slice(None), slice(None))]
    return [(slice(b, b + 1), slice(start, end)) for b, (start, end) in enumerate(bounds.tolist()) if end > start]


def _span_forward(query, key, value, sinks, reach):
    """Output (B, H, T, D) and lse (B, H, T), sinks included."""
    backend = attention_flash if attention_flash.serves(query, reach) else attention_tiled
    out, lse = backend.forward(query, key, value, reach)
    if sinks is None:
        return out, lse
    with_sinks = torch.logaddexp(lse, sinks.to(lse.dtype).view(1, -1, 1))
    return (out * torch.exp(lse - with_sinks).unsqueeze(-1)).to(out.dtype), with_sinks


def _span_backward(g, query, key, value, out, lse, size, reach, rules):
    """Relevance gradients of query, key (None where they are constants) and value."""
    treatment, gamma = rules.treatment, rules.attention_gamma
    rows = active_rows(g.transpose(0, 2))  # of any prompt
    g, out, wide = at_values(g, out, value, size, rules)
    plain = not gamma and rows is None and treatment.score and attention_flash.serves(query, reach)
    if plain:
        dq, dk, dv = attention_flash.backward(g, query, key, value, out, lse, reach)
    else:
        dq, dk, dv = attention_tiled.backward(
            g, query, key, wide, out, lse, reach, rows=rows, scores=treatment.score != 0, ratio=treatment.ratio
        )
    if gamma:
        plus, same = dv.chunk(2, -1)
        dv = plus + value.sign() * same
    dv.mul_(treatment.value)
    if not treatment.score:
        return None, None, dv
    return dq.mul_(treatment.score), dk.mul_(treatment.score), dv


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

"""Softmax attention, dense: N x N matrices for every head, in the dtype of the inputs.

Shapes: query (B, H, T, D), key (B, H_kv, S, D), value (B, H_kv, S, D_v); H is a multiple of H_kv. Query t sits at
position S - T + t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .linear import epsilon_factor, quotient, same_sign, sign


def visible(
    batch: int,
    queries: int,
    keys: int,
    *,
    causal: bool = True,
    window: int | None = None,
    chunk: int | None = None,
    bounds: Tensor | None = None,
    until: Tensor | None = None,
) -> Tensor:
    """(B, 1, T, S) bool: which key each query may read.

    ``window``: query i reads keys i - window + 1 ... i, and where not causal as many behind it, up to i + window - 1.
    ``chunk``: it reads keys of its own chunk of as many tokens, which begin with the row's first. ``bounds`` (B, 2):
    the real tokens of a row are bounds[b, 0] ... bounds[b, 1] - 1; a query outside reads nothing and its output is
    zero. ``until`` (B, S): query i, causal, reads the keys behind it up to until[b, i] - 1 as well, windows aside.
    """
    i = torch.arange(keys - queries, keys)[:, None]
    j = torch.arange(keys)
    mask = torch.ones(queries, keys, dtype=torch.bool)
    if causal and until is None:
        mask &= j <= i
    if window is not None:
        mask &= (j - i).abs() < window if until is None else i - j < window
    if until is not None:
        mask = mask & (j < until[:, keys - queries :, None])
    if chunk is not None:
        first = torch.zeros(batch, 1, 1, dtype=torch.int64) if bounds is None else bounds[:, 0, None, None]
        mask = mask & ((j - first) // chunk == (i - first) // chunk)
    if bounds is None:
        return mask.view(-1, 1, queries, keys).expand(batch, 1, queries, keys)
    real_i = (i >= bounds[:, 0, None, None]) & (i < bounds[:, 1, None, None])
    real_j = (j >= bounds[:, 0, None, None]) & (j < bounds[:, 1, None, None])
    return (mask & real_i & real_j)[:, None]


def among(mask: Tensor, chosen: Tensor, block: int = 1) -> Tensor:
    """(B, 1 or H_kv, T, S) bool: of what a mask (B, 1, T, S) shows, the keys in the blocks chosen (B, 1 or H_kv, T, K).
    """
    of_keys = torch.arange(mask.shape[-1]) // block
    return mask & (chosen[..., None] == of_keys).any(-2)


def _weights(query, key, mask, scale, softcap, sinks):
    """Attention weights P (B, H, T, S) and the raw scaled scores."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    raw = query @ key.transpose(-1, -2) * scale
    scores = raw if softcap is None else softcap * torch.tanh(raw / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    highest = scores.amax(-1, keepdim=True)
    if sinks is not None:  # one more logit a head in the denominator, that no value belongs to
        highest = torch.maximum(highest, sinks.view(1, -1, 1, 1))
    highest = highest.clamp(min=torch.finfo(query.dtype).min)  # a row that reads nothing
    weights = torch.exp(scores - highest)
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks.view(1, -1, 1, 1) - highest)
    return quotient(weights, total), raw


def attention_weights(
    query, key, mask, *, scale: float, softcap: float | None = None, sinks: Tensor | None = None
) -> Tensor:
    """P (B, H, T, S)."""
    return _weights(query, key, mask, scale, softcap, sinks)[0]


def attention(query, key, value, mask, *, scale: float, softcap: float | None = None, sinks: Tensor | None = None):
    """Output (B, H, T, D_v)."""
    weights, _ = _weights(query, key, mask, scale, softcap, sinks)
    return weights @ value.repeat_interleave(query.shape[1] // value.shape[1], 1)


def attention_backward(
    g,
    query,
    key,
    value,
    mask,
    *,
    scale: float,
    rule: str = "attnlrp",
    softcap: float | None = None,
    sinks: Tensor | None = None,
    epsilon: float = 0.0,
    gamma: float = 0.0,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance gradients of (query, key, value) from that of the output, ``g`` (B, H, T, D_v).

    attnlrp halves the relevance at P V and again at Q K^T; cp holds P constant, so value gets all; gradient is the
    plain gradient. gim halves as attnlrp does, and passes the softmax of the scores s by its Jacobian at s / 2, the
    temperature 2 of arXiv 2505.17630 (whose authors' code adds no factor 1 / 2 for it). epsilon and gamma act on P V,
    whose contributions are c = P_ti V_id. ``kept`` (B, H, T, S) bool: through which weights anything is handed back, of
    a bounded backward pass; None: all.
    """
    shares = {"attnlrp": (0.5, 0.5, 0.5), "gim": (0.5, 0.5, 0.5), "cp": (1, 0, 0), "gradient": (1, 1, 1)}
    share_v, share_p, share_qk = shares[rule]
    groups = query.shape[1] // key.shape[1]
    weights, raw = _weights(query, key, mask, scale, softcap, sinks)
    v = value.repeat_interleave(groups, 1)
    out = weights @ v
    if gamma == 0:
        s = g * epsilon_factor(out, epsilon)
        g_weights = s @ v.transpose(-1, -2)
        g_value = _through(weights, kept).transpose(-1, -2) @ s
    else:
        sigma = sign(out).unsqueeze(-2)  # (B, H, T, 1, D_v)
        same = same_sign(v.unsqueeze(2), sigma)  # P >= 0: a contribution has the sign of V; (B, H, T, S, D_v)
        c = weights.unsqueeze(-1) * v.unsqueeze(2)
        s = quotient(g * out, out + gamma * (c * same).sum(-2) + epsilon * sigma.squeeze(-2)).unsqueeze(-2)
        g_weights = (s * v.unsqueeze(2) * (1 + gamma * same)).sum(-1)
        g_value = (s * _through(weights, kept).unsqueeze(-1) * (1 + gamma * same)).sum(-3)
    g_weights = share_p * g_weights
    if rule == "gim":
        cap, sink = (None if one is None else one / 2 for one in (softcap, sinks))
        weights, _ = _weights(query, key, mask, scale / 2, cap, sink)
    g_scores = _through(weights, kept) * (g_weights - (weights * g_weights).sum(-1, keepdim=True))
    if softcap is not None:
        capped = torch.tanh(raw / softcap)
        by_ratio = torch.where(raw == 0, 1.0, capped * softcap / torch.where(raw == 0, 1.0, raw))
        g_scores = g_scores * (1 - capped**2 if rule in ("gradient", "gim") else by_ratio)
    g_scores = share_qk * scale * g_scores
    g_query = g_scores @ key.repeat_interleave(groups, 1)
    g_key = g_scores.transpose(-1, -2) @ query

    def per_kv_head(x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, groups)).sum(2)

    return g_query, per_kv_head(g_key), per_kv_head(share_v * g_value)


def _through(weights: Tensor, kept: Tensor | None) -> Tensor:
    return weights if kept is None else weights * kept


def attention_mass(
    g,
    query,
    key,
    value,
    mask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    epsilon: float = 0.0,
    gamma: float = 0.0,
) -> Tensor:
    """(B, H, T, S): |u_i| P_ij, what query i can hand back to key j at most; a tile's mass is its sum.

    u is the relevance gradient at the head's output behind the stabilisers. With gamma it has two parts, one that meets
    V and one that meets |V|, (1 + gamma / 2) s and (gamma / 2) sigma s.
    """
    weights, _ = _weights(query, key, mask, scale, softcap, sinks)
    v = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    out = weights @ v
    signed = sign(out)
    size = signed * out + gamma / 2 * (signed * out + weights @ v.abs())
    s = quotient(g * out, signed * (size + epsilon)) if epsilon or gamma else g
    parts = torch.cat([(1 + gamma / 2) * s, gamma / 2 * s], -1)
    return torch.linalg.vector_norm(parts, dim=-1, keepdim=True) * weights

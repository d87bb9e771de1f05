"""Attention by PyTorch's own CPU flash kernels: the forward pass, and every rule that is a scaled gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_tiled import ahead

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# The kernel walks the keys in blocks of this many. A window's blocks start on the same grid as an unwindowed pass,
# which keeps its rounding the same.
_KEY_BLOCK = 512
_QUERY_BLOCK = 1024
_SHORT = 1024


def serves(query: Tensor, reach) -> bool:
    """Whether these kernels compute this attention at all: no soft-cap, no keys that hang on the prompt, a positive
    scale, on a CPU.

    They scale what is hidden as well, which another scale would make NaN or the maximum of.
    """
    plain = reach.softcap is None and reach.is_plain and reach.scale > 0
    return query.device.type == "cpu" and plain


def forward(query: Tensor, key: Tensor, value: Tensor, reach) -> tuple[Tensor, Tensor]:
    """Output (B, H, T, D) and lse (B, H, T)."""
    query, key, value = map(_rows, (query, key, value))
    if _is_one_call(query, key, reach):
        return _forward(query, key, value, 0.0, reach.causal, scale=reach.scale)
    out, lse = torch.empty_like(query), None
    for rows, keys, mask in _blocks(query, key, reach):
        o, part = _forward(
            query[:, :, rows], key[:, :, keys], value[:, :, keys], 0.0, False, attn_mask=mask, scale=reach.scale
        )
        out[:, :, rows] = o
        lse = part.new_empty(query.shape[:3]) if lse is None else lse
        lse[:, :, rows] = part
    return out, lse


def backward(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, reach
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain gradients of query, key and value."""
    g, query, key, value, out = map(_rows, (g, query, key, value, out))
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.shape[2] > _SHORT and key.shape[0] * key.shape[1] % torch.get_num_threads():
        # The kernel gives whole key/value heads to threads: 3 of them on 2 threads leave one idle half of the time.
        # With a key/value head for each query head it is 6 to 20 % faster there, copies and sums included; of fewer
        # queries these take as long as they save (measured).
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
        dq, *grads = _plain_gradients(g, query, key, value, out, lse, reach)
        return dq, *(t.unflatten(1, (-1, groups)).sum(2) for t in grads)
    return _plain_gradients(g, query, key, value, out, lse, reach)


def _plain_gradients(g, query, key, value, out, lse, reach):
    if _is_one_call(query, key, reach):
        return _backward(g, query, key, value, out, lse, 0.0, reach.causal, scale=reach.scale)
    dq, dk, dv = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for rows, keys, mask in _blocks(query, key, reach):
        arguments = [t[:, :, part] for t, part in ((g, rows), (query, rows), (key, keys), (value, keys), (out, rows))]
        q, k, v = _backward(*arguments, lse[:, :, rows], 0.0, False, attn_mask=mask, scale=reach.scale)
        dq[:, :, rows] = q
        dk[:, :, keys] += k
        dv[:, :, keys] += v
    return dq, dk, dv


def _rows(x: Tensor) -> Tensor:
    """``x`` with its last dimension dense: the kernels take any strides but that one, and do not look."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _is_one_call(query, key, reach) -> bool:
    return reach.window is None and (not reach.causal or query.shape[2] == key.shape[2])


def _blocks(query, key, reach):
    """Query rows, the keys that they can reach, and the additive mask between them."""
    total, keys = query.shape[2], key.shape[2]
    offset = keys - total
    for start in range(0, total, _QUERY_BLOCK):
        end = min(start + _QUERY_BLOCK, total)
        low = 0 if reach.window is None else max(0, start + offset - reach.window + 1) // _KEY_BLOCK * _KEY_BLOCK
        high = min(keys, end + offset - 1 + ahead(reach, keys))
        i = torch.arange(start + offset, end + offset)[:, None]
        j = torch.arange(low, high)
        hidden = torch.zeros(len(i), len(j), dtype=torch.bool)
        if reach.causal or reach.window is not None:
            hidden |= j >= i + ahead(reach, keys)
        if reach.window is not None:
            hidden |= j <= i - reach.window
        mask = torch.zeros(hidden.shape, dtype=query.dtype).masked_fill_(hidden, -torch.inf)
        yield slice(start, end), slice(low, high), mask

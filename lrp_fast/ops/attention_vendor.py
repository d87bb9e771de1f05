"""Attention by PyTorch's own FlashAttention on CUDA: the forward pass, and every rule that is a scaled gradient.

Its backward pass is one kernel that forms 5 products. Ours are two, which form 7, because they sum everything in one
fixed order; this one adds up the queries' gradients as its blocks of keys come by (atomicAdd), so that they may differ
in their last bits from call to call. Output, lse and the gradients of keys and values do not. There is a kernel that
repeats its bits, but no argument asks for it: PyTorch takes it under ``torch.use_deterministic_algorithms(True)``,
which is the whole process's and not ours to set. Where the user has set it, our kernels repeat theirs with less memory.

What the two operations take and give back, as PyTorch's source has it (aten/src/ATen/native/transformers/cuda:
attention.cu, attention_backward.cu, and in flash_attn: flash_api.cpp's mha_fwd and mha_bwd, mask.h, softmax.h):

- (B, T, H, D), of whose strides the last has to be 1; fewer key/value heads than query heads as they are.
- Query t sits at position S - T + t, for causality and for windows. It reads window_size_left keys before its own,
  and window_size_right behind it, which causality makes 0.
- lse is (B, H, T) in float32, of the natural logarithm. The backward pass reads as much memory, and checks nothing.
- Without cumulative lengths a batch is dense; without dropout nobody reads a random state.

cuDNN's attention is another vendor's: `attention_cudnn`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention

from ..rules import Rules

_forward = torch.ops.aten._flash_attention_forward.default
_backward = torch.ops.aten._flash_attention_backward.default

_DTYPES = (torch.float16, torch.bfloat16)
_TILE = 128  # queries that our kernels skip together, at most
_PRODUCTS, _OUR_PRODUCTS = 5, 7


def refusal(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, bounds: Tensor | None, reach, rules: Rules
) -> str | None:
    """Why PyTorch's kernels cannot compute this attention and its relevance gradients; None where they can."""
    heads, queries, head_dim = query.shape[1:]
    if (why := of_others(query, key, value, sinks, bounds, reach, rules)) is not None:
        return why
    if head_dim % 8 or head_dim > 256 or 192 < head_dim <= 224:  # those up to 224 not on every device
        return f"it takes a head_dim that is a multiple of 8 up to 192, or from 232 to 256, not {head_dim}"
    if _rounded(queries, 128) * heads * _rounded(head_dim, 32 if head_dim <= 128 else 64) >= 2**31:
        return f"it counts the queries' features in 32 bits, and {queries} queries have too many"
    if not _is_available(query, key, value):
        return "PyTorch has it for CUDA devices from compute capability 8.0 on, unless it was told to take others"
    return None


def of_others(query: Tensor, key: Tensor, value: Tensor, sinks, bounds, reach, rules: Rules) -> str | None:
    """Why nobody but us computes this attention and its relevance gradients, whatever its head_dim and device."""
    if query.dtype not in _DTYPES:
        return f"it takes float16 and bfloat16, not {query.dtype}"
    if not rules.treatment.score or rules.attention_epsilon or rules.attention_gamma:
        return "it computes plain gradients, and these are no multiples of them (cp, epsilon, gamma)"
    if reach.softcap is not None or sinks is not None or bounds is not None:
        return "it knows no soft-cap, no sinks and no padding"
    if not len(query):
        return "it takes at least one prompt"
    if not reach.scale > 0:  # it takes the maximum of scores before it scales them, those that are hidden included
        return f"it takes a positive scale, not {reach.scale}"
    if not all(map(_is_aligned, (query, key, value))):
        return "it loads 16 bytes at a time, and heads and tokens do not all start at a multiple of that"
    return None


def forward(query: Tensor, key: Tensor, value: Tensor, reach) -> tuple[Tensor, Tensor]:
    """Output (B, H, T, D) and lse (B, H, T)."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    out, lse, *_ = _forward(query, key, value, *_lengths(query, key), 0.0, reach.causal, False, **_scores(reach))
    return out.transpose(1, 2), lse


def backward(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, reach, rules: Rules
) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance gradients of query, key and value, given what `forward`, or our kernels, returned."""
    g, out = (loadable(t.to(query.dtype).transpose(1, 2)) for t in (g, out))
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    unused = query.new_empty(0)
    saved = (g, query, key, value, out, lse.contiguous())
    dq, dk, dv = _backward(*saved, *_lengths(query, key), 0.0, reach.causal, unused, unused, **_scores(reach))
    return tuple(t.transpose(1, 2) for t in shared((dq, dk, dv), rules))


def shared(grads: tuple[Tensor, Tensor, Tensor], rules: Rules) -> tuple[Tensor, ...]:
    """Relevance gradients of query, key and value, in place of the plain ones."""
    value_share, score_share = rules.treatment.value, rules.treatment.score
    shares = (score_share, score_share, value_share)
    return tuple(t if share == 1 else t.mul_(share) for t, share in zip(grads, shares, strict=True))


def is_better(g: Tensor) -> bool:
    """Whether these kernels, and not ours, are to go back from ``g`` (B, H, T, D) where both serve: they form fewer
    products, ours skipping tiles of queries without relevance, and nobody has asked for bits that repeat.

    That is a look at data, for which the host waits for the GPU once an attention and queues nothing meanwhile: tens of
    microseconds. Contexts of one tile are not looked at, nor is a stream that is being captured, which cannot wait.
    """
    if torch.are_deterministic_algorithms_enabled():
        return False
    queries = g.shape[2]
    if queries <= _TILE or (g.is_cuda and torch.cuda.is_current_stream_capturing()):
        return True
    carry = torch.nn.functional.pad(g.any(-1).any((0, 1)), (0, -queries % _TILE)).view(-1, _TILE).any(-1)
    return _PRODUCTS * len(carry) < _OUR_PRODUCTS * int(carry.sum())


def _is_available(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether this build of PyTorch has the kernels, and for this device, and nobody has switched them off, or put
    others in their place (`torch.nn.attention.activate_flash_attention_impl`), of which nothing said above is known.

    Asked without a causal mask: for one over more keys than queries, `scaled_dot_product_attention`, which would start
    it at the first key, has no use for them.
    """
    others = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)()  # not in every torch
    if torch.version.hip or not query.is_cuda or others is not None:
        return False
    return can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, query.shape[1] != key.shape[1]))


def _is_aligned(x: Tensor) -> bool:
    each = 16 // x.element_size()
    steps = [stride for size, stride in zip(x.shape[:-1], x.stride(), strict=False) if size > 1]
    return x.stride(-1) == 1 and not any(step % each for step in steps) and x.data_ptr() % 16 == 0


def loadable(x: Tensor) -> Tensor:
    """``x``, (B, T, H, D), in rows one after the other: PyTorch would copy any other, and none that starts askew."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step


def _lengths(query: Tensor, key: Tensor) -> tuple[None, None, int, int]:
    """Cumulative lengths, none, and those of the queries and keys."""
    return None, None, query.shape[1], key.shape[1]


def _scores(reach) -> dict[str, float | int | None]:
    before = None if reach.window is None else reach.window - 1
    behind = None if reach.causal else before
    return {"scale": reach.scale, "window_size_left": before, "window_size_right": behind}

"""Attention by PyTorch's call of cuDNN on CUDA: the forward pass, and every rule that is a scaled gradient.

On an H200 its forward pass takes 0.60 to 0.83 of the time of our kernels, its backward pass 0.54 to 0.65
(benchmarks/results/kernels.json, called there by `scaled_dot_product_attention`). It plans for every shape anew, once a
process, and adds up the queries' gradients in any order, so that their last bits may differ from call to call. Nobody
takes it who has not measured it: `lrp-fast tune` holds it against the definition and times it, on the device that it is
for, and ``impl="cudnn"`` forces it.

What the two operations take and give back, as PyTorch's source has it (aten/src/ATen/native/cudnn/MHA.cpp and
transformers/cuda/attention_backward.cu):

- (B, H, T, D), of whose strides the last has to be 1; fewer key/value heads than query heads as they are.
- A causal mask starts at the first key: it is ours where there are as many queries as keys. There are no windows.
- lse is (B, H, T) or (B, H, T, 1), by PyTorch's version, in float32, of the natural logarithm. The backward pass takes
  it as the forward pass gives it.
- Without dropout nobody reads a random state.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

from ..rules import Rules
from .attention_vendor import loadable, of_others, shared

_forward = torch.ops.aten._scaled_dot_product_cudnn_attention.default
_backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward.default


def refusal(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, bounds: Tensor | None, reach, rules: Rules
) -> str | None:
    """Why cuDNN cannot compute this attention and its relevance gradients; None where it can."""
    queries, head_dim, keys = query.shape[2], query.shape[3], key.shape[2]
    if (why := of_others(query, key, value, sinks, bounds, reach, rules)) is not None:
        return why
    if reach.window is not None:
        return "it knows no window"
    if reach.causal and queries != keys:
        return f"its causal mask starts at the first key, and there are {queries} queries over {keys} keys"
    if head_dim % 8 or head_dim > 128:
        return f"it takes a head_dim that is a multiple of 8 up to 128, not {head_dim}"
    if any(stride >= 2**31 for x in (query, key, value) for stride in x.stride()):
        return "it counts strides in 32 bits"
    if not _is_available(query, key, value, reach.causal):
        return "this PyTorch, cuDNN or device does not have it, or it was switched off"
    return None


def forward(query: Tensor, key: Tensor, value: Tensor, reach) -> tuple[Tensor, Tensor]:
    """Output (B, H, T, D) and lse (B, H, T)."""
    out, lse, *_ = _forward(query, key, value, None, True, 0.0, reach.causal, False, scale=reach.scale)
    return out, lse.reshape(query.shape[:3])


def backward(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, reach, rules: Rules
) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance gradients of query, key and value, given what `forward`, or others, returned."""
    g, out = (loadable(t.to(query.dtype).transpose(1, 2)).transpose(1, 2) for t in (g, out))
    lse = lse.contiguous().unsqueeze(-1) if _keeps_a_column(query.device) else lse.contiguous()
    random = torch.empty((), dtype=torch.int64, device=query.device)
    saved = (g, query, key, value, out, lse, random, random, None, None, None, query.shape[2], key.shape[2])
    return shared(_backward(*saved, 0.0, reach.causal, scale=reach.scale), rules)


def _is_available(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> bool:
    if torch.version.hip or not query.is_cuda:
        return False
    return can_use_cudnn_attention(SDPAParams(query, key, value, None, 0.0, causal, query.shape[1] != key.shape[1]))


@functools.cache
def _keeps_a_column(device: torch.device) -> bool:
    """Whether lse is (B, H, T, 1) to this version of PyTorch: told by a forward pass of 64 tokens."""
    x = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16, device=device)
    return _forward(x, x, x, None, True, 0.0, True, False, scale=1.0)[1].ndim == 4

"""ALiBi (Press et al., ICLR 2022, arXiv 2108.12409): a bias for each head and key, added to its scores.

It needs no kernel of its own: a bias b_hs is the product of a constant in the query and of b_hs in the key, in a few
features more of the head. They are constants to relevance: none of it goes there, and they are none of a contribution
to a key.

The biases are those that the model has made, whatever it has rounded (Bloom adds them in its own dtype, Falcon makes
them in bfloat16), and with a cache or padding, whatever they count from. The products are exact in the sums of a
kernel: a number that one 16-bit number is not is two or three, each in a feature of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_PIECES = 3  # of 8 bits each in bfloat16: as many as a float32 has
_WIDTHS = 8  # loads are aligned


def folded(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(B, H, T, E) and (B, H, S, E), E > D, whose products are those of (B, H, T, D) and (B, H, S, D), plus ``bias``
    (B or 1, H, S) over ``scale``: times ``scale``, the bias itself. (1.0 where it is scaled with the scores.)"""
    constants, biases = _constants(scale, query.dtype), _pieces(bias.detach(), query.dtype)
    of_query = torch.stack([one for one in constants for _ in biases]).to(query.device)
    of_key = torch.stack(biases * len(constants), -1).expand(len(key), -1, -1, -1)
    over = width(query.shape[-1], scale, query.dtype, bias.dtype) - query.shape[-1] - len(of_query)
    of_query, of_key = (F.pad(one, (0, over)) for one in (of_query, of_key))
    return torch.cat([query, of_query.expand(*query.shape[:-1], -1)], -1), torch.cat([key, of_key], -1)


def width(features: int, scale: float, dtype: torch.dtype, bias_dtype: torch.dtype) -> int:
    """E of `folded`, of D features."""
    more = len(_constants(scale, dtype)) * len(_pieces(torch.zeros(1, dtype=bias_dtype), dtype))
    return -(-(features + more) // _WIDTHS) * _WIDTHS


def of_each_head(x: Tensor, heads: int) -> Tensor:
    """Keys or values (B, H_kv, S, D) as (B, H, S, D): biases are a head's, not a group's."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _constants(scale: float, dtype: torch.dtype) -> list[Tensor]:
    pieces = _pieces(torch.tensor(1 / scale, dtype=torch.float64), dtype)
    return [one for one in pieces if one]


def _pieces(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Numbers of ``dtype`` that sum to ``x``, to the bits of a float32."""
    if x.dtype == dtype or dtype.itemsize > 2:
        return [x.to(dtype)]
    pieces, rest = [], x.to(torch.promote_types(x.dtype, torch.float32))
    for _ in range(_PIECES):
        pieces.append(rest.to(dtype))
        rest = rest - pieces[-1]
    return pieces

"""Softmax attention under the propagation rules: forward, and a backward that hands relevance gradients down.

Shapes: query (B, H, T, D), key and value (B, H_kv, S, D), any strides; query t sits at position S - T + t. Nothing of
size T x S exists. Every result is summed in one fixed order, without atomics: the same call gives the same bits.

The forward pass is the online softmax. The backward pass is four launches:

1. ``prepare_kernel``: what the rule makes of the incoming gradient, its product with the output, and which query
   tiles carry relevance at all;
2. ``compact_kernel``: the list of those query tiles, head by head, so that the others are never looked at again;
3. ``dkv_kernel``: a program owns a tile of keys and walks the listed query tiles of all heads that share them;
4. ``dq_kernel``: a program owns a tile of queries and walks the keys (left out where weights are constants).

A bounded backward pass leaves tiles out, the same ones for keys and queries: ``masses_kernel`` says how much relevance
meets the weights of each, the caller chooses, and ``dkv_kernel`` and ``dq_kernel`` walk lists of what is left.

Tiles of the mask that are wholly open take no mask arithmetic; tiles that are wholly closed are not visited.

Names: ``p_`` pointer, ``b_`` block in registers, ``o_`` offsets, ``i_`` index, ``m_`` mask.
"""

from .arguments import Tiles, config, row, unit
from .backward_pass import backward, dkv_kernel, dq_kernel
from .cases import compile_cases
from .forward_pass import forward, forward_kernel
from .masses import masses_kernel, tile_masses
from .prepare import compact_kernel, prepare_kernel

__all__ = [
    "Tiles", "backward", "compact_kernel", "compile_cases", "config", "dkv_kernel", "dq_kernel", "forward",
    "forward_kernel", "masses_kernel", "prepare_kernel", "row", "tile_masses", "unit",
]  # fmt: skip

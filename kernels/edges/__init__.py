"""Relevance that positions pass to each other through one attention, in closed form: tiles of it, or each row's best.

What query j passes to position i is, summed over heads,

    A_ji = P_ji [a_v <u_j, v~_i> + a_s scale (<u_j, v_i> - <u_j, o_j>) f_ji <q_j, k~_i>]

with u the relevance gradient at the heads' output behind the stabilisers, f the soft-cap's factor, a_v and a_s the
rule's shares, and k~, v~ what the layer's input contributes to keys and values: these themselves unless given.

Rows of heads may have 512 bytes: float32 at head_dim 256, with all that gamma needs, would take more shared memory
than sm_89 has.

A program owns a tile of listed queries and keys and adds up the heads in registers. The keys and values of a group of
heads are loaded once for all of them, and the mask is applied once, to the sum: what a query does not read may come out
as anything before. Nothing of size T x S exists, and nothing is summed by atomics: the same call gives the same bits.

Behind a bounded backward pass only the tiles that a head kept count. Key tiles that no head kept are not visited, nor,
in the others, the heads that kept nothing there.

Per head and pair of query and key: 2 products of head_dim terms (q k and u v), as many as the forward pass, 4 with k~
and v~ (cp: u v~ in place of u v), 1 more where gamma meets |V|, 2 with v~ then; and one exponential. A tile reads, a
head, BLOCK_M rows of q and u, and its share of the group's BLOCK_N rows of k and v: that is 2 x 2 BLOCK_M BLOCK_N
operations for 2 BLOCK_M + 2 BLOCK_N / G elements, so that wide tiles of keys read less.
"""

from .cases import compile_cases
from .given import Pass, prepare
from .listed import MOST, strongest, strongest_kernel
from .whole import tile, tile_kernel

__all__ = ["MOST", "Pass", "compile_cases", "prepare", "strongest", "strongest_kernel", "tile", "tile_kernel"]

"""What a layer takes: bytes of what waits and of what is at work, and operations, reckoned from its sizes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .graph import GraphSpec
from .hf import LayerSize
from .hf.indexed import SCORES
from .ops import attention_native, edges_native
from .ops.decayed import ROOM as SCANNED
from .ops.edges import HELD
from .rules import Rules

HOST = torch.device("cpu")
_FEWEST_ROWS = 256  # of an MLP's part: fewer leave the matrix units idle


class Context(NamedTuple):
    tokens: int  # of all prompts
    length: int  # of each
    positions: int
    targets: int
    vocabulary: int
    dtype: torch.dtype
    rules: Rules
    graph: GraphSpec | None
    bounded: bool = False

    @property
    def wide(self) -> int:
        """Bytes of an element of the residual stream on the way back."""
        return max(4, self.dtype.itemsize)


# What follows counts the tensors that are alive at a time, in features a token. The factors that are not whole numbers
# were fitted to what PyTorch allocates on a CPU; tests/test_memory.py holds all of it against what is then allocated.


def stored(size: LayerSize, context: Context) -> int:
    """A layer's input, its attention's output and lse (and P |V| for the gamma rule), and which keys it read."""
    outputs = 2 if context.rules.attention_gamma else 1
    features = context.dtype.itemsize * (size.hidden + outputs * size.query) + context.wide * size.heads
    return context.tokens * features + _choices(size, context)


def _choices(size: LayerSize, context: Context) -> int:
    """int32, where the prompts are long enough for a choice."""
    choice = size.choice
    return 0 if choice is None or context.length <= choice.beyond else 4 * context.tokens * choice.numbers


def _work_on_choices(size: LayerSize, context: Context) -> int:
    """While they are made: an indexer's scores of some queries; they stay for layers that take them over."""
    chosen = _choices(size, context)
    scores = min(SCORES, size.choice.heads * context.length * context.tokens) if chosen else 0
    return 2 * chosen + 9 * scores


def beside(size: LayerSize, context: Context) -> int:
    """What side routes hold, which waits nowhere else: the features, what they were made of, and gradients of each."""
    return context.tokens * size.beside * (4 * context.dtype.itemsize + context.targets * context.wide)


def fetched(size: LayerSize, context: Context) -> int:
    """A layer that is brought back to its CUDA device while the one above is at work."""
    return 0 if size.device == HOST else stored(size, context)


def graph(size: LayerSize, context: Context) -> int:
    """What autograd saves of a layer: queries, keys, values, the attention's output, the MLP's two factors."""
    rules = context.rules
    features = size.hidden + 2 * size.query + 2 * size.key + (2 if rules.treatment.gate else 1) * size.mlp
    if not rules.treatment.frozen_norm:
        features += 2 * size.hidden
    if rules.attention_gamma:
        features += size.query
    if rules.treatment.temperature != 1:  # the other attention's output
        features += size.query
    if rules.epsilon or rules.gamma:  # the linear maps' outputs, of which an activation or the attention keeps some
        features += size.query + size.key + 2 * size.hidden
    if rules.gamma:  # and their inputs
        features += 2 * size.hidden + size.query + 3 * size.mlp
    of_each = context.dtype.itemsize * features + context.wide * (size.heads + 2)
    return context.tokens * of_each + _choices(size, context)


def work_replayed(size: LayerSize, context: Context, rows: int) -> int:
    """The greater of a replayed layer's two peaks, in its attention's backward pass and in its MLP's."""
    b, w, rules = context.dtype.itemsize, context.wide, context.rules
    h, q, k = size.hidden, size.query, size.key
    on_host, scored = size.device == HOST, rules.treatment.score != 0
    tempered = rules.treatment.temperature != 1
    widened = on_host and b < 4  # PyTorch's forms compute 16-bit numbers in float32
    targets = (context.targets - 1) * h

    attention = (4.5 if scored else 3) * w * h + b * (4.1 * q + 3.5 * k if scored else 3.4 * q + 2.9 * k)
    inside = (9 if widened else 5) if scored else 3.5  # of the MLP's inner tensors
    if widened:
        attention += b * 6.5 * k
    if not rules.treatment.frozen_norm:
        attention += b * 2 * h
    if rules.attention_gamma:
        attention += b * (6 * q + 6 * k)
    if tempered:  # a second attention beside the first
        attention += b * (3 * q + 3 * k)
    if rules.epsilon or rules.gamma:  # what the linear maps save
        attention += b * (2 * q + 2 * k + 2 * h) + (b * (2 * h + q) if rules.gamma else 0)
        inside += 8 if rules.gamma else 5
    attention = context.tokens * (attention + targets * w + _flash_attention(size, context))
    attention += _native_attention(size, context)
    chosen = _choices(size, context)
    flash = (scored or _is_taken(size, context, context.dtype)) and rules.attention_gamma == 0 and not tempered
    if chosen or (on_host and not flash):  # a few tiles of scores
        attention += 7 * min(1 << 21, 64 * size.heads * context.tokens)
    if on_host and size.window is not None and size.window < context.length:  # masks of blocks of queries
        attention += 12 * 1024 * (size.window + 1536)
    mlp = context.tokens * (w * (4 * h + targets) + b * 2 * (q + k))
    mlp += (context.tokens if size.whole else min(rows, context.tokens)) * b * inside * size.mlp
    attention += _choosing(size, context) + chosen
    traces, selecting = _work_on_edges(size, context)
    most = max(attention + traces, mlp + _work_on_choices(size, context), selecting)
    return int(_heap_loss(size, context) * most) + size.loaded + size.unpacked


def work_with_graph(size: LayerSize, context: Context) -> int:
    """As `work_replayed`, beside the graphs of all layers."""
    residual = (3 + context.targets) * size.hidden
    attention, mlp = residual + 1.6 * size.query + 2.3 * size.key, residual + 3 * size.mlp
    traces, selecting = _work_on_edges(size, context)
    selecting -= 2 * graph(size, context)  # gone by then: the last layer has few edges to choose from
    work = context.tokens * context.dtype.itemsize
    attention = work * attention + context.tokens * _flash_attention(size, context) + _choosing(size, context)
    most = max(attention + traces, work * mlp + _work_on_choices(size, context), selecting)
    return int(_heap_loss(size, context) * most) + size.unpacked


def _choosing(size: LayerSize, context: Context) -> int:
    """What a bounded backward pass takes beside the exact one: the masses of tiles, of which half are there, as they
    are sorted; on the host, too, all that meets in its products, of its own."""
    if not context.bounded:
        return 0
    tiles = size.heads * math.ceil(context.length / 64) ** 2  # of one prompt at a time
    if size.device != HOST:
        work = 0
    elif not _is_taken(size, context, torch.float32):
        work = context.tokens * context.wide * (3 * size.query + 4 * size.key)
    elif context.dtype == torch.float32:  # as the exact one
        work = 0
    else:  # wider, and what comes of it
        work = context.tokens * 4 * 4 * (size.query + size.key) + _core(size, context)
    return tiles * (2 * context.wide + 28) + work


def _native_attention(size: LayerSize, context: Context) -> int:
    """Bytes that the C++ core takes for itself on the way back, where it may serve; PyTorch's CPU kernel takes keys
    and values once a query head."""
    rules = context.rules
    if size.device != HOST or not size.heads or rules.attention_gamma:
        return 0
    if _is_taken(size, context, context.dtype):
        return _core(size, context)
    key_heads = size.heads * size.key // size.query
    copied = rules.treatment.score and key_heads < size.heads and key_heads % torch.get_num_threads()
    return int(context.tokens * context.dtype.itemsize * 2.8 * size.query) if copied and context.length > 1024 else 0


def _core(size: LayerSize, context: Context) -> int:
    features, length = size.query // size.heads, context.length  # prompts go back one after another
    scored = context.rules.treatment.score != 0
    return 4 * attention_native.floats(size.heads, size.key // features, length, length, features, scored)


def _is_taken(size: LayerSize, context: Context, dtype: torch.dtype) -> bool:
    """By the C++ core, in that dtype."""
    at_all = size.device == HOST and size.heads > 0 and dtype == torch.float32 and context.wide == 4
    return at_all and attention_native.takes(size.query // size.heads)


def _flash_attention(size: LayerSize, context: Context) -> int:
    """Bytes a token that PyTorch's FlashAttention takes on the way back, where it may serve: the queries' gradients in
    float32, and those of the keys and values once a query head."""
    b, rules = context.dtype.itemsize, context.rules
    plain = rules.treatment.score and not (rules.attention_epsilon or rules.attention_gamma)
    if size.device == HOST or b != 2 or not plain:
        return 0
    return size.query * (4 + (2 * b if size.key < size.query else 0))


def _work_on_edges(size: LayerSize, context: Context) -> tuple[int, float]:
    """With a graph: what the traces hold on to in the backward pass, and all there is when edges are chosen."""
    if context.graph is None:
        return 0, 0
    b, w, h, q, k = context.dtype.itemsize, context.wide, size.hidden, size.query, size.key
    traces = b * (q + k + (context.targets - 1) * (q + 2 * k))
    held = w * h * (1 + context.targets) + b * (2 * q + 3 * k) + w * 2 * k + traces
    if context.rules.attention_gamma and size.device != HOST:
        held += b * 2 * k  # |V|, and what the input contributes to it
    length = context.length  # prompts' edges are chosen one after another
    # Products of the queries that share a head of keys, and what is chosen from among the edges of all heads.
    tile = w * min(1 << 21, 64 * size.heads * length)
    rules = context.rules
    apart = not size.plain or rules.epsilon or rules.gamma or not rules.treatment.frozen_norm
    chosen, native = 0, _is_taken(size, context, context.dtype) and not rules.attention_gamma
    if native:
        features = q // size.heads
        chosen = 4 * edges_native.floats(k // features, length, features, *[bool(apart)] * 2)
        chosen += torch.get_num_threads() * 4 * 64 * (length + 2 * q)
        if context.graph.mass is not None:  # a tile, and what the choice makes of it
            chosen += 6 * w * length * min(edges_native.rows_at_a_time(length), length)
    elif size.heads:
        chosen = (5 if context.rules.treatment.score else 3) * tile * q // (size.heads * k) + 6 * tile // size.heads
    if size.scanned:
        held += w * size.scanned
        chosen += w * (2 * SCANNED + 64 * length * 8)
    if size.device == HOST:
        held += 0 if native else w * (q if b == w else 2 * q)
        if context.bounded:
            held += w * (2 * q + 2 * k)
    if context.graph.mass is not None:
        chosen += w * min(HELD, length * min(length // (1 + size.causal) + 32, (size.window or length) + 64))
    if apart:
        # What the input contributes to keys and values takes a pass of its own, up to the attention, beforehand.
        held += w * h
        chosen = max(chosen, context.tokens * (5 * w * h + (1 if size.rotates else 8) * b * q))
    return context.tokens * traces, context.tokens * held + chosen


def edges(layers: int, context: Context) -> int:
    """The graph's arrays on the host, where their size does not hang on the numbers."""
    spec = context.graph
    if spec is None or spec.topk is None or spec.node_threshold:
        return 0
    layers = layers if spec.layers is None else len(set(spec.layers))
    row = min(spec.topk, context.length) * (4 + context.wide) + 12 + 2 * context.wide
    return context.targets * layers * context.tokens * row


def _heap_loss(size: LayerSize, context: Context) -> float:
    """What the C library's heap takes for what it gives: it holds tensors below 32 MiB, with holes between them."""
    in_heap = size.device == HOST and context.tokens * size.hidden * context.wide < 32 << 20
    return 1.5 if in_heap else 1.0


def work_on_logits(size: LayerSize, context: Context) -> int:
    """The logits, their ranks, and the last hidden states."""
    hidden = context.tokens * size.hidden * (2 * context.dtype.itemsize + context.targets * context.wide)
    return hidden + context.positions * context.vocabulary * (context.dtype.itemsize + 20)


def rows(size: LayerSize, context: Context) -> int:
    """As many tokens as let an MLP's inside take no more than the attention does, in parts of one size."""
    if size.whole:
        return context.tokens
    most = max(_FEWEST_ROWS, int(context.tokens * (2.1 * size.query + 1.5 * size.key) / (5 * size.mlp)))
    return math.ceil(context.tokens / math.ceil(context.tokens / most))


def flops(sizes: list[LayerSize], tiers: list[str], context: Context, rows: int) -> dict[str, int]:
    n, length, rules = context.tokens, context.length, context.rules
    gamma = 2 if rules.gamma else 1
    products = {"attnlrp": 5, "gradient": 5, "cp": 2, "gim": 9}[rules.name]  # of gim, two forward
    forward = replay = backward = 0
    for index, (size, tier) in enumerate(zip(sizes, tiers, strict=True)):
        reach = min(length, size.window or length)
        hidden = length - reach
        of_one = (length * (length + 1) - hidden * (hidden + 1)) // 2 if size.causal else length * reach
        pairs = n // length * of_one
        linear = 2 * gamma * n * (size.attention_weights + size.mlp_weights)
        forward += linear + 4 * pairs * size.query
        if tier != "graph":
            skipped = 0 if rules.epsilon or rules.gamma else 2 * n * size.skipped_weights
            # In parts, an MLP's inside is computed for every target.
            again = context.targets - 1 if rows < n and not size.whole else 0
            replay += linear - skipped + again * (2 * gamma * n * size.mlp_weights - skipped)
        if index == len(sizes) - 1:  # only the explained positions carry relevance there, but for keys and values
            pairs = length * context.positions
            linear = 4 * gamma * n * size.hidden * size.key
        backward += context.targets * (linear + 2 * products * pairs * size.query)
    logits = 2 * context.positions * context.vocabulary * sizes[0].hidden
    return {
        "forward_flops": forward + logits,
        "replay_flops": replay,
        "backward_flops": backward + context.targets * logits,
    }

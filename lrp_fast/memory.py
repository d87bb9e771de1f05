"""How much memory a pass may take, what it will take, and what waits where. Reckoned, before anything runs."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .graph import GraphSpec
from .hf import (
    LayerSize,
    check,
    check_language_model,
    layer_sizes,
    position_limit,
    vocabulary_size,
    weight_bytes,
)
from .ops import read_tolerance
from .ops.edges import HELD
from .rules import Rules, as_rules

_HOST = torch.device("cpu")
_FEWEST_ROWS = 256  # of an MLP's part: fewer leave the matrix units idle


@dataclass(frozen=True)
class Memory:
    """What a pass may take above the model. None: what the machine has free.

    Args:
        device_budget: bytes on each CUDA device.
        host_budget: bytes of host memory; on a CPU this is what the pass itself works in.
        offload_dir: the folder for what fits neither; by default the system's folder for temporary files, which on some
            systems is memory itself. Files there have no name, and are gone however the process ends.

    Raises:
        ValueError, TypeError: for a budget that is no positive whole number, or a folder that does not exist.
    """

    device_budget: int | None = None
    host_budget: int | None = None
    offload_dir: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        for name in ("device_budget", "host_budget"):
            given = getattr(self, name)
            if given is None:
                continue
            if isinstance(given, bool) or not isinstance(given, Real) or given % 1 != 0:
                raise TypeError(f"{name} must be a whole number of bytes, not {given!r}")
            if given <= 0:
                raise ValueError(f"{name} must be positive, not {given!r}: leave it out for what the machine has free")
            object.__setattr__(self, name, int(given))
        if self.offload_dir is not None and not Path(self.offload_dir).is_dir():
            raise ValueError(f"offload_dir {os.fspath(self.offload_dir)!r} is no folder: make it, or name another")


@dataclass(frozen=True)
class Plan:
    """What `lrp_fast.attribute` will do with one context, and what that takes.

    Attributes:
        n_tokens: of the context.
        tiers: one a layer, first to last: "graph" (autograd's graph stays, nothing is computed twice), or where the
            layer's input and attention output wait to be replayed: "device", "host" or "file".
        chunk_tokens: how many tokens a replayed layer's MLP takes at a time. It takes all of them where its weights are
            quantised in a way that rounds tokens together (LLM.int8's outliers).
        stored: bytes by tier.
        working: bytes by device ("cuda:0", "cpu"), what one layer takes while it is at work.
        least: bytes by device, the smallest budget that would do, with everything else in files.
        peak: bytes above the model by device, "cpu" being host memory: what is stored there and the work.
        weights: bytes of the model.
        forward_flops, replay_flops, backward_flops: operations of the passes, an addition or a multiplication each.
        offload_dir: see `Memory`.
        tolerance: as in `lrp_fast.attribute`.
        host_room: bytes of host memory that the pass may take: the budget, or most of what the machine has free; None
            where that is not known. Up to there it keeps what it has taken, more than ``peak``, as the C library's
            heap cannot use again all that comes free in it, and to give that back to the system takes time.
    """

    n_tokens: int
    tiers: tuple[str, ...]
    chunk_tokens: int
    stored: dict[str, int]
    working: dict[str, int]
    least: dict[str, int]
    peak: dict[str, int]
    weights: int
    forward_flops: int
    replay_flops: int
    backward_flops: int
    offload_dir: str | os.PathLike | None = None
    tolerance: float = 0.0
    host_room: int | None = None

    def __str__(self) -> str:
        layers = Counter(self.tiers)
        folder = tempfile.gettempdir() if self.offload_dir is None else os.fspath(self.offload_dir)
        words = {
            "graph": "kept whole with autograd's graph",
            "device": "waits on the device",
            "host": "waits in host memory",
            "file": f"waits in files in {folder}",
        }
        rows = [("model", _size(self.weights), "")]
        rows += [(f"{layers[t]} layers", _size(self.stored[t]), words[t]) for t in words if layers[t]]
        rows += [("at work", _size(size), f"on {device}, one layer at a time") for device, size in self.working.items()]
        rows += [("peak", _size(size), f"on {device}, above the model") for device, size in self.peak.items()]
        rows += [("least", _size(size), f"on {device}, the rest in files") for device, size in self.least.items()]
        flops = self.forward_flops + self.replay_flops + self.backward_flops
        rows.append(("operations", _operations(flops), f"{flops / self.forward_flops:.2f} times the forward pass's"))
        return "\n".join(f"{name:12} {number:>11}  {what}".rstrip() for name, number, what in rows)


def plan(
    model: nn.Module,
    n_tokens: int,
    *,
    rule: str | Rules = "attnlrp",
    memory: Memory | None = None,
    positions: int = 1,
    targets: int = 1,
    graph: GraphSpec | None = None,
    device: str = "cuda",
    prompts: int = 1,
    tolerance: float = 0.0,
) -> Plan:
    """What `lrp_fast.attribute` would do with ``n_tokens`` tokens, reckoned from the sizes of the model's modules.

    Nothing is run, and the model may be on the "meta" device, made from a config alone.

    Args:
        rule, memory: as in `lrp_fast.attribute`.
        positions: how many positions' logits are explained. targets: how many at once.
        graph: as in `lrp_fast.attribute`. What a share of the mass comes to is known only afterwards: with
            ``GraphSpec(mass=...)`` the kept edges, 8 bytes each, are not counted.
        tolerance: as in `lrp_fast.attribute`. What it saves is known only afterwards: the operations are those of the
            exact pass.
        device: for a model on the "meta" device, "cuda" or "cpu", where it would be. On "cuda", budgets that are not
            given are boundless: it may be another machine's.
        prompts: of so many tokens each, padding included, in one pass, as `lrp_fast.attribute_batch` may take them.
            ``positions`` are those of all of them.

    Raises:
        ValueError: if a budget cannot hold one layer, with how much is needed; if the model's table of learned
            positions is shorter than the prompt.
        UnsupportedModuleError: if the model holds a module that no rule covers.
    """
    counts = {"n_tokens": n_tokens, "positions": positions, "targets": targets, "prompts": prompts}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise TypeError(f"{name} must be a whole number, not {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    check_language_model(model)
    check(model)
    limit = position_limit(model)
    if limit is not None and n_tokens > limit:
        raise ValueError(f"{n_tokens} tokens are more than the model's table of {limit} positions: shorten the prompt")
    counts = {"positions": positions, "targets": targets, "prompts": prompts}
    more = {"graph": graph, "device": device, "tolerance": read_tolerance(tolerance)}
    return planned(model, n_tokens, as_rules(rule), memory, **counts, **more)


def planned(
    model: nn.Module,
    n_tokens: int,
    rules: Rules,
    memory: Memory | None,
    *,
    positions: int = 1,
    targets: int = 1,
    graph: GraphSpec | None = None,
    device: str = "cuda",
    prompts: int = 1,
    tolerance: float = 0.0,
) -> Plan:
    """`plan` for a model, and so many of its tokens, that `lrp_fast.question.read` has checked."""
    if memory is not None and not isinstance(memory, Memory):
        raise TypeError(f"memory must be a lrp_fast.Memory, not {type(memory).__name__}")
    if device not in ("cuda", "cpu"):
        raise ValueError(f"device must be 'cuda' or 'cpu', not {device!r}")
    memory = memory or Memory()
    sizes = layer_sizes(model)
    meant = [size._replace(device=torch.device(device)) if size.device.type == "meta" else size for size in sizes]
    for size in meant:
        if size.device.type not in ("cuda", "cpu"):
            raise ValueError(f"a layer is on {size.device}: lrp_fast runs on CUDA devices and CPUs")
    elsewhere = meant != sizes and device == "cuda"
    sizes = meant
    if graph is not None:
        graph.check(len(sizes))
    dtype = model.get_input_embeddings().weight.dtype  # a vision tower beside it may have another
    given = (positions, targets, vocabulary_size(model), dtype, rules, graph, tolerance > 0)
    context = _Context(prompts * n_tokens, n_tokens, *given)
    devices = dict.fromkeys([*(size.device for size in sizes), _HOST])
    budgets = {device: _budget(device, memory, elsewhere) for device in devices}
    room = budgets[_HOST]
    edges = _edges(len(sizes), context)
    if budgets[_HOST] < edges:
        raise ValueError(
            f"{_size(budgets[_HOST])} on cpu cannot hold the graph's edges, {_size(edges)}: take a lower topk or fewer "
            "layers"
        )
    budgets[_HOST] -= edges
    tiers, rows = _place(sizes, context, budgets)

    stored, working, least, peak = Counter(), {}, {}, Counter()
    for tier, size in zip(tiers, sizes, strict=True):
        work = _work_with_graph(size, context) if tier == "graph" else _work_replayed(size, context, rows)
        place, head = str(size.device), _work_on_logits(size, context)
        work = max(work, head) + (_fetched(size, context) if tier == "host" else 0)
        working[place] = max(working.get(place, 0), work)
        needed = max(_work_replayed(size, context, _rows(size, context)), head) + _fetched(size, context)
        least[place] = max(least.get(place, 0), needed)
        taken = _graph(size, context) if tier == "graph" else _stored(size, context)
        stored[tier] += taken
        if tier != "file":
            peak[str(_HOST if tier == "host" else size.device)] += taken
    peak.update(working)
    if edges:
        peak[str(_HOST)] += edges
        least[str(_HOST)] = least.get(str(_HOST), 0) + edges
    folder = tempfile.gettempdir() if memory.offload_dir is None else memory.offload_dir
    if not elsewhere and stored["file"] > shutil.disk_usage(folder).free:
        raise ValueError(
            f"{_size(stored['file'])} have to wait in files, more than is free in {os.fspath(folder)}: name another "
            "folder with Memory(offload_dir=...)"
        )
    return Plan(
        n_tokens=n_tokens,
        tiers=tuple(tiers),
        chunk_tokens=rows,
        stored=dict(stored),
        working=working,
        least=least,
        peak=dict(peak),
        weights=weight_bytes(model),
        **_flops(sizes, tiers, context, rows),
        offload_dir=memory.offload_dir,
        tolerance=tolerance,
        host_room=int(room) if math.isfinite(room) else None,
    )


class _Context(NamedTuple):
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


def _place(sizes: list[LayerSize], context: _Context, budgets: dict[torch.device, float]) -> tuple[list[str], int]:
    """Every layer's tier, and how many tokens an MLP takes at a time."""
    waiting = Counter()
    for size in sizes:
        waiting[size.device] += _stored(size, context)
    # Where everything has room, MLPs stay whole: several targets then share their insides.
    rows = context.tokens
    if any(_work_replayed(size, context, rows) + waiting[size.device] > budgets[size.device] for size in sizes):
        rows = min(_rows(size, context) for size in sizes)
    room = dict(budgets)
    for size in dict.fromkeys(sizes):
        needed = max(_work_replayed(size, context, rows), _work_on_logits(size, context))
        if needed + waiting[size.device] > budgets[size.device]:
            needed += _fetched(size, context)
        room[size.device] = min(room[size.device], budgets[size.device] - needed)
        if room[size.device] < 0:
            raise ValueError(
                f"{_size(budgets[size.device])} on {size.device} cannot hold one layer of {context.tokens} tokens: at "
                f"least {_size(needed)} above the model are needed"
            )
    tiers = []
    for size in reversed(sizes):  # what is needed last goes furthest
        for tier, place in (("device", size.device), ("host", _HOST)):
            if (tier, place) != ("device", _HOST) and _stored(size, context) <= room[place]:
                room[place] -= _stored(size, context)
                tiers.append(tier)
                break
        else:
            tiers.append("file")
    # A graph holds the relevance gradient in the model's dtype: 16 bits are not enough on the residual stream.
    at_hand = all(
        tier == ("host" if size.device == _HOST else "device")
        for tier, size in zip(tiers, reversed(sizes), strict=True)
    )
    if context.dtype.itemsize >= 4 and at_hand:
        for index, size in enumerate(reversed(sizes)):
            if size.loaded:  # a graph would hold on to the weights
                continue
            more = _graph(size, context) - _stored(size, context)
            at_work = max(0, _work_with_graph(size, context) - _work_replayed(size, context, rows))
            if more + at_work <= room[size.device]:
                room[size.device] -= more
                tiers[index] = "graph"
    return tiers[::-1], rows


def _budget(device: torch.device, memory: Memory, elsewhere: bool) -> float:
    """Bytes that may be taken on the device: what the caller says, or most of what this machine has free."""
    given = memory.host_budget if device == _HOST else memory.device_budget
    if given is not None or elsewhere:
        return given or math.inf
    if device == _HOST:
        return 0.8 * _free_host_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return 0.9 * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _free_host_memory() -> int:
    """Bytes of host memory that can be had, a container's limit included."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not Linux: all there is, of which the system pages out what nobody uses
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())[1]) * 1024
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        files = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        used = int((group / "memory.current").read_text()) - int(files[1])  # the system drops those first
        free = min(free, int(most) - used)
    return free


# What follows counts the tensors that are alive at a time, in features a token. The factors that are not whole numbers
# were fitted to what PyTorch allocates on a CPU; tests/test_memory.py holds all of it against what is then allocated.


def _stored(size: LayerSize, context: _Context) -> int:
    """A layer's input, its attention's output and lse (and P |V| for the gamma rule)."""
    outputs = 2 if context.rules.attention_gamma else 1
    return context.tokens * (context.dtype.itemsize * (size.hidden + outputs * size.query) + context.wide * size.heads)


def _fetched(size: LayerSize, context: _Context) -> int:
    """A layer that is brought back to its CUDA device while the one above is at work."""
    return 0 if size.device == _HOST else _stored(size, context)


def _graph(size: LayerSize, context: _Context) -> int:
    """What autograd saves of a layer: queries, keys, values, the attention's output, the MLP's two factors."""
    rules = context.rules
    features = size.hidden + 2 * size.query + 2 * size.key + (2 if rules.treatment.gate else 1) * size.mlp
    if not rules.treatment.frozen_norm:
        features += 2 * size.hidden
    if rules.attention_gamma:
        features += size.query
    if rules.epsilon or rules.gamma:  # the linear maps' outputs, of which an activation or the attention keeps some
        features += size.query + size.key + 2 * size.hidden
    if rules.gamma:  # and their inputs
        features += 2 * size.hidden + size.query + 3 * size.mlp
    return context.tokens * (context.dtype.itemsize * features + context.wide * (size.heads + 2))


def _work_replayed(size: LayerSize, context: _Context, rows: int) -> int:
    """The greater of a replayed layer's two peaks, in its attention's backward pass and in its MLP's."""
    b, w, rules = context.dtype.itemsize, context.wide, context.rules
    h, q, k = size.hidden, size.query, size.key
    on_host, scored = size.device == _HOST, rules.treatment.score != 0
    widened = on_host and b < 4  # PyTorch's forms compute 16-bit numbers in float32
    targets = (context.targets - 1) * h

    attention = (4.5 if scored else 3) * w * h + b * (4.1 * q + 3.5 * k if scored else 3.4 * q + 2.9 * k)
    inside = (9 if widened else 5) if scored else 3.5  # of the MLP's inner tensors
    if widened:
        attention += b * 6.5 * k
    if on_host and scored and q > k and size.heads * k // q % torch.get_num_threads():
        attention += b * 2.8 * q  # keys and values, once a query head
    if not rules.treatment.frozen_norm:
        attention += b * 2 * h
    if rules.attention_gamma:
        attention += b * (6 * q + 6 * k)
    if rules.epsilon or rules.gamma:  # what the linear maps save
        attention += b * (2 * q + 2 * k + 2 * h) + (b * (2 * h + q) if rules.gamma else 0)
        inside += 8 if rules.gamma else 5
    attention = context.tokens * (attention + targets * w + _flash_attention(size, context))
    if on_host and not (scored and rules.attention_gamma == 0):  # a few tiles of scores
        attention += 7 * min(1 << 21, 64 * size.heads * context.tokens)
    if on_host and size.window is not None and size.window < context.length:  # masks of blocks of queries
        attention += 12 * 1024 * (size.window + 1536)
    mlp = context.tokens * (w * (4 * h + targets) + b * 2 * (q + k))
    mlp += (context.tokens if size.whole else min(rows, context.tokens)) * b * inside * size.mlp
    attention += _choosing(size, context)
    traces, selecting = _work_on_edges(size, context)
    return int(_heap_loss(size, context) * max(attention + traces, mlp, selecting)) + size.loaded + size.unpacked


def _work_with_graph(size: LayerSize, context: _Context) -> int:
    """As `_work_replayed`, beside the graphs of all layers."""
    residual = (3 + context.targets) * size.hidden
    attention, mlp = residual + 1.6 * size.query + 2.3 * size.key, residual + 3 * size.mlp
    traces, selecting = _work_on_edges(size, context)
    selecting -= 2 * _graph(size, context)  # gone by then: the last layer has few edges to choose from
    work = context.tokens * context.dtype.itemsize
    attention = work * attention + context.tokens * _flash_attention(size, context) + _choosing(size, context)
    return int(_heap_loss(size, context) * max(attention + traces, work * mlp, selecting)) + size.unpacked


def _choosing(size: LayerSize, context: _Context) -> int:
    """What a bounded backward pass takes beside the exact one: the masses of tiles, of which half are there, as they
    are sorted; on the host, too, all that meets in its products, in blocks of its own."""
    if not context.bounded:
        return 0
    tiles = size.heads * math.ceil(context.length / 64) ** 2  # of one prompt at a time
    blocks = context.tokens * context.wide * (3 * size.query + 4 * size.key) if size.device == _HOST else 0
    return tiles * (2 * context.wide + 28) + blocks


def _flash_attention(size: LayerSize, context: _Context) -> int:
    """Bytes a token that PyTorch's FlashAttention takes on the way back, where it may serve: the queries' gradients in
    float32, and those of the keys and values once a query head."""
    b, rules = context.dtype.itemsize, context.rules
    plain = rules.treatment.score and not (rules.attention_epsilon or rules.attention_gamma)
    if size.device == _HOST or b != 2 or not plain:
        return 0
    return size.query * (4 + (2 * b if size.key < size.query else 0))


def _work_on_edges(size: LayerSize, context: _Context) -> tuple[int, float]:
    """With a graph: what the traces hold on to in the backward pass, and all there is when edges are chosen."""
    if context.graph is None:
        return 0, 0
    b, w, h, q, k = context.dtype.itemsize, context.wide, size.hidden, size.query, size.key
    traces = b * (q + k + (context.targets - 1) * (q + 2 * k))
    held = w * h * (1 + context.targets) + b * (2 * q + 3 * k) + w * 2 * k + traces
    if context.rules.attention_gamma and size.device != _HOST:
        held += b * 2 * k  # |V|, and what the input contributes to it
    length = context.length  # prompts' edges are chosen one after another
    chosen = (25 if context.rules.treatment.score else 15) * min(1 << 21, 64 * size.heads * length)
    if context.graph.mass is not None:
        chosen += w * min(HELD, length * min(length // 2 + 32, (size.window or length) + 64))
    rules = context.rules
    if not size.plain or rules.epsilon or rules.gamma or not rules.treatment.frozen_norm:
        # What the input contributes to keys and values takes a pass of its own, up to the attention, beforehand.
        held += w * h
        chosen = max(chosen, context.tokens * (5 * w * h + 8 * b * q))
    return context.tokens * traces, context.tokens * held + chosen


def _edges(layers: int, context: _Context) -> int:
    """The graph's arrays on the host, where their size does not hang on the numbers."""
    spec = context.graph
    if spec is None or spec.topk is None or spec.node_threshold:
        return 0
    layers = layers if spec.layers is None else len(set(spec.layers))
    row = min(spec.topk, context.length) * (4 + context.wide) + 12 + 2 * context.wide
    return context.targets * layers * context.tokens * row


def _heap_loss(size: LayerSize, context: _Context) -> float:
    """What the C library's heap takes for what it gives: it holds tensors below 32 MiB, with holes between them."""
    in_heap = size.device == _HOST and context.tokens * size.hidden * context.wide < 32 << 20
    return 1.5 if in_heap else 1.0


def _work_on_logits(size: LayerSize, context: _Context) -> int:
    """The logits, their ranks, and the last hidden states."""
    hidden = context.tokens * size.hidden * (2 * context.dtype.itemsize + context.targets * context.wide)
    return hidden + context.positions * context.vocabulary * (context.dtype.itemsize + 20)


def _rows(size: LayerSize, context: _Context) -> int:
    """As many tokens as let an MLP's inside take no more than the attention does, in parts of one size."""
    if size.whole:
        return context.tokens
    most = max(_FEWEST_ROWS, int(context.tokens * (2.1 * size.query + 1.5 * size.key) / (5 * size.mlp)))
    return math.ceil(context.tokens / math.ceil(context.tokens / most))


def _flops(sizes: list[LayerSize], tiers: list[str], context: _Context, rows: int) -> dict[str, int]:
    n, length, rules = context.tokens, context.length, context.rules
    gamma = 2 if rules.gamma else 1
    products = {"attnlrp": 5, "gradient": 5, "cp": 2}[rules.name]
    forward = replay = backward = 0
    for index, (size, tier) in enumerate(zip(sizes, tiers, strict=True)):
        hidden = max(0, length - (size.window or length))
        pairs = n // length * ((length * (length + 1) - hidden * (hidden + 1)) // 2)
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


def _size(number: float) -> str:
    return _in_units(number, {1e9: "GB", 1e6: "MB", 1e3: "kB"})


def _operations(number: float) -> str:
    return _in_units(number, {1e15: "PFLOP", 1e12: "TFLOP", 1e9: "GFLOP", 1e6: "MFLOP"})


def _in_units(number: float, names: dict[float, str]) -> str:
    unit = next((unit for unit in names if number >= unit), min(names))
    return f"{number / unit:,.2f} {names[unit]}"

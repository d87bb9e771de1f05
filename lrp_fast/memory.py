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

import torch
from torch import nn

from . import reckoning
from .graph import GraphSpec
from .hf import (
    LayerSize,
    check,
    check_closed_form,
    check_language_model,
    decoder_layers,
    head_of,
    layer_sizes,
    position_limit,
    reads_all_tokens,
    weight_bytes,
)
from .ops import read_tolerance
from .reckoning import HOST, Context
from .rules import Rules, as_rules


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
    if rules.treatment.temperature != 1 and (graph is not None or tolerance):
        what = "graph" if graph is not None else "tolerance"
        raise ValueError(f"rule {rules.name!r} takes no {what}: leave it out, or take attnlrp")
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
        check_closed_form(decoder_layers(model), rules)
    if reads_all_tokens(model):
        positions = prompts * n_tokens
    dtype = model.get_input_embeddings().weight.dtype  # a vision tower beside it may have another
    given = (positions, targets, head_of(model).size, dtype, rules, graph, tolerance > 0)
    context = Context(prompts * n_tokens, n_tokens, *given)
    devices = dict.fromkeys([*(size.device for size in sizes), HOST])
    budgets = {device: _budget(device, memory, elsewhere) for device in devices}
    room = budgets[HOST]
    edges = reckoning.edges(len(sizes), context)
    if budgets[HOST] < edges:
        raise ValueError(
            f"{_size(budgets[HOST])} on cpu cannot hold the graph's edges, {_size(edges)}: take a lower topk or fewer "
            "layers"
        )
    budgets[HOST] -= edges
    beside = Counter()
    for size, count in Counter(sizes).items():
        beside[size.device] += count * reckoning.beside(size, context)
    for at, taken in beside.items():
        budgets[at] -= taken
    tiers, rows = _place(sizes, context, budgets)

    stored, working, least, peak = Counter(), {}, {}, Counter()
    # Most layers are alike, and of two that are, one is reckoned.
    for (tier, size), count in Counter(zip(tiers, sizes, strict=True)).items():
        if tier == "graph":
            work = reckoning.work_with_graph(size, context)
        else:
            work = reckoning.work_replayed(size, context, rows)
        place, head = str(size.device), reckoning.work_on_logits(size, context)
        work = max(work, head) + (reckoning.fetched(size, context) if tier == "host" else 0)
        working[place] = max(working.get(place, 0), work)
        at_least = reckoning.work_replayed(size, context, reckoning.rows(size, context))
        needed = max(at_least, head) + reckoning.fetched(size, context)
        least[place] = max(least.get(place, 0), needed)
        taken = count * (reckoning.graph(size, context) if tier == "graph" else reckoning.stored(size, context))
        stored[tier] += taken
        if tier != "file":
            peak[str(HOST if tier == "host" else size.device)] += taken
    peak.update(working)
    for device, taken in beside.items():
        if taken:
            peak[str(device)] += taken
            least[str(device)] += taken
    if edges:
        peak[str(HOST)] += edges
        least[str(HOST)] = least.get(str(HOST), 0) + edges
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
        **reckoning.flops(sizes, tiers, context, rows),
        offload_dir=memory.offload_dir,
        tolerance=tolerance,
        host_room=int(room) if math.isfinite(room) else None,
    )


def _place(sizes: list[LayerSize], context: Context, budgets: dict[torch.device, float]) -> tuple[list[str], int]:
    """Every layer's tier, and how many tokens an MLP takes at a time."""
    alike, waiting = Counter(sizes), Counter()
    for size, count in alike.items():
        waiting[size.device] += count * reckoning.stored(size, context)
    # Where everything has room, MLPs stay whole: several targets then share their insides.
    rows = context.tokens
    work = [(size.device, reckoning.work_replayed(size, context, rows)) for size in alike]
    if any(needed + waiting[device] > budgets[device] for device, needed in work):
        rows = min(reckoning.rows(size, context) for size in alike)
    room = dict(budgets)
    for size in alike:
        needed = max(reckoning.work_replayed(size, context, rows), reckoning.work_on_logits(size, context))
        if needed + waiting[size.device] > budgets[size.device]:
            needed += reckoning.fetched(size, context)
        room[size.device] = min(room[size.device], budgets[size.device] - needed)
        if room[size.device] < 0:
            raise ValueError(
                f"{_size(budgets[size.device])} on {size.device} cannot hold one layer of {context.tokens} tokens: at "
                f"least {_size(needed)} above the model are needed"
            )
    tiers, taken = [], {size: reckoning.stored(size, context) for size in alike}
    for size in reversed(sizes):  # what is needed last goes furthest
        for tier, place in (("device", size.device), ("host", HOST)):
            if (tier, place) != ("device", HOST) and taken[size] <= room[place]:
                room[place] -= taken[size]
                tiers.append(tier)
                break
        else:
            tiers.append("file")
    # A graph holds the relevance gradient in the model's dtype: 16 bits are not enough on the residual stream.
    at_hand = all(
        tier == ("host" if size.device == HOST else "device") for tier, size in zip(tiers, reversed(sizes), strict=True)
    )
    if context.dtype.itemsize >= 4 and at_hand:
        more = {size: reckoning.graph(size, context) - taken[size] for size in alike}
        at_work = {
            size: max(0, reckoning.work_with_graph(size, context) - reckoning.work_replayed(size, context, rows))
            for size in alike
        }
        for index, size in enumerate(reversed(sizes)):
            if size.loaded:  # a graph would hold on to the weights
                continue
            if more[size] + at_work[size] <= room[size.device]:
                room[size.device] -= more[size]
                tiers[index] = "graph"
    return tiers[::-1], rows


def _budget(device: torch.device, memory: Memory, elsewhere: bool) -> float:
    """Bytes that may be taken on the device: what the caller says, or most of what this machine has free."""
    given = memory.host_budget if device == HOST else memory.device_budget
    if given is not None or elsewhere:
        return given or math.inf
    if device == HOST:
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


def _size(number: float) -> str:
    return _in_units(number, {1e9: "GB", 1e6: "MB", 1e3: "kB"})


def _operations(number: float) -> str:
    return _in_units(number, {1e15: "PFLOP", 1e12: "TFLOP", 1e9: "GFLOP", 1e6: "MFLOP"})


def _in_units(number: float, names: dict[float, str]) -> str:
    unit = next((unit for unit in names if number >= unit), min(names))
    return f"{number / unit:,.2f} {names[unit]}"

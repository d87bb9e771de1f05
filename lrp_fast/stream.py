"""The layer-by-layer pass: forward with the hidden states cut at every decoder layer, then back, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from . import float16, ops
from .hf import (
    Recorded,
    Sums,
    as_read,
    attending,
    check_edges,
    check_hooks,
    contributions,
    decoder_layers,
    has_side_routes,
    head_of,
    here,
    is_watched,
    keeping_rotations,
    logits_at,
    passing,
    recording,
    replaying,
    showing,
    skipping,
    summing,
    tokens_first,
)
from .memory import Plan
from .rules import Rules
from .sides import Sides, following, given_beside, left_in, lent
from .store import Heap, Store, Stored, send
from .watch import Watch

# Of a float16 model (see `float16`), the scalars are raised by so much, as a mean logit's gradient is one part in the
# vocabulary; and at every layer the relevance gradient.
_RAISED = 2.0**8


class Passed(NamedTuple):
    """One target's backward pass through one decoder layer, of one prompt, as its edges need it."""

    layer: int
    target: int  # which of the targets
    prompt: int  # which of the prompts
    relevance_in: Tensor  # (N,) of the layer's input, on its device
    relevance_out: Tensor
    mixings: list[ops.Mixing]
    raised: Tensor | float  # the power of two that the traces' gradients were multiplied by


Objective = Callable[[Tensor], list[Tensor]]  # (P, V) logits -> scalars, one a target
Progress = Callable[[str, int, int], None]  # phase, layers done, layers in all


@dataclass(eq=False)  # tensors have no one truth value to compare by
class _Pass:
    """One decoder layer, between its forward and its backward pass."""

    module: nn.Module
    tier: str  # where its tensors wait, or "graph": autograd's graph lives on
    watched: bool  # by hooks of others, which may ask for gradients
    x: Tensor | Stored | None = None
    rest: tuple = ()  # the other arguments of its call: masks, rotary tables
    named: dict = field(default_factory=dict)
    beside: list[Tensor] = field(default_factory=list)  # of these, what depends on hidden states: see `sides`
    made: list[Tensor] = field(default_factory=list)  # what stands for what it made for later layers
    outputs: list[Tensor] | None = None  # of a layer whose graph lives on: the hidden states, and what it made
    recorded: Recorded | None = None  # once the layer has run, `Stored` in place of tensors
    traces: list[list] | None = None  # where edges are asked for: an attention or scan each, in it one a target
    dropped: list[Tensor] = field(default_factory=list)  # one a target and attention, as `ops.attention` gives them
    raised: list[Tensor] = field(default_factory=list)  # (B, 1, ...) a target in a float16 model
    sums: Sums | None = None  # what observers asked for

    @property
    def others(self) -> list:
        """The other arguments in one list."""
        return [*self.rest, *self.named.values()]

    def with_others(self, hidden: Tensor, others: list) -> tuple[tuple, dict]:
        """The arguments of a call, with ``others`` in the place of its others."""
        rest = len(self.rest)
        return (as_read(self.module, hidden), *others[:rest]), dict(zip(self.named, others[rest:], strict=True))

    def summing(self) -> AbstractContextManager:
        return nullcontext() if self.sums is None else summing(self.module, self.sums)

    def most_dropped(self, targets: int, prompts: int) -> list[Tensor]:
        """For each target (B,), the largest share that an attention of the layer left out."""
        each = len(self.dropped) // targets
        if each == 0:
            return [torch.zeros(prompts, dtype=torch.float64, device="cpu")] * targets
        return [torch.stack(self.dropped[i * each : (i + 1) * each]).amax(0) for i in range(targets)]


def propagate(
    model: nn.Module,
    input_ids: Tensor,
    positions: list[int],
    objective: Objective,
    rules: Rules,
    plan: Plan,
    progress: Progress | None = None,
    observe: Callable[[Passed], None] | None = None,
    lengths: list[int] | None = None,
    watch: Watch | None = None,
    images: dict[str, Tensor] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Relevance of every node for scalars of the logits.

    The forward pass runs through the model's own layers. What a layer needs on the way back waits where ``plan`` says;
    a layer whose autograd graph was not kept is run once more, its attention excepted, with a float32 residual stream.

    Args:
        model: one of a supported family whose logits `hf.logits_at` knows, in eval mode.
        input_ids: (B, N) on the model's device, a prompt a row.
        positions: whose logits ``objective`` is given, each 0 ... B N - 1.
        observe: called for every layer, target and prompt, from the last layer down.
        lengths: of the prompts where any is shorter than N, with anything behind it: no token of a causal model reads a
            later one, and what nothing reads has a relevance gradient of zero.
        watch: shown every layer of a single prompt, from the last one down.
        images: of a single prompt, as `hf.showing` takes them.

    Returns:
        For each scalar, and for it each prompt, (L + 1, N) node relevance sum_d x_d g_d, N the prompt's own; float32,
        float64 for a float64 model. And (L,) float64, the share of the attention's mass that each layer left out.
    """
    tell = progress or (lambda *_: None)
    lengths = [input_ids.shape[1]] * len(input_ids) if lengths is None else lengths
    wanted = None if watch is None else watch.wanted
    given = (model, input_ids, positions, objective, rules, plan, tell)
    with _descent(*given, observe is not None, wanted, images) as down:
        count = len(down.layers)
        x, gs = down.start()
        nodes = [_relevance(x, g) for g in gs]
        relevance = [list(map(send, nodes))]
        dropped = []
        if watch is not None:
            watch.show(count, x, gs, nodes, None, [])
        del x
        tell("backward", 0, count)
        for done in range(1, count + 1):
            layer, x, gs = down.step(gs)
            above, nodes = nodes, down.nodes(x, gs)
            relevance.append(list(map(send, nodes)))
            dropped.append(layer.most_dropped(len(nodes), len(x)))
            if watch is not None:
                watch.show(count - done, x, gs, nodes, layer.sums, layer.raised)
            if observe is not None:
                with torch.no_grad():
                    parts = contributions(layer.module, rules, x, layer.rest, layer.named, len(layer.traces))
                    for target in range(len(nodes)):
                        raised = layer.raised[target] if layer.raised else 1.0
                        mixings = [ops.Mixing(one.pop(0), of) for one, of in zip(layer.traces, parts, strict=True)]
                        given = (nodes[target], above[target].to(x.device), raised, mixings)
                        for prompt, length in enumerate(lengths):
                            observe(Passed(count - done, target, prompt, *_of_prompt(prompt, length, *given)))
                        del given, mixings
                del parts
            del x, layer
            down.heap.tidy()
            for one in relevance[-2]:
                one.arrived()  # no more than this layer's work waits on a CUDA device
            tell("backward", done, count)
    relevance = [[one.arrived() for one in layer] for layer in relevance]
    nodes, shares = ([torch.stack(one) for one in zip(*found[::-1], strict=True)] for found in (relevance, dropped))
    return [
        (layers[:, prompt, :length].contiguous(), share[:, prompt])
        for layers, share in zip(nodes, shares, strict=True)
        for prompt, length in enumerate(lengths)
    ]


def _of_prompt(prompt, length, relevance_in, relevance_out, raised, mixings) -> tuple:
    """One prompt's share of what was passed."""
    nodes = (one[prompt, :length] for one in (relevance_in, relevance_out))
    raised = raised[prompt].view(()) if isinstance(raised, Tensor) else raised
    return *nodes, [one.of(prompt, length) for one in mixings], raised


def propagate_between(
    model: nn.Module,
    input_ids: Tensor,
    positions: list[int],
    objective: Objective,
    rules: Rules,
    plan: Plan,
    source: int,
    target: int,
    rows: list[int],
    progress: Progress | None = None,
    images: dict[str, Tensor] | None = None,
) -> Tensor:
    """Relevance that the nodes of layer ``source`` pass to each node (``target``, row), by whatever route.

    At the target layer the relevance gradient is split into its rows, which then pass the layers below side by side, as
    several targets do.

    Args:
        objective: of one scalar.
        plan: for as many targets as there are rows.
        source, target: 0 <= source < target <= L.

    Returns:
        (R, N), row = node of the target layer, column = node of the source layer.
    """
    tell = progress or (lambda *_: None)
    with _descent(model, input_ids, positions, objective, rules, plan, tell, False, images=images) as down:
        x, gs = down.start()
        count = len(down.layers)
        for layer in range(count, source, -1):
            if layer == target:
                gs, down.looked_up = [_only(row, gs[0]) for row in rows], []
                if down.sides is not None:
                    down.sides.forget()
            tell("backward", count - layer, count - source)
            _, x, gs = down.step(gs)
            down.heap.tidy()
        tell("backward", count - source, count - source)
        return torch.stack([one[0].cpu() for one in down.nodes(x, gs)])


def _relevance(x: Tensor, g: Tensor) -> Tensor:
    """(B, N), of hidden states (B, N, D), or of all residual streams of a token, (B, N, S, D)."""
    return ops.node_relevance(x.flatten(2), g.flatten(2))


def _only(row: int, g: Tensor) -> Tensor:
    only = torch.zeros_like(g)
    only[:, row] = g[:, row]
    return only


@dataclass
class _Descent:
    """The way back from the logits: the layers that are still to come, the next one last."""

    layers: list[_Pass]
    top: list[Tensor]  # the last layer's output, until it has been used
    scalars: list[Tensor]
    rules: Rules
    plan: Plan
    store: Store
    heap: Heap
    sides: Sides | None
    added: Mapping[nn.Module, Tensor]  # as of `hf.images.Shown`
    looked_up: list[list[Tensor]] = field(default_factory=list)  # (B, N) a target, past the first nodes to their tokens
    output: Tensor | None = None  # of the next layer, where others' hooks may change it

    def start(self) -> tuple[Tensor, list[Tensor]]:
        """The last hidden states, and the relevance gradients there."""
        x, gs = self.top.pop(), []
        self.output = x.detach() if self.layers[-1].watched else None
        wide = torch.promote_types(x.dtype, torch.float32)
        raised = _RAISED if x.dtype == torch.float16 else 1.0
        while self.scalars:
            g = torch.autograd.grad(self.scalars.pop(0) * raised, x, retain_graph=len(self.scalars) > 0)[0]
            gs.append(g.to(wide).div_(raised))
        return x, gs

    def step(self, gs: list[Tensor]) -> tuple[_Pass, Tensor, list[Tensor]]:
        """The next layer down, its input, and the relevance gradients there."""
        layer = self.layers.pop()
        if self.layers:
            _fetch(self.layers[-1], self.store)
        if (added := self.added.get(layer.module)) is not None:
            self.looked_up.append([_relevance(added.to(g.device), g) for g in gs])
        made = [[] for _ in gs] if self.sides is None else self.sides.depart(layer.made, len(gs))
        gs = [[gs.pop(0), *of_made] for of_made in made]
        x, gs = _back(layer, gs, self.rules, self.store, self.heap, self.plan, self.output)
        self.output = x.detach() if self.layers and self.layers[-1].watched else None
        if self.sides is not None:
            self.sides.arrive(layer.beside, [beside for _, *beside in gs])
        gs = [g for g, *_ in gs]
        if self.sides is not None and not self.layers:
            self.looked_up.append(self.sides.reach(gs))
        return layer, x, gs

    def nodes(self, x: Tensor, gs: list[Tensor]) -> list[Tensor]:
        """(B, N) relevance, a target."""
        found = [_relevance(x, g) for g in gs]
        besides = [] if self.layers else self.looked_up
        return [sum((one[target].to(x.device) for one in besides), own) for target, own in enumerate(found)]


@contextmanager
def _descent(
    model, input_ids, positions, objective, rules, plan, tell, trace, wanted=None, images=None
) -> Iterator[_Descent]:
    """Runs the forward pass; for the rest see `propagate`."""
    store, heap = Store(plan.offload_dir), Heap(plan.host_room, plan.working.get("cpu", 0))
    with ExitStack() as leaving, torch.inference_mode(False), torch.enable_grad():
        leaving.callback(store.close)
        if "file" in plan.tiers:
            store.open_file()  # now, so that a folder that takes no files is not found out half-way
        leaving.enter_context(passing(model, rules))
        leaving.enter_context(keeping_rotations(model))
        # Only now: another thread's pass has hooks of its own on the layers.
        check_hooks(model)
        run = decoder_layers(model)
        leaving.enter_context(skipping(run[-1], head_of(model).module))
        layers = [_Pass(module, tier, is_watched(module)) for module, tier in zip(run, plan.tiers, strict=True)]
        if trace:
            check_edges(run)
            for layer in layers:
                layer.traces = []
        for layer, within in zip(layers, wanted or [()] * len(layers), strict=True):
            layer.sums = Sums(within) if within else None
        sides = leaving.enter_context(following(model)) if any(map(has_side_routes, run)) else None
        shown = leaving.enter_context(showing(model, images or {}))
        input_ids = input_ids.clone()  # a caller's inference_mode made it what autograd cannot save
        with _watched(layers, store, heap, plan, lambda done: tell("forward", done, len(layers)), sides) as top:
            logits = logits_at(model, input_ids, positions, **shown.given)
            if not top:
                raise RuntimeError("the model did not run all of its decoder layers: it runs others at other lengths")
            scalars = objective(logits)
            del logits  # and the graph behind them
        yield _Descent(layers, top, scalars, rules, plan, store, heap, sides, shown.added)


def _version(x: Tensor) -> int:
    """How often it has been written into, where PyTorch counts."""
    return 0 if x.is_inference() else x._version


def _fetch(layer: _Pass, store: Store) -> None:
    if layer.tier == "host":
        store.fetch(layer.x)
        layer.recorded.each(store.fetch)


def _back(
    layer: _Pass,
    gs: list[list[Tensor | None]],
    rules: Rules,
    store: Store,
    heap: Heap,
    plan: Plan,
    known: Tensor | None,
) -> tuple[Tensor, list[list[Tensor | None]]]:
    """The layer's input, and the relevance gradients there, and at what it was given beside, a target.

    They come of those at its output and at what it made. ``known`` is the output of its first run, or None.
    """
    if layer.tier == "graph":
        edges = list(map(get_gradient_edge, layer.outputs))
        return layer.x, _gradients(edges, [layer.x, *layer.beside], gs, layer.sums)
    x = store.take(layer.x)
    recorded = layer.recorded.each(store.take)
    leaf = x.to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
    bounded = (layer.traces, plan.tolerance, layer.dropped)
    with replaying(layer.module, rules, recorded, plan.chunk_tokens, *bounded), layer.summing():
        others = lent(layer.others)
        args, named = layer.with_others(_for_others(leaf, layer), others)
        output = tokens_first(layer.module, _hidden(layer.module(*args, **named)))
        left = left_in(layer.others, others) if layer.made else ()
        outputs = [output, *(one for *_, made in left for one in made)]
        gs = [[None if g is None else g.to(output.device) for g in gs.pop(0)] for _ in range(len(gs))]
        if x.dtype == torch.float16:
            layer.raised = list(map(float16.lift, gs))
        gs = [[_as(g, one) for g, one in zip(gs.pop(0), outputs, strict=True)] for _ in range(len(gs))]
        edges = list(map(get_gradient_edge, outputs))
        if known is not None and not _is_again(output.detach(), known):
            raise RuntimeError(
                f"a hook on {type(layer.module).__name__}, or on a part of it, did not do the same when the layer ran "
                "again: let it depend on what it is given alone, or remove it"
            )
        del output, outputs, others, args, named, known  # nobody else reads their values
        heap.tidy()
        found = _gradients(edges, [leaf, *layer.beside], gs, layer.sums)
        return x, list(map(float16.lower, found, layer.raised)) if layer.raised else found


def _is_again(output: Tensor, first: Tensor) -> bool:
    """Whether a layer's outputs are one, but for how 16 bits round what is kept in 32 in the second run."""
    steps = (8 if first.dtype.itemsize < 4 else 1024) * torch.finfo(first.dtype).eps
    return bool((output - first).abs().max() <= steps * first.abs().max())


def _as(g: Tensor | None, output: Tensor) -> Tensor | None:
    return None if g is None else g.to(output.dtype)


def _gradients(
    edges: list[GradientEdge], inputs: list[Tensor], gs: list[list[Tensor | None]], sums: Sums | None
) -> list[list[Tensor | None]]:
    found = []
    while gs:  # each is let go as soon as it has been used
        there = [(edge, g) for edge, g in zip(edges, gs.pop(0), strict=True) if g is not None]
        more = {"retain_graph": len(gs) > 0, "allow_unused": len(inputs) > 1}
        found.append(list(torch.autograd.grad([edge for edge, _ in there], inputs, [g for _, g in there], **more)))
        del there
        if sums is not None:
            sums.turn()
    return found


def _for_others(hidden: Tensor, layer: _Pass) -> Tensor:
    """A layer's input, as hooks may write over it: where there are any, what the pass keeps is another tensor."""
    return hidden.clone() if layer.watched else hidden


def _hidden(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output


@contextmanager
def _watched(
    layers: list[_Pass], store: Store, heap: Heap, plan: Plan, tell: Callable[[int], None], sides: Sides | None
) -> Iterator[list[Tensor]]:
    """While the model runs, take down every call of a layer. The last one's output goes to the list, as a leaf."""
    top: list[Tensor] = []
    running = ExitStack()
    thread, coming = here(), iter(layers)
    entered: list[_Pass] = []  # the layer that runs
    borrowed: list[list] = []  # what `sides` lent it
    handed_on: list[tuple[Tensor, int]] = []  # what the last one that ran put out, and its version

    def enter(module, args, named):
        if here() is not thread:
            return None
        layer = next(coming, None)
        if layer is None or layer.module is not module or entered:
            raise RuntimeError(
                "a decoder layer was called again, or out of turn, while the model was explained: call neither of them "
                "from hooks or progress"
            )
        hidden, *layer.rest = args if args else (named["hidden_states"],)
        if layer is layers[0] and (hidden._backward_hooks or hidden.retains_grad):
            raise ValueError(
                "a hook has asked the embeddings for their gradient, which a pass that goes layer by layer does not "
                "give them: leave it out, or call backward yourself within lrp_fast.patched"
            )
        last, version = handed_on.pop() if handed_on else (hidden, _version(hidden))
        if hidden is not last or _version(hidden) != version:
            raise ValueError(
                "the hidden states change on their way from one decoder layer to the next (by a hook on all modules, "
                "or in somebody's own forward pass), which a pass that goes layer by layer does not see: leave that "
                "out, or call backward yourself within lrp_fast.patched"
            )
        entered.append(layer)
        layer.named = {name: value for name, value in named.items() if name != "hidden_states"}
        layer.x = tokens_first(module, hidden.detach())
        if layer.tier == "graph":
            hidden = layer.x.requires_grad_()
            if layer.traces is not None or plan.tolerance:
                running.enter_context(attending(module, layer.traces, plan.tolerance, layer.dropped))
            running.enter_context(layer.summing())
        else:
            hidden = layer.x.detach().requires_grad_(layer.watched)
            running.enter_context(torch.set_grad_enabled(layer.watched))
            layer.recorded = running.enter_context(recording(module, plan.chunk_tokens))
        if sides is not None:
            layer.beside = given_beside(layer.others)
            if layer is layers[0]:
                sides.begin(module, last)
            borrowed.append(lent(layer.others))
        return layer.with_others(_for_others(hidden, layer), layer.others if sides is None else borrowed[-1])

    def leave(module, args, output):
        if here() is not thread:
            return None
        layer = entered.pop()
        hidden = tokens_first(module, _hidden(output))
        running.close()
        layer.outputs = [hidden]
        for own, key, made in () if sides is None else list(left_in(layer.others, borrowed.pop())):
            own[key] = tuple(one.detach().requires_grad_() for one in made)
            layer.made += own[key]
            layer.outputs += made
        if layer.tier != "graph":
            layer.outputs = None
            hidden = hidden.detach()
            layer.x = store.put(layer.x, layer.tier)
            layer.recorded = layer.recorded.each(lambda tensor: store.put(tensor, layer.tier))
        heap.tidy()
        done = layers.index(layer) + 1
        tell(done)
        if done == len(layers):
            top.append(hidden.detach().requires_grad_())
            hidden = top[0]
        hidden = as_read(module, hidden)
        handed_on[:] = [(hidden, _version(hidden))]
        return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden

    # Before anybody else's: what other hooks do to a layer's input belongs to the layer, here and when it is replayed.
    modules = dict.fromkeys(layer.module for layer in layers)
    handles = [module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(leave) for module in modules]
    try:
        yield top
    finally:
        running.close()
        for handle in handles:
            handle.remove()

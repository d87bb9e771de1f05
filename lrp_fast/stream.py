"""The layer-by-layer pass: forward with the hidden states cut at every decoder layer, then back, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from . import ops
from .hf import contributions, decoder_layers, patched, recording, replaying, tracing
from .memory import Plan
from .rules import Rules
from .store import Store, Stored, give_back_free_heap

_WORTH_TIDYING = 16 << 20  # bytes of a layer at work; for less it is not worth a look at the heap


class Passed(NamedTuple):
    """One target's backward pass through one decoder layer, as its edges need it."""

    layer: int
    target: int  # which of the targets
    relevance_in: Tensor  # (N,) of the layer's input, on its device
    relevance_out: Tensor
    trace: ops.Trace
    key_part: Tensor | None  # see `hf.contributions`
    value_part: Tensor | None


Progress = Callable[[str, int, int], None]  # phase, layers done, layers in all


@dataclass
class _Pass:
    """One decoder layer, between its forward and its backward pass."""

    module: nn.Module
    tier: str  # where its tensors wait, or "graph": autograd's graph lives on
    x: Tensor | Stored | None = None
    rest: tuple = ()  # the other arguments of its call: masks, rotary tables
    named: dict = field(default_factory=dict)
    output: Tensor | None = None  # of a layer whose graph lives on
    attention: list[list[Stored | None]] = field(default_factory=list)
    traces: list[ops.Trace] | None = None  # one a target, where edges are asked for


def propagate(
    model: nn.Module,
    input_ids: Tensor,
    positions: list[int],
    objective: Callable[[Tensor], list[Tensor]],
    rules: Rules,
    plan: Plan,
    progress: Progress | None = None,
    observe: Callable[[Passed], None] | None = None,
) -> list[Tensor]:
    """Relevance of every node for scalars of the logits.

    The forward pass runs through the model's own layers. What a layer needs on the way back waits where ``plan`` says;
    a layer whose autograd graph was not kept is run once more, its attention excepted, with a float32 residual stream.

    Args:
        model: a causal language model of a supported family, in eval mode.
        input_ids: (1, N) on the model's device.
        positions: whose logits ``objective`` is given, each 0 ... N - 1.
        objective: (P, V) logits -> scalars, one a target.
        observe: called for every layer and target, from the last layer down.

    Returns:
        For each scalar, (L + 1, N) node relevance sum_d x_d g_d; float32, float64 for a float64 model.
    """
    layers = [_Pass(module, tier) for module, tier in zip(decoder_layers(model), plan.tiers, strict=True)]
    if observe is not None:
        for layer in layers:
            layer.traces = []
    tell = progress or (lambda phase, done, total: None)
    store = Store(plan.offload_dir)
    with ExitStack() as leaving, torch.inference_mode(False), torch.enable_grad():
        leaving.callback(store.close)
        if "file" in plan.tiers:
            store.open_file()  # now, so that a folder that takes no files is not found out half-way
        leaving.enter_context(patched(model, rules))
        input_ids = input_ids.clone()  # a caller's inference_mode made it what autograd cannot save
        with _watched(layers, store, plan, lambda done: tell("forward", done, len(layers))) as top:
            logits = _logits(model, input_ids, positions)
        x = top.pop()
        scalars = objective(logits[0])
        wide = torch.promote_types(x.dtype, torch.float32)
        gs = [torch.autograd.grad(one, x, retain_graph=one is not scalars[-1])[0].to(wide) for one in scalars]
        del logits, scalars
        nodes = [ops.node_relevance(x, g)[0] for g in gs]
        relevance = [[one.cpu() for one in nodes]]
        del x
        tell("backward", 0, len(layers))
        for done in range(1, len(layers) + 1):
            layer = layers.pop()
            if layers:
                _fetch(layers[-1], store)
            x, gs = _back(layer, gs, rules, store, plan)
            above, nodes = nodes, [ops.node_relevance(x, g)[0] for g in gs]
            relevance.append([one.cpu() for one in nodes])
            if observe is not None:
                with torch.no_grad():
                    parts = contributions(layer.module, rules, x, layer.rest, layer.named)
                    for target in range(len(nodes)):
                        given = (nodes[target], above[target].to(x.device), layer.traces.pop(0), *parts)
                        observe(Passed(len(layers), target, *given))
                        del given
                del parts
            del x, layer
            _tidy(plan)
            tell("backward", done, done + len(layers))
    return [torch.stack(one) for one in zip(*relevance[::-1], strict=True)]


def _logits(model: nn.Module, input_ids: Tensor, positions: list[int]) -> Tensor:
    """(1, P, V) logits at the positions alone: those of a long context would not fit."""
    # A list: a tensor would have to lie where the last layer does.
    return model(input_ids=input_ids, use_cache=False, logits_to_keep=positions).logits


def _fetch(layer: _Pass, store: Store) -> None:
    if layer.tier == "host":
        for stored in [layer.x, *(one for kept in layer.attention for one in kept if one is not None)]:
            store.fetch(stored)


def _back(layer: _Pass, gs: list[Tensor], rules: Rules, store: Store, plan: Plan) -> tuple[Tensor, list[Tensor]]:
    """The layer's input, and the relevance gradients there from those at its output."""
    if layer.tier == "graph":
        return layer.x, _gradients(get_gradient_edge(layer.output), layer.x, gs)
    x = store.take(layer.x)
    kept = [ops.Kept(*(None if one is None else store.take(one) for one in stored)) for stored in layer.attention]
    leaf = x.to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
    with replaying(layer.module, rules, kept, plan.chunk_tokens, layer.traces):
        output = _hidden(layer.module(leaf, *layer.rest, **layer.named))
        del kept
        gs = [gs.pop(0).to(output.device, output.dtype) for _ in range(len(gs))]
        edge = get_gradient_edge(output)
        del output  # nobody reads its values
        _tidy(plan)
        return x, _gradients(edge, leaf, gs)


def _gradients(edge: GradientEdge, x: Tensor, gs: list[Tensor]) -> list[Tensor]:
    found = []
    while gs:  # each is let go as soon as it has been used
        found.append(torch.autograd.grad(edge, x, gs.pop(0), retain_graph=len(gs) > 0)[0])
    return found


def _hidden(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _tidy(plan: Plan) -> None:
    if plan.working.get("cpu", 0) > _WORTH_TIDYING:
        give_back_free_heap()


@contextmanager
def _watched(layers: list[_Pass], store: Store, plan: Plan, tell: Callable[[int], None]) -> Iterator[list[Tensor]]:
    """While the model runs, take down every call of a layer. The last one's output goes to the list, as a leaf."""
    top: list[Tensor] = []
    running = ExitStack()

    def enter(module, args, named):
        layer = layers[number[module]]
        if layer.x is not None:
            raise RuntimeError("the model was called again while it was explained: call it from one thread at a time")
        hidden, *layer.rest = args if args else (named["hidden_states"],)
        layer.named = {name: value for name, value in named.items() if name != "hidden_states"}
        layer.x = hidden.detach()
        if layer.tier == "graph":
            layer.x.requires_grad_()
            if layer.traces is not None:
                running.enter_context(tracing(module, layer.traces))
        else:
            running.enter_context(torch.no_grad())
            layer.attention = running.enter_context(recording(module, plan.chunk_tokens))
        return (layer.x, *layer.rest), layer.named

    def leave(module, args, output):
        layer = layers[number[module]]
        hidden = _hidden(output)
        running.close()
        if layer.tier == "graph":
            layer.output = hidden
        else:
            layer.x = store.put(layer.x, layer.tier)
            layer.attention = [
                [None if one is None else store.put(one, layer.tier) for one in kept] for kept in layer.attention
            ]
        _tidy(plan)
        tell(number[module] + 1)
        if layer is layers[-1]:
            top.append(hidden.detach().requires_grad_())
            hidden = top[0]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    number = {layer.module: index for index, layer in enumerate(layers)}
    # Before anybody else's: what other hooks do to a layer's input belongs to the layer, here and when it is replayed.
    handles = [layer.module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True) for layer in layers]
    handles += [layer.module.register_forward_hook(leave) for layer in layers]
    try:
        yield top
    finally:
        running.close()
        for handle in handles:
            handle.remove()

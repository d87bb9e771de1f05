"""The layer-by-layer pass: forward with the hidden states cut at every decoder layer, then back, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .hf import decoder_layers, patched
from .rules import Rules

Progress = Callable[[str, int, int], None]  # phase, layers done, layers in all


def propagate(
    model: nn.Module,
    input_ids: Tensor,
    positions: list[int],
    objective: Callable[[Tensor], Tensor],
    rules: Rules,
    progress: Progress | None = None,
) -> Tensor:
    """Relevance of every node for one scalar of the logits.

    Every layer's graph is its own: it is freed as soon as relevance has passed it.

    Args:
        model: a causal language model of a supported family, in eval mode.
        input_ids: (1, N) on the model's device.
        positions: whose logits ``objective`` is given, each 0 ... N - 1.
        objective: (P, V) logits -> scalar.

    Returns:
        (L + 1, N) node relevance sum_d x_d g_d; float32, float64 for a float64 model.
    """
    layers = decoder_layers(model)
    nodes: list[Tensor] = []  # x at (layer): leaves that the layers above start from
    outputs: list[Tensor] = []
    tell = progress or (lambda phase, done, total: None)

    with patched(model, rules), torch.inference_mode(False), torch.enable_grad():
        input_ids = input_ids.clone()  # a caller's inference_mode made it what autograd cannot save
        with _cut_between(layers, nodes, outputs, lambda done: tell("forward", done, len(layers))):
            logits = _logits(model, input_ids, positions)
        (g,) = torch.autograd.grad(objective(logits[0]), nodes[-1])
        del logits
        relevance = [_node_relevance(nodes.pop(), g)]
        tell("backward", 0, len(layers))
        for done in range(1, len(layers) + 1):
            x = nodes.pop()
            (g,) = torch.autograd.grad(outputs.pop(), x, g)
            relevance.append(_node_relevance(x, g))
            tell("backward", done, len(layers))
    return torch.stack(relevance[::-1])


def _node_relevance(x: Tensor, g: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vecdot(x.detach().to(wide), g.to(wide))[0].cpu()


def _logits(model: nn.Module, input_ids: Tensor, positions: list[int]) -> Tensor:
    """(1, P, V) logits at the positions alone: those of a long context would not fit."""
    keep = torch.tensor(positions, device=input_ids.device)
    return model(input_ids=input_ids, use_cache=False, logits_to_keep=keep).logits


@contextmanager
def _cut_between(
    layers: list[nn.Module], nodes: list[Tensor], outputs: list[Tensor], tell: Callable[[int], None]
) -> Iterator[None]:
    """While the model runs, replace the hidden states at every layer's border by leaves, which go to ``nodes``."""

    def leaf(hidden: Tensor) -> Tensor:
        nodes.append(hidden.detach().requires_grad_())
        return nodes[-1]

    def enter(module, args, kwargs):
        if args:
            return (leaf(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": leaf(kwargs["hidden_states"])}

    def leave(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        outputs.append(hidden)
        tell(len(outputs))
        return (leaf(hidden), *output[1:]) if isinstance(output, tuple) else leaf(hidden)

    handles = [layers[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

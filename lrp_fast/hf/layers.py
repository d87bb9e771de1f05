"""The decoder layers of a model, as it runs them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from . import handlers
from .families import handler_of
from .overlay import forward_of, laid, uncompiled
from .owner import is_ours, owned

_MARKS = (handlers.decoder_layer, handlers.pre_norm_decoder_layer)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers in the order in which the hidden states pass them, once for each time that they do.

    That is how the model holds them, as a rule. Where it may run others (one stands in it twice, its config counts
    fewer, somebody's forward pass replaced its own), one token is sent through it to see, past all hooks.

    Raises:
        ValueError: if there is none.
    """
    found = [(path, one) for path, one in model.named_modules(remove_duplicate=False) if handler_of(one) in _MARKS]
    held = [layer for _, layer in found]
    counted = getattr(model.config.get_text_config(), "num_hidden_layers", len(held))
    above = {path[:end] for path, _ in found for end in range(len(path)) if end == 0 or path[end] == "."}
    replaced = any(_is_replaced(module) for path, module in model.named_modules() if path in above)
    run = held if len(set(held)) == len(held) == counted and not replaced else _run(model, set(held))
    if not run:
        name, count = type(model).__name__, f"num_hidden_layers is {counted} in its config"
        raise ValueError(f"{name} runs no decoder layer ({count}): there is nothing to explain in it")
    return run


def _is_replaced(module: nn.Module) -> bool:
    own = forward_of(module)  # that of torch.compile's wrapper is the call of what it wraps
    return getattr(own, "__func__", own) not in (type(module).forward, nn.Module.__call__)


def _run(model: nn.Module, layers: set[nn.Module]) -> list[nn.Module]:
    order: list[nn.Module] = []

    def straight(module: nn.Module) -> Callable:
        def call(*args, **named):
            if module in layers:
                order.append(module)
            return uncompiled(module.forward)(*args, **named)

        return call

    overlays = [(module, "_call_impl", straight(module)) for module in model.modules()]
    overlays += [
        (module, "_compiled_call_impl", call)
        for module, _, call in overlays
        if module.__dict__.get("_compiled_call_impl") is not None
    ]
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
    turn = nullcontext() if is_ours(model) else owned(model, passing=True)
    with turn, torch.no_grad(), laid(overlays):
        model(input_ids=token, use_cache=False)
    return order

"""The decoder layers of a model, as it runs them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from . import handlers
from .directions import is_causal
from .families import LAYERS, handled, handler_of, handlers_of
from .overlay import laid, replaced, uncompiled
from .owner import is_ours, known, owned
from .positions import keeping_rotations
from .walk import modules_of, named_modules_of
from .weights import device_of


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers in the order in which the hidden states pass them, once for each time that they do.

    That is how the model holds them, as a rule. Where it may run others (one stands in it twice, its config counts
    fewer, somebody's forward pass replaced its own), one token is sent through it to see, past all hooks.

    Raises:
        ValueError: if there is none, or one stands where the model treats it as another kind.
    """
    return list(known(model, _decoder_layers))


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    held, above, configs = _held(model)
    # LongCat Flash counts its attentions, two a layer, as hidden layers.
    counted = [config for config in configs if getattr(config, "num_layers", None) != len(held)]
    counts = {getattr(config, "num_hidden_layers", len(held)) for config in counted} or {len(held)}
    if len(set(held)) == len(held) and counts <= {len(held)} and not any(map(replaced, above)):
        return held
    try:
        run = _run(model, set(held))
    except Exception as error:
        if _is_loaded(held) or not any(weight.is_meta for layer in held for weight in layer.parameters()):
            raise
        raise ValueError(  # some ask their masks for numbers
            f"the config of {type(model).__name__} counts {min(counts)} layers, it holds {len(held)}, and which of "
            "them run shows only where there are weights: load it with its weights, or let the config count as many"
        ) from error
    if not run:
        name, count = type(model).__name__, f"num_hidden_layers is {min(counts)} in its config"
        raise ValueError(f"{name} runs no decoder layer ({count}): there is nothing to explain in it")
    _check_places(run, configs)
    return run


def check_places(model: nn.Module) -> None:
    """A mask, and the window in it, goes by a layer's place; its own attention knows the window of where it was made.

    Raises:
        ValueError: if they differ in the model as it holds its layers.
    """
    held, _, configs = _held(model)
    _check_places(held, configs)


def reads_causally(model: nn.Module) -> bool:
    """Whether no token reads a later one: an attention of an encoder's reads in both directions."""
    attentions = (module for _, module, handler in handled(model) if handler in handlers.ATTENTIONS)
    return all(is_causal(one) or getattr(one, "is_cross_attention", False) for one in attentions)


def _held(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module], list]:
    """The layers as the model holds them, none within another, what lies above them, and its configs."""
    held = named_modules_of(model, once=False)
    found: list[tuple[str, nn.Module]] = []
    of_all = handlers_of([one for _, one in held])
    for (path, one), handler in zip(held, of_all, strict=True):  # what holds another comes before it
        if handler in LAYERS and not (found and path.startswith(f"{found[-1][0]}.")):
            found.append((path, one))
    paths = {path[:end] for path, _ in found for end in range(len(path)) if end == 0 or path[end] == "."}
    above = list(dict.fromkeys(module for path, module in held if path in paths))
    configs = [module.config.get_text_config() for module in above if hasattr(module, "config")]
    return [layer for _, layer in found], above, configs


def _is_loaded(layers: list[nn.Module]) -> bool:
    """Whether accelerate brings the weights when they are needed."""
    return any("_hf_hook" in module.__dict__ for layer in layers for module in modules_of(layer))


def _run(model: nn.Module, layers: set[nn.Module]) -> list[nn.Module]:
    order: list[nn.Module] = []

    def straight(module: nn.Module) -> Callable:
        def call(*args, **named):
            if module in layers:
                order.append(module)
            return uncompiled(module.forward)(*args, **named)

        return call

    overlays = [(module, "_call_impl", straight(module)) for module in modules_of(model)]
    overlays += [
        (module, "_compiled_call_impl", call)
        for module, _, call in overlays
        if module.__dict__.get("_compiled_call_impl") is not None
    ]
    token = torch.zeros(1, 1, dtype=torch.int64, device=device_of(model.get_input_embeddings()))
    turn = nullcontext() if is_ours(model) else owned(model, passing=True)
    with turn, keeping_rotations(model), torch.no_grad(), laid(overlays):
        model(input_ids=token, use_cache=False)
    return order


def _check_places(layers: list[nn.Module], configs: list) -> None:
    kinds = getattr(configs[-1], "layer_types", None) if configs else None
    for place, (layer, kind) in enumerate(zip(layers, kinds or [], strict=False)):
        for part in modules_of(layer):
            if handler_of(part) not in handlers.ATTENTIONS or getattr(part, "layer_idx", place) == place:
                continue
            windowed = getattr(part, "sliding_window", None) is not None
            if windowed != (kind == "sliding_attention"):
                raise ValueError(
                    f"a layer {'with' if windowed else 'without'} a sliding window stands in place {place}, of which "
                    f"the config's layer_types say {kind!r}: write these in the order of the layers"
                )

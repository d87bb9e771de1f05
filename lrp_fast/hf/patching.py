"""Patching of one model instance, for the length of a ``with`` block."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..rules import Rules, as_rules
from . import attention
from .coverage import check
from .families import handled, handler_of
from .overlay import forward_name, laid

MARK = "lrp_fast_patched"


@contextmanager
def patched(model: nn.Module, rule: str | Rules = "attnlrp") -> Iterator[nn.Module]:
    """Within the block, ``model``'s backward pass propagates relevance; its logits stay what they were.

    Only instance attributes of ``model``'s own modules change, and they are taken back on exit, also after an
    exception: neither another model, of the same class or the same config object, nor a global is touched. The weights
    of linear maps and norms get no gradients inside.

        with lrp_fast.patched(model, rule="attnlrp"):
            model(inputs_embeds=x).logits[0, -1, k].backward()      # x * x.grad is LRP relevance

    On a CPU the logits keep their bits where the model runs transformers' default attention (sdpa) on unpadded float32
    or 16-bit inputs and no sliding window hides a key; those of a mixture of experts or a Falcon are equal but for
    rounding. A float64 model's norms and routers, which transformers computes in float32, are kept in float64.

    Args:
        model: a transformers model of a supported family.
        rule: a name or `lrp_fast.Rules`.

    Raises:
        UnsupportedModuleError: for a module that no rule covers.
        RuntimeError: under torch.autocast, if ``model`` is patched already, or if a forward is overridden already.
    """
    rules = as_rules(rule)
    check(model)
    if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
        raise RuntimeError("lrp_fast does not run under torch.autocast: load the model in the dtype that you want")
    configs: dict[int, object] = {}
    overlays = []
    for path, module in handled(model):
        overlays += [(module, name, value) for name, value in _overlay(path, module, rules, configs).items()]
    with laid(overlays):
        yield model


def _overlay(path: str, module: nn.Module, rules: Rules, configs: dict[int, object]) -> dict[str, object]:
    """The attributes to lay over ``module``: its handler's, the mark, and a config that names our attention.

    A config object may be shared with another model, so each gets one copy here, shared as the original is.
    """
    where = path or type(module).__name__
    if MARK in module.__dict__:
        raise RuntimeError(f"{where!r} is patched already: leave the other lrp_fast.patched block first")
    overlay = dict(handler_of(module)(module, rules))
    if "forward" in overlay:
        if "forward" in module.__dict__ and forward_name(module) == "forward":
            raise RuntimeError(f"something else overrides the forward of {where!r}: undo that first")
        overlay[forward_name(module)] = overlay.pop("forward")
    config = module.__dict__.get("config")
    if config is not None:
        if id(config) not in configs:
            configs[id(config)] = copy.deepcopy(config)
            configs[id(config)]._attn_implementation = attention.NAME
        overlay["config"] = configs[id(config)]
    return {**overlay, MARK: True}

"""RWKV halves its hidden states after every few layers: here the layer before does, as nodes lie between layers."""

from __future__ import annotations

import functools

from torch import nn

from ..rules import Rules
from .overlay import Overlay, forward_of, laid, told


def rescaled_model(module: nn.Module, rules: Rules) -> Overlay:
    """A model that leaves the halving to its layers. Their weights are what it has made of them before it first runs.
    """
    own = forward_of(module)

    @functools.wraps(own)
    def forward(*args, **named):
        if module.training:
            raise ValueError("the model is in training mode: call model.eval() first")
        if not module.layers_are_rescaled:
            module._rescale_layers()
        with laid([told(module, rescale_every=0)]):
            return own(*args, **named)

    return {"forward": forward}


def rescaled_decoder_layer(module: nn.Module, rules: Rules) -> Overlay:
    """As `handlers.decoder_layer`, of a layer that may halve what it puts out."""
    own, every = forward_of(module), module.config.rescale_every
    halves = every > 0 and (module.layer_id + 1) % every == 0

    def forward(*args, **named):
        hidden, *rest = own(*args, **named)
        return (hidden / 2 if halves else hidden, *rest)

    return {"forward": forward}

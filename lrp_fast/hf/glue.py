"""Handlers of what needs no rule: containers, look-ups, sums, dropout, the layers between which hidden states are
nodes; and of what obeys the rules by its own code, function by function."""

from __future__ import annotations

from torch import nn

from ..rules import Rules
from .functions import by_rule
from .overlay import Overlay, forward_of


def leave(module: nn.Module, rules: Rules) -> Overlay:
    """Containers, embeddings, position tables: sums, look-ups, products with constants, and modules with handlers of
    their own."""
    return {}


def dropout(module: nn.Module, rules: Rules) -> Overlay:
    if module.training and module.p:
        raise ValueError("the model applies dropout: call model.eval() first")
    return {}


def spelt_out(module: nn.Module, rules: Rules) -> Overlay:
    """A module by its own code, in which `functions` are treated."""
    own = forward_of(module)

    def forward(*given, **named):
        with by_rule(module, rules):
            return own(*given, **named)

    return {"forward": forward}


def part(module: nn.Module, rules: Rules) -> Overlay:
    """What another module takes its weights from, and is not called itself: refused where it is."""
    return holder(module, rules)


def holder(module: nn.Module, rules: Rules) -> Overlay:
    """What does not run itself where text alone is read, as an audit saw, though its parts may: refused where it does.
    """

    def forward(*given, **named):
        raise ValueError(
            f"{type(module).__name__} does not run where a prompt of text is read, and lrp_fast has no rule for it"
        )

    return {"forward": forward}


def idle(module: nn.Module, rules: Rules) -> Overlay:
    """As `holder`, its parts included."""
    return holder(module, rules)


def decoder_layer(module: nn.Module, rules: Rules) -> Overlay:
    """As `leave`; marks the modules between which the hidden states are nodes."""
    return {}


def pre_norm_decoder_layer(module: nn.Module, rules: Rules) -> Overlay:
    """As `decoder_layer`, where what the MLP puts out, times a constant at most, is added to the residual stream and
    read by nothing else."""
    return {}


def parallel_decoder_layer(module: nn.Module, rules: Rules) -> Overlay:
    """As `decoder_layer`, whose attention and scan read the same, and neither what the other puts out."""
    return {}


def streams_decoder_layer(module: nn.Module, rules: Rules) -> Overlay:
    """A layer of several residual streams (B, N, S, D), by its own code: `hyper_connection`. A node is a token's, all
    of its streams together."""
    return spelt_out(module, rules)


def hyper_connection(module: nn.Module, rules: Rules) -> Overlay:
    """Shares, by sigmoids, of each of the residual streams in what a branch reads, and of what it puts out in each
    (arXiv 2409.19606; here without a mixing of streams): gates, by its own code."""
    return spelt_out(module, rules)

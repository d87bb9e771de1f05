"""Gemma 3n: residual streams side by side, of which a layer reads one and predicts and corrects the others (AltUp,
Baykal et al. 2023, arXiv 2301.13310), and gates cut off below a quantile of their row.

The streams lie in front, (S, B, N, D), and a node is a token's, all of them together: what is kept of nodes has the
tokens in front, (B, N, S, D).

**The shares.** A layer's coefficients are maps of a tanh, each a multiple of a stream that is added to it: of
(1 + c) x, x passes on all of its own, and c x is a product, half to each (cp: to the stream); tanh passes relevance
by tanh(z)/z. Streams are brought to the length of the first, y = x |x_0| / |x|: that ratio is a constant, as a norm's
rstd is.

**The cut-off.** y_i = relu(z_i - t), t = m + c s of the row's mean m and deviation s, with a constant c. Its rule is
the plain gradient, t's included. y is homogeneous of degree 1 in the row z, for m and s both are, so that by Euler's
theorem sum_i z_i dy_j/dz_i = y_j: gradient x input conserves relevance, as f(z)/z does of a function of one number. A
norm's rstd is held for the same end: with its gradient it would be of degree 0, and pass on nothing. A t that was held
would be a bias of -t that keeps -t g of every unit above it, z_i / y_i times what is passed on: several times as much,
as few units are far above a high quantile. And no factor y_i / z_i is bounded, z_i = 0 > t being no zero of y_i. Under
cp the gate is a constant, and so is all of this.
"""

from __future__ import annotations

import functools
import inspect
import sys
from types import CodeType

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import ops
from ..ops.identity import share
from ..rules import Rules
from .activations import kind_of
from .functions import by_rule
from .glue import spelt_out
from .overlay import Overlay, forward_of


def altup_decoder_layer(module: nn.Module, rules: Rules) -> Overlay:
    """As `handlers.streams_decoder_layer`, of streams that lie in front. The activation of a gate multiplies the
    per-layer embedding: half to each (cp: to the embedding)."""
    return spelt_out(module, rules)


def alternating_updates(module: nn.Module, rules: Rules) -> Overlay:
    """The map that predicts all streams from all, and the one that corrects them by what came of one: above."""
    if module.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    own, scale, shares = module.compute_router_modalities, forward_of(module), rules.treatment
    active = module.config.altup_active_idx

    def modalities(x):
        with by_rule(module, rules):
            return own(x)

    def scaled(corrected):
        with by_rule(module, rules):
            return scale(corrected)

    def predict(hidden_states):
        coefficients = module.prediction_coefs(modalities(hidden_states[active]))
        coefficients = coefficients.unflatten(-1, (-1, len(hidden_states))).mT
        coefficients = share(coefficients, shares.gate).to(hidden_states.dtype)  # wider while a layer is replayed
        mixed = share(hidden_states, shares.up).permute(1, 2, 3, 0) @ coefficients
        return (mixed.permute(3, 0, 1, 2) + hidden_states).contiguous().type_as(hidden_states)

    def correct(predictions, activated):
        coefficients = module.correction_coefs(modalities(activated)).permute(2, 0, 1).unsqueeze(-1)
        innovation = (activated - predictions[active]).expand_as(predictions)
        once = innovation + ops.product(coefficients, innovation, rule=rules)
        own = innovation.detach() * (coefficients.detach() + 1.0)  # its own bits; the gradient is that of once
        return (own + (once - once.detach()) + predictions).contiguous().type_as(activated)

    return {"forward": scaled, "predict": predict, "correct": correct}


def cut_off_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """As `handlers.gated_mlp`, of a gate that may be cut off: above."""

    def forward(hidden_states):
        gate = module.gate_proj(hidden_states)
        if module.activation_sparsity > 0:
            gate = module._gaussian_topk(gate)
        kind = kind_of(module.act_fn)
        return module.down_proj(ops.gated_mlp(gate, module.up_proj(hidden_states), kind, rule=rules))

    return {"forward": forward}


def streams_model(module: nn.Module, rules: Rules) -> Overlay:
    """As `handlers.leave`. It makes the streams of the embeddings, and its output of the streams."""
    own, code = forward_of(module), inspect.unwrap(type(module).forward).__code__

    @functools.wraps(own)
    def forward(*args, **named):
        if not rules.treatment.frozen_norm:
            return own(*args, **named)
        with _Magnitudes(code):
            return own(*args, **named)

    return {"forward": forward}


class _Magnitudes(TorchFunctionMode):
    """Within it, means of squares are constants where the code of one function takes them."""

    def __init__(self, code: CodeType) -> None:
        super().__init__()
        self.code = code

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.mean and (kwargs or {}).get("keepdim") and sys._getframe(1).f_code is self.code:
            return out.detach()
        return out


def leads_with_streams(layer: nn.Module) -> bool:
    """Whether a decoder layer is given streams in front, (S, B, N, D)."""
    return hasattr(layer, "altup")


def tokens_first(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Hidden states as nodes have them, (B, N, D) or (B, N, S, D), of those that a decoder layer reads and puts out."""
    return hidden.movedim(0, 2) if leads_with_streams(layer) else hidden


def as_read(layer: nn.Module, hidden: Tensor) -> Tensor:
    """The other way."""
    return hidden.movedim(2, 0) if leads_with_streams(layer) else hidden

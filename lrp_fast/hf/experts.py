"""Handlers of mixtures of experts: the router, the experts that it chooses, and the two together.

A token's output is the sum over its experts of routing weight times expert output. Both factors are explained, half
each (attnlrp), or the output alone, the routing weight a constant (cp), as with a gate. Softmax and normalisation
within the router pass plain gradients, as the softmax of an attention does; the choice itself passes none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import ops
from ..rules import Rules
from .handlers import Overlay, kind_of, spelt_out


def router(module: nn.Module, rules: Rules) -> Overlay:
    """Any whose own code makes logits of all experts, (N, k) weights and (N, k) choices: `functions` are treated there.

    Softmax or sigmoid, a bias that only the choice reads, groups of experts of which some are chosen first.
    """
    return spelt_out(module, rules)


def gated_experts(module: nn.Module, rules: Rules) -> Overlay:
    """Each a gated MLP whose gate and up projections are one; their weights (E, out, in). Experts beyond these, where
    the router has more, put out what they read (LongCat Flash)."""

    def between(both):
        gate, up = both.chunk(2, -1)
        return ops.gated_mlp(gate, up, kind_of(module.act_fn), rule=rules)

    def forward(hidden_states, top_k_index, top_k_weights):
        return _mixed(module, hidden_states, top_k_index, top_k_weights, between, rules)

    return {"forward": forward}


def plain_experts(module: nn.Module, rules: Rules) -> Overlay:
    """Each an MLP without a gate (Nemotron-H); their weights (E, out, in)."""

    def forward(hidden_states, top_k_index, top_k_weights):
        return _mixed(module, hidden_states, top_k_index, top_k_weights, module.act_fn, rules, "up_proj")

    return {"forward": forward}


def clamped_experts(module: nn.Module, rules: Rules) -> Overlay:
    """GPT-OSS's: gate and up take turns and are clamped; their product is (up + 1) gate sigmoid(alpha gate).

    Clamping obeys the identity rule as every function of one number, and the 1 keeps its relevance as a bias does.
    """

    def between(both):
        gate, up = both[..., ::2], both[..., 1::2]
        gate = _identity(gate, lambda z: _swish(z.clamp(max=module.limit), module.alpha), _gate_ratio, rules)
        up = _identity(up, lambda z: z.clamp(-module.limit, module.limit), _clamp_ratio, rules)
        return ops.product(gate, up + 1, rule=rules)

    def _gate_ratio(z):
        clamped = z.clamp(max=module.limit)
        return torch.where(z > module.limit, clamped / z, 1) * torch.sigmoid(module.alpha * clamped)

    def _clamp_ratio(z):
        return module.limit / z.abs().clamp(min=module.limit)

    def forward(hidden_states, router_indices=None, routing_weights=None):
        return _mixed(module, hidden_states, router_indices, routing_weights, between, rules)

    return {"forward": forward}


def input_scaled_experts(module: nn.Module, rules: Rules) -> Overlay:
    """Llama 4's: as `gated_experts`, where the weight multiplies what an expert reads; their weights (E, in, out).

    That product is one of two explained factors like any other: half to each (cp: to what is read, which the gated MLP
    behind it passes on as always).
    """

    def between(both):
        gate, up = both.chunk(2, -1)
        return ops.gated_mlp(gate, up, kind_of(module.act_fn), rule=rules)

    def forward(hidden_states, top_k_index, top_k_weights):
        return _mixed(module, hidden_states, top_k_index, top_k_weights, between, rules, ahead=True)

    return {"forward": forward, "is_transposed": True}


def _swish(z: Tensor, alpha: float) -> Tensor:
    return z * torch.sigmoid(z * alpha)


def _identity(z: Tensor, function: Callable, ratio: Callable, rules: Rules) -> Tensor:
    if not rules.treatment.ratio:
        return function(z)
    with torch.no_grad():
        y, r = function(z), ratio(z.to(torch.promote_types(z.dtype, torch.float32)))
    return ops.identity(z, y, r)


def _mixed(experts, x, chosen, weights, between, rules, first: str = "gate_up_proj", ahead: bool = False) -> Tensor:
    """(N, D) from (N, D), the chosen experts (N, k) and their weights (N, k): a product an expert, of its own rows.

    The weights multiply what the experts put out or, ``ahead``, what they read.
    """
    count = chosen.shape[-1]
    experts_of, order = chosen.flatten().sort(stable=True)
    rows, shares = x[order // count], weights.flatten()[order].unsqueeze(-1)
    rows = ops.product(shares, rows, rule=rules) if ahead else rows
    parts = []
    stabilisers = {"epsilon": rules.epsilon, "gamma": rules.gamma}
    sizes = torch.bincount(experts_of).tolist()
    for expert, part in enumerate(rows.split(sizes)):
        if len(part) and expert >= len(experts.down_proj):
            parts.append(part)
        elif len(part):
            hidden = between(ops.linear(part, *matrix_of(experts, first, expert), **stabilisers))
            parts.append(ops.linear(hidden, *matrix_of(experts, "down_proj", expert), **stabilisers))
    out = torch.cat(parts) if ahead else ops.product(shares, torch.cat(parts), rule=rules)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return out[back].view(len(x), count, -1).sum(1).to(x.dtype)


def matrix_of(experts: nn.Module, name: str, expert: int) -> tuple[Tensor, Tensor | None]:
    """(out, in) and bias of one expert."""
    weight, bias = getattr(experts, name)[expert], getattr(experts, f"{name}_bias", None)
    return weight.T if getattr(experts, "is_transposed", False) else weight, None if bias is None else bias[expert]


def mixture(module: nn.Module, rules: Rules) -> Overlay:
    """A router, called gate, and its experts."""
    return {}


def paired_mixture(module: nn.Module, rules: Rules) -> Overlay:
    """A router, called router, and its experts. Its layer passes over the second of the two things that it returns."""
    return {}


def shared_mixture(module: nn.Module, rules: Rules) -> Overlay:
    """As `mixture`, with an expert for all tokens, whose weight is a sigmoid: a softmax over its logit and 0."""
    return spelt_out(module, rules)


def input_scaled_mixture(module: nn.Module, rules: Rules) -> Overlay:
    """Llama 4's: as `paired_mixture`, with an expert for all tokens, and `input_scaled_experts`.

    Its own code sends all tokens through all experts, as zeros through those that they did not choose; here, none are.
    """

    def forward(hidden_states):
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores, logits = module.router(x)
        weights, chosen = scores.topk(module.top_k)  # of the others it is exactly 0
        routed = module.experts(x, chosen, weights)
        return (module.shared_expert(x) + routed).view(hidden_states.shape), logits

    return {"forward": forward}


ROUTERS, EXPERTS = (router,), (gated_experts, plain_experts, clamped_experts, input_scaled_experts)
PAIRED = (paired_mixture, input_scaled_mixture)

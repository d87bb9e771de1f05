"""Handlers of mixtures of experts: the router, the experts that it chooses, and the two together.

A token's output is the sum over its experts of routing weight times expert output. Both factors are explained, half
each (attnlrp), or the output alone, the routing weight a constant (cp), as with a gate. Softmax and normalisation
within the router pass plain gradients, as the softmax of an attention does; the choice itself passes none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..rules import Rules
from .handlers import Overlay, kind_of


def softmax_router(module: nn.Module, rules: Rules) -> Overlay:
    """Mixtral's and Qwen's: the best of a softmax over all experts, made to sum to one where the model says so."""

    def forward(hidden_states):
        logits = _logits(module, hidden_states.reshape(-1, module.hidden_dim), rules)
        wide = torch.promote_types(logits.dtype, torch.float32)
        weights, chosen = _best(module, torch.softmax(logits.to(wide), -1))
        if getattr(module, "norm_topk_prob", True):
            weights = weights / weights.sum(-1, keepdim=True)
        # Mixtral's stay wide.
        return logits, weights.to(logits.dtype) if hasattr(module, "norm_topk_prob") else weights, chosen

    return {"forward": forward}


def top_k_router(module: nn.Module, rules: Rules) -> Overlay:
    """GPT-OSS's: a softmax over the logits of the best."""

    def forward(hidden_states):
        logits = _logits(module, hidden_states, rules)
        best, chosen = _best(module, logits)
        return logits, torch.softmax(best, -1), chosen

    return {"forward": forward}


def _logits(router: nn.Module, x: Tensor, rules: Rules) -> Tensor:
    bias = getattr(router, "bias", None)
    return ops.linear(x, router.weight, bias, epsilon=rules.epsilon, gamma=rules.gamma)


def _best(router: nn.Module, scores: Tensor) -> tuple[Tensor, Tensor]:
    """(N, k) scores and which they are: the best or, while a layer is replayed, those that were the best before."""
    chosen = getattr(router, "lrp_fast_chosen", None)
    if chosen is None:
        return torch.topk(scores, router.top_k, dim=-1)
    chosen = chosen.to(torch.long)
    return scores.gather(-1, chosen), chosen


def gated_experts(module: nn.Module, rules: Rules) -> Overlay:
    """Each a gated MLP whose gate and up projections are one; their weights (E, out, in)."""

    def between(both):
        gate, up = both.chunk(2, -1)
        return ops.gated_mlp(gate, up, kind_of(module.act_fn), rule=rules)

    def forward(hidden_states, top_k_index, top_k_weights):
        return _mixed(module, hidden_states, top_k_index, top_k_weights, between, rules)

    return {"forward": forward}


def clamped_experts(module: nn.Module, rules: Rules) -> Overlay:
    """GPT-OSS's: gate and up take turns and are clamped; their product is (up + 1) gate sigmoid(alpha gate).

    Clamping obeys the identity rule as every function of one number, and the 1 keeps its relevance as a bias does.
    """

    def between(both):
        gate, up = both[..., ::2], both[..., 1::2]
        gate = _identity(gate, lambda z: _swish(z.clamp(max=module.limit), module.alpha), _gate_ratio, rules)
        up = _identity(up, lambda z: z.clamp(-module.limit, module.limit), _clamp_ratio, rules)
        shares = rules.treatment
        return (ops.share(up, shares.up) + 1) * ops.share(gate, shares.gate)

    def _gate_ratio(z):
        clamped = z.clamp(max=module.limit)
        return torch.where(z > module.limit, clamped / z, 1) * torch.sigmoid(module.alpha * clamped)

    def _clamp_ratio(z):
        return module.limit / z.abs().clamp(min=module.limit)

    def forward(hidden_states, router_indices=None, routing_weights=None):
        return _mixed(module, hidden_states, router_indices, routing_weights, between, rules)

    return {"forward": forward}


def _swish(z: Tensor, alpha: float) -> Tensor:
    return z * torch.sigmoid(z * alpha)


def _identity(z: Tensor, function: Callable, ratio: Callable, rules: Rules) -> Tensor:
    if not rules.treatment.ratio:
        return function(z)
    with torch.no_grad():
        y, r = function(z), ratio(z.to(torch.promote_types(z.dtype, torch.float32)))
    return ops.identity(z, y, r)


def _mixed(experts, x, chosen, weights, between, rules) -> Tensor:
    """(N, D) from (N, D), the chosen experts (N, k) and their weights (N, k): a product an expert, of its own rows."""
    count = chosen.shape[-1]
    experts_of, order = chosen.flatten().sort(stable=True)
    rows = x[order // count]
    parts = []
    stabilisers = {"epsilon": rules.epsilon, "gamma": rules.gamma}
    sizes = torch.bincount(experts_of, minlength=experts.num_experts).tolist()
    for expert, part in enumerate(rows.split(sizes)):
        if len(part):
            hidden = between(ops.linear(part, *matrix_of(experts, "gate_up_proj", expert), **stabilisers))
            parts.append(ops.linear(hidden, *matrix_of(experts, "down_proj", expert), **stabilisers))
    shares = rules.treatment
    out = ops.share(torch.cat(parts), shares.up) * ops.share(weights.flatten()[order].unsqueeze(-1), shares.gate)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return out[back].view(len(x), count, -1).sum(1).to(x.dtype)


def matrix_of(experts: nn.Module, name: str, expert: int) -> tuple[Tensor, Tensor | None]:
    """(out, in) and bias of one expert."""
    weight, bias = getattr(experts, name)[expert], getattr(experts, f"{name}_bias", None)
    return weight.T if experts.is_transposed else weight, None if bias is None else bias[expert]


def mixture(module: nn.Module, rules: Rules) -> Overlay:
    """A router, called gate, and its experts."""
    return {}


def paired_mixture(module: nn.Module, rules: Rules) -> Overlay:
    """A router, called router, and its experts. Its layer passes over the second of the two things that it returns."""
    return {}


def shared_mixture(module: nn.Module, rules: Rules) -> Overlay:
    """As `mixture`, with an expert for all tokens, whose weight is a sigmoid: a softmax over its logit and 0."""

    def forward(hidden_states):
        x = hidden_states.view(-1, hidden_states.shape[-1])
        shares = rules.treatment
        everyone = ops.share(module.shared_expert(x), shares.up)
        _, weights, chosen = module.gate(x)
        out = module.experts(x, chosen, weights)
        everyone = ops.share(F.sigmoid(module.shared_expert_gate(x)), shares.gate) * everyone
        return (out + everyone).view_as(hidden_states)

    return {"forward": forward}


ROUTERS, EXPERTS = (softmax_router, top_k_router), (gated_experts, clamped_experts)

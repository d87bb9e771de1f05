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
from .activations import kind_of
from .functions import by_rule
from .glue import spelt_out
from .overlay import Overlay, forward_of


def router(module: nn.Module, rules: Rules) -> Overlay:
    """Any whose own code makes logits of all experts, (N, k) weights and (N, k) choices: `functions` are treated there.

    Softmax or sigmoid, a bias that only the choice reads, groups of experts of which some are chosen first.
    """
    return spelt_out(module, rules)


def router_of_logits(module: nn.Module, rules: Rules) -> Overlay:
    """DBRX's, which makes logits alone; its mixture chooses (`choosing_mixture`)."""
    return {}


def sampling_router(module: nn.Module, rules: Rules) -> Overlay:
    """Phi-MoE's sparse mixer (arXiv 2409.12136): as `router`, of one expert after the other. Each one's weight is its
    softmax among the experts whose logits are close to it; which these are is a constant."""
    own = spelt_out(module, rules)["forward"]

    def forward(hidden_states):
        if module.training:
            raise ValueError(f"{type(module).__name__} draws experts at random: call model.eval() first")
        return own(hidden_states)

    return {"forward": forward}


def gated_experts(module: nn.Module, rules: Rules) -> Overlay:
    """Each a gated MLP whose gate and up projections are one; their weights (E, out, in). Experts beyond these, where
    the router has more, put out what they read (LongCat Flash)."""

    def between(both):
        gate, up = both.chunk(2, -1)
        return ops.gated_mlp(gate, up, kind_of(module.act_fn), rule=rules)

    def forward(hidden_states, top_k_index, top_k_weights):
        return _mixed(module, hidden_states, top_k_index, top_k_weights, between, rules)

    return {"forward": forward}


def wide_gated_experts(module: nn.Module, rules: Rules) -> Overlay:
    """As `gated_experts`, with the activation and its product in float32."""

    def between(both):
        gate, up = both.to(torch.promote_types(both.dtype, torch.float32)).chunk(2, -1)
        return ops.gated_mlp(gate, up, kind_of(module.act_fn), rule=rules).to(both.dtype)

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
        return _clamped(both[..., ::2], both[..., 1::2], module.alpha, module.limit, rules)

    def forward(hidden_states, router_indices=None, routing_weights=None):
        return _mixed(module, hidden_states, router_indices, routing_weights, between, rules)

    return {"forward": forward}


def clamped_half_experts(module: nn.Module, rules: Rules) -> Overlay:
    """As `clamped_experts`, with the gate in the first half (MiniMax-M3)."""

    def between(both):
        return _clamped(*both.chunk(2, -1), module.swiglu_alpha, module.swiglu_limit, rules)

    def forward(hidden_states, top_k_index, top_k_weights):
        return _mixed(module, hidden_states, top_k_index, top_k_weights, between, rules)

    return {"forward": forward}


def clamped_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """One expert of `clamped_half_experts`."""

    def forward(hidden_states):
        gate, up = module.gate_up_proj(hidden_states).chunk(2, -1)
        return module.down_proj(_clamped(gate, up, module.swiglu_alpha, module.swiglu_limit, rules))

    return {"forward": forward}


def clamped_silu_experts(module: nn.Module, rules: Rules) -> Overlay:
    """As `gated_experts`, with gate and up clamped (HY V4)."""

    def between(both):
        return _clamped(*both.chunk(2, -1), 1.0, module.swiglu_limit, rules, more=0.0)

    def forward(hidden_states, top_k_index, top_k_weights):
        return _mixed(module, hidden_states, top_k_index, top_k_weights, between, rules)

    return {"forward": forward}


def _clamped(gate: Tensor, up: Tensor, alpha: float, limit: float, rules: Rules, more: float = 1.0) -> Tensor:
    def gate_ratio(z):
        clamped = z.clamp(max=limit)
        return torch.where(z > limit, clamped / z, 1) * torch.sigmoid(alpha * clamped)

    def up_ratio(z):
        return limit / z.abs().clamp(min=limit)

    gate = _identity(gate, lambda z: _swish(z.clamp(max=limit), alpha), gate_ratio, rules)
    up = _identity(up, lambda z: z.clamp(-limit, limit), up_ratio, rules)
    return ops.product(gate, up + more, rule=rules)


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


def stacked_experts(module: nn.Module, rules: Rules) -> Overlay:
    """DBRX's: as `gated_experts`, where the matrices of all experts stand on one another, (E F, D) each, in a part that
    is not called itself."""
    held, stabilisers = module.mlp, {"epsilon": rules.epsilon, "gamma": rules.gamma}

    def forward(hidden_states, top_k_index, top_k_weights):
        first, second, last = (one.view(module.num_experts, -1, one.shape[-1]) for one in (held.w1, held.v1, held.w2))

        def run(rows, expert):
            gate, up = (ops.linear(rows, one[expert], **stabilisers) for one in (first, second))
            hidden = ops.gated_mlp(gate, up, kind_of(held.activation_fn), rule=rules)
            return ops.linear(hidden, last[expert].T, **stabilisers)

        x = hidden_states.reshape(-1, hidden_states.shape[-1]).to(held.w1.dtype)  # wider while a layer is replayed
        return _by_experts(x, top_k_index, top_k_weights, run, rules).view(hidden_states.shape)

    return {"forward": forward}


def _mixed(experts, x, chosen, weights, between, rules, first: str = "gate_up_proj", ahead: bool = False) -> Tensor:
    """`_by_experts`, of two matrices each."""
    stabilisers = {"epsilon": rules.epsilon, "gamma": rules.gamma}

    def run(rows, expert):
        if hasattr(experts, "identity_expert") and expert >= experts.num_routed_experts:  # LongCat's
            return rows
        hidden = between(ops.linear(rows, *matrix_of(experts, first, expert), **stabilisers))
        return ops.linear(hidden, *matrix_of(experts, "down_proj", expert), **stabilisers)

    x = x.to(matrix_of(experts, first, 0)[0].dtype)  # wider while a layer without a norm before is replayed
    return _by_experts(x, chosen, weights, run, rules, ahead)


def _by_experts(x, chosen, weights, run: Callable, rules, ahead: bool = False) -> Tensor:
    """(N, D) from (N, D), the chosen experts (N, k) and their weights (N, k): ``run(rows, expert)``, of its own rows.

    The weights multiply what the experts put out or, ``ahead``, what they read.
    """
    count = chosen.shape[-1]
    experts_of, order = chosen.flatten().sort(stable=True)
    rows, shares = x[order // count], weights.flatten()[order].unsqueeze(-1)
    rows = ops.product(shares, rows, rule=rules) if ahead else rows
    sizes = torch.bincount(experts_of).tolist()
    parts = [run(part, expert) for expert, part in enumerate(rows.split(sizes)) if len(part)]
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


def spelt_out_mixture(module: nn.Module, rules: Rules) -> Overlay:
    """A router, called router, and its experts, by its own code."""
    return spelt_out(module, rules)


def choosing_mixture(module: nn.Module, rules: Rules) -> Overlay:
    """As `spelt_out_mixture`, which makes weights of the router's logits, and the choice, by itself."""
    own = forward_of(module)

    def forward(hidden_states):
        if module.training:
            raise ValueError(f"{type(module).__name__} reads noise in training: call model.eval() first")
        with by_rule(module.router, rules):  # whose choices they are
            return own(hidden_states)

    return {"forward": forward}


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


ROUTERS = (router, router_of_logits, sampling_router)
EXPERTS = (
    gated_experts, wide_gated_experts, plain_experts, clamped_experts, clamped_half_experts, clamped_silu_experts,
    input_scaled_experts, stacked_experts,
)  # fmt: skip
PAIRED = (paired_mixture, input_scaled_mixture)

"""How a module of a model comes to obey a rule.

A handler takes ``(module, rules)`` and returns the instance attributes that are laid over the module while it is
patched; nothing means that the module's own code is right under every rule.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..ops.activation import ratio as ratio_of
from ..rules import Rules
from .dynamic_mask import dynamic_mask_attention
from .functions import by_rule
from .hooks import check_unhooked
from .indexed import indexed_attention
from .overlay import Overlay, forward_name, forward_of, laid, told
from .spelt_out_attention import SPELT_OUT
from .walk import modules_of
from .weights import bias, is_plain, matrix, rows

Handler = Callable[[nn.Module, Rules], Overlay]


def leave(module: nn.Module, rules: Rules) -> Overlay:
    """Containers, embeddings, position tables: sums, look-ups, products with constants, and modules with handlers of
    their own."""
    return {}


def part(module: nn.Module, rules: Rules) -> Overlay:
    """What another module takes its weights from, and is not called itself: refused where it is."""
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


def attention(module: nn.Module, rules: Rules) -> Overlay:
    """A module that goes through transformers' attention interface and holds projections and q/k norms besides."""
    return {"lrp_fast_rules": rules, **_window_of_mask(module)}


def _window_of_mask(attention: nn.Module) -> Overlay:
    """The window that a model makes its one mask with, as Mixtral does, where its attention knows of none (Phi-MoE's).
    """
    config, home = getattr(attention, "config", None), sys.modules[type(attention).__module__]
    window = getattr(config, "sliding_window", None)
    known = hasattr(attention, "sliding_window") or getattr(config, "layer_types", None) is not None
    if window is None or known or not hasattr(home, "create_sliding_window_causal_mask"):
        return {}
    return {"sliding_window": window}


def capped_attention(module: nn.Module, rules: Rules) -> Overlay:
    """As `attention`, with a soft-cap on its scores, which PyTorch's attention would leave out."""
    if module.attn_logit_softcapping is not None and module.config._attn_implementation == "sdpa":
        raise ValueError(
            f"{type(module).__name__} caps its scores, and the attention that the model runs with, sdpa, leaves that "
            'out: call model.set_attn_implementation("eager") first'
        )
    return attention(module, rules)


def spelt_out(module: nn.Module, rules: Rules) -> Overlay:
    """A module by its own code, in which `functions` are treated."""
    own = forward_of(module)

    def forward(*given, **named):
        with by_rule(module, rules):
            return own(*given, **named)

    return {"forward": forward}


def gated_attention(module: nn.Module, rules: Rules) -> Overlay:
    """As `attention`, with a sigmoid's share of what each head reads, or clipped projections: `spelt_out`."""
    return {**spelt_out(module, rules), **attention(module, rules)}


def mixture_of_attentions(module: nn.Module, rules: Rules) -> Overlay:
    """JetMoE's (arXiv 2404.07413): a router chooses, for each token, projections of queries and of what is read; keys
    and values are those of all. As `mixture` behind the attention, and in front of it the choice alone matters.

    ``experts`` holds the projections and the router, and is not called itself.
    """
    own = forward_of(module)

    def forward(*given, **named):
        with by_rule(module.experts, rules):
            return own(*given, **named)

    return {"forward": forward, "lrp_fast_rules": rules}


def gated_norm(module: nn.Module, rules: Rules) -> Overlay:
    """A norm and an MLP that makes a sigmoid's share of what it puts out: `spelt_out`."""
    return spelt_out(module, rules)


ATTENTIONS = (
    attention, capped_attention, dynamic_mask_attention, gated_attention, indexed_attention, mixture_of_attentions,
    *SPELT_OUT,
)  # fmt: skip


def dropout(module: nn.Module, rules: Rules) -> Overlay:
    if module.training and module.p:
        raise ValueError("the model applies dropout: call model.eval() first")
    return {}


def linear(module: nn.Module, rules: Rules) -> Overlay:
    own, stabilisers = forward_of(module), {"epsilon": rules.epsilon, "gamma": rules.gamma}

    def forward(input):
        input = input.to(getattr(module, "lrp_fast_dtype", input.dtype))  # while a layer is replayed
        if is_plain(module):
            return ops.linear(input, matrix(module), module.bias, **stabilisers)
        with torch.no_grad():  # first: it may pack its weights anew
            # .data: LLM.int8 takes outliers out of what it is given, and puts them back; autograd is not to mind.
            z = own(input.data)
        return ops.linear_by_rows(input, z, rows(module), bias(module), **stabilisers)

    return {"forward": forward}


def adapted_linear(module: nn.Module, rules: Rules) -> Overlay:
    """peft's LoRA, as the one linear map that base layer and adapters are together."""
    for part in module.lora_dropout.values():
        if isinstance(part, nn.Dropout):
            dropout(part, rules)
    for part in modules_of(module)[1:]:
        check_unhooked(part, "a part of a linear map with adapters")
    return linear(module, rules)


LINEARS = (linear, adapted_linear)


def adapted_embedding(module: nn.Module, rules: Rules) -> Overlay:
    """As `leave`, its parts, which have no handlers, included."""
    return {}


WHOLE = (adapted_linear, adapted_embedding)  # their parts are none of anybody's business


def rms_norm(module: nn.Module, rules: Rules) -> Overlay:
    """Llama's: what is normalised is rounded to the model's dtype, then multiplied with the weight."""

    def forward(hidden_states):
        dtype = getattr(module, "lrp_fast_dtype", None)  # while a layer is replayed
        return ops.rms_norm(hidden_states, module.weight, module.variance_epsilon, rule=rules, dtype=dtype)

    return {"forward": forward}


def wide_rms_norm(module: nn.Module, rules: Rules) -> Overlay:
    """OLMo 2's: as `rms_norm`, rounded behind the weight."""

    def forward(x):
        wide = torch.promote_types(x.dtype, torch.float32)
        y = ops.rms_norm(x, module.weight.to(wide), module.variance_epsilon, rule=rules, dtype=wide)
        return y.to(getattr(module, "lrp_fast_dtype", x.dtype))

    return {"forward": forward}


def offset_rms_norm(module: nn.Module, rules: Rules) -> Overlay:
    """Gemma's: as `wide_rms_norm`, of a weight that is kept less 1."""

    def forward(x):
        wide = torch.promote_types(x.dtype, torch.float32)
        y = ops.rms_norm(x, 1 + module.weight.to(wide), module.eps, rule=rules, dtype=wide)
        return y.to(getattr(module, "lrp_fast_dtype", x.dtype))

    return {"forward": forward}


def centred_rms_norm(module: nn.Module, rules: Rules) -> Overlay:
    """Cohere's: a LayerNorm without bias, with a weight of its own for each head where it normalises heads."""

    def forward(x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide - wide.mean(-1, keepdim=True)
        ones = wide.new_ones(wide.shape[-1])
        y = ops.rms_norm(wide, ones, module.variance_epsilon, rule=rules) * module.weight.detach().to(wide.dtype)
        return y.to(getattr(module, "lrp_fast_dtype", x.dtype))

    return {"forward": forward}


def layer_norm(module: nn.Module, rules: Rules) -> Overlay:
    if len(module.normalized_shape) > 1:
        raise ValueError(f"lrp_fast normalises the last dimension alone, not {tuple(module.normalized_shape)}")

    def forward(input):
        weight, bias = (None if t is None else t.to(input.dtype) for t in (module.weight, module.bias))
        y = ops.layer_norm(input, weight, bias, module.eps, rule=rules)
        return y.to(getattr(module, "lrp_fast_dtype", input.dtype))

    return {"forward": forward}


def spelt_out_norm(module: nn.Module, rules: Rules) -> Overlay:
    """A norm by its own code, with a weight or without: `functions` are treated there."""
    own = forward_of(module)

    def forward(x):
        with by_rule(module, rules):
            return own(x).to(getattr(module, "lrp_fast_dtype", x.dtype))

    return {"forward": forward}


NORMS = (rms_norm, wide_rms_norm, offset_rms_norm, centred_rms_norm, layer_norm, spelt_out_norm)


def activation(kind: str) -> Handler:
    """The handler of an activation module that computes ``kind`` (a name of `lrp_fast.ops.activation`)."""

    def handler(module: nn.Module, rules: Rules) -> Overlay:
        return {"forward": lambda input: ops.activation(input, kind, rule=rules), "lrp_fast_kind": kind}

    handler.kind = kind
    return handler


def gelu(module: nn.Module, rules: Rules) -> Overlay:
    """PyTorch's own module, which knows both."""
    return activation("gelu" if module.approximate == "none" else "gelu_tanh")(module, rules)


gelu.kind = "gelu"


def spelt_out_activation(kind: str) -> Handler:
    """As `activation`, where the module's own formula rounds otherwise than PyTorch's one operation."""

    def handler(module: nn.Module, rules: Rules) -> Overlay:
        return _by_ratio(module, rules, lambda input: ratio_of(input, kind)) | {"lrp_fast_kind": kind}

    handler.kind = kind
    return handler


def pointwise(limit: float | str) -> Handler:
    """The handler of a function of one number that has no kernel: relevance passes by f(z)/z, which is ``limit`` at 0
    (a number, or the name of a buffer that holds it)."""

    def handler(module: nn.Module, rules: Rules) -> Overlay:
        own = forward_of(module)

        def ratio(input):
            z = input.to(torch.promote_types(input.dtype, torch.float32))
            at_0 = getattr(module, limit).to(z.dtype) if isinstance(limit, str) else z.new_tensor(limit)
            return torch.where(z == 0, at_0, own(z) / z)

        return _by_ratio(module, rules, ratio)

    handler.kind = "f"
    return handler


bloom_gelu = pointwise(0.5)  # a function of autograd's, of fewer digits than PyTorch's


def _by_ratio(module: nn.Module, rules: Rules, ratio: Callable[[torch.Tensor], torch.Tensor]) -> Overlay:
    """A function of one number by the module's own code; relevance passes by ``ratio``, f(z)/z at each."""
    own = forward_of(module)

    def forward(input):
        if not rules.treatment.ratio:
            return own(input)
        with torch.no_grad():
            y, factors = own(input), ratio(input)
        return ops.identity(input, y, factors)

    return {"forward": forward}


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


def kind_of(act_fn: nn.Module) -> str:
    """What a patched activation computes; it is not called itself, so nothing may hang on its call."""
    if act_fn is F.silu:  # LFM2-MoE's experts hold the function itself
        return "silu"
    check_unhooked(act_fn, "the activation of a gated MLP")
    if not hasattr(act_fn, "lrp_fast_kind"):
        raise TypeError(
            f"{type(act_fn).__name__}, the activation of a gated MLP, was registered without saying what it computes: "
            "register it with lrp_fast.hf.handlers.activation(kind)"
        )
    return act_fn.lrp_fast_kind


def gated_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """down_proj(act_fn(gate_proj(x)) * up_proj(x))."""

    def forward(x):
        # The activation's own overlay says its kind: it is laid on before any forward pass.
        hidden = ops.gated_mlp(module.gate_proj(x), module.up_proj(x), kind_of(module.act_fn), rule=rules)
        return module.down_proj(hidden)

    return {"forward": forward}


def fused_gated_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """As `gated_mlp`, with one projection whose first half is the gate."""

    def forward(hidden_states):
        gate, up = module.gate_up_proj(hidden_states).chunk(2, -1)
        return module.down_proj(ops.gated_mlp(gate, up, kind_of(module.activation_fn), rule=rules))

    return {"forward": forward}


def spelt_out_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """A gated MLP by its own code, whatever it calls its parts: `spelt_out`."""
    return spelt_out(module, rules)


def mlp(module: nn.Module, rules: Rules) -> Overlay:
    """last(act(first(x))), without a gate."""
    return {}


def falcon_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """As `mlp`. Falcon's layer drops of what it puts out, and adds to it in place, where autograd may still need it."""
    if module.training and module.hidden_dropout:
        raise ValueError("the model applies dropout: call model.eval() first")
    own = forward_of(module)
    return {"forward": lambda x: own(x).clone()}


def gpt2_mlp(module: nn.Module, rules: Rules) -> Overlay:
    """c_proj(act(c_fc(x)))."""
    return {}


def capped_language_model(module: nn.Module, rules: Rules) -> Overlay:
    """A model with a soft-cap on its logits, c tanh(s / c), which passes relevance by the identity rule, cap(s) / s.

    It caps within its forward pass, behind the head. Here the head caps, and the model is told that nothing is left.
    """
    cap = module.config.final_logit_softcapping
    if cap is None:
        return {}
    own = forward_of(module)

    @functools.wraps(own)
    def forward(*args, **named):
        head = module.get_output_embeddings()
        whole = forward_of(head)
        capped = (head, forward_name(head), lambda x: soft_capped(whole(x), cap, rules))
        with laid([capped, told(module, final_logit_softcapping=None)]):
            return own(*args, **named)

    return {"forward": forward}


def soft_capped(scores: Tensor, cap: float, rules: Rules) -> Tensor:
    if not rules.treatment.ratio:
        return torch.tanh(scores / cap) * cap
    with torch.no_grad():
        y = torch.tanh(scores / cap) * cap
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        ratio = torch.where(wide == 0, 1, torch.tanh(wide / cap) * cap / wide)
    return ops.identity(scores, y, ratio)

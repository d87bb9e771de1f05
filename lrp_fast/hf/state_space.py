"""Handlers of layers that carry a state from token to token: Mamba 1 and 2, gated delta nets, short convolutions.

Their own code runs, with functions of ours where it calls transformers' functions of a name, and `functions` treated in
between. Nothing of transformers changes: the module gets a copy of the code that looks those names up elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import ops
from ..rules import Rules
from .functions import activated, by_rule
from .hooks import check_unhooked
from .overlay import Overlay, calling
from .walk import modules_of
from .weights import is_offloaded

_KIMI = "chunk_kimi_delta_attention"


def state_space(module: nn.Module, rules: Rules) -> Overlay:
    """Mamba's and Mamba 2's mixer, by MambaLRP (arXiv 2406.07592): what a token chooses of the state (time step, B, C)
    is a constant, so that the output is linear in what is carried, and relevance is conserved; the gate and what it
    gates get half each (cp: what it gates); SiLU is identity."""
    names = {}
    if "mamba_selective_scan" in _globals(module):
        names["mamba_selective_scan"] = _selective_scan(_globals(module)["mamba_selective_scan"], module, rules)
    if "mamba2_chunk_scan" in _globals(module):
        names["mamba2_chunk_scan"] = _chunk_scan(_globals(module)["mamba2_chunk_scan"], module, rules)
    return _calling(module, rules, **names)


def gated_delta_net(module: nn.Module, rules: Rules) -> Overlay:
    """Qwen3-Next's and its kin's, and Kimi's, whose decay is one for each channel of the keys: `ops.gated_delta_rule`,
    between convolutions and a gated norm."""
    shares = {"value_share": rules.treatment.value, "score_share": rules.treatment.score}

    def run(value, query, key, g, beta):
        with torch._C.DisableTorchFunction():  # its products have shares of their own
            return ops.gated_delta_rule(query, key, value, g, beta, rule=rules)

    def delta(query, key, value, *, g, beta, use_qk_l2norm_in_kernel=False, output_final_state=False, **_):
        _refuse_cache(module, output_final_state)
        dtype = query.dtype
        query, key = (_unit(one, rules) if use_qk_l2norm_in_kernel else one for one in (query, key))
        repeated = value.shape[2] // key.shape[2]
        query, key = (one.repeat_interleave(repeated, 2) for one in (query, key))
        query = query * query.shape[-1] ** -0.5
        return _mix(module)(run, partial(ops.delta_edges, **shares), value, query, key, g, beta).to(dtype), None

    scans = ("torch_chunk_gated_delta_rule", _KIMI)
    return _calling(module, rules, **{name: delta for name in scans if name in _globals(module)})


def short_convolution(module: nn.Module, rules: Rules) -> Overlay:
    """LFM2's: C * conv(B * x), in which B and C are gates: half each at both products (cp: all to what is carried)."""

    def convolve(x, weight, bias=None, activation=None, **_):
        weight, bias = _constants(x, weight, bias)

        def form(g, given, back, parts):
            return ops.convolved_edges(g, parts[0], weight)

        def run(values):
            return _convolved(values.squeeze(-1).mT, weight, bias).mT.unsqueeze(-1)

        return _mix(module)(run, form, x.mT.unsqueeze(-1)).squeeze(-1).mT

    gates = {torch.Tensor.chunk: (0, 1)}
    return _calling(module, rules, gates, causal_conv1d_fn=convolve) | {"lrp_fast_reach": 1}


def lightning_attention(module: nn.Module, rules: Rules) -> Overlay:
    """MiniMax's: `ops.lightning_attention` between an activation and a norm, with a gate at its output."""
    _check(module, rules, "is linear attention")
    shares = {"value_share": rules.treatment.value, "score_share": rules.treatment.score}

    def forward(hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **named):
        _refuse_cache(module, past_key_values is not None or named.get("cache") is not None)
        mixed = module.act_fn(module.qkv_proj(hidden_states))
        if attention_mask is not None:
            mixed = mixed * attention_mask.to(mixed.dtype).unsqueeze(-1)
        mixed = mixed.unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2)
        query, key, value = mixed.split(module.head_dim, -1)
        fading = ops.Fading(module.slope_rate, module.query_decay, module.key_decay, module.diagonal_decay[0])

        def run(value, query, key):
            query, key, value = (one.transpose(1, 2) for one in (query, key, value))
            return ops.lightning_attention(query, key, value, fading, rule=rules).transpose(1, 2)

        form = partial(ops.fading_attention_edges, fading=fading, **shares)
        out = _mix(module)(run, form, *(one.transpose(1, 2) for one in (value, query, key)))
        out = module.norm(out.flatten(2))
        gate = torch.sigmoid(module.output_gate(hidden_states))
        return module.out_proj(ops.product(gate, out, rule=rules)), None

    return {"forward": forward}


def recurrent_block(module: nn.Module, rules: Rules) -> Overlay:
    """RecurrentGemma's (Griffin, arXiv 2402.19427): convolution and recurrence, with a gate at their output, and half
    each at that product (cp: what was carried)."""
    _check(module, rules, "convolves")
    check_unhooked(module.conv_1d, "a convolution in front of a recurrence")
    convolve = _convolution(rules)

    def forward(input_states, position_ids, attention_mask=None, use_cache=True, **_):
        _refuse_cache(module, use_cache)
        gate = module.act_fn(module.linear_y(input_states))
        carried = module.linear_x(input_states).transpose(1, 2)
        carried = convolve(carried, module.conv_1d.weight.squeeze(1), module.conv_1d.bias)
        carried = module.rg_lru(carried.transpose(1, 2), position_ids)
        return module.linear_out(ops.product(gate, carried, rule=rules)), None

    return {"forward": forward, "lrp_fast_reach": reach_of(module)}


def rg_lru(module: nn.Module, rules: Rules) -> Overlay:
    """RecurrentGemma's recurrence: `ops.recurrence`. What it keeps of the past, and so how much it takes in, is a
    constant; the input gate and what it gates get half each (cp: what it gates). No paper has the gate's share."""

    def run(value, kept):
        with torch._C.DisableTorchFunction():
            return ops.recurrence(value.squeeze(-1), kept, rule=rules).unsqueeze(-1)

    def form(g, given, back, parts):
        _, kept = given
        kept = _wide(kept)
        decay = kept.clamp(min=torch.finfo(kept.dtype).tiny).log()
        decay[0] = 0  # a prompt's first token has nothing to keep
        ones = kept.new_ones(len(kept), 1, 1)
        return ops.decayed_edges(g, parts[0], ones, ones, decay.unsqueeze(-1), torch.ones_like(kept))

    def scan(hidden_states, recurrent_gate, reset, **_):
        kept = _constant(recurrent_gate, rules) * ~reset
        states = _mix(module)(run, form, hidden_states.unsqueeze(-1), kept).squeeze(-1)
        return states.to(hidden_states.dtype), None

    class Root:
        @staticmethod
        def apply(x):
            return torch.sqrt(x.detach())

    names = {} if rules.name == "gradient" else {"SqrtBoundDerivative": Root}
    return {**_calling(module, rules, **names), "_rnn_scan": scan}


def time_mixing(module: nn.Module, rules: Rules) -> Overlay:
    """RWKV's: `ops.wkv` of keys and values that mix each token with the one before, with a gate at its output, and half
    each at that product (cp: the mean)."""
    _check(module, rules, "is a mean with weights of its own")
    check_unhooked(module.time_shift, "in front of a mean with weights of its own")

    def forward(hidden, state=None, use_cache=False):
        _refuse_cache(module, state is not None or use_cache)
        key = module.key(_with_token_before(hidden, module.time_mix_key))
        value = module.value(_with_token_before(hidden, module.time_mix_value))
        gate = torch.sigmoid(module.receptance(_with_token_before(hidden, module.time_mix_receptance)))
        mean = ops.wkv(key, value, module.time_decay.detach().exp(), module.time_first, rule=rules)
        return module.output(ops.product(gate, mean.to(value.dtype), rule=rules)), None

    return {"forward": forward}


def channel_mixing(module: nn.Module, rules: Rules) -> Overlay:
    """RWKV's MLP of tokens that are mixed with the one before: value(relu(key(x))^2), with a gate at its output, and
    half each at that product (cp: the MLP)."""
    check_unhooked(module.time_shift, "in front of an MLP")

    def forward(hidden, state=None):
        _refuse_cache(module, state is not None)
        key = module.key(_with_token_before(hidden, module.time_mix_key))
        gate = torch.sigmoid(module.receptance(_with_token_before(hidden, module.time_mix_receptance)))
        return ops.product(gate, module.value(ops.activation(key, "relu2", rule=rules)), rule=rules), None

    return {"forward": forward}


def _with_token_before(hidden: Tensor, share: Tensor) -> Tensor:
    share = share.detach()
    return hidden * share + F.pad(hidden[:, :-1], (0, 0, 1, 0)) * (1 - share)


def matrix_memory(module: nn.Module, rules: Rules) -> Overlay:
    """xLSTM's: `ops.mlstm`, in every mode of the module."""
    _check(module, rules, "is linear attention")
    eps, shares = module.config.eps, {"value_share": rules.treatment.value, "score_share": rules.treatment.score}
    form = partial(ops.mlstm_edges, eps=eps, **shares)

    def run(value, *others):
        query, key, *gates = (one.transpose(1, 2) for one in others)
        with torch._C.DisableTorchFunction():  # its products have shares of their own
            found = ops.mlstm(query, key, value.transpose(1, 2), *gates, eps=eps, rule=rules)
        return found.transpose(1, 2)

    def forward(query, key, value, igate, fgate, c_initial=None, **_):
        _refuse_cache(module, c_initial is not None)
        given = (one.transpose(1, 2) for one in (value, query, key, igate, fgate))
        return _mix(module)(run, form, *given).transpose(1, 2).to(value.dtype), None

    return {"forward": forward}


STATE_SPACES = (
    state_space, gated_delta_net, short_convolution, lightning_attention, recurrent_block, time_mixing, channel_mixing,
    matrix_memory,
)  # fmt: skip

# Of these, those that call `_mix`, and what does within one.
SCANS = (state_space, gated_delta_net, short_convolution, lightning_attention, rg_lru, matrix_memory)


def without_edges(module: nn.Module, handler: Callable, rules: Rules) -> str | None:
    """None where the edges of what a scan mixes have a closed form here; else when they have none, to end a sentence.
    """
    if handler in (state_space, recurrent_block, matrix_memory):
        return " under plain gradients" if rules.name == "gradient" else None
    if handler is gated_delta_net:  # of one decay a head
        return "" if _KIMI in _globals(module) else None
    return None if handler in SCANS else ""


def _globals(module: nn.Module) -> dict:
    return inspect.unwrap(type(module).forward).__globals__


def _calling(module: nn.Module, rules: Rules, gates: dict | None = None, **names: Callable) -> Overlay:
    _check(module, rules, "convolves")
    if any(map(is_offloaded, modules_of(module))):
        raise ValueError(f"{type(module).__name__} is offloaded, which its rule cannot follow: load it whole")
    names.setdefault("causal_conv1d_fn", _convolution(rules))
    forward = calling(module, **names)

    def ruled(*given, **named):
        if module.training:
            raise ValueError("the model is in training mode: call model.eval() first")
        with by_rule(module, rules, gates):
            return forward(*given, **named)

    return {"forward": ruled, "lrp_fast_reach": reach_of(module)}


def reach_of(module: nn.Module) -> int:
    """How many positions of what it is given an operand of the module's scan is made of: as its convolution reads."""
    return max((part.kernel_size[0] for part in modules_of(module) if isinstance(part, nn.Conv1d)), default=1)


def _mix(module: nn.Module) -> Callable:
    """`ops.mixed`, or what a replay or `contributions` lays over the module in its place."""
    return getattr(module, "lrp_fast_mix", ops.mixed)


def _refuse_cache(module: nn.Module, keeps: object) -> None:
    if keeps:
        raise ValueError(f"{type(module).__name__} is to keep its state in a cache: call with use_cache=False")


def _check(module: nn.Module, rules: Rules, does: str) -> None:
    if rules.epsilon or rules.gamma:
        raise ValueError(
            f"{type(module).__name__} {does}, for which lrp_fast has no epsilon and gamma rule: leave both 0"
        )


def _convolution(rules: Rules) -> Callable:
    def convolve(x, weight, bias=None, activation=None, **_):
        dtype, wide = x.dtype, torch.promote_types(x.dtype, weight.dtype)
        x = x.to(wide)
        y = _convolved(x, *_constants(x, weight, bias))
        if activation is not None:
            y = activated(y, {"swish": "silu"}.get(activation, activation), rules)
        return y.to(dtype)

    return convolve


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, T), each channel by itself, no token reading a later one."""
    return F.conv1d(F.pad(x, (weight.shape[-1] - 1, 0)), weight.unsqueeze(1), bias, groups=len(weight))


def _constants(x: Tensor, *weights: Tensor | None) -> list[Tensor | None]:
    return [None if one is None else one.detach().to(x.dtype) for one in weights]


def _constant(x: Tensor, rules: Rules) -> Tensor:
    return x if rules.name == "gradient" else x.detach()


def _weights(named: dict) -> dict:
    return {name: one.detach() if isinstance(one, Tensor) else one for name, one in named.items()}


def _selective_scan(function: Callable, module: nn.Module, rules: Rules) -> Callable:
    own = inspect.unwrap(function)

    def scan(hidden_states, dt, A, B, C, D=None, z=None, **named):
        _refuse_cache(module, named.get("return_last_state"))
        others = _weights(named)

        def run(x, dt, B, C):
            with _ByTokens():
                return own(x.squeeze(-1).mT, dt.mT, A, B.mT, C.mT, D=D, z=None, **others).mT.unsqueeze(-1)

        def form(g, given, back, parts):
            _, dt, B, C = given
            size = _time_steps(dt, others.get("delta_bias"), others.get("delta_softplus"))
            decay = _wide(size).unsqueeze(-1) * A
            return ops.decayed_edges(g, parts[0], C.unsqueeze(1), B.unsqueeze(1), decay, size, D)

        given = (hidden_states.mT.unsqueeze(-1), *(_constant(one, rules).mT for one in (dt, B, C)))
        y = _mix(module)(run, form, *given).squeeze(-1).mT
        return y if z is None else ops.gated_mlp(z, y.to(z.dtype), "silu", rule=rules)

    return scan


class _ByTokens(TorchFunctionMode):
    """For a loop over tokens: what it takes of a tensor by a token's number is cut out of all of it at once. By itself
    each such view would go back as a tensor of all tokens, so that time grew with the square of their number."""

    def __init__(self) -> None:
        super().__init__()
        self._cut: dict[tuple[int, int], tuple[Tensor, tuple[Tensor, ...]]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not Tensor.__getitem__ or not args[0].requires_grad or (dim := _of_a_number(args[1])) is None:
            return func(*args, **(kwargs or {}))
        x, index = args
        if (id(x), dim) not in self._cut:
            self._cut[id(x), dim] = x, x.unbind(dim)
        return self._cut[id(x), dim][1][index[dim]]


def _of_a_number(index: object) -> int | None:
    """The dimension of which an index takes one entry by its number, if it takes all of the others."""
    if not isinstance(index, tuple):
        return None
    found = [dim for dim, one in enumerate(index) if type(one) is int]
    rest = [one for one in index if type(one) is not int]
    return found[0] if len(found) == 1 and all(isinstance(one, slice) and one == slice(None) for one in rest) else None


def _chunk_scan(function: Callable, module: nn.Module, rules: Rules) -> Callable:
    own = inspect.unwrap(function)

    def scan(hidden_states, dt, A, B, C, *rest, D=None, **named):
        _refuse_cache(module, named.get("return_final_states"))
        others = _weights(named)

        def run(x, dt, B, C):
            return own(x, dt, A, B, C, *rest, D=D, **others)

        def form(g, given, back, parts):
            _, dt, B, C = given
            size = _time_steps(dt, others.get("dt_bias"), others.get("dt_softplus"))
            size = size.clamp(*others.get("dt_limit", (0.0, torch.inf)))
            return ops.decayed_edges(g, parts[0], C, B, (_wide(size) * A).unsqueeze(-1), size, D)

        return _mix(module)(run, form, hidden_states, *(_constant(one, rules) for one in (dt, B, C)))

    return scan


def _wide(x: Tensor) -> Tensor:
    """As a scan itself takes what it fades by."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _time_steps(dt: Tensor, bias: Tensor | None, softplus: bool | None) -> Tensor:
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    return F.softplus(dt) if softplus else dt


def _unit(x: Tensor, rules: Rules) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)
    return wide * (scale.detach() if rules.treatment.frozen_norm else scale)

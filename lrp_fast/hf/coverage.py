"""Every module must have a handler: what no rule covers is refused, never passed over."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from . import (
    altup,
    caps,
    experts,
    handlers,
    indexed,
    masking,
    rescaled,
    sides,
    spelt_out_attention,
    state_space,
    weights,
    wrappers,
    xlstm,
)
from .audit import NOT_AUDITED
from .directions import both_ways
from .families import LAYERS, MIXTURES, at_rest, handled, handler_of, vouch
from .owner import session_of
from .walk import modules_of, named_modules_of, own_weights, without_adapters

LOAD = "transformers.AutoModelForCausalLM.from_pretrained"
MASKED = "transformers.AutoModelForMaskedLM.from_pretrained"


class UnsupportedModuleError(TypeError):
    """A model holds a module that no propagation rule covers."""


def check(model: nn.Module) -> None:
    """Raise `UnsupportedModuleError` for the first module of ``model`` that has no handler, or is refused with it."""
    check_module(model)
    if session_of(model) is not None:  # where it was checked when that began
        return
    if "shared_kv_states" in inspect.signature(inspect.unwrap(type(without_adapters(model)).forward)).parameters:
        raise UnsupportedModuleError(
            f"{type(model).__name__} reads the hidden states and keys of the model that it drafts for, and no tokens: "
            "explain that one"
        )
    findings = vouch(model)
    if (handler_of(model) is None or isinstance(model, nn.Sequential)) and (why := wraps(model)) is not None:
        raise UnsupportedModuleError(why)
    for module in modules_of(model):
        if any(type(weight).__name__ == "DTensor" for weight in module._parameters.values()):
            path = next(path for path, weight in model.named_parameters() if type(weight).__name__ == "DTensor")
            raise UnsupportedModuleError(
                f"weight {path!r} is a DTensor, spread over processes: load the model whole, without FSDP or tp_plan"
            )
    flawed = [
        (path, module, handler, why)
        for path, module, handler in handled(model)
        if (why := _refused(module, handler, findings)) is not None or handler is None
    ]
    if not flawed:
        return
    # Whatever else is not covered, to teach it would not help.
    flawed.sort(key=lambda part: part[2] not in handlers.ATTENTIONS or both_ways(part[1]) is None)
    # What stopped the audit comes before what it did not come to.
    flawed.sort(key=lambda part: findings.get(type(part[1]), "").startswith(NOT_AUDITED))
    path, module, _, why = flawed[0]
    name = type(module).__name__
    where = f"module {path!r}, a {name}" if path else f"the model itself, a {name}"
    if type(module) in findings:
        raise UnsupportedModuleError(
            f"no propagation rule covers {where}, which {why}: register a rule with lrp_fast.hf.register({name}, "
            "handler), where lrp_fast.hf.handlers has ready ones"
        )
    if why is not None:
        raise UnsupportedModuleError(f"{where}, {why}")
    made_by = type(module).__module__
    quantised = weights.unreadable_format(getattr(model, "config", None))
    if quantised is not None and not made_by.startswith("transformers.models."):
        raise UnsupportedModuleError(f"no propagation rule covers {where}: {quantised}")
    raise UnsupportedModuleError(
        f"no propagation rule covers {where}: register one with lrp_fast.hf.register({name}, handler), where "
        "lrp_fast.hf.handlers has ready ones"
    )


def check_module(model) -> None:
    """Raise ``TypeError`` for what is no module at all."""
    if not isinstance(model, nn.Module):
        held = isinstance(getattr(model, "model", None), PreTrainedModel)
        mend = "pass its .model" if held else f"load one with {LOAD}"
        raise TypeError(f"model must be a loaded transformers model, not {type(model).__name__}: {mend}")


def wraps(model: nn.Module) -> str | None:
    """Of somebody's module around a model of transformers, as a sentence: which one to pass in its place."""
    if isinstance(model, PreTrainedModel) or weights.unreadable_adapter(model) is not None:
        return None
    name = type(model).__name__
    if name == "FullyShardedDataParallel":
        return f"{name} keeps the weights in shards: load the model whole, without it"
    for path, inner in named_modules_of(model):
        if isinstance(inner, PreTrainedModel):
            return f"{name} is no model of transformers, but holds one: pass its .{path}, a {type(inner).__name__}"
    return None


class Coverage(NamedTuple):
    """All modules of one class.

    Attributes:
        name: of the class. count: how many there are. path: of the first.
        rule: what they do to relevance, in words; None where no rule covers them.
        kernel: what computes that on CUDA in float16, bfloat16 and float32: "Triton", "PyTorch" or nothing.
        mend: where no rule covers them, why not and what to do; else nothing.
    """

    name: str
    count: int
    path: str
    rule: str | None
    kernel: str
    mend: str


def coverage(model: nn.Module) -> list[Coverage]:
    """One entry a module class, in the order in which the model holds them. The model may be on the "meta" device."""
    found: dict[tuple, list[str]] = {}
    findings = vouch(model)
    teach = "lrp_fast.hf.register teaches a class its rule"
    for path, module, handler in handled(model):
        rule, kernel = _treatment(module, handler, findings)
        mend = "" if rule is not None else _refused(module, handler, findings) or teach
        found.setdefault((type(module), rule, kernel, mend), []).append(path)
    for path, module in at_rest(model):
        found.setdefault((type(module), _AT_REST, "", ""), []).append(path)
    return [Coverage(cls.__name__, len(paths), paths[0], *how) for (cls, *how), paths in found.items()]


def _treatment(module: nn.Module, handler: handlers.Handler | None, findings: dict) -> tuple[str | None, str]:
    """The rule in words, and the kernel."""
    if handler is None or _refused(module, handler, findings) is not None:
        return None, ""
    if hasattr(handler, "kind"):
        return f"identity: {handler.kind}(z)/z", "PyTorch" if handler.kind == "f" else "Triton"
    if handler in handlers.LINEARS and not weights.is_plain(module):
        return _BY_ROWS
    return _WORDS.get(handler, _REGISTERED)


_OF_FLOATS = (*experts.ROUTERS, *experts.EXPERTS, *handlers.NORMS)


def _refused(module: nn.Module, handler: handlers.Handler | None, findings: dict[type, str]) -> str | None:
    """Why a rule does not cover a module of a class that it covers, as the end of a sentence that names the module;
    ``findings`` are those of `vouch`."""
    if type(module) in findings:
        return findings[type(module)]
    if handler is None:
        return weights.unreadable_adapter(module)
    if handler is spelt_out_attention.bloom_attention and module.pretraining_tp > 1 and module.slow_but_exact:
        return (
            "adds up parts of a product, and leaves out its bias (slow_but_exact with pretraining_tp above 1), which "
            "lrp_fast has no rule for: set slow_but_exact=False in its config"
        )
    if handler is handlers.dynamic_mask_attention and module.config.sliding_window is not None:
        return (
            "has a sliding window, which lrp_fast has no rule for in an attention that makes its own masks: only a "
            "Doge whose config says sliding_window=None can be explained"
        )
    if handler in handlers.ATTENTIONS:
        return both_ways(module)
    if handler in handlers.LINEARS:
        return weights.unreadable(module)
    if handler in _OF_FLOATS:
        return next((why for _, weight in own_weights(module) if (why := weights.not_floats(weight))), None)
    return None


def _words() -> Iterator[tuple]:
    for handler in (handlers.holder, handlers.idle):
        yield handler, (_AT_REST, "")
    yield handlers.part, ("its weights are read by what holds it; refused if it is called", "")
    yield state_space.state_space, ("time step, B, C are constants; gate and output half each (cp: output)", "PyTorch")
    yield state_space.gated_delta_net, ("values half, queries and keys' side a quarter each (cp: values)", "PyTorch")
    yield state_space.short_convolution, ("gates and what they gate half each (cp: what they gate)", "PyTorch")
    yield state_space.lightning_attention, ("values half, queries and keys a quarter each (cp: values)", "PyTorch")
    yield state_space.recurrent_block, ("gate and what was carried half each (cp: what was carried)", "PyTorch")
    yield state_space.rg_lru, ("what it keeps is a constant; input gate and input half each (cp: input)", "PyTorch")
    yield state_space.time_mixing, ("values and weights half each, gate and mean too (cp: values, mean)", "PyTorch")
    yield state_space.channel_mixing, ("gate and MLP half each (cp: MLP); relu^2: identity", "PyTorch")
    yield rescaled.rescaled_model, ("left as it is, but that its layers halve their hidden states", "")
    for handler in (handlers.leave, handlers.dropout, *wrappers.HANDLERS):
        yield handler, ("left as it is: sums, constants, parts with rules of their own", "")
    for handler in (
        masking.masking_model, masking.text_model, masking.padding_model, masking.captioning_model, sides.sharing_model,
    ):  # fmt: skip
        yield handler, ("left as it is: parts with rules of their own", "")
    for handler in LAYERS:
        yield handler, ("residual sum: plain; what it puts out are nodes", "")
    streams = "shares of streams and what they share half each (cp: the latter)"
    yield handlers.streams_decoder_layer, (f"{streams}; a node is all streams of a token", "PyTorch")
    yield handlers.hyper_connection, (streams, "PyTorch")
    yield altup.altup_decoder_layer, (f"{streams}; a node is all streams of a token", "PyTorch")
    yield altup.alternating_updates, (f"{streams}; tanh: identity", "PyTorch")
    yield altup.cut_off_mlp, ("act(gate) and up half each (cp: up); a gate's cut-off: plain gradient", "Triton")
    yield altup.streams_model, ("left as it is, but that lengths of streams are constants", "")
    for handler in handlers.ATTENTIONS:
        yield handler, ("values and weights half each, of these queries and keys half each (cp: values)", "Triton")
    yield handlers.linear, (_LINEAR, "PyTorch; with epsilon or gamma, Triton")
    yield handlers.adapted_embedding, ("left as it is: a look-up", "")
    for handler in (handlers.rms_norm, handlers.wide_rms_norm, handlers.offset_rms_norm, handlers.layer_norm):
        yield handler, ("rstd is a constant", "Triton")
    yield handlers.spelt_out_norm, ("rstd is a constant", "PyTorch")
    yield handlers.gated_norm, ("rstd is a constant; gate and what it gates half each (cp: the latter)", "PyTorch")
    for handler in indexed.INDEXERS:
        yield handler, ("its choice passes nothing", "PyTorch, some queries at a time")
    yield handlers.spelt_out, ("by its own code: products half each, functions of one number by f(z)/z", "PyTorch")
    yield handlers.spelt_out_mlp, ("act(gate) and up half each (cp: up)", "PyTorch")
    yield handlers.centred_rms_norm, ("rstd is a constant", "Triton, the mean by PyTorch")
    for handler in (handlers.gated_mlp, handlers.fused_gated_mlp):
        yield handler, ("act(gate) and up half each (cp: up)", "Triton")
    for handler in (handlers.mlp, handlers.falcon_mlp, handlers.gpt2_mlp):
        yield handler, ("left as it is: parts with rules of their own", "")
    yield state_space.matrix_memory, ("values half, queries and keys' side a quarter each (cp: values)", "PyTorch")
    yield xlstm.whole_model, ("left as it is, all tokens at once", "")
    for handler in (
        handlers.capped_language_model, caps.language_model_with_cap, xlstm.whole_language_model,
    ):  # fmt: skip
        yield handler, ("a cap on its logits: identity", "PyTorch")
    for handler in experts.ROUTERS:
        yield handler, ("plain softmax, sigmoid and transpose; the choice passes nothing", "PyTorch")
    for handler in (experts.gated_experts, experts.wide_gated_experts, experts.stacked_experts):
        yield handler, ("act(gate) and up half each (cp: up); routing weight and output half each", "Triton")
    yield experts.plain_experts, ("as an MLP; routing weight and output half each", "Triton")
    yield experts.input_scaled_experts, ("as gated experts; routing weight and input half each", "Triton")
    for handler in (
        experts.clamped_experts, experts.clamped_half_experts, experts.clamped_silu_experts, experts.clamped_mlp,
    ):  # fmt: skip
        yield handler, ("as a gated MLP; clamps: identity", "PyTorch")
    for handler in MIXTURES:
        yield handler, ("routing weight and expert half each (cp: expert)", "PyTorch")


_AT_REST = "not run by text alone; refused if it is"
_LINEAR = "plain transpose, epsilon and gamma rules"
_BY_ROWS = (f"{_LINEAR}, of the dequantised or adapted matrix", "PyTorch, some rows at a time")
_WORDS = dict(_words())
_REGISTERED = ("by a handler of its own", "")

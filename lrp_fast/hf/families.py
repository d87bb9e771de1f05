"""Which module class is handled how.

PyTorch's own and those of other packages by their names; those of models by their form (`forms`), whatever they are
called; and what has neither, if an audit of the model vouches for it (`audit`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from . import (
    altup,
    caps,
    experts,
    forms,
    handlers,
    indexed,
    masking,
    rescaled,
    sides,
    spelt_out_attention,
    state_space,
    wrappers,
    xlstm,
)
from .audit import audit
from .handlers import Handler
from .walk import modules_of, named_modules_of, own_weights, without_adapters
from .weights import ADAPTED, is_adapter, mixes_tokens, qualified_name

# Modules that send each token through on its own (but see `splits`).
MIXTURES = (
    experts.mixture, experts.shared_mixture, experts.spelt_out_mixture, experts.choosing_mixture, *experts.PAIRED,
)  # fmt: skip
MLPS = (
    handlers.gated_mlp, handlers.fused_gated_mlp, handlers.spelt_out_mlp, handlers.mlp, handlers.falcon_mlp,
    handlers.gpt2_mlp, experts.clamped_mlp, altup.cut_off_mlp, *MIXTURES,
)  # fmt: skip
# What they put out are nodes.
LAYERS = (
    handlers.decoder_layer, handlers.pre_norm_decoder_layer, handlers.parallel_decoder_layer, sides.sided_decoder_layer,
    handlers.streams_decoder_layer, altup.altup_decoder_layer, rescaled.rescaled_decoder_layer,
)  # fmt: skip
# What an MLP calls the linear map that makes what it puts out.
_LAST = ("down_proj", "proj_down", "dense_4h_to_h", "c_proj", "fc2", "fc_out", "w2", "Wo", "output_linear")


_TABLE: dict[str, Handler] = {
    "torch.nn.modules.container.ModuleList": handlers.leave,
    "torch.nn.modules.container.ModuleDict": handlers.leave,
    "torch.nn.modules.container.Sequential": handlers.leave,
    "torch.nn.modules.sparse.Embedding": handlers.leave,
    "torch.nn.modules.linear.Identity": handlers.leave,
    "torch._dynamo.eval_frame.OptimizedModule": handlers.leave,  # what it was given runs
    "torch.nn.modules.dropout.Dropout": handlers.dropout,
    "torch.nn.modules.linear.Linear": handlers.linear,
    "transformers.pytorch_utils.Conv1D": handlers.linear,
    "bitsandbytes.nn.modules.Linear8bitLt": handlers.linear,
    "bitsandbytes.nn.modules.Linear4bit": handlers.linear,
    "bitsandbytes.nn.modules.LinearNF4": handlers.linear,
    "bitsandbytes.nn.modules.LinearFP4": handlers.linear,
    **dict.fromkeys(ADAPTED, handlers.adapted_linear),
    "peft.tuners.lora.layer.Embedding": handlers.adapted_embedding,
    "peft.tuners.lora.model.LoraModel": handlers.leave,
    "peft.utils.other.ModulesToSaveWrapper": handlers.leave,
    "peft.peft_model.PeftModel": handlers.leave,
    **{
        f"peft.peft_model.PeftModelFor{task}": handlers.leave
        for task in ("CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
    },
    "torch.nn.modules.normalization.LayerNorm": handlers.layer_norm,
    "torch.nn.modules.normalization.RMSNorm": handlers.spelt_out_norm,
    "torch.nn.modules.activation.GELU": handlers.gelu,
    "torch.nn.modules.activation.SiLU": handlers.activation("silu"),
    "torch.nn.modules.activation.Sigmoid": handlers.leave,  # a gate's: plain gradients, as in `functions`
    "torch.nn.modules.activation.ReLU": handlers.activation("relu"),
    "transformers.activations.SiLUActivation": handlers.activation("silu"),
    "transformers.activations.GELUActivation": handlers.activation("gelu"),
    "transformers.activations.GELUTanh": handlers.activation("gelu_tanh"),
    "transformers.activations.NewGELUActivation": handlers.spelt_out_activation("gelu_tanh"),
    "transformers.activations.ReLUSquaredActivation": handlers.activation("relu2"),
    "torch.nn.modules.conv.Conv1d": handlers.part,
    "torch.nn.modules.padding.ZeroPad2d": handlers.part,
    "torch.nn.modules.loss.CrossEntropyLoss": handlers.idle,  # which labels alone run
    "torch.nn.modules.activation.Tanh": handlers.pointwise(1.0),
    "transformers.activations.QuickGELUActivation": handlers.pointwise(0.5),
    "transformers.activations.FastGELUActivation": handlers.pointwise(0.5),
    "transformers.activations.XIELUActivation": handlers.pointwise("beta"),
}
for _home, _prefix in wrappers.WRAPPERS.items():
    _TABLE[f"transformers.models.{_home}.modeling_{_home}.{_prefix}Model"] = wrappers.wrapper
    _TABLE[f"transformers.models.{_home}.modeling_{_home}.{_prefix}ForConditionalGeneration"] = wrappers.headed_wrapper
_TABLE["transformers.models.fuyu.modeling_fuyu.FuyuModel"] = wrappers.wrapper
_TABLE["transformers.models.fuyu.modeling_fuyu.FuyuForCausalLM"] = wrappers.headed_wrapper


Part = tuple[str, nn.Module, Handler | None]  # its path and its handler


_AUDITED: dict[type[nn.Module], Handler] = {}
_MOVING: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_IDLE: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_KINDS = {
    "glue": handlers.leave, "attention": handlers.attention, "decoder layer": handlers.decoder_layer,
    "holder": handlers.holder,
}  # fmt: skip
_ROOMS = (handlers, experts, indexed, masking, sides, spelt_out_attention, state_space, caps, rescaled, xlstm, altup)
_MODELS = ("transformers.models.", "transformers_modules.")  # shipped, and brought by a checkpoint


def handler_of(module: nn.Module | type[nn.Module]) -> Handler | None:
    """The handler of exactly this class (a subclass may compute something else), or None."""
    if isinstance(module, type):
        return _of_its_own(module) or _AUDITED.get(module)
    return handlers.idle if module in _IDLE else _of_its_own(type(module)) or _AUDITED.get(type(module))


def handlers_of(modules: list[nn.Module]) -> list[Handler | None]:
    """As `handler_of`, of many: each class is looked up once."""
    of_class = {cls: handler_of(cls) for cls in set(map(type, modules))}
    idle = _IDLE or ()  # asked, not walked: another thread may add to it just now
    return [handlers.idle if module in idle else of_class[type(module)] for module in modules]


def _of_its_own(cls: type[nn.Module]) -> Handler | None:
    found = _TABLE.get(qualified_name(cls))
    if found is None and (name := forms.handler_name(cls)) is not None:
        found = next(found for room in _ROOMS if (found := getattr(room, name, None)) is not None)
    return found


def is_covered_by_itself(module: nn.Module) -> bool:
    """Whether its class has a handler that no audit gave it."""
    return _of_its_own(type(module)) is not None


def vouch(model: nn.Module) -> dict[type[nn.Module], str]:
    """Audit the classes of a model that have no handler of their own, once for its config: those that are found to need
    none have one from then on. Of the others, why not, as the end of a sentence that names them."""
    core = without_adapters(model)
    if not isinstance(core, PreTrainedModel) or not any(map(_is_unknown, {type(one) for one in modules_of(core)})):
        return {}
    classes = {type(module) for _, module, _ in handled(core)}
    stubs = {cls: False for cls in classes if _of_its_own(cls) in experts.EXPERTS}
    paired = (*spelt_out_attention.PAIRED, handlers.dynamic_mask_attention)
    stubs |= {cls: True for cls in classes if _of_its_own(cls) in paired}
    past = {cls for cls in classes if _of_its_own(cls) in spelt_out_attention.METHODS}
    seen = audit(core, {cls for cls in classes if _is_unknown(cls)}, stubs, past)
    _AUDITED.update({cls: _KINDS[kind] for cls, kind in seen.kinds.items()})
    for one in modules_of(core):  # of another config, a class may do otherwise
        (_MOVING.add if type(one) in seen.moving else _MOVING.discard)(one)
    of_paths = dict(named_modules_of(core, once=False))  # some of what a config makes may be missing
    _IDLE.update(of_paths[path] for path in seen.idle if path in of_paths)
    return seen.findings


def was_audited(module: nn.Module) -> bool:
    """Whether its handler is an audit's, not its own."""
    return type(module) in _AUDITED and not is_covered_by_itself(module)


def moves_tokens(module: nn.Module) -> bool:
    """Whether an audit saw tokens meet in the module's own code."""
    return module in _MOVING and not is_covered_by_itself(module)


def _is_unknown(cls: type[nn.Module]) -> bool:
    return cls.__module__.startswith(_MODELS) and _of_its_own(cls) is None


def register(cls: type[nn.Module], handler: Handler) -> None:
    """Teach lrp_fast a module class. ``lrp_fast.hf.handlers`` holds ready handlers and says what one returns.

    Raises:
        TypeError: if ``cls`` is no module class or ``handler`` cannot be called.
        ValueError: if the class has a handler already.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"register takes a torch.nn.Module class, not {cls!r}")
    if not callable(handler):
        raise TypeError(f"the handler of {cls.__name__} must be callable: (module, rules) -> dict of attributes")
    if _of_its_own(cls) is not None:
        raise ValueError(f"{qualified_name(cls)} has a handler already")
    _TABLE[qualified_name(cls)] = handler


def handled(model: nn.Module) -> list[Part]:
    """As ``named_modules``, without the parts of modules that are handled whole, and those that text alone does not run
    (`at_rest`)."""
    found: list[Part] = []
    inside: set[nn.Module] = set()
    held = named_modules_of(model)
    for (path, module), handler in zip(held, handlers_of([module for _, module in held]), strict=True):
        if module in inside:
            continue
        found.append((path, module, handler))
        if handler in (*handlers.WHOLE, handlers.idle) or (handler is None and is_adapter(module)):
            inside.update(modules_of(module))
        elif handler in wrappers.HANDLERS:
            for _, part in wrappers.beside(module):
                inside.update(modules_of(part))
    return found


def is_wrapper(module: nn.Module | type[nn.Module]) -> bool:
    """Whether the module, or one of the class, holds a language model, and parts that text alone does not run."""
    return handler_of(module) in wrappers.HANDLERS


def at_rest(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model that text alone does not run, with their paths; their own parts are not told."""
    for path, module, handler in handled(model):
        if handler in wrappers.HANDLERS:
            yield from ((f"{path}.{name}".lstrip("."), part) for name, part in wrappers.beside(module))


def branch_dtype(layer: nn.Module) -> torch.dtype:
    """What a decoder layer's norms hand to the linear maps that have no dtype of their own."""
    norms = [module for module in modules_of(layer) if handler_of(module) in handlers.NORMS]
    weights = [weight for module in (*norms, *modules_of(layer)) for _, weight in own_weights(module)]
    return next(weight.dtype for weight in weights if weight.is_floating_point())


def last_linear(mlp: nn.Module) -> nn.Module | None:
    """The linear map that makes what an MLP puts out; None where there is no such one."""
    if handler_of(mlp) in MIXTURES:
        return None
    last = next((getattr(mlp, name) for name in _LAST if hasattr(mlp, name)), None)
    return last if handler_of(last) in handlers.LINEARS else None


def mlps(layer: nn.Module) -> list[nn.Module]:
    """The MLPs of a decoder layer, mixtures of experts whole."""
    return mlps_among(handled(layer))


def mlps_among(held: list[Part]) -> list[nn.Module]:
    """As `mlps`, of what `handled` found in the layer."""
    found = [module for _, module, handler in held if handler in MLPS]
    gates = {part for _, module, handler in held if handler is handlers.gated_norm for part in modules_of(module)}
    found = [module for module in found if module not in gates]
    if len(found) < 2:
        return found
    inside = {part for module in found for part in modules_of(module)[1:]}
    return [module for module in found if module not in inside]


def splits(mlp: nn.Module) -> bool:
    """Whether an MLP may take some tokens at a time: it makes the same of them, whichever come together."""
    linears = (module for _, module, handler in handled(mlp) if handler in handlers.LINEARS)
    return not any(map(mixes_tokens, linears))

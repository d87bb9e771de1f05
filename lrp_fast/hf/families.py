"""Which module class is handled how: one table, keyed by qualified class name, so that no model file is imported."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from . import experts, handlers, wrappers
from .handlers import Handler
from .walk import modules_of, named_modules_of
from .weights import ADAPTED, is_adapter, mixes_tokens, qualified_name

# What transformers calls the parts of a model, and how most of them are built: pre-norm blocks with RMSNorm, rotary
# positions and a gated MLP.
_PARTS = {
    "ForCausalLM": handlers.leave,
    "Model": handlers.leave,
    "DecoderLayer": handlers.pre_norm_decoder_layer,
    "Attention": handlers.attention,
    "MLP": handlers.gated_mlp,
    "RMSNorm": handlers.rms_norm,
    "RotaryEmbedding": handlers.leave,
}
_POST_NORM = {"DecoderLayer": handlers.decoder_layer, "RMSNorm": handlers.wide_rms_norm}
_GEMMA = {"RMSNorm": handlers.offset_rms_norm, "TextScaledWordEmbedding": handlers.leave}
_GEMMA_POST_NORM = _GEMMA | {
    "ForCausalLM": handlers.capped_language_model,
    "TextModel": handlers.leave,
    "DecoderLayer": handlers.decoder_layer,
}

_MIXTURE = {
    "TopKRouter": experts.softmax_router,
    "Experts": experts.gated_experts,
    "SparseMoeBlock": experts.mixture,
}

# family: (its module in transformers, what its classes begin with, parts that differ from the above)
_FAMILIES = {
    "Llama": ("llama", "Llama", {}),
    "Mistral": ("mistral", "Mistral", {}),
    "Qwen2": ("qwen2", "Qwen2", {}),
    "Qwen3": ("qwen3", "Qwen3", {}),
    "SmolLM3": ("smollm3", "SmolLM3", {}),
    "Phi-3": ("phi3", "Phi3", {"MLP": handlers.fused_gated_mlp}),
    "OLMo 2": ("olmo2", "Olmo2", _POST_NORM),
    "OLMo 3": ("olmo3", "Olmo3", _POST_NORM),
    "Granite": ("granite", "Granite", {}),
    "Gemma": ("gemma", "Gemma", _GEMMA),
    "Gemma 2": ("gemma2", "Gemma2", _GEMMA_POST_NORM | {"Attention": handlers.capped_attention}),
    "Gemma 3": ("gemma3", "Gemma3", _GEMMA_POST_NORM),
    "StableLM": (
        "stablelm",
        "StableLm",
        {"Model": handlers.masking_model, "LayerNormPerHead": handlers.leave},
    ),
    "Cohere": ("cohere", "Cohere", {"LayerNorm": handlers.centred_rms_norm}),
    "GPT-NeoX": ("gpt_neox", "GPTNeoX", {"Layer": handlers.pre_norm_decoder_layer, "MLP": handlers.mlp}),
    "Falcon": (
        "falcon",
        "Falcon",
        {
            "Model": handlers.masking_model,
            "DecoderLayer": handlers.decoder_layer,
            "Attention": handlers.falcon_attention,
            "FlashAttention2": handlers.falcon_attention,
            "MLP": handlers.falcon_mlp,
            "Linear": handlers.linear,
        },
    ),
    "GPT-2": (
        "gpt2",
        "GPT2",
        {"LMHeadModel": handlers.leave, "Block": handlers.pre_norm_decoder_layer, "MLP": handlers.gpt2_mlp},
    ),
    "Mixtral": ("mixtral", "Mixtral", _MIXTURE),
    "Qwen2-MoE": ("qwen2_moe", "Qwen2Moe", _MIXTURE | {"SparseMoeBlock": experts.shared_mixture}),
    "Qwen3-MoE": ("qwen3_moe", "Qwen3Moe", _MIXTURE),
    "GPT-OSS": (
        "gpt_oss",
        "GptOss",
        {
            "RMSNorm": handlers.wide_rms_norm,
            "TopKRouter": experts.top_k_router,
            "Experts": experts.clamped_experts,
            "MLP": experts.paired_mixture,
        },
    ),
}
# family: its module in transformers
FAMILIES = {family: home for family, (home, *_) in _FAMILIES.items()}

# Modules that send each token through on its own (but see `splits`), and the linear map that makes what they put out,
# where one does.
MLPS = {
    handlers.gated_mlp: "down_proj",
    handlers.fused_gated_mlp: "down_proj",
    handlers.mlp: "dense_4h_to_h",
    handlers.falcon_mlp: "dense_4h_to_h",
    handlers.gpt2_mlp: "c_proj",
    experts.mixture: None,
    experts.shared_mixture: None,
    experts.paired_mixture: None,
}


_TABLE: dict[str, Handler] = {
    "torch.nn.modules.container.ModuleList": handlers.leave,
    "torch.nn.modules.container.ModuleDict": handlers.leave,
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
    "torch.nn.modules.activation.SiLU": handlers.activation("silu"),
    "torch.nn.modules.activation.ReLU": handlers.activation("relu"),
    "transformers.activations.SiLUActivation": handlers.activation("silu"),
    "transformers.activations.GELUActivation": handlers.activation("gelu"),
    "transformers.activations.GELUTanh": handlers.activation("gelu_tanh"),
    "transformers.activations.NewGELUActivation": handlers.spelt_out_activation("gelu_tanh"),
    "transformers.activations.ReLUSquaredActivation": handlers.activation("relu2"),
}
for _home, _prefix, _different in _FAMILIES.values():
    for _part, _handler in (_PARTS | _different).items():
        _TABLE[f"transformers.models.{_home}.modeling_{_home}.{_prefix}{_part}"] = _handler
for _home, _prefix in wrappers.WRAPPERS.items():
    _TABLE[f"transformers.models.{_home}.modeling_{_home}.{_prefix}Model"] = wrappers.wrapper
    _TABLE[f"transformers.models.{_home}.modeling_{_home}.{_prefix}ForConditionalGeneration"] = wrappers.headed_wrapper


Part = tuple[str, nn.Module, Handler | None]  # its path and its handler


def handler_of(module: nn.Module | type[nn.Module]) -> Handler | None:
    """The handler of exactly this class (a subclass may compute something else), or None."""
    return _TABLE.get(qualified_name(module if isinstance(module, type) else type(module)))


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
    if qualified_name(cls) in _TABLE:
        raise ValueError(f"{qualified_name(cls)} has a handler already")
    _TABLE[qualified_name(cls)] = handler


def handled(model: nn.Module) -> list[Part]:
    """As ``named_modules``, without the parts of modules that are handled whole, and those that text alone does not run
    (`at_rest`)."""
    found: list[Part] = []
    inside: set[nn.Module] = set()
    of_class: dict[type[nn.Module], Handler | None] = {}
    for path, module in named_modules_of(model):
        if module in inside:
            continue
        if type(module) not in of_class:
            of_class[type(module)] = handler_of(module)
        handler = of_class[type(module)]
        found.append((path, module, handler))
        if handler in handlers.WHOLE or (handler is None and is_adapter(module)):
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
    return next(module.weight.dtype for module in modules_of(layer) if handler_of(module) in handlers.NORMS)


def last_linear(mlp: nn.Module) -> nn.Module | None:
    """The linear map that makes what an MLP puts out; None where there is no such one."""
    name = MLPS[handler_of(mlp)]
    last = getattr(mlp, name) if name else None
    return last if handler_of(last) in handlers.LINEARS else None


def mlps(layer: nn.Module) -> list[nn.Module]:
    """The MLPs of a decoder layer, mixtures of experts whole."""
    return mlps_among(handled(layer))


def mlps_among(held: list[Part]) -> list[nn.Module]:
    """As `mlps`, of what `handled` found in the layer."""
    found = [module for _, module, handler in held if handler in MLPS]
    if len(found) < 2:
        return found
    inside = {part for module in found for part in modules_of(module)[1:]}
    return [module for module in found if module not in inside]


def splits(mlp: nn.Module) -> bool:
    """Whether an MLP may take some tokens at a time: it makes the same of them, whichever come together."""
    linears = (module for _, module, handler in handled(mlp) if handler in handlers.LINEARS)
    return not any(map(mixes_tokens, linears))

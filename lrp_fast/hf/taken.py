"""Which models have logits that can be explained, and what to do about those that have none."""

from __future__ import annotations

import inspect

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .coverage import LOAD, MASKED, UnsupportedModuleError, check, check_module, wraps
from .directions import is_encoder, is_masked_language_model
from .families import handled, handler_of, is_covered_by_itself, is_wrapper
from .heads import has_labels, makes_labels
from .owner import session_of
from .walk import modules_of, named_modules_of, own_weights, without_adapters
from .weights import loaded_as_it_runs, unreadable_adapter
from .wrappers import WRAPPERS


def check_language_model(model) -> None:
    """Whether ``model`` is one that gives logits of the next token from the tokens before it, or of labels.

    Raises:
        TypeError: if it is no module at all. ValueError: if it gives none.
        UnsupportedModuleError: if it gives them, by what no rule covers. (Not in every such case: `check` is thorough.)
    """
    check_module(model)
    name = type(model).__name__
    core = without_adapters(model)
    if getattr(getattr(core, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder model: lrp_fast explains decoders and encoders")
    if is_encoder(getattr(core, "config", None)) and _is_language_model(core) and not is_masked_language_model(core):
        raise ValueError(
            f"{name} reads tokens in both directions (is_decoder is False in its config), so that its logits are of no "
            f"next token: load it with {MASKED}, or with is_decoder=True"
        )
    if isinstance(core, PreTrainedModel):
        if not _is_language_model(core) and not has_labels(core):
            _refuse(core)
        return
    if handler_of(core) is None and wraps(core) is None and unreadable_adapter(core) is None:
        raise UnsupportedModuleError(f"{name} is no model of transformers: load one with {LOAD}")
    check(core)
    if not has_labels(core) and not any(map(_is_language_model, modules_of(core))):
        raise ValueError(f"{name} has no next-token logits to explain: load a language model with {LOAD}")


def check_weights(model: nn.Module) -> None:
    """Raise ``ValueError`` where ``model`` has no weights."""
    if session_of(model) is not None:
        return
    if not any(weight.is_meta for module in modules_of(model) for _, weight in own_weights(module)):
        return  # without a look at what handles them
    name = type(without_adapters(model)).__name__
    brought = loaded_as_it_runs(model)
    for path, module, _ in handled(model):
        if module not in brought and any(weight.is_meta for _, weight in own_weights(module)):
            raise ValueError(
                f"{path} of {name} has no weights, being on the 'meta' device: load the model with "
                f"{name}.from_pretrained (lrp_fast.plan needs none)"
            )


def reads_token_types(model: nn.Module, types=0) -> bool:
    """Whether a model makes something else of its tokens if it is given these token_type_ids (numbers, nested at will)
    with them: GPT-2 embeds any, to a wrapper 0 says that a token is text, to an encoder that it is of the first
    text."""
    classes = {type(module) for _, module, _ in handled(model)}
    readers = [cls for cls in classes if "token_type_ids" in inspect.signature(cls.forward).parameters]
    if is_encoder(getattr(without_adapters(model), "config", None)):  # 0 is what it takes none for
        return bool(readers) and _any(types)
    return any(not is_wrapper(cls) for cls in readers) or (bool(readers) and _any(types))


def _any(numbers) -> bool:
    if isinstance(numbers, list | tuple):
        return any(map(_any, numbers))
    return bool(torch.as_tensor(numbers).any())


def language_model_class(config) -> type[PreTrainedModel] | None:
    """transformers' class that makes next-token logits with a ``config`` of this kind, or a masked token's with an
    encoder's; None where there is none."""
    if getattr(config, "is_encoder_decoder", False):
        return None
    if is_encoder(config):
        return transformers.MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    for mapping in (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    ):
        if type(config) in mapping:
            return mapping[type(config)]
    home = type(config).__module__.split(".")[-2]  # audio models are in a table with encoder-decoders
    found = getattr(transformers, f"{WRAPPERS.get(home)}ForConditionalGeneration", None)
    return found if found is not None and found.config_class is type(config) else None


def explained_class(config) -> type[PreTrainedModel] | None:
    """transformers' class that is made of a ``config`` to be explained: the one with labels that its architectures
    name, or a `language_model_class`."""
    found = language_model_class(config)
    names = getattr(config, "architectures", None) or []
    if found is None or config.get_text_config() is not config or found.__name__ in names:
        return found
    named = (getattr(transformers, name, None) for name in names)
    named = (cls for cls in named if isinstance(cls, type) and makes_labels(cls))
    return next((cls for cls in named if cls.config_class is type(config)), found)


def _is_language_model(module: nn.Module) -> bool:
    names = {base.__name__ for base in type(module).__mro__}
    return (
        not names.isdisjoint(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
        or is_masked_language_model(module)
        or (is_wrapper(module) and module.can_generate())
    )


def _refuse(model: PreTrainedModel) -> None:
    """``model`` is no causal language model that transformers has, though it may have next-token logits."""
    name, base = type(model).__name__, model.base_model
    if model.can_generate() or (is_covered_by_itself(model) and model.get_output_embeddings() is not None):
        inner = next((path for path, one in named_modules_of(model) if _is_language_model(one)), None)
        if inner is not None and not _is_refused(model.get_submodule(inner)):
            raise UnsupportedModuleError(
                f"no propagation rule covers {name}, but its language model is covered: pass model.{inner}, and text "
                "alone"
            )
        return  # to `check`
    whole = _whole_of(model)
    if base is model and whole is not None:
        raise ValueError(
            f"{name} has no next-token logits to explain, being a model without its head: load its checkpoint with "
            f"{whole}, if it holds a head"
        )
    if base is not model and whole is not None:
        raise ValueError(
            f"{name} has no next-token logits to explain: differentiate what it puts out under lrp_fast.patched"
        )
    raise ValueError(f"{name} has no next-token logits to explain: lrp_fast explains decoders and encoders")


def _whole_of(model: PreTrainedModel) -> str | None:
    """How to load the same with its language model's head, where lrp_fast covers that."""
    base = model.base_model
    if (handler_of(base) is None and not is_encoder(model.config)) or _is_refused(base):
        return None
    if is_wrapper(base):
        return type(base).__name__.removesuffix("Model") + "ForConditionalGeneration"
    whole = language_model_class(model.config)
    if whole is None or (handler_of(whole) is None and not is_encoder(model.config)):
        return None
    return "AutoModelForMaskedLM" if is_encoder(model.config) else "AutoModelForCausalLM"


def _is_refused(model: nn.Module) -> bool:
    try:
        check(model)
    except UnsupportedModuleError:
        return True
    return False

"""Which models have next-token logits that can be explained, and what to do about those that have none."""

from __future__ import annotations

import inspect

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .coverage import LOAD, UnsupportedModuleError, check, check_module, wraps
from .families import handled, handler_of, is_covered_by_itself, is_wrapper
from .walk import modules_of, named_modules_of, own_weights, without_adapters
from .weights import loaded_as_it_runs, unreadable_adapter
from .wrappers import WRAPPERS


def check_language_model(model) -> None:
    """Whether ``model`` is one that gives logits of the next token from the tokens before it.

    Raises:
        TypeError: if it is no module at all. ValueError: if it gives none.
        UnsupportedModuleError: if it gives them, by what no rule covers. (Not in every such case: `check` is thorough.)
    """
    check_module(model)
    name = type(model).__name__
    core = without_adapters(model)
    if getattr(getattr(core, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder model: lrp_fast explains decoder-only language models")
    if isinstance(core, PreTrainedModel):
        if not _is_language_model(core):
            _refuse(core)
        return
    if handler_of(core) is None and wraps(core) is None and unreadable_adapter(core) is None:
        raise UnsupportedModuleError(f"{name} is no model of transformers: load one with {LOAD}")
    check(core)
    if not any(map(_is_language_model, modules_of(core))):
        raise ValueError(f"{name} has no next-token logits to explain: load a language model with {LOAD}")


def check_weights(model: nn.Module) -> None:
    """Raise ``ValueError`` where ``model`` has no weights."""
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
    with them: GPT-2 embeds any, and to a wrapper 0 says that a token is text."""
    classes = {type(module) for _, module, _ in handled(model)}
    readers = [cls for cls in classes if "token_type_ids" in inspect.signature(cls.forward).parameters]
    return any(not is_wrapper(cls) for cls in readers) or (bool(readers) and _any(types))


def _any(numbers) -> bool:
    if isinstance(numbers, list | tuple):
        return any(map(_any, numbers))
    return bool(torch.as_tensor(numbers).any())


def language_model_class(config) -> type[PreTrainedModel] | None:
    """transformers' class that makes next-token logits with a ``config`` of this kind; None where there is none."""
    if getattr(config, "is_encoder_decoder", False):
        return None
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


def _is_language_model(module: nn.Module) -> bool:
    names = {base.__name__ for base in type(module).__mro__}
    return not names.isdisjoint(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) or (
        is_wrapper(module) and module.can_generate()
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
    raise ValueError(f"{name} has no next-token logits to explain: lrp_fast explains decoder-only language models")


def _whole_of(model: PreTrainedModel) -> str | None:
    """How to load the same with its language model's head, where lrp_fast covers that."""
    base = model.base_model
    if handler_of(base) is None or _is_refused(base):
        return None
    if is_wrapper(base):
        return type(base).__name__.removesuffix("Model") + "ForConditionalGeneration"
    whole = language_model_class(model.config)
    return None if whole is None or handler_of(whole) is None else "AutoModelForCausalLM"


def _is_refused(model: nn.Module) -> bool:
    try:
        check(model)
    except UnsupportedModuleError:
        return True
    return False

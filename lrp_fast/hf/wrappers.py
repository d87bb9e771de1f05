"""Models that read images or sounds besides text, given text alone: a language model, and parts beside it at rest."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..rules import Rules
from .caps import soft_capped
from .overlay import Overlay, forward_name, forward_of, laid

# Their modules in transformers, and what their classes begin with. Each is held against its language model alone in
# tests/hf/test_wrappers.py.
WRAPPERS = {
    "audioflamingo3": "AudioFlamingo3",
    "aya_vision": "AyaVision",
    "cohere2_vision": "Cohere2Vision",
    "deepseek_vl": "DeepseekVL",
    "deepseek_vl_hybrid": "DeepseekVLHybrid",
    "exaone4_5": "Exaone4_5_",
    "fast_vlm": "FastVlm",
    "fun_asr_nano": "FunAsrNano",
    "gemma3": "Gemma3",
    "gemma3n": "Gemma3n",
    "gemma4": "Gemma4",
    "gemma4_unified": "Gemma4Unified",
    "glmasr": "GlmAsr",
    "got_ocr2": "GotOcr2",
    "granite_speech": "GraniteSpeech",
    "granite_speech_plus": "GraniteSpeechPlus",
    "idefics2": "Idefics2",
    "idefics3": "Idefics3",
    "internvl": "InternVL",
    "janus": "Janus",
    "kimi_k25": "Kimi_K25",
    "lighton_ocr": "LightOnOcr",
    "llama4": "Llama4",
    "llava": "Llava",
    "llava_next": "LlavaNext",
    "llava_next_video": "LlavaNextVideo",
    "llava_onevision": "LlavaOnevision",
    "mistral3": "Mistral3",
    "moss_transcribe_diarize": "MossTranscribeDiarize",
    "musicflamingo": "MusicFlamingo",
    "ovis2": "Ovis2",
    "perception_lm": "PerceptionLM",
    "qianfan_ocr": "QianfanOCR",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen2_audio": "Qwen2Audio",
    "qwen2_vl": "Qwen2VL",
    "qwen3_asr": "Qwen3ASR",
    "qwen3_vl": "Qwen3VL",
    "smolvlm": "SmolVLM",
    "vibevoice_asr": "VibeVoiceAsr",
    "video_llama_3": "VideoLlama3",
    "video_llava": "VideoLlava",
    "vipllava": "VipLlava",
    "voxtral": "Voxtral",
}
# How they call what text passes through. Whatever else they hold is at rest.
_WAY = ("model", "language_model", "text_model", "lm_head")
# What says which tokens are an image's, of those that read these in both directions.
_TYPES = {"Gemma3ForConditionalGeneration": "token_type_ids"} | dict.fromkeys(
    ("Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration", "Gemma4Model", "Gemma4UnifiedModel"),
    "mm_token_type_ids",
)
_HARMLESS = ("device", "dtype")  # what some ask of a part at rest
# Gemma 3n's tables of tokens that stand for images and sounds, behind those of text: asked for every token.
_TABLES = ("embed_vision", "embed_audio")


def beside(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts of a wrapper that text alone does not run, with their names."""
    return [(name, part) for name, part in module.named_children() if name not in _WAY]


def give_language_model(wrapper: nn.Module, model: nn.Module) -> None:
    """Put a language model, with its head, in place of the wrapper's own."""
    inner = wrapper.base_model
    (name,) = (name for name in ("language_model", "text_model") if hasattr(inner, name))
    if hasattr(wrapper, "lm_head"):
        setattr(inner, name, model.base_model)
        wrapper.lm_head = model.get_output_embeddings()
    else:  # older releases of some have it within
        setattr(inner, name, model)


def wrapper(module: nn.Module, rules: Rules) -> Overlay:
    """As `leave`. The parts beside the language model are refused where anything is asked of them."""
    own, first = forward_of(module), min((getattr(module, name).vocab_offset for name in _tables(module)), default=None)
    told = {"logits_to_keep": None} if "logits_to_keep" in inspect.signature(own).parameters else {}
    images = "use_bidirectional_attention" in _names(own)  # Gemma 4's makes a mask of them, where there are none too

    @functools.wraps(own)
    def forward(*args, logits_to_keep=None, **named):  # which some hand on, down to the attention
        _check_types(module, named)
        _check_ids(module, first, named.get("input_ids", args[0] if args else None))
        with laid([_telling(module, use_bidirectional_attention=None)] if images else []):
            return own(*args, **named, **told)

    return {"forward": forward, **_at_rest(module)}


def headed_wrapper(module: nn.Module, rules: Rules) -> Overlay:
    """As `wrapper`, of the one that returns logits.

    Some know no ``logits_to_keep``, or hand it on to their language model's attention: here the head sees to it, and
    the wrapper does not hear of it. Nor does it of a cap on its logits, as in `capped_language_model`.
    """
    own = forward_of(module)
    caps = "final_logit_softcapping" in _names(own)  # Gemma 4's does as its language model; others leave the cap out
    cap = module.config.get_text_config().final_logit_softcapping if caps else None

    @functools.wraps(own)
    def forward(*args, logits_to_keep=0, **named):
        _check_types(module, named)
        head = module.get_output_embeddings()
        whole = forward_of(head)

        def headed(x):
            logits = whole(_kept(x, logits_to_keep))
            return logits if cap is None else soft_capped(logits, cap, rules)

        uncapped = [_telling(module, final_logit_softcapping=None)] if caps else []
        with laid([(head, forward_name(head), headed), *uncapped]):
            return own(*args, **named)

    return {"forward": forward, **_at_rest(module)}


def _check_types(module: nn.Module, named: dict) -> None:
    """Take from the arguments what marks images, and refuse any."""
    typed, name = _TYPES.get(type(module).__name__), type(module).__name__
    types = named.pop(typed, None)
    if types is not None and types.any():
        raise ValueError(
            f"{typed} mark tokens that {name} reads in both directions, which lrp_fast has no rule for: leave them out "
            "to have all tokens read causally"
        )


def _check_ids(module: nn.Module, first: int | None, ids: Tensor | None) -> None:
    """Refuse tokens of tables that are at rest, which begin with id ``first``."""
    if first is not None and ids is not None and (ids >= first).any():
        raise ValueError(
            f"input_ids from {first} on are tokens of images and sounds to {type(module).__name__}, which lrp_fast has "
            "no rule for: give text alone"
        )


def _tables(module: nn.Module) -> list[str]:
    return [name for name in _TABLES if hasattr(getattr(module, name, None), "vocab_offset")]


def _names(forward: Callable) -> tuple[str, ...]:
    return inspect.unwrap(forward).__code__.co_names


def _telling(module: nn.Module, **text) -> tuple[nn.Module, str, object]:
    """Its config, for itself alone, with something else in what that says of text."""
    config = copy.copy(module.config)
    config.text_config = copy.copy(config.text_config)
    vars(config.text_config).update(text)  # past what Gemma 3n's class checks of types
    return module, "config", config


HANDLERS = (wrapper, headed_wrapper)


def _at_rest(module: nn.Module) -> Overlay:
    tables = _tables(module)
    return {name: (_EmptyTable if name in tables else _AtRest)(module, name) for name, _ in beside(module)}


class _AtRest:
    """Stands in for a part that text alone does not run."""

    def __init__(self, wrapper: nn.Module, name: str) -> None:
        self._part, self._words = wrapper.get_submodule(name), f"{name!r} of {type(wrapper).__name__}"

    def __call__(self, *args, **named) -> None:
        raise ValueError(f"{self._words} is no part that reads text, and lrp_fast has no rule for it: give text alone")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._part, name) if name in _HARMLESS else self()


class _EmptyTable(_AtRest):
    """As `_AtRest`, of a table that a wrapper looks up for each token of text too, and does not read there."""

    def __call__(self, *args, **named) -> Tensor | None:
        if not args and named.keys() == {"input_ids"}:
            weight = self._part.embedding_projection.weight
            return weight.new_zeros(*named["input_ids"].shape, len(weight))
        return super().__call__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name) if name in ("vocab_offset", "vocab_size") else super().__getattr__(name)


def _kept(x: Tensor, logits_to_keep: int | list[int] | Tensor) -> Tensor:
    """As transformers reads it: how many positions from the end, 0 for all; or which."""
    return x[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]

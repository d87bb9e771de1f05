"""Models that read images or sounds besides text, given text alone: a language model, and parts beside it at rest."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from typing import Any

from torch import Tensor, nn

from ..rules import Rules
from .handlers import Overlay, soft_capped
from .overlay import forward_name, forward_of, laid

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
    "llava": "Llava",
    "llava_next": "LlavaNext",
    "llava_next_video": "LlavaNextVideo",
    "llava_onevision": "LlavaOnevision",
    "mistral3": "Mistral3",
    "moss_transcribe_diarize": "MossTranscribeDiarize",
    "musicflamingo": "MusicFlamingo",
    "ovis2": "Ovis2",
    "paligemma": "PaliGemma",
    "perception_lm": "PerceptionLM",
    "qianfan_ocr": "QianfanOCR",
    "qwen2_audio": "Qwen2Audio",
    "qwen3_asr": "Qwen3ASR",
    "smolvlm": "SmolVLM",
    "vibevoice_asr": "VibeVoiceAsr",
    "video_llama_3": "VideoLlama3",
    "video_llava": "VideoLlava",
    "vipllava": "VipLlava",
    "voxtral": "Voxtral",
}
# How they call what text passes through. Whatever else they hold is at rest.
_WAY = ("model", "language_model", "text_model", "lm_head")
_HARMLESS = ("device", "dtype")  # what some ask of a part at rest
# What token_type_ids, where a wrapper takes them, say of text that is read causally: PaliGemma's of what follows the
# prompt, Gemma 3's of what is no image.
_CAUSAL = {"PaliGemma": 1, "Gemma3": 0}


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
    own = forward_of(module)
    told = {"logits_to_keep": None} if "logits_to_keep" in inspect.signature(own).parameters else {}

    @functools.wraps(own)
    def forward(*args, logits_to_keep=None, **named):  # which some hand on, down to the attention
        return own(*args, **named, **told)

    return {"forward": forward, **_at_rest(module)}


def headed_wrapper(module: nn.Module, rules: Rules) -> Overlay:
    """As `wrapper`, of the one that returns logits.

    Some know no ``logits_to_keep``, or hand it on to their language model's attention; some cap their logits behind the
    head, which passes relevance by the identity rule. Here the head sees to both, and the wrapper hears of neither.
    """
    own, cap = forward_of(module), _cap(module)
    name = type(module).__name__
    causal = _CAUSAL.get(name.removesuffix("ForConditionalGeneration"))

    @functools.wraps(own)
    def forward(*args, logits_to_keep=0, **named):
        types = None if causal is None else named.pop("token_type_ids", None)
        if types is not None and (types != causal).any():
            raise ValueError(
                f"token_type_ids mark tokens that {name} reads in both directions, which lrp_fast has no rule for: "
                "leave them out to have all tokens read causally"
            )
        head, config = module.get_output_embeddings(), module.config
        whole = forward_of(head)

        def headed(x):
            logits = whole(_kept(x, logits_to_keep))
            return logits if cap is None else soft_capped(logits, cap, rules)

        if cap is not None:
            config = copy.deepcopy(config)
            config.get_text_config().final_logit_softcapping = None
        with laid([(head, forward_name(head), headed), (module, "config", config)]):
            return own(*args, **named)

    return {"forward": forward, **_at_rest(module)}


HANDLERS = (wrapper, headed_wrapper)


def unreadable(module: nn.Module) -> str | None:
    """Why a wrapper cannot be explained even on text, as the end of a sentence that names it; None where it can."""
    by_itself = hasattr(sys.modules[type(module).__module__], "create_causal_mask_mapping")  # a mask of its own
    if type(module).__name__ == "PaliGemmaModel" and by_itself:
        return (
            "reads its prompt in both directions in this release of transformers, which lrp_fast has no rule for: "
            "install a newer one, which reads text alone causally"
        )
    return None


def _at_rest(module: nn.Module) -> Overlay:
    return {name: _AtRest(module, name) for name, _ in beside(module)}


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


def _cap(module: nn.Module) -> float | None:
    """By what the wrapper's own forward pass caps its logits. PaliGemma's does in newer releases, Gemma 3's never."""
    code = inspect.unwrap(type(module).forward).__code__
    if "final_logit_softcapping" not in (*code.co_names, *code.co_consts):
        return None
    return getattr(module.config.get_text_config(), "final_logit_softcapping", None)


def _kept(x: Tensor, logits_to_keep: int | list[int] | Tensor) -> Tensor:
    """As transformers reads it: how many positions from the end, 0 for all; or which."""
    return x[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]

"""What a config.json says that its checkpoint is: a causal language model of transformers, one with labels in place of
its vocabulary, or something else."""

from __future__ import annotations

import re

import transformers
from transformers.models.auto import modeling_auto as auto

from ..hf import explained_class
from .source import Source, one_line

_CAUSAL = re.compile("ForCausalLM|LMHeadModel|WithLMHead|DoubleHeadsModel")
# What classes that transformers does not have call another head; trl's WithValueHead is beside a language model's.
_ANOTHER = re.compile("Reward|Classif|Scor|Critic|Value(?!Head)|(?<!With)ValueHead|Regress|Rank(er|ing)|Rerank")


def read(source: Source):
    """The config of a causal language model, or of its body with labels, as transformers reads it.

    Raises:
        ValueError: if there is none; in one sentence.
    """
    name, given = source.base, source.config
    kind = given.get("model_type")
    if not isinstance(kind, str):
        raise ValueError(f"the config.json of {name!r} names no model_type: add it, such as 'llama'")
    if kind not in transformers.CONFIG_MAPPING:
        if given.get("auto_map"):
            raise ValueError(
                f"{name!r} is a {kind!r}, whose code is in the checkpoint (auto_map), and not run: load it "
                "in Python with trust_remote_code=True; lrp_fast.attribute explains it where rules cover its modules"
            )
        mend = f"a newer one may (this is {transformers.__version__}); otherwise correct the config.json of {name!r}"
        raise ValueError(f"transformers knows no model_type {kind!r}: {mend}")
    classes = given.get("architectures") or []
    if not isinstance(classes, str | list) or not all(isinstance(one, str) for one in classes):
        mend = "name the class of the weights, such as ['LlamaForCausalLM'], or leave it out"
        raise ValueError(f"the architectures in the config.json of {name!r} are no list of names: {mend}")
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # what a config does with values that make no sense is its own affair
        raise ValueError(f"transformers cannot read the config.json of {name!r}: {one_line(error)}") from error
    what = type(config).__name__
    if explained_class(config) is None:
        raise ValueError(f"transformers has no causal language model for {name!r}, a {what}: nothing to explain")
    return config


def loaded_class(config) -> str:
    """The class that is made of a config."""
    return explained_class(config).__name__


def declared(source: Source) -> list[str]:
    """The classes that config.json says the weights are of; none where it says nothing."""
    found = source.config.get("architectures") or []
    return [found] if isinstance(found, str) else found


def says_causal(source: Source, loaded: str) -> bool:
    """Whether config.json says that the weights are a causal language model's, whether or not transformers has it."""
    return any(_is_causal(name) or name == loaded for name in declared(source))


def foreign(source: Source, config) -> str | None:
    """The class in config.json's architectures that has another head, by what transformers knows of it or, of a class
    that it does not have, by its name; None if there is none, or a causal language model beside it."""
    if says_causal(source, loaded_class(config)):
        return None
    return next((name for name in declared(source) if _has_another_head(name)), None)


def _has_another_head(name: str) -> bool:
    if hasattr(transformers, name):
        return not _is_headless(name) and not _is_causal(name)
    return _ANOTHER.search(name) is not None


def _is_headless(name: str) -> bool:
    """A decoder alone, as `LlamaModel` is."""
    return name in auto.MODEL_MAPPING_NAMES.values()


def _is_causal(name: str) -> bool:
    """So is a language model that sees images."""
    if not hasattr(transformers, name) and _ANOTHER.search(name):
        return False  # RewardForCausalLM
    return _CAUSAL.search(name) is not None or name in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()

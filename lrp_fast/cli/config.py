"""What `plan` and `doctor` read: a config alone."""

from __future__ import annotations

import copy
import sys
import warnings

import torch
import transformers

from ..hf import explained_class
from . import kind
from .source import find, one_line


def read_config(name: str):
    """The config of a causal language model; what is not the same about its weights is said on stderr.

    Raises:
        ValueError: if there is none, or no model can be made of it; in one sentence.
    """
    transformers.utils.logging.set_verbosity_error()
    source = find(name)
    config = kind.read(source)
    if (flaw := _flaw(config)) is not None:
        raise ValueError(f"no model can be made of the config.json of {source.base!r}: {flaw}; correct it")
    told = "what follows is about"
    if source.adapters:
        print(f"{name} holds adapters of {source.base}: {told} that model without them", file=sys.stderr)
    if (other := kind.foreign(source, config)) is not None:
        loaded = kind.loaded_class(config)
        print(f"{source.base} is a {other}: {told} {loaded}, the language model of that architecture", file=sys.stderr)
    if getattr(config, "quantization_config", None) is not None:
        print(f"{source.base} is quantised: {told} the same model in floats", file=sys.stderr)
    return config


def _flaw(config) -> str | None:
    """Why no model of that config could run, where its numbers show it."""
    words = config.get_text_config()
    layers = getattr(words, "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        return f"it says num_hidden_layers={layers}, and a model runs 1 or more"
    heads = [getattr(words, name, None) for name in ("num_attention_heads", "num_key_value_heads")]
    if all(isinstance(one, int) and one > 0 for one in heads) and heads[0] % heads[1]:
        return f"its num_attention_heads={heads[0]} is no multiple of its num_key_value_heads={heads[1]}"
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # of what is found below
            model = explained_class(config)._from_config(copy.deepcopy(config))
    except Exception as error:  # what a model does with values that make no sense is its own affair
        return f"transformers says {type(error).__name__}, {one_line(error)}"
    empty = next((f"{path} {tuple(one.shape)}" for path, one in model.named_parameters() if not one.numel()), None)
    return None if empty is None else f"it leaves weights without numbers, {empty} first"

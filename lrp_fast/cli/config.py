"""What `plan` and `doctor` read: a config alone."""

from __future__ import annotations

import sys

import transformers

from . import kind
from .source import find


def read_config(name: str):
    """The config of a causal language model; what is not the same about its weights is said on stderr.

    Raises:
        ValueError: if there is none; in one sentence.
    """
    transformers.utils.logging.set_verbosity_error()
    source = find(name)
    config = kind.read(source)
    told = "what follows is about"
    if source.adapters:
        print(f"{name} holds adapters of {source.base}: {told} that model without them", file=sys.stderr)
    if (other := kind.foreign(source, config)) is not None:
        loaded = kind.loaded_class(config)
        print(f"{source.base} is a {other}: {told} {loaded}, the language model of that architecture", file=sys.stderr)
    if getattr(config, "quantization_config", None) is not None:
        print(f"{source.base} is quantised: {told} the same model in floats", file=sys.stderr)
    return config

"""Models and tokenizers, from a folder or the hub: whole, and what their folder says they are; otherwise refused."""

from __future__ import annotations

import argparse
import os
import sys

import torch
import transformers

from ..hf import explained_class
from . import adapters, kind, weights
from .source import Source, find, first_line, one_line

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def load(options: argparse.Namespace):
    """The model, on its device, and its tokenizer.

    Raises:
        ValueError: if there is none, or it is not what the checkpoint holds; in one sentence.
    """
    transformers.utils.logging.set_verbosity_error()  # what it reports is looked at here
    transformers.utils.logging.disable_progress_bar()
    device = read_device(options.device)
    source = find(options.model)
    config = kind.read(source)
    if source.adapters:
        config = adapters.check(source, config)
    if (other := kind.foreign(source, config)) is not None:
        raise ValueError(
            f"{source.base!r} is a {other} by its config.json, no causal language model: explaining it as one would "
            "explain a head that nobody trained; name the language model that it was made from"
        )
    tokenizer = _load_tokenizer(source)
    if source.config.get("auto_map"):
        print(
            f"{source.base} brings code of its own (auto_map), which is not run: transformers' "
            f"{kind.loaded_class(config)} is explained",
            file=sys.stderr,
        )
    try:
        model, loading = explained_class(config).from_pretrained(
            source.base,
            config=config,  # adapters may have changed it
            dtype=options.dtype or ("float32" if device.type == "cpu" else "auto"),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # otherwise transformers does not say which
        )
    except Exception as error:  # from a broken file to a package that its quantisation needs
        raise ValueError(f"cannot load {source.base!r}: {first_line(error)}") from error
    weights.check(model, loading, source)
    if source.adapters:
        model = adapters.attach(model, source)
    return model.to(device).eval(), tokenizer


def read_device(name: str) -> torch.device:
    mend = "name cpu or a CUDA device, such as cuda or cuda:1"
    try:
        device = torch.device(name)
        if device.type in ("cpu", "cuda"):
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {first_line(error).rstrip('.')}; {mend}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name} cannot be used: lrp-fast computes on none of that kind; {mend}")
    return device


def _load_tokenizer(source: Source):
    """The adapters' own, where they have one: its vocabulary may be larger."""
    name = source.name if source.file("tokenizer_config.json") or source.file("tokenizer.json") else source.base
    mend = "copy tokenizer.json and tokenizer_config.json there from the model that it was made from"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # every class of tokenizers has failures of its own
        if "custom code" in str(error):
            raise ValueError(
                f"the tokenizer of {name!r} is code in the checkpoint (auto_map), and not run: load it in "
                "Python with trust_remote_code=True, and hand it to lrp_fast.attribute with the model"
            ) from error
        if os.path.isdir(name) and not any(map(source.file, _VOCABULARIES)):
            raise ValueError(f"{name!r} has no tokenizer: {mend}") from error
        raise ValueError(f"the tokenizer in {name!r} cannot be loaded: {one_line(error)}") from error
    if not set(tokenizer.get_vocab()) - set(getattr(tokenizer, "added_tokens_encoder", ())):
        # Where no file says what its tokens are, transformers makes one of special tokens alone.
        raise ValueError(f"{name!r} has no tokenizer: {mend}")
    return tokenizer

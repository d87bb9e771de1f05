"""Models, tokenizers and configs, from a folder or the hub."""

from __future__ import annotations

import argparse
import sys

from safetensors import SafetensorError


def load(transformers, options: argparse.Namespace):
    import torch

    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}") from error
    dtype = options.dtype or ("float32" if device.type == "cpu" else "auto")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            options.model, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot load {options.model!r}: {why}") from error
    incomplete = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if incomplete:  # transformers fills these with random numbers
        raise ValueError(
            f"the weights in {options.model!r} lack {len(incomplete)} that the model has, {incomplete[0]} first: "
            "explaining random weights helps nobody; complete the checkpoint"
        )
    return model.to(device).eval(), tokenizer


def read_config(transformers, options: argparse.Namespace):
    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(options.model)
    except (OSError, ValueError, KeyError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot read the config of {options.model!r}: {why}") from error
    if getattr(config, "quantization_config", None) is not None:
        print(f"{options.model} is quantised: what follows is about the same model in floats", file=sys.stderr)
    return config

"""Adapters that peft saved, and that lie in a folder of their own."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from .source import Source, one_line


def check(source: Source) -> None:
    """Before the base model is loaded for them.

    Raises:
        ValueError: if peft is not there, or they are of a model with another head.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{source.name!r} holds adapters, which peft reads: pip install peft, or merge them into their base model"
        ) from error
    task = json.loads(Path(source.file("adapter_config.json")).read_text("utf-8")).get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"the adapters in {source.name!r} are of task_type {task}, no causal language model's: explaining them as "
            "one would explain a head that nobody trained; name adapters of a language model, or their base model"
        )


def attach(model, source: Source):
    """The model with the adapters, as `peft.PeftModel.from_pretrained` would."""
    import peft

    print(f"{source.name} holds adapters of {source.base}: explained with them", file=sys.stderr)
    try:
        with warnings.catch_warnings(action="ignore"):  # what it finds missing is looked at here
            wrapped = peft.PeftModelForCausalLM(model, peft.PeftConfig.from_pretrained(source.name))
            loaded = wrapped.load_adapter(source.name, "default")
    except Exception as error:  # each kind of adapters has failures of its own
        why = f"cannot load the adapters in {source.name!r} onto {source.base!r}: {one_line(error)}"
        raise ValueError(why) from error
    whose = f"the adapters in {source.name!r}"
    if wrapped.active_peft_config.is_prompt_learning:
        kind = wrapped.active_peft_config.peft_type.value
        raise ValueError(f"{whose} are {kind}, tokens that no text has: name LoRA adapters, or the base model")
    if missing := sorted(loaded.missing_keys):
        raise ValueError(f"{whose} lack {len(missing)} of their weights, {missing[0]} first: complete them")
    if left := sorted(loaded.unexpected_keys):
        several = f"{len(left)} weight{'s' * (len(left) != 1)}"
        raise ValueError(f"{whose} hold {several} that their config leaves no place for, {left[0]} first: correct it")
    model.config.name_or_path = source.name
    return wrapped

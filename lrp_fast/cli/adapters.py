"""Adapters that peft saved, and that lie in a folder of their own."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import transformers
from safetensors import safe_open

from ..hf import explained_class, makes_labels
from .source import Source, one_line

_TASKS = {  # peft's class, and the head that such adapters are of
    None: ("PeftModelForCausalLM", None),
    "CAUSAL_LM": ("PeftModelForCausalLM", None),
    "SEQ_CLS": ("PeftModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"),
    "TOKEN_CLS": ("PeftModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"),
}


def check(source: Source, config):
    """Before the base model is loaded for them: its config, with the head of labels that adapters bring along.

    Raises:
        ValueError: if peft is not there, or they are of a model with another head.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{source.name!r} holds adapters, which peft reads: pip install peft, or merge them into their base model"
        ) from error
    task = _task(source)
    models = getattr(transformers, _TASKS.get(task, (None, None))[1] or "", {})
    if task not in _TASKS or (_TASKS[task][1] is not None and type(config) not in models):
        raise ValueError(
            f"the adapters in {source.name!r} are of task_type {task}, no causal language model's: explaining them as "
            "one would explain a head that nobody trained; name adapters of a language model, or their base model"
        )
    name = explained_class(config).__name__
    if _TASKS[task][1] is None and makes_labels(explained_class(config)):
        raise ValueError(
            f"the adapters in {source.name!r} are of task_type {task}, and their base model {source.base!r} is a "
            f"{name}: name adapters of that head"
        )
    if _TASKS[task][1] is None:
        return config
    if models[type(config)].__name__ != name:  # their base model has no such head
        labels = _labels(source)
        if labels == 0:
            raise ValueError(
                f"the adapters in {source.name!r} are of task_type {task} and hold no head, nor has their base model "
                f"{source.base!r} one: explaining them would explain a head that nobody trained; complete them"
            )
        config.num_labels = labels or config.num_labels
        config.architectures = [models[type(config)].__name__]
    return config


def _task(source: Source) -> str | None:
    return json.loads(Path(source.file("adapter_config.json")).read_text("utf-8")).get("task_type")


def _labels(source: Source) -> int | None:
    """Rows of the head that lies with the adapters, 0 where none does; None where pickles would tell."""
    file = source.file("adapter_model.safetensors")
    if file is None:
        return None
    with safe_open(file, framework="pt") as opened:
        heads = [key for key in opened.keys() if key.endswith(("score.weight", "classifier.weight"))]  # noqa: SIM118
        return opened.get_slice(heads[0]).get_shape()[0] if heads else 0


def attach(model, source: Source):
    """The model with the adapters, as `peft.PeftModel.from_pretrained` would."""
    import peft

    print(f"{source.name} holds adapters of {source.base}: explained with them", file=sys.stderr)
    try:
        with warnings.catch_warnings(action="ignore"):  # what it finds missing is looked at here
            wrapped = getattr(peft, _TASKS[_task(source)][0])(model, peft.PeftConfig.from_pretrained(source.name))
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

"""Whether the model that transformers made is the one that the checkpoint holds: no weight missing, none left over."""

from __future__ import annotations

import re
import sys

from safetensors import safe_open
from torch import nn

from ..hf import has_labels, head_of
from . import kind
from .source import Source

# What models compute for themselves, and older ones saved: rotations, positions, the masks of GPT-2 and GPT-NeoX.
_COMPUTED = re.compile(r"(^|\.)((original_)?inv_freq|(cos|sin)_cached|position_ids|(attn|attention)\.(masked_)?bias)$")
# Parts of a larger model that a token of a text does not pass.
_BESIDE = re.compile(r"vision|visual|image|audio|speech|video|modal|projector|connect|resampler|talker|mtp|medusa")
_OF_PAIRS = re.compile(r"(^|\.)(pooler|seq_relationship)\.")  # what an encoder says of two sentences, or pools them by
_DECODER = re.compile(r"layers?$|blocks?$|^h$|norm|^ln|embed|^wte$|^wpe$|rotary")  # what parts of a decoder are called
_ADAPTER = re.compile(r"(^|\.)(lora_|ia3_|base_layer\.|adapter|base_model\.)")
_SCALE = re.compile(r"scale|zero|g_idx|absmax|quant|SCB|[:.]qdata$|amax")


def check(model, loading: dict, source: Source) -> None:
    """Refuse a model that is not the checkpoint's; say on stderr what of the checkpoint is beside the language model.

    Args:
        loading: what `from_pretrained` tells with output_loading_info and ignore_mismatched_sizes.

    Raises:
        ValueError: in one sentence.
    """
    name = source.base
    missing = sorted(map(str, loading["missing_keys"]))
    left = sorted(key for key in map(str, loading["unexpected_keys"]) if not _COMPUTED.search(key))
    if wrong := sorted(loading["mismatched_keys"]):
        key, there, asked = wrong[0]
        mend = _otherwise_written(left) or "correct the config"
        raise ValueError(
            f"{len(wrong)} of the weights in {name!r} have another shape than its config.json asks for, {key} first: "
            f"{tuple(there)} in the checkpoint, {tuple(asked)} by the config; {mend}"
        )
    if source.adapters and has_labels(model):  # they bring its head, or are refused for that
        missing = sorted(set(missing) - _head(model))
    if missing:
        if set(missing) <= _head(model):
            raise ValueError(
                f"{name!r} has no head ({missing[0]}): explaining it would explain a head that nobody trained; "
                f"name a checkpoint of the whole {type(model).__name__}"
            )
        more = f", and hold {len(left)} that it has no place for, {left[0]} first" if left else ""
        mend = _otherwise_written(left) or _renamed(missing, left, model) or "complete the checkpoint"
        raise ValueError(
            f"the weights in {name!r} lack {len(missing)} that the model has, {missing[0]} first{more}: "
            f"explaining random weights helps nobody; {mend}"
        )
    if whole := _not_in_floats(model, loading, source):
        raise ValueError(
            f"{name!r} holds {_several(whole)} in whole numbers, {whole[0]} first, and no quantization_config in its "
            "config.json says what they stand for: put that back, or name the model in floats that it was made from"
        )
    if inside := [key for key in left if _is_inside(key, model)]:
        raise ValueError(
            f"{name!r} holds {_several(inside)} that its config.json leaves no place for, {inside[0]} first: what "
            f"would be explained is not this checkpoint; {_mend(inside[0], model)}"
        )
    heads = [key for key in left if not _BESIDE.search(key)]
    if heads and _is_tied(model) and not kind.says_causal(source, type(model).__name__):
        raise ValueError(
            f"{name!r} has a head of its own ({heads[0]}), and none of a language model: explaining it as one would "
            "explain a head that nobody trained; name the language model that it was made from"
        )
    if left:
        print(f"{name} holds {_several(left)} beside the language model, {left[0]} first: left out", file=sys.stderr)
    declared = kind.declared(source)
    if declared and type(model).__name__ not in declared:
        head = ", whose head is the embeddings" if _is_tied(model) else ""
        print(f"{name} is a {declared[0]} by its config: explained as a {type(model).__name__}{head}", file=sys.stderr)


def _several(keys: list) -> str:
    return f"{len(keys)} weight{'s' * (len(keys) != 1)}"


def _not_in_floats(model, loading: dict, source: Source) -> list[str]:
    """The weights that transformers would have cast to floats as the numbers that they are."""
    if getattr(model.config, "quantization_config", None) is not None:
        return []
    whole = {key for path in source.weight_files() for key in _in_whole_numbers(path)}
    own = {key for key, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    return sorted(key for key in whole - own - set(loading["unexpected_keys"]) if not _COMPUTED.search(key))


def _in_whole_numbers(file: str) -> list[str]:
    """The names of a file's tensors that are no floats, without reading those."""
    if not file.endswith(".safetensors"):
        return []  # pickled: transformers reads it, nobody here does
    with safe_open(file, framework="pt") as opened:
        kinds = {key: opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118 (it is no dict)
    return [key for key, kind in kinds.items() if not kind.startswith(("F", "BF"))]


def _head(model) -> set[str]:
    """The names of the weights of a model's head."""
    head = head_of(model).module
    names = {path for path, part in model.named_modules() if part is head}
    return {f"{path}.{weight}" for path in names for weight, _ in head.named_parameters()}


def _is_tied(model) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _is_inside(key: str, model) -> bool:
    """Whether a weight would have to be on a token's way through the language model, though nothing there takes it."""
    if _ADAPTER.search(key):
        return True
    if _OF_PAIRS.search(key):
        return False
    starts = (model, model.base_model)  # a decoder that was saved alone has names that begin there
    below, owner, part = max((_walk(key, start) for start in starts), key=lambda walked: walked[0])
    if isinstance(owner, nn.ModuleList):  # a layer more than there are: maybe one that predicts a token further on
        ahead = getattr(model.config, "num_nextn_predict_layers", None) or 0
        return not (part.isdigit() and int(part) < len(owner) + ahead)
    if below == 0:
        return _DECODER.search(part) is not None and not _BESIDE.search(part)
    return owner is not model.base_model or not _BESIDE.search(part)


def _walk(key: str, module: nn.Module) -> tuple[int, nn.Module, str]:
    """How many parts of a weight's name lead to modules, the last of them, and the part that leads nowhere."""
    parts = key.split(".")
    for below, part in enumerate(parts):
        if not hasattr(module, "_modules") or module._modules.get(part) is None:
            return below, module, part
        module = module._modules[part]
    return len(parts), module, ""


def _otherwise_written(left: list[str]) -> str | None:
    """What to do about a checkpoint of something around the model: adapters, quantised weights."""
    if any(_ADAPTER.search(key) for key in left):
        return "merge its adapters (peft's merge_and_unload), or name the folder that peft saved them to"
    if any(_SCALE.search(key.rpartition(".")[2]) for key in left):
        return "put the quantization_config that it was written with back into its config.json"
    return None


def _renamed(missing: list[str], left: list[str], model) -> str | None:
    """What to do where a wrapper, such as a compiled model, put the same word before all names."""
    twice = _head(model) if _is_tied(model) else ()  # its file holds them as the embeddings alone
    names = [key for key in missing if key not in twice]
    prefix = next((key.removesuffix(name) for name in names[:1] for key in left if key.endswith("." + name)), None)
    if prefix is None or not {prefix + key for key in names} <= set(left):
        return None
    return f"take {prefix!r} off the names of its weights"


def _mend(key: str, model) -> str:
    if told := _otherwise_written([key]):
        return told
    config = model.config
    layer = re.search(r"(?:layers|h|blocks)\.(\d+)\.", key)
    if layer and int(layer[1]) >= config.num_hidden_layers:
        return f"its config.json says num_hidden_layers={config.num_hidden_layers}: correct it"
    word = "bias" if key.endswith("bias") else next((one for one in ("norm", "cross") if one in key), None)
    flags = [name for name, value in config.to_dict().items() if word and word in name and value is False]
    told = ", ".join([f"model_type {config.model_type!r}", *(f"{name}=false" for name in flags)])
    return f"its config.json says {told}: correct what these weights contradict"

"""Where a model comes from: a folder, a name on the hub, or adapters and the base model that they name."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants, errors, hf_hub_download
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import validate_repo_id


class Source(NamedTuple):
    """What `find` found."""

    name: str  # as it was given
    base: str  # whose config.json and weights are meant: `name`, or the base model of its adapters
    config: dict  # what that config.json holds
    adapters: bool  # whether `name` holds adapters of peft

    def file(self, filename: str) -> str | None:
        """The path of one of `name`'s own files; None if there is none."""
        return _file(self.name, filename)

    def weight_files(self) -> list[str]:
        """The paths of `base`'s weights, safetensors files before pickles, as transformers looks for them."""
        for whole in ("model.safetensors", "pytorch_model.bin"):
            if (path := _file(self.base, whole)) is not None:
                return [path]
            if (index := _file(self.base, f"{whole}.index.json")) is not None:
                names = sorted(set(_read(index, self.base, "index")["weight_map"].values()))
                return [path for path in (_file(self.base, name) for name in names) if path is not None]
        return []


def find(name: str) -> Source:
    """A model's config and, where ``name`` holds adapters, its base model's. No weights are read.

    Raises:
        ValueError: if there is none, or none that can be reached; in one sentence.
    """
    config, adapters = _file(name, "config.json"), _file(name, "adapter_config.json")
    if adapters is not None:
        if config is not None and _has_weights(name):  # without them, a trainer has copied the base model's config
            raise ValueError(
                f"{name!r} holds a whole model and adapters: move adapter_config.json and the adapters' weights to a "
                f"folder of their own, where base_model_name_or_path names {name!r}"
            )
        return Source(name, *_base(name, adapters), True)
    if config is None:
        raise ValueError(_without_config(name))
    return Source(name, name, _read(config, name), False)


def _base(name: str, adapters: str) -> tuple[str, dict]:
    base = _read(adapters, name, "adapter_config.json").get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ValueError(f"the adapter_config.json of {name!r} names no base model: let base_model_name_or_path do so")
    try:
        config = _file(base, "config.json")
        if _file(base, "adapter_config.json") is not None:
            raise ValueError(f"{base!r} holds adapters itself")
        if config is None:
            raise ValueError(_without_config(base))
        return base, _read(config, base)
    except ValueError as error:
        mend = "let base_model_name_or_path in its adapter_config.json name it (a relative path starts where you are)"
        raise ValueError(f"{name!r} holds adapters, and their base model is not to be had: {error}; {mend}") from error


def _has_weights(name: str) -> bool:
    """Whether more than adapters lies in a folder. On the hub, whatever has adapters is adapters to transformers."""
    return any(any(Path(name).glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*.bin"))


def _read(file: str, name: str, what: str = "config.json") -> dict:
    try:
        found = json.loads(Path(file).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"the {what} of {name!r} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"the {what} of {name!r} is no JSON object, and says nothing of a model")
    return found


def _file(name: str, filename: str) -> str | None:
    if os.path.isdir(name):
        path = os.path.join(name, filename)
        return path if os.path.isfile(path) else None
    if os.path.exists(name):
        raise ValueError(_not_a_folder(name))
    _refuse_what_is_no_name(name)
    hub_logging.set_verbosity_error()  # it counts its attempts aloud
    try:
        return hf_hub_download(name, filename)
    except errors.LocalEntryNotFoundError as error:
        if filename != "config.json":  # the cache has the model, and not this
            return None
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ValueError(f"{name!r} is no folder here, nor in the hub's cache, and {why}: name a folder") from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        mend = f"ask for access at https://huggingface.co/{name}, then log in with `hf auth login`"
        raise ValueError(f"{name!r} is open only to those whom its owners admit: {mend}") from error
    except errors.RepositoryNotFoundError as error:
        mend = "if it is private, log in with `hf auth login`"
        raise ValueError(f"{name!r} is neither a folder here nor a name on the hub; {mend}") from error
    except OSError as error:
        raise ValueError(f"{name!r} cannot be had from the hub: {first_line(error)}") from error


def _refuse_what_is_no_name(name: str) -> None:
    try:
        validate_repo_id(name)
    except errors.HFValidationError as error:
        mend = "; the shell alone reads ~" if name.startswith("~") else ""
        raise ValueError(f"{name!r} is neither a folder here nor a name on the hub{mend}") from error


def _not_a_folder(name: str) -> str:
    folder, file = os.path.split(os.path.abspath(name))
    folder = os.path.dirname(name) or "."
    if file.endswith(".gguf"):
        return (
            f"{name!r} is a GGUF file, which lrp-fast does not read: name the folder that it was made from, or hand "
            "lrp_fast.attribute, in Python, what AutoModelForCausalLM and AutoTokenizer make of it, by "
            f"from_pretrained({folder!r}, gguf_file={file!r})"
        )
    if os.path.isfile(os.path.join(folder, "config.json")):
        return f"{name!r} is a file: name the folder that it lies in, {folder!r}"
    return f"{name!r} is a file: name a folder that holds it beside its config.json and its tokenizer's files"


def _without_config(name: str) -> str:
    here = f"there is no config.json in {name!r}"
    if not os.path.isdir(name):
        return f"{here}: it is no model of transformers"
    below = sorted(path.parent for depth in ("*", "snapshots/*") for path in Path(name).glob(f"{depth}/config.json"))
    adapted = sorted(path.parent for path in Path(name).glob("*/adapter_config.json"))
    if below or adapted:
        return f"{here}: name the folder below it that is meant, such as {str((below or adapted)[-1])!r}"
    file = next(iter(sorted(Path(name).glob("*.gguf"))), None)
    if file is not None:
        return f"{here}, and {_not_a_folder(str(file))}"
    return f"{here}: copy that of the model whose weights these are, or name a folder that `save_pretrained` wrote"


def first_line(error: Exception) -> str:
    """Of what foreign code says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: Exception) -> str:
    """More of it, where the first line alone says little."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__

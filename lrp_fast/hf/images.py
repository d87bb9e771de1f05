"""Images before a language model: their embeddings, which the parts beside it make, are its input like any token's."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from . import forms, wrappers
from .attention import Until
from .families import at_rest, handled
from .overlay import forward_name, forward_of, laid
from .walk import without_adapters
from .weights import device_of

# Of `wrappers.WRAPPERS`, those whose images are held against an oracle in tests/hf/test_images.py: they put an image's
# embeddings in the places of its tokens, and read these causally but for `_BOTH_WAYS`.
TAKEN = {
    "aya_vision", "cohere2_vision", "deepseek_vl", "exaone4_5", "gemma3", "gemma4", "got_ocr2", "idefics2",
    "idefics3", "internvl", "janus", "lighton_ocr", "llama4", "llava", "llava_next", "llava_onevision", "mistral3",
    "qianfan_ocr", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm", "vipllava",
}  # fmt: skip
_IN_TILES = ("aya_vision", "cohere2_vision", "idefics2", "idefics3", "llama4", "smolvlm")
# Of others, what they do.
_WHY = dict.fromkeys(("gemma3", "gemma4", "gemma4_unified"), "reads the tokens of an image in both directions")
TYPES = "mm_token_type_ids"
# Within an image, which tokens of these types next to each other are, a token reads those behind it too.
_BOTH_WAYS = {"gemma3": "token_type_ids", "gemma4": TYPES}
_MASKS = {  # the forms of what makes them so, as somebody has read it
    "gemma3": {"create_masks_for_vision_model": "768e67c9f840", "get_block_sequence_ids_for_mask": "6a141094afa4"},
    "gemma4": {"create_masks_for_vision_model": "9a782caea4e6", "get_block_sequence_ids_for_mask": "b175912004bc"},
}
_PLACES = ("image_grid_thw", "image_position_ids")
_OF_ANY = (TYPES, "token_type_ids")  # processors tell it of every prompt, though not all models ask
# What a model keeps of the images it was shown.
_KEPT = ("rope_deltas",)


def check_images(model: nn.Module, images: dict[str, Tensor], ids: Tensor) -> str:
    """Whether ``model`` can be shown these images, as `lrp_fast.images` reads them, with its (N,) token ids.

    Returns:
        What the reader of a result has to know of where relevance ends.

    Raises:
        ValueError: one sentence, if it cannot.
    """
    core = without_adapters(model)
    name, home = type(core).__name__, _home(model)
    if home not in wrappers.WRAPPERS:
        raise ValueError(f"pixel_values came with the prompt, and {name} reads text alone: leave them out")
    if home not in TAKEN or (home in _BOTH_WAYS and not _makes_masks_as_known(model)):
        does = _WHY.get(home, "reads images in a way of its own")
        raise ValueError(f"{name} {does}, which lrp_fast has no rule for: leave pixel_values out, and give text alone")
    known = inspect.signature(inspect.unwrap(type(core).forward)).parameters
    others = [one for one in images if one not in known and one not in _OF_ANY]
    if others:
        raise ValueError(f"{others[0]} came with the prompt, and {name} knows nothing of such: leave it out")
    if not (ids == image_token(model)).any():
        raise ValueError(
            f"pixel_values came with the prompt, and none of its tokens is {image_token(model)}, where {name} reads an "
            "image: write the image into the prompt, as the processor does"
        )
    kind = _BOTH_WAYS.get(home, TYPES)
    types = images.get(kind)
    here = (ids == image_token(model)).cpu()
    if kind in known and types is not None and not torch.equal(types[0].cpu(), here.to(types.dtype)):
        raise ValueError(
            f"{kind} came with the prompt, and are not 1 at the tokens that are {image_token(model)}, where {name} "
            "reads an image, and 0 at all others: give what the processor returns"
        )
    told = {kind: "tells the places of an image's tokens from those of text"}
    told |= dict.fromkeys(_PLACES, "tells where in an image its patches are")
    for one, does in told.items():
        if one in known and one not in images:
            raise ValueError(
                f"pixel_values came with the prompt, and no {one}, by which {name} {does}: give all that the processor "
                "returns"
            )
    parts = ", ".join(path for path, _ in at_rest(model))
    further_up = (
        " What the first decoder layers add of an image to its hidden states is counted with its tokens at the input, "
        "and at no layer in between."
    )
    return (
        "The images are read as embeddings in their tokens' places, where their relevance ends: what makes these "
        f"({parts}) is left out.{further_up if _adding(model) else ''}"
    )


def image_token(model: nn.Module) -> int:
    """In whose place an image's embeddings are read."""
    return without_adapters(model).config.image_token_id


def in_tiles(model: nn.Module) -> bool:
    """Whether an image is given to it in parts, which stand apart among the tokens as images do."""
    return _home(model) in _IN_TILES


def reads_images_both_ways(model: nn.Module) -> bool:
    """Whether a token of an image reads those of the same image that stand behind it."""
    return bool(_layers_both_ways(model))


def _layers_both_ways(model: nn.Module) -> set[str]:
    """In which of its config's kinds of layers: Gemma 4's larger models in those with a window, its smaller in none."""
    home, text = _home(model), without_adapters(model).config.get_text_config()
    if home == "gemma4":
        return {"sliding_attention"} if text.use_bidirectional_attention == "vision" else set()
    return set(text.layer_types) if home in _BOTH_WAYS else set()


def _makes_masks_as_known(model: nn.Module) -> bool:
    """Whether its code that makes masks of images, which `_until` stands in for, is that which somebody has read."""
    there = vars(sys.modules[type(without_adapters(model)).__module__])
    return all(one in there and forms.form(there[one]) == form for one, form in _MASKS[_home(model)].items())


def _home(model: nn.Module) -> str:
    return ("." + type(without_adapters(model)).__module__).split(".")[-2]


def _until(types: Tensor) -> Tensor:
    """(B, N) one past the last token that each reads, of types (B, N): a run of types other than 0 is an image."""
    own = torch.arange(1, types.shape[1] + 1, device=types.device)
    last = (types != 0) & torch.nn.functional.pad(types == 0, (0, 1), value=True)[:, 1:]
    ends = torch.where(last, own, types.shape[1]).flip(1).cummin(1).values.flip(1)
    return torch.where(types != 0, ends, own)


def check_images_edges(model: nn.Module) -> None:
    """Raise ``ValueError`` where edges from layer to layer are not all that comes of an image."""
    if _adding(model):
        raise ValueError(
            f"{type(without_adapters(model)).__name__} adds features of an image to its hidden states between decoder "
            "layers, and lrp_fast has no edges for them: leave the graph out"
        )


class Shown(NamedTuple):
    """Images before a model.

    Attributes:
        given: what it is given with the token ids.
        added: of a decoder layer that has run, (B, N, D) features of images that what it puts out holds besides.
    """

    given: dict[str, Tensor]
    added: dict[nn.Module, Tensor]


@contextmanager
def showing(model: nn.Module, images: dict[str, Tensor]) -> Iterator[Shown]:
    """Within the block, a patched ``model`` makes embeddings of images as it does unpatched, without autograd; what it
    keeps of them is gone with the block. What it would add between two decoder layers is a part of the first one's."""
    if not images:
        yield Shown({}, {})
        return
    held = [module for _, module, handler in handled(model) if handler in wrappers.HANDLERS]
    overlays = [(one, name, _Plain(part, name)) for one in held for name, part in wrappers.beside(one)]
    overlays += [(one, name, one.__dict__[name]) for one in held for name in _KEPT if name in one.__dict__]
    added: dict[nn.Module, Tensor] = {}
    for text in _adding(model):
        overlays.append((text, forward_name(text), _noting(text, added)))
        overlays += [(layer, forward_name(layer), _with_added(layer, added)) for layer in text.layers]
    weights = (weight for _, part in at_rest(model) for weight in part.parameters())
    dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), model.dtype)
    device = device_of(model.get_input_embeddings())
    known = inspect.signature(inspect.unwrap(type(without_adapters(model)).forward)).parameters
    with laid(overlays):
        given = {name: one for name, one in images.items() if name in known}
        types = given.pop(_BOTH_WAYS.get(_home(model)), None)
        given = {name: one.to(device, dtype if one.is_floating_point() else one.dtype) for name, one in given.items()}
        if types is not None:  # in place of the masks that their own code makes of them
            until, both = Until(_until(types.to(device))), _layers_both_ways(model)
            kinds = model.config.get_text_config().layer_types
            given["attention_mask"] = {kind: until if kind in both else None for kind in kinds}
        yield Shown(given, added)


def _adding(model: nn.Module) -> list[nn.Module]:
    """Its language model, if that adds features of images between layers (DeepStack, arXiv 2406.04334)."""
    return [module for _, module, _ in handled(model) if hasattr(type(module), "_deepstack_process")]


def _noting(text: nn.Module, added: dict[nn.Module, Tensor]) -> Callable:
    """Its forward pass, which finds nothing to add itself."""
    own = forward_of(text)

    def forward(*args, inputs_embeds, visual_pos_masks=None, deepstack_visual_embeds=None, **named):
        for layer, features in zip(text.layers, deepstack_visual_embeds or (), strict=False):
            whole = torch.zeros_like(inputs_embeds)
            whole[visual_pos_masks] = features.to(whole.dtype)
            added[layer] = whole.detach()
        return own(*args, inputs_embeds=inputs_embeds, **named)

    return forward


def _with_added(layer: nn.Module, added: dict[nn.Module, Tensor]) -> Callable:
    own = forward_of(layer)

    def forward(*args, **named):
        out = own(*args, **named)
        return out + added[layer].to(out.device) if layer in added else out

    return forward


class _Plain:
    """A part that runs as it is."""

    def __init__(self, part: nn.Module, name: str) -> None:
        self._part, self._name = part, name

    def __call__(self, *args, **named):
        with torch.no_grad():
            out = self._part(*args, **named)
        made = [one for one in tree_leaves(out) if isinstance(one, Tensor) and one.is_floating_point()]
        for one in made:
            if not one.isfinite().all():
                mend = "load the model in float32 or bfloat16" if one.dtype == torch.float16 else "look at its weights"
                raise ValueError(f"{self._name!r} makes NaN or infinities of the images: {mend}")
        return out

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._part, name)

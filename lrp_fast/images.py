"""What a processor made of a prompt's images, besides the token ids: read, without a look at any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from .offsets import runs

# As transformers' processors call it. One number a token, of the kinds of tokens; the others are of the images.
TYPES = "mm_token_type_ids"
_OF_TOKENS = (TYPES, "token_type_ids")  # some processors call them so
NAMES = frozenset(
    [
        TYPES, "pixel_values", "image_grid_thw", "image_position_ids", "image_sizes", "pixel_attention_mask",
        "batch_num_images",
    ]  # fmt: skip
)


def read(given: Mapping, unpadded: Callable[[object], Tensor]) -> dict[str, Tensor]:
    """The tensors of one prompt's images by their names, empty where it has none.

    Args:
        given: what a tokenizer or a processor returned.
        unpadded: makes (N,) of one number a token.

    Raises:
        TypeError, ValueError: one sentence that names the culprit and the mend.
    """
    found = {name: given[name] for name in sorted(NAMES) if given.get(name) is not None}
    if "pixel_values" in found:
        found |= {name: given[name] for name in _OF_TOKENS if given.get(name) is not None}
    for name in found.keys() & _OF_TOKENS:
        found[name] = unpadded(found[name])[None]
    if found and "pixel_values" not in found:
        name = next((one for one in found if one != TYPES or found[one].any()), None)
        if name is not None:
            raise ValueError(f"{name} came with the prompt, and no pixel_values of images: give both, or leave it out")
        return {}
    for name, one in found.items():
        try:
            found[name] = torch.as_tensor(np.asarray(one) if isinstance(one, list | tuple) else one)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f'{name} is no array: call the processor with return_tensors="pt"') from error
        if found[name].device.type == "meta" or found[name].layout != torch.strided:
            raise TypeError(f"{name} holds no numbers, being of layout {found[name].layout} on {found[name].device}")
        if found[name].is_floating_point() and not found[name].isfinite().all():
            raise ValueError(f"{name} holds NaN or infinities: give the images as the processor makes them")
    return found


def places(images: dict[str, Tensor], ids: Tensor, token: int) -> list[tuple[int, int]] | None:
    """Where each image stands among (N,) ids: start, and one past the end, of its ``token`` again and again, and of
    what parts its rows. None where that is not told: in tiles, or side by side."""
    grids = next((images[name] for name in ("image_grid_thw", "image_sizes") if name in images), images["pixel_values"])
    here = runs(ids == token)
    rows: list[tuple[int, int]] = []
    for start, end in here:
        if rows and start == rows[-1][1] + 1:
            rows[-1] = (rows[-1][0], end)
        else:
            rows.append((start, end))
    return next((found for found in (here, rows) if len(found) == len(grids)), None)


def behind(images: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """Of a prompt with text behind it, ``length`` tokens in all."""
    types = {name: images[name] for name in _OF_TOKENS if name in images}
    return images | {name: torch.nn.functional.pad(one, (0, length - one.shape[1])) for name, one in types.items()}

"""Tokens masked until the preference flips.

The units are taken away one after the other, from the highest score to the lowest. ``flipped_at`` is after how many of
them the model first no longer prefers the target: logit(target) - logit(contrast) is 0 or below; without a contrast of
one token, another token's logit reaches the target's. ``share`` is that over U. Where it never flips, both are those
of all U, and ``flipped`` is 0 rather than 1.

Replacement: "zero". Fewer is better; a random ranking is the baseline. "Contrastive Attribution in the Wild" (arXiv
2604.17761) has figures of such a kind; its text was not at hand, so that what it lets stand in for a masked token, and
which tokens it masks, may differ from this."""

from __future__ import annotations

from torch import Tensor

from ..curves import removed
from ..scene import Scene

BETTER = {"flipped_at": "lower", "share": "lower", "flipped": "higher"}

_FIRST = 4  # prompts of the first batch; each later one has twice as many


def flip(scores: Tensor, scene: Scene, replacement: str = "zero") -> dict:
    """Raises ValueError for a prompt of which the model does not prefer the target."""
    if float(scene.whole().decision) <= 0:
        raise ValueError("the model does not prefer the target, whose preference could flip: leave the case out")
    keep = removed(scene.ranked(scores), scene.units)[1:]
    start, size = 0, _FIRST
    while start < len(keep):
        gone = (scene.read(keep[start : start + size], replacement).decision <= 0).nonzero()
        if len(gone):
            count = start + int(gone[0]) + 1
            return {"flipped_at": float(count), "share": count / scene.units, "flipped": 1.0}
        start, size = start + size, 2 * size
    return {"flipped_at": float(scene.units), "share": 1.0, "flipped": 0.0}

"""Rank agreement with leave-one-out.

The truth is what happens: of each unit by how much the preference falls without it alone. ``spearman`` is the
correlation of the ranks of scores and falls (equal ones share their mean rank), ``kendall`` is tau-b, both from -1 to
1, 0 for a random ranking on average, and NaN where all scores, or all falls, are equal. Leave-one-out is itself blind
to what the prompt says twice: full agreement with it is not full truth.

Replacement: "left out".
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..scene import Scene
from ..statistics import kendall, spearman

BETTER = {"spearman": "higher", "kendall": "higher"}


def agreement(scores: Tensor, scene: Scene, replacement: str = "left out") -> dict:
    without = ~torch.eye(scene.units, dtype=torch.bool)
    falls = (scene.whole().preference - scene.read(without, replacement).preference).numpy()
    own = scene.of_units(scores).numpy()
    return {"spearman": spearman(own, falls), "kendall": kendall(own, falls)}

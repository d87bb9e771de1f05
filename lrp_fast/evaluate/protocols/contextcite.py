"""Top-k log-probability drop and LDS, as in ContextCite (Cohen-Wang et al., arXiv 2409.00729).

``drop_k`` is by how much the target's log-probability falls without the k best units, k = 1, 3, 5 (all, where there
are fewer). ``lds``, the linear datamodeling score, is Spearman's correlation between that log-probability and the sum
of the scores of the units that are kept, over 32 random subsets in which each unit is kept with probability 1/2. The
subsets are drawn once a case, by its name and the seed: every method is judged by the same ones. (The paper correlates
the logit of the probability, which ranks as the log-probability does.) NaN where all sums, or all log-probabilities,
are equal.

Replacement: "left out".
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..scene import Scene
from ..statistics import spearman

BETTER = {"lds": "higher", "drop_1": "higher", "drop_3": "higher", "drop_5": "higher"}

COUNTS = (1, 3, 5)


def contextcite(scores: Tensor, scene: Scene, replacement: str = "left out", subsets: int = 32) -> dict:
    order = scene.ranked(scores)
    without = torch.ones(len(COUNTS), scene.units, dtype=torch.bool)
    for i, count in enumerate(COUNTS):
        without[i, order[:count]] = False
    drawn = torch.from_numpy(scene.drawn("contextcite").random((subsets, scene.units)) < 0.5)
    found = scene.read(torch.cat([without, drawn]), replacement).logprob
    drops = (scene.whole().logprob - found[: len(COUNTS)]).tolist()
    said = found[len(COUNTS) :].numpy()
    lds = spearman((drawn.double() @ scene.of_units(scores)).numpy(), said)
    return {"lds": lds} | {f"drop_{count}": drop for count, drop in zip(COUNTS, drops, strict=True)}

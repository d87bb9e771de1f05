"""Disrupt and recover, as in Dual Path Attribution (Jantsch et al., arXiv 2603.19742).

p is the target's probability, in percent of that of the whole prompt, and q = 10, 20 ... 100 % the share of units,
rounded up: ``disrupt`` is the area below p without the best q of the units, over q from 0 (where p is 100) to 1, lower
is better; ``recover`` the area below p of the best q alone, over q from 0.1 to 1, higher is better; ``total`` is
recover - disrupt. (The areas are those of the authors' code, as are the shares, those of its Known 1000; for long
prompts it takes others.)

Replacement: "zero", of the units alone: tokens in none of them stay, as do those outside of the context there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..curves import area
from ..scene import Scene

BETTER = {"total": "higher", "disrupt": "lower", "recover": "higher"}

SHARES = [i / 10 for i in range(1, 11)]


def disrupt_recover(scores: Tensor, scene: Scene, replacement: str = "zero") -> dict:
    order = scene.ranked(scores)
    without = torch.ones(len(SHARES), scene.units, dtype=torch.bool)
    for i, share in enumerate(SHARES):
        without[i, order[: math.ceil(share * scene.units - 1e-9)]] = False
    found = scene.read(torch.cat([without, ~without]), replacement).probability
    percent = (100 * found / scene.whole().probability).tolist()
    disrupted, recovered = [100.0, *percent[: len(SHARES)]], percent[len(SHARES) :]
    disrupt, recover = area(disrupted, [0.0, *SHARES]), area(recovered, SHARES)
    return {
        "total": recover - disrupt,
        "disrupt": disrupt,
        "recover": recover,
        "disrupt_curve": disrupted,
        "recover_curve": recovered,
    }

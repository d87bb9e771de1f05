"""Scores that know nothing of the model: what a method has to be better than."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...question import Question


@dataclass(frozen=True)
class Random:
    """Uniform numbers, the same for the same prompt and seed."""

    seed: int = 0

    def __call__(self, model, input_ids: Tensor, question: Question) -> Tensor:
        told = [self.seed, zlib.crc32(input_ids.cpu().numpy().tobytes())]
        return torch.from_numpy(np.random.default_rng(told).random(len(input_ids)))


@dataclass(frozen=True)
class Position:
    """A token's position: the later, the higher."""

    def __call__(self, model, input_ids: Tensor, question: Question) -> Tensor:
        return torch.arange(len(input_ids), dtype=torch.float64)

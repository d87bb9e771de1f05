"""A case as protocols see it: units that are kept or not, and what the model says then."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..attribution import Attribution
from ..rules import Rules
from .readings import FIELDS, Readings, readings
from .units import Span

WHOLE = ("whole",)  # what is known of the prompt as it is, whatever would stand in


@dataclass
class Scene:
    """One prompt and question, whose perturbations are run once for all methods and protocols.

    U units (tokens or spans of them) may be kept or not; a prompt's other tokens always stay.

    Attributes:
        name: of the case.
        length: N, the prompt's tokens.
        spans: of each unit where it begins and ends.
        run: called with (R, N) bool, True where a token is kept, and the replacement; what `readings.readings` takes.
        run_soft: called with (R, N) probabilities and R seeds: every entry of a token's embedding is kept with the
            token's probability, else zero.
        graph_by: called with rules: an `Attribution` with its graph.
        cut: called with ``what`` and ``replacement`` of `lrp_fast.ablate`: the change of the value.
        replacement: what stands in for tokens, whatever the protocol's own is; None: that.
        gold: (U,) bool, units that hold a token of the case's gold spans; None of a case without.
        rules: of the method that is judged, where it has some.
        seed: of what is drawn.
        known: of what was run, by its replacement and which units were kept.
        kept: what protocols keep of a case, by names of their own.
    """

    name: str
    length: int
    spans: list[Span]
    run: Callable[[Tensor, str], Tensor]
    run_soft: Callable[[Tensor, list[int]], Tensor] | None = None
    graph_by: Callable[[Rules], Attribution] | None = None
    cut: Callable[[Mapping, str], float] | None = None
    replacement: str | None = None
    gold: Tensor | None = None
    rules: Rules | None = None
    seed: int = 0
    known: dict[tuple, Tensor] = field(default_factory=dict)
    kept: dict = field(default_factory=dict)

    @property
    def units(self) -> int:
        return len(self.spans)

    def of_units(self, scores: Tensor) -> Tensor:
        """(U,) float64: (N,) scores of tokens added up over each unit.

        Raises:
            ValueError: for scores of another length, or that are not finite.
        """
        check_scores(scores, self.length)
        scores = torch.as_tensor(scores).detach().cpu().double()
        return torch.stack([scores[start:end].sum() for start, end in self.spans])

    def ranked(self, scores: Tensor) -> Tensor:
        """(U,) the units from the highest of (N,) scores to the lowest; of equal ones the first comes first."""
        return self.of_units(scores).argsort(descending=True, stable=True)

    def whole(self) -> Readings:
        """Of the prompt as it is, R = 1."""
        return self.read(torch.ones(1, self.units, dtype=torch.bool), "zero")

    def read(self, keep: Tensor, replacement: str) -> Readings:
        """What the model says to R prompts.

        Args:
            keep: (R, U) bool, True where a unit is kept.
            replacement: the protocol's own, which holds unless the scene has another.
        """
        replacement = self.replacement or replacement
        rows = [np.packbits(row).tobytes() for row in keep.numpy()]
        whole = keep.all(1).tolist()
        keys = [WHOLE if every else (replacement, row) for row, every in zip(rows, whole, strict=True)]
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        if new:
            chosen = list(new.values())
            self.known |= zip(new, self.run(self._tokens(keep[chosen], True), replacement), strict=True)
        return readings(torch.stack([self.known[key] for key in keys]) if keys else torch.zeros(0, FIELDS))

    def read_soft(self, probability: Tensor, seeds: list[int]) -> Readings:
        """What the model says to R prompts whose embeddings' entries are kept with (R, U) probabilities, else zero."""
        return readings(self.run_soft(self._tokens(probability, 1.0), seeds))

    def drawn(self, *names) -> np.random.Generator:
        """What draws for a purpose: the same for every method."""
        return np.random.default_rng([self.seed, *(zlib.crc32(str(one).encode()) for one in (self.name, *names))])

    def _tokens(self, of_units: Tensor, others) -> Tensor:
        """(R, U) as (R, N); ``others`` for tokens that are in no unit."""
        found = torch.full((len(of_units), self.length), others, dtype=of_units.dtype)
        for i, (start, end) in enumerate(self.spans):
            found[:, start:end] = of_units[:, i, None]
        return found


def check_scores(scores, length: int) -> None:
    """ValueError unless these are (N,) finite numbers."""
    shape = tuple(getattr(scores, "shape", ()))
    if shape != (length,):
        raise ValueError(f"the method gave scores of shape {shape} for a prompt of {length} tokens: give one a token")
    finite = torch.as_tensor(scores).isfinite()
    if not finite.all():
        where = int((~finite).nonzero()[0])
        raise ValueError(f"the method's scores hold NaN or infinities, the first at token {where}: nothing ranks them")

"""The one place that runs a model on perturbed prompts.

A row is a prompt of which some tokens are not kept. What stands in for them (``REPLACEMENTS``), as input embeddings:

- "pad": the embedding of the pad token: the tokenizer's, else the config's, else that of the end of sequence.
- "mask": the embedding of the tokenizer's mask token, which causal language models rarely have.
- "zero": zeros, as the model's embedding module puts them out.
- "mean": the mean of the prompt's own N embeddings, as in `lrp_fast.ablate`.
- "left out": nothing. The model reads the prompt without them, and what stands behind moves up; a prompt of which
  nothing is left is the pad token alone.

The logits are read behind the row's last token, of which alone the head makes any. Rows go in batches under a budget of
tokens; those whose first change comes late share the keys and values of what stands before it, which are computed once
a prompt, where the model has these and nothing else to carry (no state, no length that its rotations hang on).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..hf import (
    Prefix,
    carries_keys,
    decoder_layers,
    device_of,
    head_of,
    keeping_rotations,
    logits_behind,
    owned,
    padding_shows,
    prefix_of,
    prompts_meet,
)
from ..targets import check_finite
from ..tokenizer import Tokenizer

REPLACEMENTS = ("pad", "mask", "zero", "mean", "left out")

_TOKENS = {"cpu": 4096, "cuda": 65536}  # that go through the model at once
_HELD = 8  # times as many, those whose keys and values are shared included
_LOGITS = 32_000_000  # of a batch


class Batch(NamedTuple):
    """Rows that go together.

    Attributes:
        rows: their numbers.
        shared: how many tokens, from the first on, they have in common with the whole prompt, and do not compute.
        longest: tokens of the longest of them, the shared ones included.
    """

    rows: list[int]
    shared: int
    longest: int

    @property
    def tokens(self) -> int:
        return len(self.rows) * (self.longest - self.shared)


class Room(NamedTuple):
    """What a batch may be.

    Attributes:
        tokens: that are computed at once.
        rows: at most.
        shares: whether the tokens before the first change may be left to the whole prompt's keys and values.
        pads: whether rows of different lengths may go together.
    """

    tokens: int
    rows: int
    shares: bool
    pads: bool


def room_of(model: nn.Module) -> Room:
    """How rows may go through ``model``."""
    shows = padding_shows(model)
    tokens = _TOKENS.get(device_of(model.get_input_embeddings()).type, _TOKENS["cuda"])
    rows = 1 if prompts_meet(model) else max(1, _LOGITS // head_of(model).size)
    return Room(tokens, rows, not shows and carries_keys(model), not shows)


def batches(firsts: list[int], lengths: list[int], room: Room, prefix: int) -> list[Batch]:
    """Rows as batches.

    Args:
        firsts: of each row the first position that is changed; its length where none is.
        lengths: of each row its tokens.
        prefix: tokens that it takes to have something to share; 0 where that is there already.
    """
    apart = _batches(firsts, lengths, room._replace(shares=False))
    if not room.shares:
        return apart
    shared = _batches(firsts, lengths, room)
    return shared if sum(one.tokens for one in shared) + prefix < sum(one.tokens for one in apart) else apart


def cost(keep: Tensor, replacement: str, room: Room, prefix: int | None = None) -> int:
    """Tokens that the model is run on for rows ``keep`` (R, N), True where a token stays, without running it.

    Args:
        prefix: as of `batches`; N by default.
    """
    prefix = keep.shape[1] if prefix is None else prefix
    planned = batches(*_changes(keep, replacement), room, prefix)
    return sum(one.tokens for one in planned) + prefix * any(one.shared for one in planned)


class Prompt:
    """A prompt's embeddings, and what of it several rows share.

    Args:
        ids: (N,) token ids.
    """

    def __init__(self, model: nn.Module, ids: Tensor, tokenizer: Tokenizer | None = None) -> None:
        if any(getattr(layer, "hidden_size_per_layer_input", 0) for layer in decoder_layers(model)):
            raise ValueError(
                f"{type(model).__name__} looks tokens up a second time, for every layer (per-layer embeddings), which "
                "would stay: evaluate cannot perturb its prompts"
            )
        self.model, self.tokenizer, self.room = model, tokenizer, room_of(model)
        self.embedded = self._embed(ids)
        self._prefix: Prefix | None = None

    def read(self, keep: Tensor, replacement: str, of_logits: Callable[[Tensor], Tensor]) -> Tensor:
        """(R, K) float64 on the CPU: ``of_logits`` of the (r, V) last logits of each batch of rows, float32 or wider.

        Args:
            keep: (R, N) bool, True where a token stays.
            replacement: what stands in for the others.
        """
        check_replacement(replacement)
        firsts, lengths = _changes(keep, replacement)
        if replacement == "left out":
            pad = self._pad()[None] if not keep.any(1).all() else None
            return self.read_rows(
                lambda row: self.embedded[keep[row].to(self.embedded.device)] if keep[row].any() else pad,
                firsts, lengths, of_logits,
            )  # fmt: skip
        other = self._stand_in(replacement)
        kept = keep.to(self.embedded.device)[..., None]
        return self.read_rows(lambda row: torch.where(kept[row], self.embedded, other), firsts, lengths, of_logits)

    def read_soft(self, kept: Callable[[int], Tensor], count: int, of_logits: Callable[[Tensor], Tensor]) -> Tensor:
        """As `read`, of ``count`` rows whose embeddings are the prompt's times ``kept(row)``, (N, D) or (N, 1)."""
        length = len(self.embedded)
        return self.read_rows(
            lambda row: self.embedded * kept(row).to(self.embedded), [0] * count, [length] * count, of_logits
        )

    def read_rows(
        self,
        row: Callable[[int], Tensor],
        firsts: list[int],
        lengths: list[int],
        of_logits: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """As `read`, of rows that are (T, D) embeddings each; ``firsts`` and ``lengths`` as of `batches`.

        Raises:
            ValueError: for logits that hold NaN.
        """
        found: dict[int, Tensor] = {}
        with self._running():
            for batch in self._planned(firsts, lengths):
                logits = logits_behind(self.model, [row(one) for one in batch.rows], batch.shared, self._prefix)
                check_finite(logits)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                found |= zip(batch.rows, of_logits(logits).double().cpu(), strict=True)
        return torch.stack([found[one] for one in range(len(firsts))])

    def _planned(self, firsts: list[int], lengths: list[int]) -> list[Batch]:
        length = len(self.embedded)
        planned = batches(firsts, lengths, self.room, length if self._prefix is None else 0)
        if self._prefix is None and any(one.shared for one in planned):
            self._prefix = prefix_of(self.model, self.embedded)
            if self._prefix is None:
                self.room = self.room._replace(shares=False)
                planned = batches(firsts, lengths, self.room, length)
        return planned

    def _embed(self, ids: Tensor) -> Tensor:
        table = self.model.get_input_embeddings()
        with torch.inference_mode(False), torch.no_grad():
            return table(ids.to(device_of(table))[None])[0].detach()

    def _stand_in(self, replacement: str) -> Tensor:
        """(D,)"""
        match replacement:
            case "zero":
                return torch.zeros_like(self.embedded[0])
            case "mean":
                wide = torch.promote_types(self.embedded.dtype, torch.float32)
                return self.embedded.mean(0, dtype=wide).to(self.embedded)
            case "pad":
                return self._pad()
        mask = None if self.tokenizer is None else self.tokenizer.id_of("mask")
        if mask is None:
            raise ValueError(
                "the tokenizer has no mask token, or none was given: choose another replacement than 'mask', such as "
                "'zero' or 'left out'"
            )
        return self._embed(torch.tensor([mask]))[0]

    def _pad(self) -> Tensor:
        found = None if self.tokenizer is None else self.tokenizer.id_of("pad")
        config = self.model.config.get_text_config()
        for name in ("pad_token_id", "eos_token_id"):
            if found is None:
                found = getattr(config, name, None)
                found = found[0] if isinstance(found, list) else found
        if found is None or not 0 <= found < self.model.get_input_embeddings().weight.shape[0]:
            raise ValueError(
                "neither a pad token nor an end of sequence is known: choose another replacement than 'pad', such as "
                "'zero'"
            )
        return self._embed(torch.tensor([found]))[0]

    @contextmanager
    def _running(self) -> Iterator[None]:
        with ExitStack() as leaving:
            for block in (torch.inference_mode(False), torch.no_grad(), owned(self.model, passing=True)):
                leaving.enter_context(block)
            leaving.enter_context(keeping_rotations(self.model))
            yield


def check_replacement(given) -> None:
    if given not in REPLACEMENTS:
        raise ValueError(f"replacement must be one of {', '.join(map(repr, REPLACEMENTS))}, not {given!r}")


def _changes(keep: Tensor, replacement: str) -> tuple[list[int], list[int]]:
    """The first change and the length of each row, as of `batches`."""
    length = keep.shape[1]
    gone = ~keep
    firsts = torch.where(gone.any(1), gone.int().argmax(1), length)
    lengths = keep.sum(1).clamp(min=1) if replacement == "left out" else torch.full_like(firsts, length)
    return firsts.tolist(), lengths.tolist()


def _batches(firsts: list[int], lengths: list[int], room: Room) -> list[Batch]:
    # A row computes its last token at least, whose logits are read.
    starts = [min(first, length - 1) if room.shares else 0 for first, length in zip(firsts, lengths, strict=True)]
    order = sorted(range(len(firsts)), key=lambda one: (starts[one], lengths[one]))
    found: list[Batch] = []
    for one in order:
        if found:
            rows, shared, longest = found[-1]
            rows, longest = [*rows, one], max(longest, lengths[one])
            new, whole = len(rows) * (longest - shared), len(rows) * longest
            alike = room.pads or longest == min(lengths[row] for row in rows)
            if len(rows) <= room.rows and new <= room.tokens and whole <= _HELD * room.tokens and alike:
                found[-1] = Batch(rows, shared, longest)
                continue
        found.append(Batch([one], starts[one], lengths[one]))
    return found


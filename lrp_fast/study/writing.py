"""How a model writes answers: greedily, several at once behind prompts of one length, with keys and values kept."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import transformers

from ..hf import device_of, keeps_logits
from ..tokenizer import Tokenizer


class Writer(NamedTuple):
    """Who writes answers.

    Attributes:
        most: tokens of an answer at most.
        batch: answers that are written together at most.
        ends: the ids that end an answer.
    """

    model: torch.nn.Module
    tokenizer: Tokenizer
    most: int
    batch: int
    ends: frozenset[int]


def ends_of(model) -> frozenset[int]:
    config = getattr(model, "generation_config", None) or model.config
    given = config.eos_token_id
    return frozenset(given if isinstance(given, list | tuple) else [] if given is None else [given])


def text_of(ids: list[int], writer: Writer) -> str:
    special = writer.tokenizer.special_ids or frozenset()
    plain = [one for one in ids if one not in special and one not in writer.ends]
    return writer.tokenizer.behind(plain)


def together(lengths: dict[str, int], most: int) -> list[list[str]]:
    """What of these names, with the lengths of their prompts, is written at once: prompts of one length, as padding
    moves what a model reads by chunks, blocks or states."""
    alike = defaultdict(list)
    for name, length in lengths.items():
        alike[length].append(name)
    return [names[start : start + most] for names in alike.values() for start in range(0, len(names), most)]


def generated(rows: Sequence[torch.Tensor], writer: Writer, most: int, cache=None) -> list[list[int]]:
    """Greedily, up to and including what ends an answer; behind rows of one length."""
    ids = torch.stack(list(rows))
    pad = min(writer.ends, default=0)
    device = device_of(writer.model.get_input_embeddings())
    plain = transformers.GenerationConfig(
        max_new_tokens=most, do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,
        pad_token_id=pad, eos_token_id=sorted(writer.ends) or None,
    )  # fmt: skip
    given = {"attention_mask": torch.ones_like(ids, device=device), "generation_config": plain}
    if cache is not None:
        given["past_key_values"] = cache
    own, writer.model.generation_config = writer.model.generation_config, plain
    try:  # what a config leaves open, generate takes from the model's own, which may ask for more than the best token
        out = writer.model.generate(ids.to(device), **given)[:, ids.shape[1] :].tolist()
    finally:
        writer.model.generation_config = own
    return [_ended(row, writer.ends) for row in out]


def _ended(row: list[int], ends: frozenset[int]) -> list[int]:
    end = next((i for i, one in enumerate(row) if one in ends), len(row) - 1)
    return row[: end + 1]


class Prefix:
    """A prompt and the answer's beginning, whose keys and values are kept for all that goes on from there.

    Attributes:
        logits: (V,) of the next token, in float32 or wider.
    """

    def __init__(self, ids: list[int], writer: Writer) -> None:
        self.ids, self.writer, self.cache = list(ids), writer, None
        self._read(self.ids)

    def _read(self, ids: list[int]) -> None:
        model = self.writer.model
        device = device_of(model.get_input_embeddings())
        given = {"logits_to_keep": 1} if keeps_logits(model) else {}
        if self.cache is not None:
            given["past_key_values"] = self.cache
        out = model(torch.tensor([ids], device=device), use_cache=True, **given)
        cache = getattr(out, "past_key_values", None)  # a state-space model's is called otherwise: it reads all again
        self.cache = cache if isinstance(cache, transformers.DynamicCache) else None
        logits = out.logits[0, -1]
        self.logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).cpu()

    def step(self, token: int) -> None:
        self.ids.append(token)
        self._read(self.ids if self.cache is None else [token])

    def roll_out(self, tokens: list[int], most: int) -> list[list[int]]:
        """What is written behind each of these next tokens."""
        going = [one for one in tokens if one not in self.writer.ends]
        if most < 1 or not going:
            return [[] for _ in tokens]
        cache = copy.deepcopy(self.cache)
        if cache is not None:
            cache.reorder_cache(torch.zeros(len(going), dtype=torch.int64))  # of whatever layers, the one row each time
        rows = [torch.tensor([*self.ids, one]) for one in going]
        rest = dict(zip(going, generated(rows, self.writer, most, cache), strict=True))
        return [rest.get(one, []) for one in tokens]

"""Which keys each query of an attention reads, where something beside it has chosen them: the same for all of its
heads, or for those that share a head of keys. Looked up a tile of queries at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Chosen(NamedTuple):
    """The blocks of keys that queries read, of those that they reach."""

    index: Tensor  # (B, 1 or H_kv, T, K) of integers: block 0 begins at key 0
    block: int  # keys in each
    first: int  # at which of the keys those begin that an attention is given
    keys: int  # how many there are

    @staticmethod
    def read(index: Tensor, block: int, query: Tensor, key: Tensor) -> Chosen:
        """Those of an attention, its shapes checked."""
        whole, heads, tokens = key.shape[2], (1, key.shape[1]), query.shape[2]
        fits = index.ndim == 4 and len(index) == len(query) and index.shape[1] in heads and index.shape[2] == tokens
        if not fits or tokens != whole or block < 1:
            raise ValueError(
                f"chosen keys are (B, 1 or H_kv, T, K), of as many queries as keys, and blocks hold 1 key or more; got "
                f"{tuple(index.shape)} in blocks of {block} for query {tuple(query.shape)}, key {tuple(key.shape)}"
            )
        return Chosen(index, block, 0, whole)

    def of(self, rows: slice, tokens: slice) -> Chosen:
        """Those of some prompts, and of a run of their tokens."""
        start = tokens.indices(self.index.shape[2])[0]
        return self._replace(index=self.index[rows, :, tokens], first=self.first + start)

    def of_head(self, one: int) -> Chosen:
        """Those of one head of keys."""
        return self if self.index.shape[1] == 1 else self._replace(index=self.index[:, one : one + 1])

    def hides(self, queries: Tensor, keys: slice) -> Tensor:
        """(B, 1 or H_kv, R, S): whether each of some queries (R,) does not read each of some keys."""
        index = self.index[:, :, queries].to(torch.int64)
        hidden = torch.ones(*index.shape[:3], -(-self.keys // self.block), dtype=torch.bool, device=index.device)
        hidden.scatter_(-1, index, False)
        if self.block > 1:
            hidden = hidden.repeat_interleave(self.block, -1)
        return hidden[..., self.first + keys.start : self.first + keys.stop]

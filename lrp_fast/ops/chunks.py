"""The gated delta rule by chunks: what a chunk of tokens makes of the state before it, and of what is written in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64


class Chunks(NamedTuple):
    """All of one prompt's, (H, chunks, C, ...) each: made by `of`, which says of what."""

    query: Tensor
    key: Tensor
    beta: Tensor  # (H, chunks, C, 1)
    sums: Tensor  # (H, chunks, C), of the decay, from the chunk's first token on
    within: Tensor  # (H, chunks, C, C), what is left at i of what came at j
    weights: Tensor  # (H, chunks, C, C), of queries and keys
    inverse: Tensor  # (H, chunks, C, C), of what tokens unlearn of each other
    of_state: Tensor  # (H, chunks, C, K), how each unlearns what is in the state before the chunk
    lasting: Tensor  # (H, chunks, C, 1), what is left of each token's at the chunk's end
    states: Tensor  # (H, chunks, K, V), before each
    fresh: Tensor  # (H, chunks, C, V), what each token learns, times beta
    length: int

    @staticmethod
    def of(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor) -> Chunks:
        """Of one prompt, (1, T, H, ...) as `gated_delta_rule` has them."""
        length = query.shape[1]
        q, k, v, g, b = (split(one)[0] for one in (query, key, value, decay, beta))
        g = g.squeeze(-1).cumsum(-1)
        within = (g.unsqueeze(-1) - g.unsqueeze(-2)).tril().exp().tril()
        eye = torch.eye(CHUNK, dtype=q.dtype, device=q.device)
        unlearnt = eye + (b * k @ k.mT * within).tril(-1)
        inverse = torch.linalg.solve_triangular(unlearnt, eye.expand_as(unlearnt), upper=False)
        weights = (q @ k.mT * within).tril()
        new, of_state = inverse @ (b * v), inverse @ (b * k * g.exp().unsqueeze(-1))
        lasting = (g[..., -1:] - g).exp().unsqueeze(-1)
        kept = k * lasting
        state, states, fresh = torch.zeros_like(k[:, 0].mT @ v[:, 0]), [], []
        for i in range(q.shape[1]):
            states.append(state)
            fresh.append(new[:, i] - of_state[:, i] @ state)
            state = state * g[:, i, -1].exp()[:, None, None] + kept[:, i].mT @ fresh[-1]
        made = (within, weights, inverse, of_state, lasting, torch.stack(states, 1), torch.stack(fresh, 1))
        return Chunks(q, k, b, g, *made, length)

    def read(self, x: Tensor) -> Tensor:
        """(T, H, V): what the faded state says to each token's ``x`` (T, H, K), before the token is learnt."""
        x = split(x.unsqueeze(0))[0]
        said = (x @ self.key.mT * self.within).tril(-1) @ self.fresh
        said = said + x * self.sums.exp().unsqueeze(-1) @ self.states
        return said.flatten(1, 2)[:, : self.length].transpose(0, 1)

    def responses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is read of it if each token writes its ``x`` (T, H, K): by the chunk's own tokens (H, chunks, C, C), and
        (H, chunks, K, C) what is left of it in the state behind the chunk."""
        x = split(x.unsqueeze(0))[0]
        again = -self.inverse @ (self.beta * self.key @ x.mT * self.within).tril(-1)
        inner = (self.query @ x.mT * self.within).tril() + self.weights @ again
        return inner, (x * self.lasting).mT + (self.key * self.lasting).mT @ again

    def reading(self, chunk: int, rows: Tensor) -> Tensor:
        """(H, R, K): how rows of a chunk read the state before it."""
        fading = self.sums[:, chunk].exp().unsqueeze(-1)
        return (self.query[:, chunk] * fading - self.weights[:, chunk] @ self.of_state[:, chunk])[:, rows]

    def before(self, reading: Tensor, chunk: int) -> Tensor:
        """From how the state behind a chunk is read, how the one before it is."""
        kept = self.key[:, chunk] * self.lasting[:, chunk]
        faded = reading * self.sums[:, chunk, -1].exp()[:, None, None]
        return faded - (reading @ kept.mT) @ self.of_state[:, chunk]


def split(x: Tensor) -> Tensor:
    """(B, H, chunks, C, K) from (B, T, H, K), or (B, T, H) as of K = 1, with zeros behind the last token."""
    x = x.transpose(1, 2) if x.ndim == 4 else x.transpose(1, 2).unsqueeze(-1)
    return F.pad(x, (0, 0, 0, -x.shape[2] % CHUNK)).unflatten(2, (-1, CHUNK))

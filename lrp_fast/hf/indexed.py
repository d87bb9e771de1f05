"""Handlers of attentions whose queries read chosen keys alone (DeepSeek's sparse attention, MiniMax-M3's by blocks).

An indexer beside the attention scores all keys for each query, and the attention reads those of the highest scores. The
choice passes no relevance. Where a prompt has no more keys than are chosen, all are, and the indexer is not even run.
Otherwise its own code runs some queries at a time, so that nothing of size N x N is there: what it has chosen is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Cache

from ..rules import Rules
from .attention import EVERY, Choice
from .functions import by_rule
from .overlay import Overlay, forward_of

SCORES = 1 << 24  # that an indexer makes at a time


def indexed_attention(module: nn.Module, rules: Rules) -> Overlay:
    """As `handlers.gated_attention`, with an indexer, which gets a part of its mask, or with the keys that one before
    it has chosen."""
    own = forward_of(module)

    def forward(*given, attention_mask=None, **named):
        before = named.get("prev_topk_indices")
        if isinstance(before, Choice) and module.indexer is not None:  # nobody reads those any more
            before.forget()
        with by_rule(module, rules):
            return own(*given, attention_mask=_Unread(attention_mask), **named)

    return {"forward": forward, "lrp_fast_rules": rules}


class _Unread:
    """In the place of a mask (B, 1, N, N), what `attention` makes of it: for an attention that cuts its indexer's from
    it, and hands it on."""

    def __init__(self, bounds: Tensor | None) -> None:
        self.bounds = bounds

    def __getitem__(self, part: object) -> _Unread:
        return self


def indexer(module: nn.Module, rules: Rules) -> Overlay:
    """Chooses ``index_topk`` keys for all heads."""
    own = forward_of(module)

    def forward(hidden_states, q_resid, position_embeddings, attention_mask, *rest, **named):
        _check_no_cache(module, (*rest, *named.values()))
        if hidden_states.shape[1] <= module.index_topk:
            return EVERY
        hidden_states, q_resid = hidden_states.detach(), q_resid.detach()

        def choose(tokens, keys):
            tables = [one[:, tokens] for one in position_embeddings]
            mask = _visible(attention_mask.bounds, hidden_states, tokens)
            return own(hidden_states[:, tokens], q_resid[:, tokens], tables, mask, None, keys)

        return Choice(lambda: _by_parts(choose, hidden_states, module.n_heads).unsqueeze(1))

    return {"forward": forward}


def block_indexer(module: nn.Module, rules: Rules) -> Overlay:
    """Chooses ``topk_blocks`` blocks of ``block_size`` keys for the heads of each of its own."""
    own, of_keys = forward_of(module), module.config.num_key_value_heads
    if of_keys % module.num_heads:
        raise ValueError(
            f"{type(module).__name__} chooses for {module.num_heads} groups of heads, and lrp_fast has no rule for "
            f"choices that differ among those that share one of {of_keys} heads of keys"
        )

    def forward(hidden_states, position_embeddings, cache, position_ids):
        _check_no_cache(module, (cache,))
        places = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        if not (position_ids == places).all():  # its blocks begin at places, the future at positions
            raise ValueError(
                f"{type(module).__name__} is given position_ids that are not the tokens' places, for which lrp_fast "
                "has no rule: leave them out"
            )
        if len(places) <= module.topk_blocks * module.block_size:
            return EVERY
        hidden_states = hidden_states.detach()

        def choose(tokens, keys):
            tables = [one[:, tokens] for one in position_embeddings]
            found = own(hidden_states[:, tokens], tables, keys, position_ids[:, tokens])
            return torch.where(found < 0, found[..., :1], found)  # fewer than so many

        def ask():
            found = _by_parts(choose, hidden_states, module.num_heads)
            return found.repeat_interleave(of_keys // module.num_heads, 1)

        return Choice(ask, module.block_size)

    return {"forward": forward}


def _check_no_cache(indexer: nn.Module, given: tuple) -> None:
    if any(isinstance(one, Cache) for one in given):
        name = type(indexer).__name__
        raise ValueError(f"{name} keeps keys of its own in a cache, which lrp_fast does not: pass use_cache=False")


class _Keys:
    """In the place of a cache, an indexer's keys of the tokens that came."""

    def __init__(self) -> None:
        self.layers, self._found = self, []

    def __getitem__(self, layer: int) -> _Keys:
        return self

    def update_indexer(self, keys: Tensor, *_, **__) -> Tensor:
        self._found = [torch.cat([*self._found, keys], -2)]
        return self._found[0]

    update_index = update_indexer


def _visible(bounds: Tensor | None, hidden_states: Tensor, tokens: slice) -> Tensor:
    """(B, R, S) bool: which of the keys up to the last of these queries each of them may read."""
    j = torch.arange(tokens.stop, device=hidden_states.device)
    seen = (j <= j[tokens, None]).expand(len(hidden_states), -1, -1)
    return seen if bounds is None else seen & (j >= bounds[:, :1, None]) & (j < bounds[:, 1:, None])


def _by_parts(choose: Callable[[slice, _Keys], Tensor], hidden_states: Tensor, heads: int) -> Tensor:
    """(B, ..., N, K) from what is chosen of some tokens after the others; where that is fewer, it is there twice."""
    batch, length = hidden_states.shape[:2]
    each, keys, parts = max(1, SCORES // (batch * heads * length)), _Keys(), []
    with torch.no_grad(), torch._C.DisableTorchFunction():  # nothing here is explained
        for start in range(0, length, each):
            parts.append(choose(slice(start, min(start + each, length)), keys).to(torch.int32))
    most = max(part.shape[-1] for part in parts)
    rest = (part[..., :1].expand(*part.shape[:-1], most - part.shape[-1]) for part in parts)
    return torch.cat([torch.cat(pair, -1) for pair in zip(parts, rest, strict=True)], -2)


INDEXERS = (indexer, block_indexer)

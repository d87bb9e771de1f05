"""Handlers of attentions whose queries read chosen keys alone (DeepSeek's sparse attention, MiniMax-M3's by blocks).

An indexer beside the attention scores all keys for each query, and the attention reads those of the highest scores. The
choice passes no relevance. Where a prompt has no more keys than are chosen, all are, and the attention is a causal one
like any other: that is covered here, and the indexer is not even run. A longer prompt is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache

from ..rules import Rules
from .attention import EVERY
from .functions import by_rule
from .overlay import forward_of

Overlay = dict[str, object]


def indexed_attention(module: nn.Module, rules: Rules) -> Overlay:
    """As `handlers.gated_attention`, with an indexer, which gets a part of its mask."""
    own = forward_of(module)

    def forward(*given, attention_mask=None, **named):
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
    """Chooses ``index_topk`` keys."""
    return {"forward": lambda hidden, *given, **named: _all(module, hidden, module.index_topk, given, named)}


def block_indexer(module: nn.Module, rules: Rules) -> Overlay:
    """Chooses blocks of keys, ``topk_blocks`` of ``block_size``."""

    def forward(hidden_states, position_embeddings, cache, position_ids):
        places = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        if not (position_ids == places).all():  # its blocks begin at places, the future at positions
            raise ValueError(
                f"{type(module).__name__} is given position_ids that are not the tokens' places, by which it may not "
                "choose all keys: leave them out"
            )
        return _all(module, hidden_states, module.topk_blocks * module.block_size, (cache,), {})

    return {"forward": forward}


def _all(indexer: nn.Module, hidden_states: Tensor, most: int, given: tuple, named: dict) -> str:
    name, tokens = type(indexer).__name__, hidden_states.shape[1]
    if any(isinstance(one, Cache) for one in (*given, *named.values())):
        raise ValueError(f"{name} keeps keys of its own in a cache, which lrp_fast does not: pass use_cache=False")
    if tokens > most:
        raise ValueError(
            f"{name} chooses {most} of the keys that a token reads, which lrp_fast has no rule for beyond as many "
            f"tokens: explain at most {most}, not {tokens}"
        )
    return EVERY


INDEXERS = (indexer, block_indexer)

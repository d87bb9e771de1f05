"""lrp_fast as an attention implementation of transformers, and the masks that go with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from .. import ops
from ..rules import Rules
from . import directions
from .owner import is_ours

NAME, PADDING, OF_TEXT = "lrp_fast", "lrp_fast_padding", "lrp_fast_of_text"
EVERY = "every key"  # in the place of indices of keys: all are chosen
NO_MATRICES = "output_attentions=True asks for N x N matrices that lrp_fast never forms: drop it"

# What transformers hands to every attention implementation, and what is not needed for the result or read elsewhere.
_IGNORED = {
    "attention_mask", "cache", "cache_position", "deterministic", "num_items_in_batch", "output_attentions",
    "output_hidden_states", "output_router_logits", "past_key_values", "position_embeddings", "position_ids",
    "return_dict", "sliding_window", "use_cache",
}  # fmt: skip


class Choice:
    """The keys that each query reads, in the place of their indices: chosen where somebody asks, once."""

    def __init__(self, ask: Callable[[], Tensor], block: int = 1) -> None:
        self._ask, self._found, self.block = ask, None, block

    def __call__(self) -> Tensor:
        """As `ops.attention` takes them."""
        if self._found is None:
            self._found, self._ask = self._ask(), None  # it holds on to what it is made of
        return self._found

    def forget(self) -> None:
        self._found = None


class Until(NamedTuple):
    """In the place of a mask: which keys behind a query it reads, as ``until`` of `ops.attention`."""

    until: Tensor


def register_attention() -> None:
    """Add our names to transformers' two tables; the entries of other implementations stay as they are."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, mask_bounds)
    AttentionMaskInterface.register(PADDING, padding_mask)
    AttentionMaskInterface.register(OF_TEXT, text_bounds)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, T, D) -> (B, T, H, D). Outside of `patched` a plain attention."""
    if dropout:
        raise ValueError(f"{_layer(module)} applies dropout: call model.eval() first")
    if kwargs.get("output_attentions"):
        raise ValueError(NO_MATRICES)
    told = {name: given for name, given in kwargs.items() if given is not None and given is not EVERY}
    choices = [told.pop(name) for name in list(told) if isinstance(told[name], Choice)]
    unknown = sorted(name for name in told if name not in _IGNORED)
    if unknown:
        names = ", ".join(unknown)
        raise ValueError(f"{_layer(module)} passes {names} to its attention, which lrp_fast has no rule for")
    attention_mask = getattr(attention_mask, "bounds", attention_mask)  # of `indexed_attention`
    until = None
    if isinstance(attention_mask, Until):
        (until,), attention_mask = attention_mask, None
    if directions.reads_both_ways(getattr(module, "config", None)):
        # What it computes hangs on the implementation, and on padding: nothing to be like.
        raise ValueError(f"{_layer(module)} {directions.both_ways(module)}")
    causal = directions.is_causal(module) if is_causal is None else is_causal
    attention_mask = _of_direction(attention_mask, causal, module)
    if attention_mask is not None and attention_mask.shape not in ((query.shape[0], 2), (query.shape[0], 3)):
        raise ValueError(
            f"a ready attention mask of shape {tuple(attention_mask.shape)} reached {_layer(module)}: "
            "pass the (B, N) padding mask, causality and windows are the model's own (a model that makes such masks "
            "itself needs lrp_fast.patched or a newer transformers)"
        )
    if attention_mask is not None and any(choice.block > 1 for choice in choices):
        # What padding is read as decides which blocks are chosen: nothing to be like.
        where = f"{_layer(module)} chooses among blocks of keys"
        raise ValueError(f"{where}, padding among them: run each prompt by itself")
    chunk = None
    if attention_mask is not None and attention_mask.shape[1] == 3:
        *_, chunk = attention_mask[0].tolist()
        attention_mask = attention_mask[:, :2]
    # Qwen2-MoE leaves its window to the mask, where lrp_fast has none. A layer with a window keeps it, in all families.
    window = kwargs.get("sliding_window", getattr(module, "sliding_window", None))
    ours = is_ours(module)
    # `recording` and `replaying` lay their own attention over the module.
    attend = getattr(module, "lrp_fast_attend", ops.attention) if ours else ops.attention
    if attention_mask is not None and query.shape[2] < key.shape[2]:
        attend = partial(_each_row_without_its_padding, attend)
    width, most = value.shape[-1], max(value.shape[-1], query.shape[-1])
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if width != query.shape[-1]:  # zeros change no score and no output
        query, key, value = (F.pad(one, (0, most - one.shape[-1])) for one in (query, key, value))
    out = attend(
        query,
        key,
        value,
        rule=module.lrp_fast_rules if ours else Rules("gradient"),
        scale=scaling,
        causal=causal,
        window=window,
        chunk=chunk,
        bounds=attention_mask,
        softcap=softcap,
        sinks=s_aux,
        **({"chosen": choices[0], "block": choices[0].block} if choices else {}),
        **({} if until is None else {"until": until}),
    )
    if most != width:
        out = out[..., :width]
    return out.transpose(1, 2).contiguous(), None


def _layer(module: nn.Module) -> str:
    return f"{type(module).__name__} of layer {getattr(module, 'layer_idx', '?')}"


def _of_direction(mask: Tensor | None, causal: bool, module: nn.Module) -> Tensor | None:
    """The mask without its mark, if it has that of reading in both directions just where the attention does."""
    marked = mask is not None and mask.shape[1:] in ((0,), (4,))
    if marked and causal:
        given = "a mask for reading in both directions"
        raise ValueError(f"{_layer(module)} is given {given}, which it does not by itself")
    if not marked and not causal:
        raise ValueError(
            f"{_layer(module)} reads in both directions, and is given a mask that does not say so: lrp_fast explains "
            "encoders whose masks transformers makes"
        )
    if not marked:
        return mask
    return mask[:, :2] if mask.shape[1] else None


def _each_row_without_its_padding(
    attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *, bounds: Tensor, **given
) -> Tensor:
    """Queries behind a cache, whose keys begin with each row's padding."""
    keys, out = key.shape[2], []
    for row, (start, end) in enumerate(bounds.tolist()):
        if end < keys or start > keys - query.shape[2]:
            raise ValueError(f"row {row} is padded behind its beginning, which a cache cannot follow: pad on the left")
        one = slice(row, row + 1)
        out.append(attend(query[one], key[one, :, start:], value[one, :, start:], bounds=None, **given))
    return torch.cat(out)


def mask_bounds(
    batch_size: int, attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **kwargs
) -> Tensor | None:
    """transformers' mask interface: (B, 2) first and one-past-last real token of each row among the keys that there
    are (a window may have cut off the first of them); None without padding. (B, 3), with their length, where the prompt
    is longer than the chunks that the model reads by. For a model that reads in both directions these have a mark:
    (B, 0) without padding, and with it (B, 4).

    Causality and sliding windows reach the attention by other ways, so nothing N x N is ever built.
    """
    # Older releases do not say q_offset; there the check below refuses such caches.
    sizes_known = "q_offset" in kwargs
    if sizes_known and kwargs["kv_offset"] + kwargs["kv_length"] > kwargs["q_offset"] + kwargs["q_length"]:
        raise ValueError("the cache is longer than what it holds (a StaticCache): use a DynamicCache, or none")
    if _is_of_both_directions(**kwargs):
        if attention_mask is None or attention_mask.all():
            return torch.empty(batch_size, 0)
        bounds = real_tokens(attention_mask)
        return torch.cat([bounds, torch.zeros_like(bounds)], 1)
    # Falcon wants its mask spelt out, whatever it is.
    if not (allow_is_causal_skip or (sizes_known and kwargs.get("mask_function") is causal_mask_function)):
        raise ValueError(
            "the model asks for a mask that is neither causal nor a sliding window (packed sequences whose "
            "position_ids restart, or a custom mask function): run each sequence by itself"
        )
    chunk = _chunk(**kwargs)
    if attention_mask is None or attention_mask.all():
        return None if chunk is None else torch.tensor([[0, kwargs["kv_length"], chunk]]).expand(batch_size, 3)
    bounds = (real_tokens(attention_mask) - kwargs.get("kv_offset", 0)).clamp(min=0)
    if chunk is not None:
        return torch.cat([bounds, torch.full_like(bounds[:, :1], chunk)], 1)
    return None if (bounds == bounds.new_tensor([0, kwargs["kv_length"]])).all() else bounds


def text_bounds(
    batch_size: int, attention_mask: Tensor | None = None, allow_is_causal_skip: bool = False, **kwargs
) -> Tensor | None:
    """As `mask_bounds`, for a model that reads images in both directions, and text alone causally."""
    return mask_bounds(batch_size, attention_mask, **kwargs)


def padding_mask(
    batch_size: int, attention_mask: Tensor | None = None, *, kv_length: int, device=None, **kwargs
) -> Tensor:
    """As `mask_bounds`, for a model that cannot do without a mask: (B, 1, 1, S) bool, True where a key is no token."""
    bounds = mask_bounds(batch_size, attention_mask, kv_length=kv_length, **kwargs)
    if bounds is None:
        return torch.zeros(batch_size, 1, 1, kv_length, dtype=torch.bool, device=device)
    keys = torch.arange(kv_length, device=bounds.device)
    return ((keys < bounds[:, :1]) | (keys >= bounds[:, 1:]))[:, None, None]


def _is_of_both_directions(*, mask_function=None, local_size=None, use_vmap=False, **others) -> bool:
    """Whether a mask hides padding alone, or what lies as far away on either side as a window says; nothing that a
    function of the caller's does, which transformers tells by ``use_vmap``."""
    if mask_function is bidirectional_mask_function:
        return True
    if mask_function is None or local_size is None or use_vmap or others.get("allow_is_causal_skip", False):
        return False
    middle = torch.tensor(4 * local_size, device=others.get("device"))
    zero = torch.zeros_like(middle)
    near = [mask_function(zero, zero, middle, middle + lag) for lag in (-local_size, -1, 0, 1, local_size)]
    far = [mask_function(zero, zero, middle, middle + lag) for lag in (-local_size - 1, local_size + 1)]
    return all(map(bool, near)) and not any(map(bool, far))


def _chunk(*, kv_length: int, kv_offset=0, local_size=None, mask_function=None, **others) -> int | None:
    """How long the chunks are that a mask of transformers' is of; None for another mask, or no more than one chunk.

    Masks of windows have a length too. Within a window every token reads the one in front of it; a chunk's first does
    not.
    """
    if local_size is None or mask_function is None or kv_offset + kv_length <= local_size:
        return None
    device = others["device"] if "device" in others else others["cache_position"].device  # of older releases
    queries = torch.arange(local_size, 2 * local_size, device=device)
    zero = queries.new_zeros(())
    if mask_function(zero, zero, queries, queries - 1).all():
        return None
    if (others["q_length"] if "q_length" in others else len(others["cache_position"])) != kv_length:
        raise ValueError(f"the model reads by chunks of {local_size} tokens, and a cache goes beyond one: use none")
    return local_size


def real_tokens(attention_mask: Tensor) -> Tensor:
    """(B, 2) first and one-past-last real token of each row of a (B, N) padding mask.

    Raises:
        ValueError: for a row whose real tokens are not one run.
    """
    real = attention_mask.to(torch.bool)
    length = real.sum(-1)
    start = real.int().argmax(-1)
    end = real.shape[-1] - real.flip(-1).int().argmax(-1)
    for row in (((end - start) != length) | (length == 0)).nonzero().flatten().tolist():
        raise ValueError(
            f"row {row} of attention_mask has "
            + ("no real token" if length[row] == 0 else "a gap between real tokens")
            + ": padding must lie before or after one run of tokens"
        )
    return torch.stack([start, end], -1)

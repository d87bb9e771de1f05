"""Attentions that go past transformers' attention interface: each form of code here has been read.

Queries, keys and values are made by the module's own linear maps and end in `attention.attention_forward`, so that
what is patched, adapted or quantised about these stays. What the code can do besides (a second sequence to read,
prompts before the keys, N x N matrices to hand out) is refused there by its name.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from ..rules import Rules
from .alibi import folded, of_each_head, width
from .attention import attention_forward, mask_bounds
from .functions import by_rule
from .overlay import Overlay
from .weights import own_dtype


def falcon_attention(module: nn.Module, rules: Rules) -> Overlay:
    """Falcon's. One projection makes groups of queries, each with a key and a value; positions are rotary, or ALiBi's,
    whose biases are scaled with the scores. Of these, a model that runs with eager attention adds one lot in its mask,
    and another in its attention."""
    times = 2 if module.config._attn_implementation == "eager" else 1
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb

    def forward(hidden_states, alibi=None, attention_mask=None, layer_past=None, position_embeddings=None, **named):
        groups = module.query_key_value(hidden_states).unflatten(-1, (module.num_kv_heads, -1, module.head_dim))
        parts = groups.split([groups.shape[3] - 2, 1, 1], 3)
        query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in parts)
        if alibi is None:
            query, key = rotate(query, key, *position_embeddings)
        key, value = _cached(module, key, value, layer_past)
        scale = module.head_dim**-0.5
        if alibi is not None:
            key, value = (of_each_head(one, query.shape[1]) for one in (key, value))
            query, key = folded(query, key, times * alibi.view(*query.shape[:2], -1), 1.0)
        out, _ = attention_forward(module, query, key, value, attention_mask, scaling=scale, **named)
        return module.dense(out.flatten(2)), None

    return {"forward": forward, "lrp_fast_rules": rules}


def bloom_attention(module: nn.Module, rules: Rules) -> Overlay:
    """Bloom's, with ALiBi's biases. It adds what it puts out to the residual stream."""

    def forward(hidden_states, residual, alibi, attention_mask=None, layer_past=None, **named):
        if module.training and module.hidden_dropout:
            raise ValueError("the model applies dropout: call model.eval() first")
        query, key, value = module._reshape(module.query_key_value(hidden_states))
        key, value = _cached(module, key, value, layer_past)
        scale = module.inv_norm_factor
        query, key = folded(query, key, alibi.view(*query.shape[:2], -1), scale)
        out, _ = attention_forward(module, query, key, value, attention_mask, scaling=scale, **named)
        return residual + module.dense(out.flatten(2)), None

    return {"forward": forward, "lrp_fast_rules": rules}


def mpt_attention(module: nn.Module, rules: Rules) -> Overlay:
    """MPT's, with ALiBi's biases, which count from the longest prompt's end; projections may be clipped."""

    def forward(hidden_states, position_bias, past_key_values=None, attention_mask=None, cache=None, **named):
        mixed = module.Wqkv(hidden_states)
        if module.clip_qkv:
            with by_rule(module, rules):
                mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
        query, key, value = (_heads(one, module.head_dim) for one in mixed.chunk(3, 2))
        key, value = _cached(module, key, value, past_key_values, cache)
        if key.shape[2] > position_bias.shape[-1]:
            raise ValueError(f"{key.shape[2]} tokens, and the model's ALiBi ends at {position_bias.shape[-1]}")
        bias, scale = position_bias[:, 0, -key.shape[2] :].unsqueeze(0), module.softmax_scale
        query, key = folded(query, key, bias, scale)
        given = {"scaling": scale, "dropout": module.attn_dropout_p if module.training else 0.0, **named}
        out, _ = attention_forward(module, query, key, value, _of_padding(attention_mask), **given)
        return module.out_proj(out.flatten(2)), None

    return {"forward": forward, "lrp_fast_rules": rules}


def projected_attention(module: nn.Module, rules: Rules) -> Overlay:
    """With a projection for each of queries, keys and values: BART's kin's, with one behind it (XGLM, MVP, TrOCR), and
    BERT's, without (Megatron-BERT, RemBERT, GIT, and RoFormer, which rotates queries and keys, and values if told)."""
    if hasattr(module, "q_proj"):
        maps, last, features = (module.q_proj, module.k_proj, module.v_proj), module.out_proj, module.head_dim
    else:
        maps, last, features = (module.query, module.key, module.value), None, module.attention_head_size

    def forward(hidden_states, attention_mask=None, past_key_values=None, sinusoidal_pos=None, cache=None, **named):
        query, key, value = (_heads(one(hidden_states), features) for one in maps)
        if sinusoidal_pos is not None:
            rotated = (query, key, value) if module.rotary_value else (query, key)
            turned = module.apply_rotary_position_embeddings(sinusoidal_pos, *rotated)
            query, key, value = turned if module.rotary_value else (*turned, value)
        key, value = _cached(module, key, value, past_key_values, cache)
        dropout = 0.0 if isinstance(module.dropout, nn.Module) or not module.training else module.dropout
        given = {"scaling": features**-0.5, "dropout": dropout, **named}
        out, _ = attention_forward(module, query, key, value, attention_mask, **given)
        out = out.flatten(2)
        return out if last is None else last(out), None

    return {"forward": forward, "lrp_fast_rules": rules}


def own_attention(module: nn.Module, rules: Rules) -> Overlay:
    """GPT-J's and its kin's, by a method of their own: (B, H, T, D) in and out."""
    window = module.config.window_size if getattr(module, "attention_type", None) == "local" else None  # GPT-Neo's

    def attend(query, key, value, attention_mask=None):
        query, key = query.to(value.dtype), key.to(value.dtype)
        given = {"scaling": _scale_of(module), "sliding_window": window}
        out, _ = attention_forward(module, query, key, value, attention_mask, **given)
        return out.transpose(1, 2), None

    return {"_attn": attend, "lrp_fast_rules": rules}


def _scale_of(attention: nn.Module) -> float:
    """GPT-J divides the scores by a buffer, GPT-NeoX Japanese by a number, GPT-Neo by nothing."""
    by = getattr(attention, "scale_attn", getattr(attention, "norm_factor", 1.0))
    return 1 / float(by)


def first_gpt_attention(module: nn.Module, rules: Rules) -> Overlay:
    """The first GPT's, as `own_attention`, with keys (B, H, D, S). Its triangle of a buffer hides the future."""

    def attend(query, key, value, attention_mask=None, output_attentions=False):
        scale = value.shape[-1] ** -0.5 if module.scale else 1.0
        given = {"scaling": scale, "output_attentions": output_attentions}
        key = key.transpose(2, 3)
        out, _ = attention_forward(module, query, key, value, _of_padding(attention_mask), **given)
        return [out.transpose(1, 2)]

    return {"_attn": attend, "lrp_fast_rules": rules}


PAIRED = (falcon_attention, bloom_attention, mpt_attention, projected_attention)  # they return a pair
METHODS = (own_attention, first_gpt_attention)
SPELT_OUT = (*PAIRED, *METHODS)


def biases_scores(module: nn.Module, handler: object) -> bool:
    """Whether keys hold more than what comes of hidden states, as they reach `attention_forward`: `alibi.folded`."""
    return handler in (bloom_attention, mpt_attention) or (handler is falcon_attention and module.config.alibi)


def heads_with_biases(module: nn.Module, handler: object) -> tuple[int, int, int]:
    """Heads, key/value heads and features of each as they reach `attention_forward`, where it `biases_scores`."""
    if handler is mpt_attention:
        heads, made_by, scale, of_bias = module.n_heads, module.Wqkv, module.softmax_scale, torch.float32
    else:
        scale = module.inv_norm_factor if handler is bloom_attention else 1.0
        heads, made_by, of_bias = module.num_heads, module.query_key_value, None
    dtype = own_dtype(made_by) or torch.bfloat16
    return heads, heads, width(module.head_dim, scale, dtype, of_bias or dtype)


def _heads(x: Tensor, features: int) -> Tensor:
    """(B, H, T, D) from (B, T, H D)"""
    return x.unflatten(-1, (-1, features)).transpose(1, 2)


def _cached(module: nn.Module, key: Tensor, value: Tensor, *caches) -> tuple[Tensor, Tensor]:
    """Behind those that a cache holds, which it then holds too. Releases of transformers call it otherwise."""
    cache = next((one for one in caches if one is not None), None)
    if cache is None:
        return key, value
    return getattr(cache, "self_attention_cache", cache).update(key, value, module.layer_idx)


def _of_padding(mask: Tensor | None) -> Tensor | None:
    """The bounds, as `mask_bounds` has them, of a (B, 1, 1, S) mask that is 0 where a key is a token; any other mask as
    it is, which `attention_forward` refuses."""
    if mask is None or mask.ndim != 4 or mask.shape[1:3] != (1, 1):
        return mask
    return mask_bounds(len(mask), mask[:, 0, 0] == 0, kv_length=mask.shape[-1])

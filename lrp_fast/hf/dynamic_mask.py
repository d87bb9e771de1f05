"""The handler of attentions whose scores have a number of each key's own added to them (Doge, arXiv 2412.11834)."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from ..rules import Rules
from .attention import attention_forward
from .overlay import Overlay

# The number rides on the key, as a channel more; attentions of vendors want channels by eights.
_CHANNELS = 8


def dynamic_mask_attention(module: nn.Module, rules: Rules) -> Overlay:
    """Doge's: exp(A softplus(w v)) of a key's value v is added to its score in every head of its group. Its keys have
    channels more, of which the queries' are 1: no mask of N x N is made, and scores are rounded otherwise than there.

    The sum of a score passes relevance plainly, and so the number has the whole share of the score that queries and
    keys have half each of (cp: a constant, as these). From there to the value gradients are plain, as of a softmax: the
    function is not 0 at 0, and its identity rule would have no limit there.
    """
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb

    def forward(hidden_states, position_embeddings, attention_mask=None, **named):
        shape = (*hidden_states.shape[:-1], -1, module.head_dim)
        query = module.q_norm(module.q_proj(hidden_states).view(shape)).transpose(1, 2)
        key = module.k_norm(module.k_proj(hidden_states).view(shape)).transpose(1, 2)
        value = module.v_proj(hidden_states).view(shape).transpose(1, 2)
        query, key = rotate(query, key, *position_embeddings)
        cache = named.get("past_key_values", named.get("cache"))
        if cache is not None:
            key, value = cache.update(key, value, module.layer_idx)
        if key.shape[2] > module.keep_window_size:
            raise ValueError(
                f"{type(module).__name__} chooses {module.keep_window_size} of the keys that a token reads, which "
                f"lrp_fast has no rule for beyond as many tokens: explain at most {module.keep_window_size}, not "
                f"{key.shape[2]}"
            )
        z = module.dt_proj(value.transpose(1, 2).flatten(2))
        added = torch.exp(module.A.detach() * F.softplus(z)).transpose(1, 2)
        added = _whole(added, rules).unsqueeze(-1) / module.scaling
        ones = torch.ones_like(query[..., :1])
        query, key = (
            torch.cat([one, F.pad(more, (0, _CHANNELS - 1))], -1) for one, more in ((query, ones), (key, added))
        )
        told = {"scaling": module.scaling, "output_attentions": named.get("output_attentions")}
        out, _ = attention_forward(module, query, key, value, attention_mask, **told)
        return module.o_proj(out.flatten(2)), None

    return {"forward": forward, "lrp_fast_rules": rules}


def _whole(x: Tensor, rules: Rules) -> Tensor:
    """With the share of a score, where the attention hands it that of one of the score's two factors."""
    share = rules.treatment.score**0.5  # of P in P V, as of q in q k
    if share in (0, 1):
        return x
    return x / share - forward_ad.unpack_dual(x).primal.detach() * (1 / share - 1)

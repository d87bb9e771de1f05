"""The weights by which the attentions of a model read, as matrices: for methods that take these for an explanation."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from .. import ops, reference
from ..rules import Rules
from .coverage import check
from .cutting import seen_keys
from .heads import logits_at
from .layers import decoder_layers
from .overlay import laid
from .patching import passing
from .positions import keeping_rotations
from .weights import device_of
from .within import attentions, beside_attention

_SCORES = 1 << 24  # of some queries at a time
MOST = 4096  # tokens: a matrix a layer


def attention_matrices(model: nn.Module, input_ids: Tensor) -> list[Tensor]:
    """Of each decoder layer (N, N) float32 or wider, the mean of its heads' attention weights: row = query.

    They are those that the model reads by, soft-caps, windows and sinks included: each of its attentions is run as
    `lrp_fast.patched` runs it, and its matrix made beside it by its definition. What transformers hands out with
    ``output_attentions=True`` under eager attention is the same.

    Args:
        input_ids: (N,).

    Raises:
        UnsupportedModuleError: for a module that no rule covers.
        ValueError: for a model with a layer whose tokens meet elsewhere than in one softmax attention, and for a prompt
            of more than `MOST` tokens.
    """
    if len(input_ids) > MOST:
        raise ValueError(f"attention matrices of {len(input_ids)} tokens are too large: {MOST} are the most")
    check(model)
    layers = decoder_layers(model)
    for number, layer in enumerate(layers):
        other = beside_attention(layer)
        if other is not None or len(attentions(layer)) != 1:
            what = f"its tokens meet in a {type(other).__name__}" if other is not None else "it has not one attention"
            raise ValueError(
                f"layer {number} of {type(model).__name__} gives no attention matrix, as {what}: leave methods that "
                "take these out"
            )
    found: list[Tensor] = []

    def attend(query, key, value, **given):
        out = ops.attention(query, key, value, **given)
        with torch._C.DisableTorchFunction():  # nothing of it is the model's own code
            found.append(_mean_of_heads(query, key, **given))
        return out

    overlays = [(one, "lrp_fast_attend", attend) for layer in set(layers) for one in attentions(layer)]
    ids = input_ids[None].to(device_of(model.get_input_embeddings()))
    with ExitStack() as leaving:
        for block in (torch.inference_mode(False), torch.no_grad(), passing(model, Rules("gradient"))):
            leaving.enter_context(block)
        leaving.enter_context(keeping_rotations(model))
        leaving.enter_context(laid(overlays))
        logits_at(model, ids, [len(input_ids) - 1])
    return found


def _mean_of_heads(query: Tensor, key: Tensor, *, scale, softcap=None, sinks=None, **given) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    heads, length = query.shape[1], key.shape[2]
    sinks = None if sinks is None else sinks.detach().to(wide)
    out = torch.empty(length, length, dtype=wide, device="cpu")
    for rows in torch.arange(length, device=query.device).split(max(1, _SCORES // (heads * length))):
        seen = seen_keys(rows, query, key, **given)
        told = {"scale": scale, "softcap": softcap, "sinks": sinks}
        weights = reference.attention_weights(query[:, :, rows].to(wide), key.to(wide), seen, **told)
        out[rows.cpu()] = weights.mean(1)[0].cpu()
    return out

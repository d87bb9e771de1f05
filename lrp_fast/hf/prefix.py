"""Keys and values of a prompt's beginning, which several prompts that begin with it share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import DynamicCache

from . import handlers
from .families import handled
from .heads import head_of, head_reads
from .layers import decoder_layers
from .sides import has_side_routes
from .walk import without_adapters

Prefix = list[tuple[Tensor, Tensor]]  # of each layer the keys and values of a prompt's N tokens, (1, H, N, D) each

_READ_ALL = {"full_attention", "sliding_attention"}


def carries_keys(model: nn.Module) -> bool:
    """Whether keys and values are all that a model carries from token to token: an attention in each of its layers,
    and no state, nor keys that another layer has made."""
    config, layers = without_adapters(model).config.get_text_config(), decoder_layers(model)
    attentions = [one for _, one, handler in handled(model) if handler in handlers.ATTENTIONS]
    return (
        set(getattr(config, "layer_types", None) or ()) <= _READ_ALL
        and not getattr(without_adapters(model), "_is_stateful", False)
        and len(attentions) == len(layers) == len(set(layers))
        and not any(map(has_side_routes, layers))
    )


def prefix_of(model: nn.Module, embedded: Tensor) -> Prefix | None:
    """The keys and values of a prompt of (N, D) embeddings; None where the model keeps them otherwise.

    A cache that knows nothing of the config keeps those that a sliding window has passed, too: its layers' masks hide
    them.
    """
    cache = DynamicCache()
    with head_reads(head_of(model), [len(embedded) - 1]):
        model(inputs_embeds=embedded[None].clone(), past_key_values=cache, use_cache=True)  # some scale it in place
    found = [(layer.keys, layer.values) for layer in cache.layers]
    whole = all(one is not None and one.ndim == 4 and one.shape[2] == len(embedded) for pair in found for one in pair)
    return found if whole and len(found) == len(decoder_layers(model)) else None


def logits_behind(model: nn.Module, rows: Sequence[Tensor], shared: int = 0, prefix: Prefix | None = None) -> Tensor:
    """(R, V), behind the last token of each of R prompts.

    Args:
        rows: (T, D) embeddings of each; those of different lengths are padded on the right, which no token before it
            reads in a causal model.
        shared: so many tokens, fewer than the shortest has, are those of the ``prefix``, and are not computed.
    """
    given = nn.utils.rnn.pad_sequence([one[shared:] for one in rows], batch_first=True)
    width = given.shape[1]
    places = [i * width + len(one) - shared - 1 for i, one in enumerate(rows)]
    carried = {"use_cache": False}
    if shared:
        cache = DynamicCache()
        for layer, pair in enumerate(prefix):
            cache.update(*(one[:, :, :shared].expand(len(rows), -1, -1, -1) for one in pair), layer)
        carried = {"past_key_values": cache, "use_cache": True}
    with head_reads(head_of(model), places):
        return model(inputs_embeds=given, **carried).logits[0]

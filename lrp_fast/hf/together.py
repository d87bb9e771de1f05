"""Whether several prompts may go through a model in one pass, each as if it were alone."""

from __future__ import annotations

from torch import nn

from . import experts, handlers, indexed
from .families import handled, moves_tokens
from .heads import head_of, pad_token
from .hooks import is_watched
from .layers import reads_causally
from .walk import modules_of
from .weights import mixes_tokens


def prompts_meet(model: nn.Module) -> bool:
    """Whether what comes of one prompt may hang on which others are in the pass, by more than rounding.

    Some quantised linear maps round all tokens together. In 16 bits rounding decides which experts a token goes to, and
    products of other sizes round otherwise. A hook of somebody else's may look at anything. Without a pad token, what
    pools takes one prompt at a time.
    """
    parts = handled(model)
    sixteen = model.get_input_embeddings().weight.dtype.itemsize < 4
    return (
        is_watched(model)
        or (head_of(model).pools and pad_token(model) is None)
        or any(mixes_tokens(one) for _, one, handler in parts if handler in handlers.LINEARS)
        or (sixteen and any(handler in experts.ROUTERS for _, _, handler in parts))
    )


def padding_shows(model: nn.Module) -> bool:
    """Whether a token is turned otherwise where more of them follow: by an attention in both directions, by rotations
    that are made for the length, by an indexer, which of keys of equal scores chooses others among more, or by code in
    which an audit saw tokens meet, in whichever direction."""
    if any(map(moves_tokens, modules_of(model))) or not reads_causally(model):
        return True
    if any(handler in indexed.INDEXERS for _, _, handler in handled(model)):
        return True
    kinds = [str(getattr(module, "rope_type", "")) for module in modules_of(model)]
    return any("dynamic" in kind or "longrope" in kind for kind in kinds)

"""Side routes of relevance, past the hidden states: what layers are given besides these (see `hf.sides`).

A route is part of the map out of the node where it begins. What arrives at its end goes back along it, past the layers
in between, to that node: to (s, i) from keys and values that layer s made of its input for later layers too, and to
(0, i) from what is made of the input embeddings before the first layer. What else was looked up for a token, besides
its input embedding, is the token's as well: its relevance, e times its gradient, is counted with node (0, i). Where the
first nodes are several streams that are made of the input embedding, so is what this passes by them.

So the nodes of layers that a route passes by lack what it carries. Under cp, without biases, the nodes of a layer and
what passes by add up to what is explained, and the nodes of layer 0 do by themselves: nothing passes by these. Edges
from layer to layer have no closed form there, as an attention may read keys that are none of its own layer's: graphs
are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from . import float16
from .hf import here, leads_with_streams


class Sides:
    """What is on its way back along the side routes of one pass: a relevance gradient a tensor and target."""

    def __init__(self) -> None:
        self.looked_up: list[Tensor] = []  # what embeddings put out before the first layer, as leaves
        self._first: Tensor | None = None  # of these, what the first layer is given
        self._arrived: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def begin(self, layer: nn.Module, hidden: Tensor) -> None:
        """The first ``layer`` is given ``hidden``."""
        self._first = next((one for one in self.looked_up if one is hidden), None)
        if self._first is None and not leads_with_streams(layer):
            raise ValueError(
                "what the first decoder layer is given is not what the input embeddings put out, and lrp_fast cannot "
                "follow what else was made of these to its nodes"
            )

    def arrive(self, tensors: list[Tensor], of_targets: list[tuple[Tensor | None, ...]]) -> None:
        """At what one layer was given."""
        for tensor, *gs in zip(tensors, *of_targets, strict=True):
            if gs[0] is None:  # nobody read it
                continue
            gs = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in gs]
            _, before = self._arrived.get(id(tensor), (tensor, [0] * len(gs)))
            self._arrived[id(tensor)] = tensor, [g + one for g, one in zip(gs, before, strict=True)]

    def depart(self, tensors: list[Tensor], targets: int) -> list[list[Tensor | None]]:
        """What has arrived at what one layer made, by target."""
        gone = [self._arrived.pop(id(one), (one, [None] * targets))[1] for one in tensors]
        return [[of_one[target] for of_one in gone] for target in range(targets)]

    def forget(self) -> None:
        """From here on, it is another's relevance that is passed back."""
        self._arrived.clear()

    def reach(self, gs: list[Tensor]) -> list[Tensor]:
        """Add to the relevance gradients ``gs`` at the first layer's input what has arrived at all that was made of it.

        Returns the relevance of what else was looked up, (B, N) a target.
        """
        ends = [tensor for tensor, _ in self._arrived.values()]
        arrived = [gs for _, gs in self._arrived.values()]
        self.forget()
        found = []
        for target, g in enumerate(gs):
            found.append(g.new_zeros(g.shape[:2]))
            if not ends:
                continue
            more = {"retain_graph": target + 1 < len(gs), "allow_unused": True}
            back, factor = [one[target] for one in arrived], None
            if ends[0].dtype == torch.float16:
                back = [one.clone() for one in back]
                factor = float16.lift(back)
            back = [one.to(tensor.dtype) for one, tensor in zip(back, ends, strict=True)]
            parts = torch.autograd.grad(ends, self.looked_up, back, **more)
            parts = parts if factor is None else float16.lower(parts, factor)
            for one, part in zip(self.looked_up, parts, strict=True):
                if part is not None and one is self._first:
                    g += part
                elif part is not None:
                    found[-1] += (one.detach().to(g.dtype) * part.to(g.dtype)).sum(-1)
        return found


@contextmanager
def following(model: nn.Module) -> Iterator[Sides]:
    """While ``model`` runs, what its embeddings look up are leaves of autograd's, and so are input embeddings with
    those of images among them."""
    sides, thread, own = Sides(), here(), model.get_input_embeddings()

    def leave(module, args, out):
        if here() is not thread or out._backward_hooks or out.retains_grad:  # which the first layer's hook refuses
            return None
        sides.looked_up.append(out.detach().requires_grad_())
        return sides.looked_up[-1]

    def begin(module, args, named):
        given = named.get("inputs_embeds")
        if here() is not thread or given is None or any(one is given for one in sides.looked_up):
            return None
        sides.looked_up.append(given.detach().requires_grad_())
        return args, named | {"inputs_embeds": sides.looked_up[-1]}

    tables = [one for one in model.modules() if isinstance(one, nn.Embedding) and one not in {*own.modules()}]
    handles = [one.register_forward_hook(leave) for one in (own, *tables)]
    reader = next(one for one in model.modules() if own in one.children())
    handles.append(reader.register_forward_pre_hook(begin, with_kwargs=True))
    try:
        yield sides
    finally:
        for handle in handles:
            handle.remove()


def lent(given: Iterable) -> list:
    """A layer's arguments, with copies of those in which layers leave tensors for each other."""
    return [type(one)(one) if isinstance(one, MutableMapping) else one for one in given]


def given_beside(given: Iterable) -> list[Tensor]:
    """Of a layer's arguments, the tensors that depend on hidden states, each once."""
    return list({id(one): one for value in given for one in _tensors(value) if one.requires_grad}.values())


def left_in(given: Iterable, copies: Iterable) -> Iterator[tuple[MutableMapping, object, tuple[Tensor, ...]]]:
    """What a layer left in the copies: the mapping that was copied, the key, and the tensors."""
    for own, copy in zip(given, copies, strict=True):
        if isinstance(own, MutableMapping):
            yield from ((own, key, copy[key]) for key in sorted(copy) if copy[key] is not own.get(key))


def _tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(one)

"""Which dimension of a tensor is the tokens', followed through the operations of a class's own code.

Every element of a tensor with a place belongs to the token that its index there says. An operation that is not known to
keep tokens apart loses the place, and with it the closed form of edges: that costs a graph, never a number.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.utils._pytree import tree_leaves

_ALONG = {  # operations along a dimension, and which of their arguments that is
    "cumsum": 1, "flip": 1, "gather": 1, "index_add": 1, "index_add_": 1, "index_copy": 1, "index_select": 1, "mean": 1,
    "narrow": 1, "roll": 2, "scatter": 1, "scatter_": 1, "scatter_add": 1, "scatter_add_": 1, "select": 1, "slice": 1,
    "slice_scatter": 2, "split": 2, "split_with_sizes": 2, "sum": 1, "unbind": 1, "unfold": 1, "unsafe_split": 2,
    "cat": 1, "stack": 1,
}  # fmt: skip
_POINTWISE = {
    "_to_copy", "add", "add_", "addcmul", "alias", "clone", "contiguous", "copy", "copy_", "div", "div_", "lift_fresh",
    "masked_fill", "masked_fill_", "mul", "mul_", "neg", "rsub", "sub", "sub_", "where",
}  # fmt: skip
_VIEWS = {"_reshape_alias", "_unsafe_view", "reshape", "view", "unflatten"}


class Places:
    """The places of the tensors of one run."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self._of = tokens, {}

    def put(self, tensor: Tensor, place: int | None) -> None:
        self._of[id(tensor)] = (tensor, place)  # held, for its id to stay its own

    def of(self, x: Tensor) -> int | None:
        """Of a tensor that came from elsewhere: the one dimension that is as long as the prompt."""
        if id(x) not in self._of:
            places = [place for place, size in enumerate(x.shape) if size == self.tokens]
            self.put(x, places[0] if len(places) == 1 else None)
        return self._of[id(x)][1]

    def follow(self, name: str, args: tuple, out: object, depends) -> bool:
        """Note the places of what an operation puts out; whether tokens may have met in it."""
        given = [one for one in tree_leaves(args) if isinstance(one, Tensor) and depends(one)]
        places = [self.of(one) for one in given]
        found = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        if None in places or not found:
            met, kept = bool(found), [None] * len(found)
        else:
            kept = [self._kept(name, args, one, given, places) for one in found]
            met = None in kept
        for one, place in zip(found, kept, strict=True):
            self.put(one, place)
        if name.endswith("_") and given:  # also what it was written into
            self.put(args[0], kept[0])
        return met

    def _kept(self, name, args, out, given, places) -> int | None:
        place, rank = places[0], given[0].ndim
        if name in _POINTWISE:
            ends = {one.ndim - where for one, where in zip(given, places, strict=True)}
            target = args[0] if name == "copy_" else out
            return target.ndim - ends.pop() if len(ends) == 1 else None
        if name in _VIEWS:
            return _in_view(given[0].shape, place, out.shape)
        if name in ("t", "transpose", "swapaxes"):
            one, two = (0, 1) if name == "t" else (dim % rank for dim in args[1:3])
            return two if place == one else one if place == two else place
        if name in ("permute", "movedim"):
            return [dim % rank for dim in args[1]].index(place) if name == "permute" else None
        if name == "expand":
            return place + out.ndim - rank
        if name == "repeat":
            place += len(args[1]) - rank
            return place if args[1][place] == 1 else None
        if name == "unsqueeze":
            return place + (args[1] % (rank + 1) <= place)
        if name == "squeeze":
            gone = range(rank) if len(args) < 2 else [args[1]] if isinstance(args[1], int) else args[1]
            gone = [dim % rank for dim in gone if given[0].shape[dim] == 1]
            return place - sum(dim < place for dim in gone)
        if name in ("view_as_complex", "view_as_real"):
            return place
        if name == "constant_pad_nd":
            return place if rank - place > len(args[1]) // 2 else None
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            factors = args[1:] if name in ("addmm", "baddbmm") else args
            inner = [(factors[0], factors[0].ndim - 1), (factors[1], factors[1].ndim - 2)]
            if len(given) > 1 or any(one is given[0] and where == place for one, where in inner):
                return None
            return place
        if name in _ALONG:
            return self._along(name, args, given, place, rank)
        return None

    def _along(self, name, args, given, place, rank) -> int | None:
        at = _ALONG[name]
        dims = args[at] if len(args) > at else 0
        if dims is None or (name in ("sum", "mean") and dims == []):
            return None
        rank += name == "stack"
        dims = [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)]
        if name == "slice" and dims == [place]:
            start, end = (*args[2:4], None, None)[:2]
            step = args[4] if len(args) > 4 else 1
            whole = (start in (None, 0) or start <= -self.tokens) and (end is None or end >= self.tokens) and step == 1
            return place if whole else None
        if name == "stack":
            return place + (dims[0] <= place)
        if place in dims:
            return None
        keeps = (name not in ("sum", "mean", "select", "unbind")) or (len(args) > 2 and args[2] is True)
        return place if keeps else place - sum(dim < place for dim in dims)


def _in_view(before, place: int, after) -> int | None:
    """Where the same dimension is in another view of the same elements."""
    ahead = math.prod(before[:place])
    for where, size in enumerate(after):
        if size == before[place] and math.prod(after[:where]) == ahead:
            return where
    return None

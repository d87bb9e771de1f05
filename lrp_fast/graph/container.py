"""The graph over (layer, position) as arrays."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from .. import _native
from . import combine, export, file, flow, measures, paths, prune, viewer
from .native import arrays


class Edges(NamedTuple):
    """The edges of one transition that cross positions or were stored so, compressed by target row.

    Attributes:
        rows: (R,) int32, ascending: the target positions that are listed.
        indptr: (R + 1,) int64: the edges of ``rows[r]`` are ``indptr[r]`` to ``indptr[r + 1] - 1``.
        columns: (E,) int32 source positions, ascending within a row.
        weights: (E,) signed relevance.
    """

    rows: torch.Tensor
    indptr: torch.Tensor
    columns: torch.Tensor
    weights: torch.Tensor


class Entries(NamedTuple):
    """The edges of one transition, self edges included: the entries of ``dense(layer)`` that are not 0.

    Attributes:
        targets, sources: (E,) int32 positions, by target, then by source.
        weights: (E,) float64 signed relevance.
    """

    targets: torch.Tensor
    sources: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no one truth value to compare by
class Graph:
    """Relevance that flows between the hidden states of adjacent layers.

    Node (l, i) is position i of layer l: layer 0 is the embeddings, layer l the output of decoder layer l - 1. There
    are L + 1 layers of N nodes and L transitions; transition l leads from layer l to layer l + 1. Its edges are the
    entries of ``dense(l)`` that are not 0: what is stored at the diagonal and the self edge are one edge. All tensors
    are contiguous and on the CPU; the arrays of all transitions lie one behind the other.

    Attributes:
        nodes: (L + 1, N) node relevance, float32 or float64, as all weights below.
        self_edges: (L, N) the part of edge (l, i) -> (l + 1, i) that does not cross positions: residual, MLP, query
            path. The attention's own diagonal is stored like any other edge.
        row_offsets: (L + 1,) int64: transition l has the rows ``row_offsets[l]`` to ``row_offsets[l + 1] - 1``.
        rows: (R,) int32 target positions, ascending within a transition. Targets that were never computed, those
            below the node threshold, are not listed; their self edges are known all the same.
        indptr: (R + 1,) int64: the edges into row r are ``indptr[r]`` to ``indptr[r + 1] - 1``.
        columns: (E,) int32 source positions, ascending within a row.
        weights: (E,) signed relevance.
        dropped_mass: (R, 2) the sums of the positive and of the negative weights into each row that were not kept.
        dropped_self: (L, 2) the same for self edges of targets that are not listed.
        tokens: N strings, or None.
        manifest: what the graph is of: model, rule, what was explained, its value, how the graph was made, versions;
            "pruned" lists the calls of `prune`, `trim` and `subgraph` that it went through. Anything that JSON holds.
        causal: whether edges lead forwards alone, from a position to itself or a later one. Those of an encoder, which
            reads in both directions, lead both ways.

    Raises:
        TypeError, ValueError: where the arrays do not fit each other, an index is out of range or out of order, a
            weight is not finite, or an edge of a causal graph comes from behind.
    """

    nodes: torch.Tensor
    self_edges: torch.Tensor
    row_offsets: torch.Tensor
    rows: torch.Tensor
    indptr: torch.Tensor
    columns: torch.Tensor
    weights: torch.Tensor
    dropped_mass: torch.Tensor
    dropped_self: torch.Tensor
    tokens: list[str] | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    causal: bool = True

    def __post_init__(self):
        for name in _FLOATS + tuple(_INTEGERS):
            _check_tensor(name, getattr(self, name))
        if self.nodes.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"nodes must be float32 or float64, not {self.nodes.dtype}")
        for name, dtype in ({name: self.nodes.dtype for name in _FLOATS} | _INTEGERS).items():
            if getattr(self, name).dtype != dtype:
                raise TypeError(f"{name} must be {dtype}, not {getattr(self, name).dtype}")
        shape = tuple(self.nodes.shape)
        if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
            raise ValueError(f"nodes must be (L + 1, N) with at least 2 layers and 1 token, not {shape}")
        if shape[0] > _MOST_LAYERS:
            raise ValueError(f"nodes must be (L + 1, N) of at most {_MOST_LAYERS} layers, not {shape}")
        layers, tokens = shape[0] - 1, shape[1]
        shapes = {"self_edges": (layers, tokens), "row_offsets": (layers + 1,), "dropped_self": (layers, 2)}
        for name, expected in shapes.items():
            if getattr(self, name).shape != expected:
                raise ValueError(f"{name} must be {expected} for nodes {shape}, not {tuple(getattr(self, name).shape)}")
        for name in ("nodes", "dropped_self"):
            if not getattr(self, name).isfinite().all():
                raise ValueError(f"{name} must be finite, and is not")
        if (self.dropped_self[:, 0] < 0).any() or (self.dropped_self[:, 1] > 0).any():
            raise ValueError("dropped_self must hold a positive and a negative sum in each row")
        _native.check_graph(arrays(self))
        _check_tokens(self.tokens, tokens)
        if not isinstance(self.manifest, dict):
            raise TypeError(f"manifest must be a dict, not {type(self.manifest).__name__}")
        if not isinstance(self.manifest.get("pruned", []), list):
            raise TypeError('manifest["pruned"] must be a list, to which pruning appends')
        if not isinstance(self.causal, bool):
            raise TypeError(f"causal must be True or False, not {self.causal!r}")
        if self.causal:
            _check_forwards(self)

    @classmethod
    def from_transitions(
        cls,
        nodes: torch.Tensor,
        self_edges: torch.Tensor,
        transitions: Iterable[tuple[Edges, torch.Tensor]],
        tokens: list[str] | None = None,
        manifest: dict[str, Any] | None = None,
        causal: bool = True,
    ) -> Graph:
        """Join the transitions, from the lowest up: for each its edges and their (R, 2) dropped mass."""
        parts = list(transitions)
        if not parts:
            raise ValueError("transitions is empty: a graph needs at least one")
        edges, dropped = zip(*parts, strict=True)
        for layer, one in enumerate(edges):
            if len(one.indptr) != len(one.rows) + 1 or one.indptr[0] != 0 or one.indptr[-1] != len(one.columns):
                raise ValueError(f"indptr of transition {layer} does not count its rows and columns")
        zero = torch.zeros(1, dtype=torch.int64)
        return cls(
            nodes=nodes,
            self_edges=self_edges,
            row_offsets=torch.tensor([0] + [len(one.rows) for one in edges]).cumsum(0),
            rows=torch.cat([one.rows for one in edges]),
            indptr=torch.cat([zero, torch.cat([one.indptr.diff() for one in edges]).cumsum(0)]),
            columns=torch.cat([one.columns for one in edges]),
            weights=torch.cat([one.weights for one in edges]),
            dropped_mass=torch.cat(dropped),
            dropped_self=torch.zeros(len(edges), 2, dtype=nodes.dtype),
            tokens=tokens,
            manifest=manifest or {},
            causal=causal,
        )

    def __repr__(self) -> str:
        return f"Graph({self.num_layers} layers, {self.num_tokens} tokens, {len(self.columns)} edges)"

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers and of transitions."""
        return self.nodes.shape[0] - 1

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.nodes.shape[1]

    def _rows(self, layer: int) -> slice:
        try:
            layer = operator.index(layer)
        except TypeError as error:
            raise TypeError(f"layer must be a whole number, not {layer!r}") from error
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"there is no transition {layer}: they are numbered 0 to {self.num_layers - 1}")
        return slice(int(self.row_offsets[layer]), int(self.row_offsets[layer + 1]))

    def edges(self, layer: int) -> Edges:
        """The edges of transition ``layer`` -> ``layer + 1``, without the self edges; views, but for indptr."""
        rows = self._rows(layer)
        indptr = self.indptr[rows.start : rows.stop + 1]
        stored = slice(int(indptr[0]), int(indptr[-1]))
        return Edges(self.rows[rows], indptr - indptr[0], self.columns[stored], self.weights[stored])

    def dropped(self, layer: int) -> torch.Tensor:
        """(R, 2): for every listed row of a transition, the positive and the negative relevance not kept."""
        return self.dropped_mass[self._rows(layer)]

    def entries(self, layer: int) -> Entries:
        """All edges of a transition one by one, self edges added to the diagonal, entries of 0 left out."""
        self._rows(layer)
        return Entries(*map(torch.from_numpy, _native.entries(arrays(self), layer)))

    def dense(self, layer: int) -> torch.Tensor:
        """(N, N): row = target, column = source, self edges added on the diagonal. For small graphs."""
        rows, indptr, columns, weights = self.edges(layer)
        matrix = torch.diag(self.self_edges[layer])
        targets = torch.repeat_interleave(rows.long(), indptr.diff())
        matrix[targets, columns.long()] += weights
        return matrix

    def influence(self, target=None, signed: bool = False) -> torch.Tensor:
        """How much of the relevance at the target flows through every node: (L + 1, N) float64.

        The influence of a node is the sum, over all paths from it to the target, of the products of edge shares. The
        share of an edge is |w| over the sum of |w| into the same node, what was dropped there included: on a graph that
        dropped nothing this is circuit-tracer's influence. The target's own is 0.

        Of a target that is not listed (below the node threshold, or in a layer that was left out) only the self edge is
        known, which then has the whole share: routes that stay at one position look stronger than they are.

        Args:
            target: a node (layer, position), a list of nodes, or None for all nodes of the last layer that hold
                relevance. Several are weighted by |relevance|.
            signed: give every share the sign of its weight relative to the relevance of the node it flows into, and
                the target the sign of its relevance; no larger than the absolute influence.
        """
        return flow.influence(self, target, signed)

    def ancestors(self, target=None) -> torch.Tensor:
        """(L + 1, N) bool: the nodes from which a path leads to ``target`` (as in `influence`), itself included."""
        return flow.ancestors(self, target)

    def descendants(self, source=None) -> torch.Tensor:
        """(L + 1, N) bool: the nodes to which a path leads from ``source``, a node or a list of nodes, itself included.

        None stands for all nodes of layer 0.
        """
        return flow.descendants(self, source)

    def subgraph(self, nodes: torch.Tensor) -> Graph:
        """The graph with only the edges between nodes of an (L + 1, N) bool mask; the others become dropped mass."""
        return flow.subgraph(self, nodes)

    def trim(self, target=None) -> Graph:
        """The graph without dead ends: only edges on a path from layer 0 to ``target`` (as in `influence`)."""
        return flow.trim(self, target)

    def prune(
        self,
        *,
        threshold: float | None = None,
        mass: float | None = None,
        influence: tuple[float, float] | None = None,
        target=None,
    ) -> Graph:
        """The graph with only its strongest edges, by one of three measures. Self edges count as edges.

        What is left out becomes dropped mass. Rows stay listed, also without edges.

        Args:
            threshold: keep edges with |weight| > threshold, in units of relevance.
            mass: in each transition, keep the smallest set of largest |weight| that holds this share of the sum of
                |weight|, ties kept; "by_per_layer_cum_mass_percentile" of arXiv 2604.17761. In (0, 1].
            influence: (node share, edge share), as circuit-tracer's ``prune_graph`` with (0.8, 0.98): keep the nodes of
                largest influence that hold the first share of all influence, layer 0 and the target in any case; among
                the edges between them, anew, those that hold the second share of the edges' influence; then remove
                dead ends. As there, shares are of kept edges alone, whatever was dropped.
            target: whose influence; a node, a list of nodes or None, as in `influence`.
        """
        return prune.prune(self, threshold, mass, influence, target)

    def paths(self, k: int = 1, target=None) -> list[paths.Path]:
        """The k best paths from the inputs to the target, best first; all of them where there are fewer.

        A path is worth the product of its edges' shares, as in `influence`: the part of the target's relevance that
        flows along it. Of equal ones the one with the lower position goes first, compared from the target down.
        """
        return paths.best(self, k, target)

    def measures(self):
        """One row of figures a layer, as `lrp_fast.graph.measures` defines them.

        Returns:
            pandas.DataFrame: where pandas is installed; otherwise a dict of lists with the same names.
        """
        return measures.table(self)

    def difference(self, other: Graph) -> Graph:
        """This graph minus another one of the same tokens: another target, model or checkpoint.

        Nodes and edges are differences over the union of both; an edge that only one of them keeps counts as 0 in the
        other. Of an edge that one of them dropped, the difference is unknown: dropped masses therefore add up, what the
        other dropped with its sign turned. float64 if either is.
        """
        return combine.difference(self, other)

    def __sub__(self, other: Graph) -> Graph:
        return self.difference(other) if isinstance(other, Graph) else NotImplemented

    def group_by(self, groups: Sequence[int] | torch.Tensor, names: Sequence[str] | None = None) -> Graph:
        """The graph between groups of tokens: sentences, turns, segments.

        Relevance, edges, self edges and dropped masses are sums over members. Edges between two members of one group
        become the group's diagonal, apart from its self edge. The old manifest is kept as
        ``{"group_by": ...}``.

        Args:
            groups: (N,) the group of every token, 0 to G - 1.
            names: G strings, the tokens of the new graph.
        """
        return combine.group_by(self, groups, names)

    def to_networkx(self):
        """The graph as a networkx.DiGraph, for small and pruned graphs.

        Nodes are (layer, position), with ``layer``, ``position``, ``relevance`` and, where there are tokens, ``token``;
        those without edges are left out. Edges lead up one layer, with ``weight`` and ``self_edge``, which marks those
        from a position to itself: residual, MLP and attention in one. ``graph`` holds the sizes, the dropped mass,
        positive and negative, and the manifest.

        Raises:
            ImportError: without networkx, the extra ``networkx``.
            ValueError: for more than two million edges.
        """
        return export.to_networkx(self)

    def to_pandas(self):
        """(edges, nodes), two pandas.DataFrames of any size, by layer.

        Edges have the columns ``layer`` (the source's; the target's is one more), ``source`` and ``target`` (positions,
        both), ``weight`` and ``self_edge``, nodes ``layer``, ``position``, ``relevance`` and, where there are tokens,
        ``token``; as in `to_networkx`.

        Raises:
            ImportError: without pandas, the extra ``pandas``.
        """
        return export.to_pandas(self)

    def to_node_link(self) -> dict:
        """The graph of `to_networkx` as plain data for JSON, in the node-link form of d3 and networkx.

        Nodes have an ``id`` "layer:position", ``links`` a source and a target of these ids. A number that is not finite
        in the manifest (the logit of a masked token) becomes None. ``networkx.node_link_graph(data, edges="links")``
        reads it.

        Raises:
            ValueError: for more than two million edges, about 200 MB of JSON.
        """
        return export.to_node_link(self)

    def to_attribution_graph(self, slug: str, scan: str | None = None) -> dict:
        """The graph as plain data for the JSON that the viewers of circuit-tracer and Neuronpedia open.

        Their columns are the tokens that still have nodes, renumbered; ``generation_settings`` has the original
        positions. Layer 0 are embeddings, the nodes above have the feature type "residual stream", drawn as features
        without a dictionary. Above the last layer there is a logit each for the target and, if there is one, for the
        contrast; the links to them are what they add to the explained value, so that of the contrast is minus its
        logit. Probabilities are not known here, and are given as "?".

        Args:
            slug: the name of the graph. circuit-tracer's server reads a file ``<slug>.json``, and lists it if the
                ``graphs`` in the graph-metadata.json beside it hold its ``metadata``.
            scan: the model's id on Neuronpedia; by default the name of the model.

        Raises:
            ValueError: for more than two million edges (Neuronpedia takes 100 MiB), and for a graph that does not say
                what was explained or whose nodes are no longer tokens: a difference, groups.
        """
        return viewer.to_attribution_graph(self, slug, scan)

    def save(self, path: str | os.PathLike, half: bool = False) -> None:
        """Write one safetensors file; it appears whole or not at all.

        An edge takes 8 bytes in float32; with ``half`` 6, its weight rounded to float16 on the scale of the largest in
        its row: the error is at most 2^-11 of the weight, or 2^-25 of the row's largest if that is more.

        Raises:
            TypeError, ValueError: for a manifest that JSON does not hold or that says what cannot have been explained
                in this graph, and for arrays that no longer fit each other: `load` would refuse them.
            OSError: if it cannot be written.
        """
        file.save(self, path, half)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Graph:
        """Read what `save` wrote. The arrays are memory-mapped: the file must stay as it is while the graph is used.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no whole graph file, or its parts do not fit each other: one sentence.
        """
        return file.load(cls, path)

    def _repr_html_(self) -> str:
        """What a notebook shows: a static fragment with the counts and the best paths."""
        from ..report.notebook import graph

        return graph(self)


_MOST_LAYERS = 2**16  # pages number them in 16 bits
_FLOATS = ("nodes", "self_edges", "weights", "dropped_mass", "dropped_self")
_INTEGERS = {"row_offsets": torch.int64, "rows": torch.int32, "indptr": torch.int64, "columns": torch.int32}


def _check_tensor(name: str, value) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")
    if value.device.type != "cpu" or value.requires_grad or not value.is_contiguous():
        mend = f"{name}.detach().cpu().contiguous()"
        raise ValueError(f"{name} must be contiguous, on the CPU and without grad: pass {mend}")


def _check_forwards(graph: Graph) -> None:
    """Columns ascend within a row: its last says it."""
    held = graph.indptr.diff() > 0
    behind = graph.columns[graph.indptr[1:][held] - 1] > graph.rows[held]
    if behind.any():
        row = int(graph.rows[held][behind][0])
        raise ValueError(
            f"an edge into position {row} comes from behind it, in a causal graph: give causal=False where tokens read "
            "in both directions"
        )


def _check_tokens(tokens, num_tokens: int) -> None:
    if tokens is None:
        return
    if not isinstance(tokens, list) or not all(isinstance(one, str) for one in tokens):
        raise TypeError("tokens must be a list of strings, or None")
    if len(tokens) != num_tokens:
        raise ValueError(f"tokens must be {num_tokens} strings, one a token, not {len(tokens)}")

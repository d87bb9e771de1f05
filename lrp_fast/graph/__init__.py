"""Sparse graphs over hidden states: the container, its file, and what can be asked of it."""

from .container import Edges, Entries, Graph
from .paths import Path
from .spec import GraphSpec, transition

__all__ = ["Edges", "Entries", "Graph", "GraphSpec", "Path", "transition"]

"""What observers see of a study's cases, where they are asked for: heads, neurons, logit lens, trajectories of steps.

RUN/observed/KEY.safetensors holds, of a case, the tensors of each observer's table (`lrp_fast.observers`), named
"heads.output", "lens.scores", and so on; `load` reads it. The table of the study has the strongest of them. A case's
steps are its segments; one without any has none.

A pass shows observers one prompt: with any of them, cases do not share passes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from .. import reading
from ..attribution import Attribution
from ..explained import Explained
from ..files import without_infinity
from ..hf import decoder_layers
from ..observers import HeadRelevance, Heads, LogitLens, NeuronRelevance, Neurons, Scores, Steps, Trajectory
from ..observers.room import Pass
from ..report.observed import heads_as_json, lens_as_json, neurons_as_json
from ..rules import Rules
from ..sources import REST, Division

_FORMAT = "lrp_fast.observed/1"
_TABLES = {"heads": HeadRelevance, "neurons": NeuronRelevance, "lens": Scores, "steps": Trajectory}
_STRONGEST = 10


class Observed(NamedTuple):
    """What observers kept of a case.

    Attributes:
        tables: by "heads", "neurons", "lens" and "steps", as asked for: `HeadRelevance`, `NeuronRelevance` (a layer's
            strongest, as many as the table of the study shows of all layers), `Scores`, `Trajectory`.
        steps: the names of the S steps.
    """

    tables: dict[str, tuple]
    steps: list[str]

    def as_bytes(self) -> bytes:
        tensors = {}
        for name, table in self.tables.items():
            for part, value in table._asdict().items():
                tensors[f"{name}.{part}"] = torch.as_tensor(value).contiguous()
        return to_bytes(tensors, metadata=reading.metadata({"steps": self.steps}, _FORMAT, checked=False))


def read(observe) -> dict | None:
    """What is to be seen: names, or a dict of names, of which "heads" and "neurons" have how many of the strongest the
    table shows (10), and the others True; None for none.

    Raises:
        TypeError, ValueError: one sentence.
    """
    if isinstance(observe, str) or not isinstance(observe, Mapping | Sequence):
        raise TypeError(f"observe must be a list of {', '.join(_TABLES)}, or a dict of them, not {observe!r}")
    given = observe if isinstance(observe, Mapping) else dict.fromkeys(observe, True)
    for name, most in given.items():
        if name not in _TABLES:
            raise ValueError(f"observe holds {name!r}, and a study knows {', '.join(_TABLES)}")
        counted = name in ("heads", "neurons") and type(most) is int and most > 0
        if most is not True and not counted:
            kinds = "True, or how many of the strongest" if name in ("heads", "neurons") else "True"
            raise ValueError(f"observe gives {most!r} for {name!r}, which must be {kinds}")
    found = {name: given[name] for name in _TABLES if name in given}
    for name in found.keys() & {"heads", "neurons"}:
        found[name] = _STRONGEST if found[name] is True else found[name]
    return found or None


def check(observe: dict | None, model) -> None:
    """ValueError for what no case of this model has: its layers have no heads, or no neurons."""
    layers = decoder_layers(model)
    for one in observers({name: most for name, most in (observe or {}).items() if name in ("heads", "neurons")}, None):
        one.needs(Pass(model, layers, 1, [0], Rules(), True, []))


def observers(observe: dict, division: Division | None) -> list:
    """Those of a case, in the order of ``observe``."""
    made = {
        "heads": lambda: Heads(),
        "neurons": lambda: Neurons(k=observe["neurons"]),
        "lens": lambda: LogitLens(),
        "steps": lambda: Steps([(division.groups == i).nonzero().flatten().tolist() for i, _ in _steps(division)]),
    }
    return [made[name]() for name in observe if name != "steps" or _steps(division)]


def _steps(division: Division | None) -> list[tuple[int, str]]:
    return [] if division is None else [(i, name) for i, name in enumerate(division.names) if name != REST]


def of(observe: dict | None, division: Division | None, result: Attribution) -> Observed | None:
    """What the observers of ``observers`` kept of a result."""
    if observe is None:
        return None
    names = [name for name in observe if name != "steps" or _steps(division)]
    steps = [name for _, name in _steps(division)] if "steps" in observe else []
    return Observed(dict(zip(names, result.observed, strict=True)), steps)


def figures(observe: dict, kept: Observed, explained: Explained) -> dict:
    """What the table says of it: see `lrp_fast.study.table`."""
    row = {}
    for name, table in kept.tables.items():
        match name:
            case "heads":
                row[name] = heads_as_json(table, observe[name])
            case "neurons":
                row[name] = neurons_as_json(table, observe[name])
            case "lens":
                found = lens_as_json(table, explained)
                row |= {"commitment": found["commitment"][-1], "lens": [one[-1] for one in found["scores"]]}
            case "steps":
                row[name] = without_infinity(_moves(table, kept.steps))
    return row


def _moves(table: Trajectory, names: list[str]) -> list[dict]:
    """Of each step its relevance at each layer, the length of its mean hidden state, and how far that is from the step
    before, 2 |a - b| / (|a| + |b|) as of `lrp_fast.observers.departures`."""
    hidden = table.hidden.double().transpose(0, 1)  # (S, L + 1, D)
    lengths = torch.linalg.vector_norm(hidden, dim=-1)
    found = []
    for i, name in enumerate(names):
        moved = None
        if i:
            apart = torch.linalg.vector_norm(hidden[i] - hidden[i - 1], dim=-1)
            both = lengths[i] + lengths[i - 1]
            moved = torch.where(both > 0, 2 * apart / both, 0.0).tolist()
        relevance = table.relevance[:, i].double().tolist()
        found.append({"name": name, "relevance": relevance, "length": lengths[i].tolist(), "moved": moved})
    return found


def load(path: str | os.PathLike) -> Observed:
    """Read what lies in a study's folder, observed/.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of these files, or is not whole.
    """
    name = repr(os.fspath(path))
    try:
        about, shapes = reading.header(path, _FORMAT)
        with safe_open(path, framework="pt") as file:
            parts = {one: file.get_tensor(one).clone() for one in shapes}
        tables = {}
        for kind, table in _TABLES.items():
            if any(one.startswith(f"{kind}.") for one in parts):
                tables[kind] = table(*(parts[f"{kind}.{field}"] for field in table._fields))
        if "lens" in tables:
            tables["lens"] = tables["lens"]._replace(positions=tables["lens"].positions.tolist())
        return Observed(tables, about["steps"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a whole file of what a study observed: {error}") from error

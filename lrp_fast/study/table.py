"""The table of a study: one row a case, made from the files of its folder alone.

    id, status, why              as in the log
    num_tokens, prompt_tokens    of what the model read, and of the prompt alone
    kind, value, positions       what was explained, as `lrp_fast.Explained` says; its value; at which positions
    target, contrast, runner_up  the text; each with _id, _logit and _rank (0 is the model's first choice). Of the last
                                 of several positions. A contrast that is a mean has a logit alone
    note, dropped                the result's note; the largest share that a bounded pass left out of a layer
    entropy, gini, ...           `lrp_fast.study.measures`, of the relevance of the input tokens
    segments                     a list of `lrp_fast.study.segments.sums`
    finding                      what `instruction_following`, or a function in its place, makes of them; of a value
                                 that is no difference of two tokens' logits, nothing
    graph                        where graphs were asked for, `lrp_fast.graph.measures`: of each figure a list, one
                                 number a layer
    heads, neurons               where they were asked for, the strongest: a list of layer, head, kv_head (whose keys
                                 and values it reads), output, query, key, value (`lrp_fast.observers.HeadRelevance`);
                                 a list of layer, neuron, relevance
    commitment, lens             where the logit lens was asked for: the layer from which on the score has the last
                                 one's sign; the scores of layers 0 ... L. Of the last of several positions
    steps                        where trajectories were asked for, of each segment but "(rest)": name, and a number a
                                 layer of relevance (the sum), length (of the mean hidden state) and moved (how far that
                                 is from the step before, 2 |a - b| / (|a| + |b|); nothing of the first)
    and a column for each further field of the cases whose values are plain: strings, numbers, truth values. Of
    numbers and others mixed, all are strings; a field called as a column above is "field.NAME".

Times are in the log alone: two runs of the same cases have the same table.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

from ..attribution import Attribution, load
from ..files import aside
from ..graph import Graph
from ..graph.measures import columns
from ..reading import cut
from . import measures, observed
from .cases import OWN, Case
from .folder import Folder
from .segments import sums

Finding = Callable[[float, list[dict]], str | None]


def table(folder: str | os.PathLike | Folder):
    """A study's table as a pandas DataFrame.

    Raises:
        FileNotFoundError: if there is none (yet).
    """
    check_installed("pyarrow", "pandas")
    import pandas

    folder = folder if isinstance(folder, Folder) else Folder(folder)
    return pandas.read_parquet(folder.table)


_USES = {  # what is imported, and for what
    "pyarrow": ("pyarrow.parquet", "a study's table is written with pyarrow"),
    "pandas": ("pandas", "a study's tables are pandas DataFrames"),
    "matplotlib": ("matplotlib", "a study's plots are drawn with matplotlib"),
}


def check_installed(*names: str) -> None:
    """Before anything is computed for what these packages do.

    Raises:
        ModuleNotFoundError: without one of them.
    """
    for name in names:
        module, use = _USES[name]
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{use}: pip install 'lrp-fast[study]'") from error


def write_table(
    folder: Folder, cases: list[Case], finding: Finding, figures: dict[str, dict], observe: dict | None = None
) -> None:
    """The table of all cases; of results that are at hand, ``figures`` has by id what `figures_of` says of them."""
    import pyarrow
    from pyarrow import parquet

    statuses = folder.statuses()
    rows = [_row(folder, case, statuses[case.id], finding, figures, observe) for case in cases]
    schema = _schema(pyarrow, next((list(row["graph"]) for row in rows if "graph" in row), None), observe or {})
    names = [field.name for field in schema]
    arrays = [pyarrow.array([spelled_out(row.get(field.name)) for row in rows], field.type) for field in schema]
    for name, values in plain_fields(cases).items():
        name = spelled_out(name)
        while name in names:
            name = f"field.{name}"
        names.append(name)
        arrays.append(pyarrow.array(list(map(spelled_out, values))))
    with aside(folder.table) as part:
        parquet.write_table(pyarrow.Table.from_arrays(arrays, names), part)


def _schema(pyarrow, figures: list[str] | None, observe: dict):
    text, number, whole = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    layers = pyarrow.list_(number)
    segment = {"name": text, "tokens": whole, "relevance": number, "magnitude": number, "layers": layers}
    fields = {"id": text, "status": text, "why": text, "num_tokens": whole, "prompt_tokens": whole, "kind": text}
    fields |= {"value": number, "positions": pyarrow.list_(whole)}
    for name in ("target", "contrast", "runner_up"):
        fields |= {name: text, f"{name}_id": whole, f"{name}_logit": number, f"{name}_rank": whole}
    fields |= {"note": text, "dropped": number}
    fields |= dict.fromkeys(measures.NAMES, number)
    fields |= {"segments": pyarrow.list_(pyarrow.struct(segment.items())), "finding": text}
    if figures is not None:
        fields["graph"] = pyarrow.struct([(name, layers) for name in figures])
    head = dict.fromkeys(("layer", "head", "kv_head"), whole)
    head |= dict.fromkeys(("output", "query", "key", "value"), number)
    neuron = {"layer": whole, "neuron": whole, "relevance": number}
    step = {"name": text, "relevance": layers, "length": layers, "moved": layers}
    for name, one in (("heads", head), ("neurons", neuron), ("steps", step)):
        if name in observe:
            fields[name] = pyarrow.list_(pyarrow.struct(one.items()))
    if "lens" in observe:
        fields |= {"commitment": whole, "lens": layers}
    return pyarrow.schema(fields.items())


def _row(folder: Folder, case: Case, entry: dict, finding: Finding, figures: dict, observe: dict | None) -> dict:
    row = {"id": case.id, "status": entry["status"], "why": entry["why"]}
    if row["status"] != "done":
        return row
    found = figures.get(case.id)
    if found is None:
        there = folder.graph(case.id).exists()
        kept = None if observe is None else observed.load(folder.observed(case.id))
        graph = Graph.load(folder.graph(case.id)) if there else None
        found = figures_of(load(folder.result(case.id)), graph, observe, kept)
    if found["kind"] == "difference":  # of two tokens, of which one is the wrong one
        row["finding"] = said = finding(found["value"], found["segments"])
        if said is not None and not isinstance(said, str):
            name = getattr(finding, "__qualname__", type(finding).__name__)
            raise TypeError(
                f"finding must give a string or None, and {name} gave {cut(repr(said))} for case {case.id!r}: the "
                "results are kept, so mend it and run the same again"
            )
    return row | found


def figures_of(
    result: Attribution, graph: Graph | None, observe: dict | None = None, kept: observed.Observed | None = None
) -> dict:
    """A row but for what the log and the case say, of what the files hold."""
    explained, term = result.explained, result.explained.terms[-1]
    row = {"num_tokens": len(result.input_ids), "prompt_tokens": result.prompt_tokens, "kind": explained.kind}
    row |= {"value": result.value, "positions": [one.position for one in explained.terms], "note": explained.note}
    for name in ("target", "contrast", "runner_up"):
        if (token := getattr(term, name)) is not None:
            row |= {name: token.text, f"{name}_id": token.id, f"{name}_logit": token.logit, f"{name}_rank": token.rank}
    row |= {"contrast_logit": term.contrast_logit, "dropped": float(result.dropped.max())}
    row |= measures.measures(result.relevance.numpy(force=True))
    row["segments"] = sums(result)
    if graph is not None:
        row["graph"] = {name: list(map(float, values)) for name, values in columns(graph).items()}
    return row if kept is None else row | observed.figures(observe, kept, explained)


def spelled_out(value):
    """In all texts of it, half of a character, which no table holds, is spelled out."""
    if isinstance(value, list):
        return list(map(spelled_out, value))
    if isinstance(value, dict):
        return {name: spelled_out(one) for name, one in value.items()}
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def plain_fields(cases: list[Case]) -> dict[str, list]:
    """The cases' further fields that are plain, a value a case, of one type each."""
    found = {}
    for name in dict.fromkeys(name for case in cases for name in case.fields if name not in OWN):
        values = [case.fields.get(name) for case in cases]
        there = [one for one in values if one is not None]
        kinds = {type(one) for one in there}
        if not there or not kinds <= {str, int, float, bool}:
            continue
        fits = all(-(2**63) <= one < 2**63 for one in there if isinstance(one, int))
        if kinds == {int, float} and fits:
            values = [one if one is None else float(one) for one in values]
        elif len(kinds) > 1 or not fits:
            values = [one if one is None else str(one) for one in values]
        found[name] = values
    return found

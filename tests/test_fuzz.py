"""Files changed at random, by hypothesis: each is read as something that works, or refused in one sentence.

FUZZ_EXAMPLES=100000 tries that many of each kind, other ones each time; without it, the same few every time.
"""

import copy
import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

import lrp_fast
from lrp_fast import Graph, GraphSpec, Rules, attribute
from lrp_fast.report import graph as graph_report
from lrp_fast.report import graph_html, html, record, table

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    print_blob=True,
)


@pytest.fixture(scope="session", autouse=True)
def hypothesis_keeps_its_notes_elsewhere(tmp_path_factory):
    """It writes the constants of this code beside the tests."""
    from hypothesis.configuration import set_hypothesis_home_dir

    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))
    yield
    set_hypothesis_home_dir(None)


# ---- real files, as (what the file says of itself, its tensors)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def opened(path):
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return json.loads(header["__metadata__"]["lrp_fast"]), {name: t.clone() for name, t in load_file(path).items()}


@pytest.fixture(scope="session")
def files(tiny, folder):
    """{"attribution": several, "graph": several}."""
    found = {"attribution": [], "graph": []}
    prompt, texts = [3, 1, 4, 1, 5], ["<s>", " a", "\u2028", "\ud800", "</b>"]
    for dtype, contrast, position, spec in (
        (torch.float32, 5, -1, GraphSpec(topk=2)),
        (torch.float64, ("top", 3), [1, -1], GraphSpec(mass=0.8)),
        (torch.float32, None, 2, GraphSpec(topk=1, layers=[1])),
        (torch.bfloat16, "mean", -1, GraphSpec(topk=3, node_threshold=0.1)),
    ):
        result = attribute(tiny("llama", dtype), prompt, 3, contrast, position, Rules("cp", 0.1), spec)
        if spec.mass is None:
            graph = replace(result.graph, tokens=texts)
            result = replace(result, tokens=texts, special=[True, False, False, False, False])
            result = result.by_source({"left": (0, 2), "right": (3, 4)} if contrast else {"\ud800": (0, 5)})
        else:
            graph = result.graph.prune(influence=(0.9, 0.98))
        result.save(folder / "case")
        found["attribution"].append(opened(folder / "case"))
        for half in (False, True):
            replace(graph, causal=half).save(folder / "case", half=half)
            found["graph"].append(opened(folder / "case"))
    (graph - graph.prune(mass=0.5)).group_by([0, 0, 1, 1, 1], ["left", "right"]).save(folder / "case")
    found["graph"].append(opened(folder / "case"))
    return found


# ---- what is done to them

NUMBERS = [
    *(None, True, False, -1, 0, 1, 2, 3, 5, 6, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64),
    *(10**30, 10**400, -(10**400), 0.0, -0.5, 1.5, 1e-320, 3.5e38, 1e308, float("nan"), float("inf"), -float("inf")),
]
WORDS = [
    "",
    "a",
    "x" * 1000,
    "\ud800",
    "\x00\n",
    "F32",
    "F64",
    "F16",
    "I64",
    "I32",
    "BOOL",
    "top",
    "mean",
    "logit",
    "cp",
]
VALUES = st.sampled_from([*NUMBERS, *WORDS, [], {}, [[]], [0, 2**40], [2**40, 0], {"a": None}, ["a"] * 5, [True] * 5])


def places(value, path=()):
    """Where something stands in JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, entry in entries:
        yield (*path, name)
        yield from places(entry, (*path, name))


def edit(draw, value, other):
    """JSON with one entry replaced, taken out, moved, or taken from the same kind of JSON of another file."""
    place = draw(st.sampled_from(list(places(value)) or [()]))
    part = value
    for name in place[:-1]:
        part = part[name]
    if not place:
        return copy.deepcopy(draw(VALUES))
    how = draw(st.sampled_from(["value", "value", "near", "out", "other", "deep"]))
    old = part[place[-1]]
    if how == "value":
        part[place[-1]] = copy.deepcopy(draw(VALUES))
    elif how == "near" and isinstance(old, int | float) and not isinstance(old, bool):
        part[place[-1]] = old + draw(st.sampled_from([-1, 1, 4, *([1e-3, -1e-9] if abs(old) < 1e300 else [])]))
    elif how == "near":
        part[place[-1]] = copy.deepcopy(draw(st.sampled_from([part[name] for name in keys(part)])))
    elif how == "out":
        del part[place[-1]]
    elif how == "other":
        for name in place:
            if not (name in other if isinstance(other, dict) else isinstance(other, list) and name < len(other)):
                return value
            other = other[name]
        part[place[-1]] = copy.deepcopy(other)
    else:
        for _ in range(draw(st.sampled_from([3, 150, 300]))):
            part[place[-1]] = [part[place[-1]]] if draw(st.booleans()) else {"a": part[place[-1]]}
    return value


def keys(part):
    return list(part) if isinstance(part, dict) else list(range(len(part)))


DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def change(draw, tensors, others):
    """One tensor with other values, another shape or dtype, that of another file, or none."""
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    how = draw(st.sampled_from(["value", "value", "value", "dtype", "shape", "cut", "out", "add", "other", "order"]))
    if how == "value" and tensor.numel():
        at = draw(st.integers(0, tensor.numel() - 1))
        number = draw(st.sampled_from([one for one in NUMBERS if one is not None]))
        near = draw(st.booleans())
        number = tensor.flatten()[at].item() + draw(st.sampled_from([-1, 1])) if near else number
        if tensor.dtype.is_floating_point:
            number = float(max(min(number, 1e308), -1e308)) if isinstance(number, int) else number
        elif tensor.dtype != torch.bool:
            info = torch.iinfo(tensor.dtype)
            number = int(max(info.min, min(info.max, number))) if number == number else 0
        else:
            number = bool(number)
        changed = tensor.flatten().clone()
        exact = torch.float64 if tensor.dtype.is_floating_point else tensor.dtype
        changed[at] = torch.tensor(number, dtype=exact).to(tensor.dtype)
        tensors[name] = changed.view(tensor.shape)
    elif how == "dtype":
        tensors[name] = tensor.nan_to_num(0).to(draw(st.sampled_from(DTYPES)))
    elif how == "shape":
        shapes = [(-1,), (1, -1), (-1, 1), tuple(reversed(tensor.shape)), (*tensor.shape, 1), (0, 2**40), (2**40, 0)]
        shape = draw(st.sampled_from(shapes))
        tensors[name] = (
            torch.empty(shape, dtype=tensor.dtype)
            if 0 in shape
            else tensor.reshape(shape)
            if tensor.numel()
            else tensor
        )
    elif how == "cut" and tensor.numel():
        dimension = draw(st.integers(0, tensor.ndim - 1))
        length = draw(st.integers(0, tensor.shape[dimension]))
        tensors[name] = tensor.narrow(dimension, 0, length).contiguous()
    elif how == "out":
        del tensors[name]
    elif how == "add":
        tensors[draw(st.sampled_from(["scales", "more", ""]))] = tensor.clone()
    elif how == "other" and name in others:
        tensors[name] = others[name].clone()
    elif how == "order":
        tensors[name] = tensor.flip(0).contiguous() if tensor.ndim else tensor


def bend(draw, data):
    """Bytes with some replaced, put in, taken out or cut off, now and then by a number that means trouble."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        if not data:
            break
        size = struct.unpack("<Q", data[:8])[0] if len(data) > 8 else 0
        end = len(data) - 1 if draw(st.booleans()) else min(len(data) - 1, 8 + size)
        at = draw(st.integers(0, end))
        how = draw(st.sampled_from(["byte", "number", "insert", "delete", "cut", "digit"]))
        if how == "byte":
            data[at] = draw(st.integers(0, 255))
        elif how == "digit":
            data[at] = draw(st.sampled_from(b'0123456789,:"{}[]-.eE'))
        elif how == "number":
            trouble = draw(st.sampled_from([0, 1, 4, 5, 6, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))
            packed = struct.pack("<Q", trouble)[: draw(st.sampled_from([4, 8]))]
            data[at : at + len(packed)] = packed[: len(data) - at]
        elif how == "insert":
            data[at:at] = bytes(draw(st.integers(1, 9)))
        elif how == "delete":
            del data[at : at + draw(st.integers(1, 9))]
        else:
            del data[at:]
    return bytes(data)


@st.composite
def mutants(draw, files):
    """The bytes of one of the files, changed here and there."""
    about, tensors = draw(st.sampled_from(files))
    other_about, other_tensors = draw(st.sampled_from(files))
    about, tensors = copy.deepcopy(about), dict(tensors)
    kinds = draw(
        st.lists(
            st.sampled_from(["about", "about", "tensor", "tensor", "mix", "header", "bytes"]), max_size=3
        )
    )
    for kind in kinds:
        if kind == "about":
            about = edit(draw, about, other_about)
        elif kind == "tensor" and tensors:
            change(draw, tensors, other_tensors)
        elif kind == "mix":
            about = copy.deepcopy(other_about)
    text = json.dumps(about)
    if draw(st.integers(0, 9)) == 0:
        text = text[:-1] + ', "value": 1, "value": 2}'
    data = save(tensors, metadata={"lrp_fast": text})
    if "header" in kinds:
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        inner = {name: entry for name, entry in header.items() if name != "__metadata__"}
        part = inner if draw(st.booleans()) else header
        header = json.dumps(edit(draw, part, copy.deepcopy(part))).encode()
        data = struct.pack("<Q", len(header)) + header + data[8 + size :]
    return bend(draw, data) if "bytes" in kinds else data


# ---- what must come of it


def one_sentence(error):
    said = str(error)
    assert said and "\n" not in said and len(said) < 800, said
    said.encode("utf-8")


def works(*calls):
    """Each call runs, or refuses in one sentence what it cannot do with such numbers."""
    for call in calls:
        try:
            call()
        except ValueError as error:
            one_sentence(error)


def as_json(data):
    json.dumps(data, allow_nan=False).encode("ascii")


def loaded(load, folder, data):
    """What ``load`` makes of the bytes, or None where it refuses them in one sentence."""
    path = folder / "mutant"
    path.unlink(missing_ok=True)  # a graph that is still there has the old one mapped
    path.write_bytes(data)
    try:
        return load(path)
    except ValueError as error:
        one_sentence(error)
        return None


counts = {"attribution": [0, 0], "graph": [0, 0]}  # of files: refused, read


@pytest.mark.filterwarnings("ignore:overflow")  # numpy's, of sums at the end of float64's range
def test_attributions(files, folder):
    @SETTINGS
    @hypothesis.given(mutants(files["attribution"]))
    def check(data):
        result = loaded(lrp_fast.load, folder, data)
        counts["attribution"][result is not None] += 1
        if result is None:
            return
        assert result.relevance.shape == result.input_ids.shape
        table.table(result), table.best_table(result.explained), result._repr_html_()
        as_json(record.as_json(result))
        works(lambda: as_json(html._page_data(result)))  # which holds float32
        result.save(folder / "again")
        again = lrp_fast.load(folder / "again")
        assert torch.equal(again.layers, result.layers) and torch.equal(again.input_ids, result.input_ids)
        for name in ("value", "explained", "rules", "model", "tokens", "special"):
            assert getattr(again, name) == getattr(result, name)
        assert (again.sources is None) == (result.sources is None)
        if result.sources is not None:
            assert again.sources.names == result.sources.names
            assert torch.equal(again.sources.groups, result.sources.groups)

    check()
    refused, read = counts["attribution"]
    print(f"{refused:,} files refused, {read:,} read")
    assert refused > 15 and read > 15


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # numpy's, of numbers at the end of their range
def test_graphs(files, folder):
    @SETTINGS
    @hypothesis.given(mutants(files["graph"]))
    def check(data):
        graph = loaded(Graph.load, folder, data)
        counts["graph"][graph is not None] += 1
        if graph is None:
            return
        layers, tokens, last = graph.num_layers, graph.num_tokens, (graph.num_layers, 0)
        for layer in range(min(layers, 9)):
            graph.edges(layer), graph.dropped(layer), graph.entries(layer)
            assert tokens > 1000 or graph.dense(layer).shape == (tokens, tokens)
        works(
            graph.influence,
            lambda: graph.influence(last, signed=True),
            lambda: graph.ancestors(last),
            graph.descendants,
            lambda: graph.paths(3),
            lambda: graph.paths(3, last),
            lambda: graph.prune(threshold=0.1),
            lambda: graph.prune(mass=0.5).measures(),
            lambda: graph.prune(influence=(0.8, 0.98), target=last),
            lambda: graph.trim(last),
            lambda: graph.subgraph(graph.nodes > 0),
            graph.measures,
            lambda: as_json(graph.to_node_link()),
            lambda: as_json(graph.to_attribution_graph("case")),
            lambda: graph.group_by(np.zeros(tokens, int)),
            lambda: graph.difference(graph),
            lambda: as_json(graph_html._page_data(graph)),
            lambda: graph_report.table(graph, graph, graph.paths(2), ""),
            lambda: as_json(graph_report.as_json(graph, graph, [])),
        )
        repr(graph), graph._repr_html_()
        for half in (False, True):
            graph.save(folder / "again", half=half)
            assert half or Graph.load(folder / "again").tokens == graph.tokens

    check()
    refused, read = counts["graph"]
    print(f"{refused:,} files refused, {read:,} read")
    assert refused > 15 and read > 15

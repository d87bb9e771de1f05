"""Graphs on disk: what is written comes back, and a broken or hostile file is refused with a sentence."""

import json
import math
import os
import struct
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lrp_fast import Explained, Rules, Term, Token
from lrp_fast.graph import Edges, Graph

ARRAYS = [one.name for one in fields(Graph) if one.name not in ("tokens", "manifest", "causal")]


def same(a, b):
    told = [(one.tokens, one.manifest, one.causal) for one in (a, b)]
    return told[0] == told[1] and all(
        torch.equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in ARRAYS
    )  # fmt: skip


def test_what_is_saved_comes_back(graph, tmp_path):
    graph = graph.prune(mass=0.9)
    graph.save(tmp_path / "graph.safetensors")
    loaded = Graph.load(tmp_path / "graph.safetensors")
    assert same(loaded, graph)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "graph.safetensors").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again.safetensors", "graph.safetensors"]


def test_half(graph, tmp_path):
    graph.save(tmp_path / "half", half=True)
    loaded = Graph.load(tmp_path / "half")
    assert loaded.weights.dtype == graph.weights.dtype
    largest = torch.zeros(len(graph.rows), dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(len(graph.rows)), graph.indptr.diff())
    largest.scatter_reduce_(0, rows, graph.weights.double().abs(), "amax")
    allowed = torch.maximum(graph.weights.double().abs() * 2**-11, largest[rows] * 2**-25) * (1 + 1e-6)
    assert ((loaded.weights.double() - graph.weights.double()).abs() <= allowed).all()
    assert torch.equal(loaded.columns, graph.columns) and torch.equal(loaded.nodes, graph.nodes)


def test_half_is_exact_at_the_rows_largest_and_holds_small_rows(random_graph, tmp_path):
    graph = random_graph(0, exact=False)
    graph.weights.mul_(1e-30)
    graph.save(tmp_path / "half", half=True)
    loaded = Graph.load(tmp_path / "half")
    for begin, end in zip(graph.indptr[:-1].tolist(), graph.indptr[1:].tolist(), strict=True):
        if end > begin:
            at = begin + int(graph.weights[begin:end].abs().argmax())
            assert loaded.weights[at] == graph.weights[at]
    assert not torch.equal(loaded.weights, graph.weights)


def test_bytes_an_edge(random_graph, tmp_path):
    graph = random_graph(0, layers=4, tokens=200, density=0.5)
    rest = sum(getattr(graph, name).nbytes for name in ARRAYS if name not in ("columns", "weights"))
    for half, size in ((False, 8), (True, 6)):
        graph.save(tmp_path / "graph", half=half)
        about = rest + 5000 + 4 * len(graph.rows) * half
        assert os.path.getsize(tmp_path / "graph") <= size * len(graph.columns) + about


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's list of mapped files")
def test_loading_maps_the_file(random_graph, tmp_path):
    random_graph(0).save(tmp_path / "mapped.safetensors")
    graph = Graph.load(tmp_path / "mapped.safetensors")
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if line.rstrip().endswith("mapped.safetensors")]
    for name in ("columns", "weights", "nodes"):
        address = getattr(graph, name).data_ptr()
        assert any(int(begin, 16) <= address < int(end, 16) for begin, end in spans)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no graph at"):
        Graph.load(tmp_path / "nothing")


def refused(path, message=""):
    with pytest.raises(ValueError, match=f"is not a whole file that Graph.save wrote: .*{message}") as raised:
        Graph.load(path)
    assert "\n" not in str(raised.value)


def test_a_file_of_another_kind(tmp_path, random_graph):
    path = tmp_path / "other"
    for data in (b"", b"hello", b"\0" * 100, b"\xff" * 100, struct.pack("<Q", 2**63) + b"{}"):
        path.write_bytes(data)
        refused(path)
    save_file({"x": torch.zeros(1)}, path)
    refused(path, "not one of that kind")
    tensors = written(random_graph(0), path)
    for text in ("[]", "{", '{"format": "lrp_fast.attribution/1"}', "[" * 100_000):
        save_file(tensors, path, metadata={"lrp_fast": text})
        refused(path)
    save_file(tensors, path, metadata={"lrp_fast": '{"format": "lrp_fast.graph/1", "tokens": null}'})
    refused(path, "it holds no 'manifest'")


def written(graph, path, half=False):
    graph.save(path, half=half)
    return load_file(path)


def metadata(graph):
    return {"lrp_fast": json.dumps({"format": "lrp_fast.graph/1", "tokens": graph.tokens, "manifest": {}})}


@pytest.mark.parametrize("half", [False, True])
def test_a_truncated_file(random_graph, tmp_path, half):
    path = tmp_path / "graph"
    random_graph(0).save(path, half=half)
    data = path.read_bytes()
    for length in [*range(0, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:length])
        refused(path)
    path.write_bytes(data + b"\0")
    refused(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("columns", lambda t: t + 6, "columns holds"),
        ("columns", lambda t: t - 2**31, "columns holds"),
        ("columns", lambda t: t.long(), "columns must be torch.int32"),
        ("rows", lambda t: t.flip(0), "rows"),
        ("indptr", lambda t: t + 2**62, "indptr must begin with 0"),
        ("indptr", lambda t: t[:-1].clone(), "indptr must have size"),
        ("row_offsets", lambda t: t * 2, "row_offsets must end with"),
        ("row_offsets", lambda t: t[:0].clone(), "row_offsets must be"),
        ("weights", lambda t: t * float("inf"), "weights must be finite"),
        ("weights", lambda t: t.half(), "weights must be torch.float32"),
        ("weights", lambda t: t.to(torch.float8_e4m3fn), "weights must be torch.float32"),
        ("nodes", lambda t: t.flatten(), "nodes must be"),
        ("nodes", lambda t: t[:, :0].clone(), "nodes must be"),
        ("nodes", lambda t: t[:1].clone(), "nodes must be"),
        ("dropped_mass", lambda t: t.flatten(), "dropped must have 2 dimensions"),
        ("dropped_self", lambda t: t.flatten(), "dropped_self must be"),
        ("self_edges", lambda t: t.T.contiguous(), "self_edges must be"),
    ],
)
def test_a_file_edited_by_hand(random_graph, tmp_path, name, change, message):
    graph, path = random_graph(0), tmp_path / "graph"
    tensors = written(graph, path)
    save_file(tensors, path, metadata=metadata(graph))
    assert Graph.load(path).tokens == graph.tokens
    save_file(tensors | {name: change(tensors[name])}, path, metadata=metadata(graph))
    refused(path, message)
    del tensors[name]
    save_file(tensors, path, metadata=metadata(graph))
    refused(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("indptr", lambda t: -t),
        ("indptr", lambda t: t * 2**40),
        ("indptr", lambda t: t.flip(0).sort(descending=True).values),
        ("indptr", lambda t: t.index_copy(0, torch.arange(1, 4), torch.tensor([2**62, -(2**63), -(2**62)]))),
        ("indptr", lambda t: t[:0].clone()),
        ("indptr", lambda t: t.int()),
        ("indptr", lambda t: t[None].clone()),
        ("scales", lambda t: t[:-1].clone()),
        ("scales", lambda t: t.double()),
        ("scales", lambda t: t * float("nan")),
        ("weights", lambda t: t.float()),
        ("weights", lambda t: t[:-1].clone()),
    ],
)
def test_a_half_file_edited_by_hand(random_graph, tmp_path, name, change):
    graph, path = random_graph(0), tmp_path / "graph"
    tensors = written(graph, path, half=True)
    save_file(tensors | {name: change(tensors[name])}, path, metadata=metadata(graph))
    refused(path)


def test_arrays_that_lie_askew(random_graph, tmp_path):
    """A header whose offsets are odd: legal for the format, and not for arrays."""
    graph, path = random_graph(0), tmp_path / "graph"
    graph.save(path)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    for one in header.values():
        if "data_offsets" in one:
            one["data_offsets"] = [end + 1 for end in one["data_offsets"]]
    header["a"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" + data[8 + size :])
    refused(path)


@pytest.mark.parametrize("half", [False, True])
def test_mutated_files_never_crash(random_graph, tmp_path, half):
    """Bytes changed anywhere, now and then many: a sentence, or a graph on which everything runs."""
    path = tmp_path / "graph"
    random_graph(4, layers=3, tokens=5, density=0.7).save(path, half=half)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    loaded = 0
    for _ in range(400):
        mutant = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(mutant)))
            if rng.random() < 0.5:
                mutant[at] = int(rng.integers(256))
            else:  # a number of four bytes that means trouble
                trouble = int(rng.choice([0, 1, 4, 5, 6, 2**31 - 1, 2**32 - 1, 2**31]))
                mutant[at : at + 4] = struct.pack("<I", trouble)[: len(mutant) - at]
        path.unlink()  # what was mapped before stays as it was
        path.write_bytes(mutant)
        try:
            graph = Graph.load(path)
        except ValueError as error:
            assert "is not a whole file that Graph.save wrote" in str(error)
            continue
        loaded += 1
        last = (graph.num_layers, 0)
        graph.influence(last, signed=True)
        graph.prune(mass=0.5).paths(3, last)
        graph.prune(influence=(0.8, 0.98), target=last).measures()
        graph.group_by([0] * graph.num_tokens).difference(graph.group_by([0] * graph.num_tokens))
    assert 20 < loaded < 380


def test_others_may_read_what_the_umask_lets_them(random_graph, tmp_path):
    before = os.umask(0o027)
    try:
        random_graph(0).save(tmp_path / "graph")
    finally:
        os.umask(before)
    assert (tmp_path / "graph").stat().st_mode & 0o777 == 0o640


def test_saving_fails_whole(random_graph, tmp_path):
    path = tmp_path / "graph"
    path.write_bytes(b"before")
    with pytest.raises(TypeError, match="not JSON serializable"):
        replace(random_graph(0), manifest={"what": object()}).save(path)
    with pytest.raises(Exception, match="No such file"):
        random_graph(0).save(tmp_path / "no" / "such" / "folder")
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["graph"]


def explained(graph, positions=(2,), value=None):
    """The graph with a manifest as `lrp_fast.attribute` writes it, for terms at these positions."""
    best = [Token(7, " a", 3.5, 0), Token(8, " b", 1.25, 1)]
    terms = [Term(position, best[0], best[1], 1.25, best[1]) for position in positions]
    told = {"explained": asdict(Explained("difference", terms, best)), "value": value or 2.25 * len(terms)}
    return replace(graph, manifest={"model": "a/model", "rules": asdict(Rules("cp"))} | told)


def test_what_was_explained_lies_in_the_graph(random_graph, tmp_path):
    path = tmp_path / "graph"
    for positions in ((2,), (0, 1, 5)):
        explained(random_graph(0), positions).save(path)
        assert same(Graph.load(path), explained(random_graph(0), positions))
    for (positions, value), message in {
        ((6,), 2.25): "explained names position 6 of 6 tokens",
        ((2, 2**62), 4.5): "explained names position 4611686018427387904 of 6 tokens",
        ((2,), 2.5): "value must be the sum of what is explained, 2.25, and is 2.5",
        ((2,), math.inf): "value must be finite",
        ((2,), 10**400): "value must be finite",
        ((2,), "2.25"): "value must be a number",
    }.items():
        graph = explained(random_graph(0), positions, value)
        with pytest.raises((TypeError, ValueError), match=message):
            graph.save(tmp_path / "none")
        about = {"format": "lrp_fast.graph/1", "tokens": None, "manifest": graph.manifest}
        save_file(written(random_graph(0), path), path, metadata={"lrp_fast": json.dumps(about)})
        refused(path, message)
    assert os.listdir(tmp_path) == ["graph"]


GONE = object()  # in an edit: take it out
TARGET = ("explained", "terms", 0, "target")
EDITED = [  # where in the manifest, what stands there now, what is said of it
    (("explained",), "x", "explained must hold kind, terms, best, note, others, of, and nothing else"),
    (("explained",), None, "explained must hold kind, terms, best, note, others, of, and nothing else"),
    (("explained", "note"), GONE, "explained must hold kind, terms, best, note, others, of, and nothing else"),
    (("explained", "kind"), "foo", "explained.kind must be one of logit, difference, mean, top"),
    (("explained", "terms"), [], "explained.terms must be a list that is not empty"),
    (("explained", "terms", 0, "position"), 99, "explained names position 99 of 6 tokens"),
    (("explained", "terms", 0, "more"), 1, r"explained.terms\[0\] must hold position, target, contrast"),
    ((*TARGET, "rank"), "x", r"explained.terms\[0\].target.rank must be a whole number"),
    (("value",), 1e9, "value must be the sum of what is explained, 2.25, and is 1e"),
    (("value",), GONE, "manifest holds 'explained', and no 'value' beside it"),
    (("rules",), "x", "rules must hold name, epsilon, gamma, attention_epsilon, attention_gamma"),
    (("rules",), GONE, "manifest holds 'explained', and no 'rules' beside it"),
    (("rules", "epsilon"), -5, "epsilon must be a finite number >= 0, not -5"),
    (("rules", "name"), "x", "unknown rule 'x'"),
    (("model",), [1], "model must be a string"),
    (("model",), GONE, "manifest holds 'explained', and no 'model' beside it"),
]


@pytest.mark.parametrize(
    ("place", "entry", "message"), EDITED, ids=[".".join(map(str, place)) for place, _, _ in EDITED]
)
def test_what_was_explained_edited_by_hand(random_graph, tmp_path, place, entry, message):
    graph, path = explained(random_graph(0)), tmp_path / "graph"
    *inside, last = place
    part = graph.manifest
    for name in inside:
        part = part[name]
    part[last] = entry
    if entry is GONE:
        del part[last]
    with pytest.raises((TypeError, ValueError), match=message):
        graph.save(path)
    assert not list(tmp_path.iterdir())
    about = {"format": "lrp_fast.graph/1", "tokens": None, "manifest": graph.manifest}
    save_file(written(random_graph(0), path), path, metadata={"lrp_fast": json.dumps(about)})
    refused(path, message)
    apart = replace(graph, manifest={"group_by": graph.manifest, "value": "mine"})  # it does not say so of these nodes
    apart.save(path)
    assert same(Graph.load(path), apart)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"tokens": null, "manifest": {}, "more": 1', "it holds 'more', which is not known"),
        ('"tokens": null, "manifest": {}, "manifest": {}', "it says 'manifest' twice"),
        ('"tokens": null, "manifest": {"a": {"b": 1, "c": 2, "b": 3}}', "it says 'b' twice"),
        ('"tokens": null, "manifest": []', "manifest must be a dict"),
        ('"tokens": null, "manifest": {"pruned": 3}', "pruned.* must be a list"),
        ('"tokens": null, "manifest": {"pruned": null}', "pruned.* must be a list"),
        ('"tokens": null, "manifest": {"pruned": "abc"}', "pruned.* must be a list"),
        ('"tokens": null, "manifest": {"a": %s}' % ("[" * 250 + "]" * 250), "lie more than 200 deep"),
        ('"tokens": null, "manifest": {"a": %s}' % ("1" * 5000), "Exceeds the limit"),
        ('"tokens": "abcdef", "manifest": {}', "tokens must be a list of strings"),
        ('"tokens": {}, "manifest": {}', "tokens must be a list of strings"),
    ],
)  # fmt: skip
def test_a_description_edited_by_hand(random_graph, tmp_path, text, message):
    tensors = written(random_graph(0), tmp_path / "graph")
    save_file(tensors, tmp_path / "graph", metadata={"lrp_fast": f'{{"format": "lrp_fast.graph/1", {text}}}'})
    refused(tmp_path / "graph", message)


def test_arrays_that_nobody_asked_for(random_graph, tmp_path):
    graph, path = random_graph(0), tmp_path / "graph"
    tensors = written(graph, path)
    save_file(tensors | {"more": torch.ones(1)}, path, metadata=metadata(graph))
    refused(path, "it holds 'more', which is not known")
    tensors = written(graph, path, half=True)
    for change in ({"scales": -tensors["scales"]}, {"weights": tensors["weights"] * 2}):
        save_file(tensors | change, path, metadata=metadata(graph))
        refused(path, "half weights must be shares of their row's largest")


def test_more_layers_than_a_page_can_number(tmp_path):
    """A few bytes a layer would have every method walk all of them, for each of them."""
    edges = Edges(torch.zeros(0).int(), torch.zeros(1).long(), torch.zeros(0).int(), torch.zeros(0))
    with pytest.raises(ValueError, match="at most 65536 layers"):
        Graph.from_transitions(torch.ones(65_537, 1), torch.ones(65_536, 1), [(edges, torch.zeros(0, 2))] * 65_536)


def test_what_could_not_be_loaded_is_not_saved(random_graph, tmp_path):
    deep = []
    for _ in range(250):
        deep = [deep]
    deeper = []
    for _ in range(100_000):
        deeper = [deeper]
    for manifest, message in (
        ({"a": deep}, "more than 200 deep"),
        ({"a": deeper}, "more than 200 deep"),
        ({1: 2, "1": 3}, "it says '1' twice"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(random_graph(0), manifest=manifest).save(tmp_path / "graph")
    for half in (False, True):
        graph = random_graph(0)
        graph.columns[2] = 10**6  # written to after it was checked
        with pytest.raises(ValueError, match="columns holds 1000000 at index 2"):
            graph.save(tmp_path / "graph", half)
    assert not list(tmp_path.iterdir())


def test_a_long_chain_of_groups_may_be_saved(random_graph, tmp_path):
    graph = explained(random_graph(0))
    for _ in range(90):
        graph = graph.group_by([0, 1, 2, 3, 4, 5])
    graph = graph - graph
    graph.prune(threshold=0.5).save(tmp_path / "graph")
    again = Graph.load(tmp_path / "graph")
    assert again.manifest == graph.manifest | {"pruned": [{"threshold": 0.5}]}
    json.dumps(again.to_node_link(), allow_nan=False)


def test_what_is_no_file(tmp_path):
    refused(tmp_path, "it is a folder")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "it is no regular file")
    with pytest.raises(FileNotFoundError, match="no graph at"):
        Graph.load(tmp_path / "pipe" / "graph")

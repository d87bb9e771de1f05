"""`lrp-fast graph`: built, pruned, shown, written and read again."""

import json
import re

import pytest
import torch

import lrp_fast

PROMPT = ("--prompt", "the capital of australia is")
TWO = ("--target", "sydney", "--contrast", "canberra")


def test_a_graph_is_built_pruned_shown_and_written(run, tmp_path):
    names = {"--save": "g.safetensors", "--html": "g.html", "--node-link": "g.json", "--neuronpedia": "viewer.json"}
    options = [part for pair in names.items() for part in pair]
    status, out, err = run(*PROMPT, *TWO, *options, command="graph")
    assert status == 0 and {p.name for p in tmp_path.iterdir()} == set(names.values())
    graph = lrp_fast.Graph.load(tmp_path / "g.safetensors")
    assert graph.manifest["spec"]["topk"] == 16 and graph.tokens == ["the", "capital", "of", "australia", "is"]
    assert out.startswith("Why 'sydney' rather than 'canberra' after position 4?") and "best paths" in out
    assert "loading" in err and "wrote g.safetensors, g.html, g.json, viewer.json" in err and "wrote" not in out
    edges = sum(len(graph.entries(layer).weights) for layer in range(graph.num_layers))
    assert len(json.loads((tmp_path / "g.json").read_text())["links"]) == edges
    viewer = json.loads((tmp_path / "viewer.json").read_text())
    assert viewer["metadata"]["slug"] == "viewer" and len(viewer["links"]) == edges + 2
    assert '"num_edges":' + str(edges) in (tmp_path / "g.html").read_text()


def test_without_an_option_for_it_a_graph_is_not_written(run, tmp_path):
    assert run(*PROMPT, command="graph")[0] == 0 and not list(tmp_path.iterdir())


def test_a_graph_file_is_read_again(run, tmp_path):
    status, _, _ = run(*PROMPT, *TWO, "--prune", "none", "--save", "all.safetensors", command="graph")
    assert status == 0
    graph = lrp_fast.Graph.load(tmp_path / "all.safetensors")
    read = dict(model="all.safetensors", command="graph")
    for text, arguments in {
        "influence:0.5,0.9": {"influence": (0.5, 0.9)},
        "mass:0.6": {"mass": 0.6},
        "threshold:0.02": {"threshold": 0.02},
    }.items():
        status, out, err = run("--prune", text, "--save", "kept.safetensors", "--json", "--paths", "2", **read)
        assert status == 0 and "loading" not in err
        kept, expected = lrp_fast.Graph.load(tmp_path / "kept.safetensors"), graph.prune(**arguments)
        assert all(torch.equal(kept.dense(layer), expected.dense(layer)) for layer in range(3))
        found = json.loads(out)
        assert found["paths"][0]["positions"] == list(expected.paths()[0].positions) and len(found["paths"]) == 2
        assert found["before"]["edges"] > found["kept"]["edges"] == sum(found["measures"]["edges"]) > 0
        assert found["manifest"]["explained"]["terms"][0]["target"]["text"] == "sydney"
    status, out, _ = run("--json", **read)  # as it was saved
    assert json.loads(out)["kept"] == json.loads(out)["before"]
    # the same as in one go
    assert run("--prune", "mass:0.6", **read)[1] == run(*PROMPT, *TWO, "--prune", "mass:0.6", command="graph")[1]


def test_what_a_graph_is_built_with(run, tmp_path):
    def built(*options):
        assert run(*PROMPT, *options, "--prune", "none", "--save", "g.safetensors", command="graph")[0] == 0
        return lrp_fast.Graph.load(tmp_path / "g.safetensors")

    spec = built("--topk", "1", "--layers", "0,2-2", "--node-threshold", "0.1").manifest["spec"]
    assert spec == {"topk": 1, "mass": None, "node_threshold": 0.1, "absolute": False, "layers": [0, 2]}
    spec = built("--mass", "0.5", "--absolute").manifest["spec"]
    assert (spec["topk"], spec["mass"], spec["absolute"]) == (None, 0.5, True)
    assert built("--rule", "cp").manifest["rules"]["name"] == "cp"
    assert max(built("--topk", "1").indptr.diff()) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give --prompt or --prompt-file with a model; without them, a graph file"),
        ([*PROMPT, "--topk", "1", "--mass", "0.5"], "not allowed with argument"),
        ([*PROMPT, "--mass", "1.5"], "mass must be a share above 0 and at most 1, not 1.5"),
        ([*PROMPT, "--layers", "2-"], "'2-' names no layers: write 0-3,7"),
        ([*PROMPT, "--layers", "1,3"], "there is no transition 3: this model's are numbered 0 to 2"),
        ([*PROMPT, "--prune", "mass"], "'mass' is no pruning: write influence:0.8,0.98"),
        ([*PROMPT, "--prune", "influence:0.8"], "'influence:0.8' is no pruning"),
        ([*PROMPT, "--prune", "mass:2"], "'mass:2' is no pruning"),
        ([*PROMPT, "--prune", "influence:0.8,nan"], "'influence:0.8,nan' is no pruning"),
        ([*PROMPT, "--prune", "threshold:-1"], "'threshold:-1' is no pruning"),
        ([*PROMPT, "--layers", "2-0"], "'2-0' names no layers: write 0-3,7"),
        ([*PROMPT, "--save", "g.json"], "let its name end in .safetensors"),
        ([*PROMPT, "--html", "absent/g.html"], "name a file with --html in a folder that exists"),
        ([*PROMPT, "--html", "g", "--node-link", "g"], "two outputs have one name"),
        ([*PROMPT, "--prompt-file", "case.txt"], "not allowed with argument"),
    ],
)
def test_a_graph_asked_for_wrongly_exits_with_2(run, tmp_path, arguments, message):
    status, out, err = run(*arguments, command="graph")
    assert status == 2 and out == "" and re.search(message, err) and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_graph_file_that_will_not_do_exits_with_2(run, tmp_path):
    assert run(*PROMPT, *TWO, "--save", "g.safetensors", command="graph")[0] == 0
    status, _, err = run("--topk", "3", model="g.safetensors", command="graph")
    assert status == 2 and "--topk is for building a graph, and g.safetensors is one: leave it out" in err
    status, _, err = run(model="absent.safetensors", command="graph")
    assert status == 2 and "no graph at 'absent.safetensors'" in err
    assert run(*PROMPT)[0] == 0
    status, _, err = run(model="attribution.safetensors", command="graph")
    assert status == 2 and "is not a whole file that Graph.save wrote" in err


def test_an_export_that_is_refused_costs_no_graph(run, tmp_path, monkeypatch):
    """The exports that may refuse come last."""
    monkeypatch.setattr("lrp_fast.graph.export._MOST_EDGES", 3)
    status, out, err = run(*PROMPT, "--save", "g.safetensors", "--node-link", "g.json", command="graph")
    assert status == 2 and "prune it first" in err and "best paths" in out
    assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]

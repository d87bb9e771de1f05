"""The command line, on a tiny model directory written here: outputs, exit statuses, and what goes where."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import lrp_fast
from lrp_fast.cli import main, options

WORDS = ["<s>", "[UNK]", *["the", "capital", "of", "australia", "is", "sydney", "canberra", "new", "zealand"]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("model")
    tiny("llama", vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0, pad_token_id=0).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="[UNK]").save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture
def run(directory, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=directory, command="attribute"):
        try:
            status = main([command, model, *arguments])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


PROMPT = ("--prompt", "the capital of australia is")
TWO = ("--target", "sydney", "--contrast", "canberra")


def test_without_a_target_it_explains_the_first_against_the_second(run, tmp_path):
    status, out, err = run(*PROMPT)
    assert status == 0
    assert {p.name for p in tmp_path.iterdir()} == {"attribution.html", "attribution.json", "attribution.safetensors"}
    result = lrp_fast.load(tmp_path / "attribution.safetensors")
    (term,) = result.explained.terms
    assert (term.target.rank, term.contrast.rank, result.explained.kind) == (0, 1, "difference")
    assert len(result.explained.best) == 10
    for token in result.explained.best:
        assert token.text in out
    assert "loading" in err and "wrote attribution.html" in err and "loading" not in out


def test_json_goes_to_stdout_alone(run, tmp_path):
    status, out, err = run(*PROMPT, "--json", "--target", "sydney", "--contrast", "canberra", "--out", "case")
    assert status == 0
    record = json.loads(out)
    assert record == json.loads((tmp_path / "case.json").read_text())
    result = lrp_fast.load(tmp_path / "case.safetensors")
    assert record["value"] == result.value and result.explained.terms[0].contrast.text == "canberra"
    assert "sydney" in (tmp_path / "case.html").read_text()


@pytest.mark.parametrize(
    "contrast, kind",
    [("mean", "mean"), ("top:3", "top"), ("none", "logit"), ("id:4", "difference"), ("new", "difference")],
)
def test_contrasts(run, tmp_path, contrast, kind):
    assert run(*PROMPT, "--target", "id:7", "--contrast", contrast)[0] == 0
    assert lrp_fast.load(tmp_path / "attribution.safetensors").explained.kind == kind


def test_prompt_files_and_rules(run, tmp_path):
    (tmp_path / "case.txt").write_text("the capital of australia is", "utf-8")
    values = {}
    for rule in ("attnlrp", "cp", "gradient"):
        assert run("--prompt-file", "case.txt", "--rule", rule, "--out", rule)[0] == 0
        values[rule] = lrp_fast.load(tmp_path / f"{rule}.safetensors").relevance
    assert not torch.equal(values["attnlrp"], values["cp"]) and not torch.equal(values["cp"], values["gradient"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "one of the arguments --prompt --prompt-file is required"),
        (["--prompt", ""], "input_ids is empty"),
        (["--prompt-file", "absent.txt"], "cannot read the prompt: .*absent.txt"),
        (["--prompt-file", "latin.txt"], "is no UTF-8 text"),
        ([*PROMPT, "--top", "0"], "0 is not a number of tokens"),
        ([*PROMPT, "--rule", "lrp"], "invalid choice: 'lrp'"),
        ([*PROMPT, "--target", "id:99"], "target 99 is outside the vocabulary, 0 to 10"),
        ([*PROMPT, "--target", "sydney", "--contrast", "sydney"], "never diverge"),
        (
            [*PROMPT, "--target", "new zealand"],
            "target 'new zealand' is 2 tokens .*, and no contrast says where to look",
        ),
        ([*PROMPT, "--target", "new zealand", "--contrast", "new"], "never diverge"),
        ([*PROMPT, "--position", "7"], "position 7 is outside the prompt's 5 tokens"),
        ([*PROMPT, "--out", "absent/case"], "name files with --out in a folder that exists"),
        ([*PROMPT, "--out", "."], "--out . names no file"),
        ([*PROMPT, "--device", "nonsense"], "--device nonsense cannot be used"),
        ([*PROMPT, "--chat"], "has no chat template"),
    ],
)
def test_what_is_asked_wrongly_exits_with_2_and_one_sentence(run, tmp_path, arguments, message):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    status, out, err = run(*arguments)
    assert status == 2 and out == ""
    assert re.search(message, err)
    assert "Traceback" not in err
    assert {p.name for p in tmp_path.iterdir()} == {"latin.txt"}


def test_a_model_that_is_not_there_exits_with_2(run, tmp_path):
    status, out, err = run(*PROMPT, model=str(tmp_path / "no-model"))
    assert status == 2 and "cannot load" in err and out == ""


def test_an_interrupt_writes_nothing(run, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(lrp_fast, "attribute", interrupted)
    status, out, err = run(*PROMPT)
    assert status == 130 and "interrupted" in err and not list(tmp_path.iterdir())


def test_strings_that_begin_alike_are_compared_behind_their_prefix(run, tmp_path):
    status, out, _ = run(*PROMPT, "--target", "new sydney", "--contrast", "new zealand")
    assert status == 0
    result = lrp_fast.load(tmp_path / "attribution.safetensors")
    assert result.tokens == ["the", "capital", "of", "australia", "is", "new"]
    (term,) = result.explained.terms
    assert (term.target.text, term.contrast.text, term.position) == ("sydney", "zealand", 5)
    assert "share their first 1 token 'new', which now ends the prompt" in result.explained.note
    assert result.explained.note in out


def test_a_newline_at_the_end_of_a_prompt_file_is_not_part_of_the_prompt(run, tmp_path):
    for text in ("the capital of australia is", "the capital of australia is\n"):
        (tmp_path / "case.txt").write_text(text, "utf-8")
        status, out, _ = run("--prompt-file", "case.txt", "--json")
        assert status == 0 and len(json.loads(out)["tokens"]) == 5


def test_none_is_a_string_as_a_target(run):
    status, _, err = run(*PROMPT, "--target", "none", "--contrast", "new")  # not the model's own choice
    assert status == 2 and "target 'none' holds what the tokenizer does not know, and becomes ['[UNK]']" in err


def test_a_checkpoint_with_missing_weights_is_refused(run, directory, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    status, out, err = run(*PROMPT, model=str(broken))
    assert status == 2 and out == "" and "lack 1 that the model has, model.layers.1.mlp.up_proj.weight first" in err
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    status, out, err = run(*PROMPT, model=str(broken))
    assert status == 2 and "cannot load" in err and "Traceback" not in err


def test_a_budget_is_kept_to(run, tmp_path):
    status, _, err = run(*PROMPT, "--host-budget", "100", "--offload-dir", str(tmp_path))
    assert status == 2 and "cannot hold one layer of 5 tokens" in err
    status, small, _ = run(*PROMPT, "--host-budget", "100kB", "--offload-dir", str(tmp_path), "--out", "small")
    assert status == 0
    status, large, _ = run(*PROMPT)
    assert small == large
    small, large = (lrp_fast.load(tmp_path / f"{name}.safetensors").layers for name in ("small", "attribution"))
    assert (small - large).abs().max() <= 1e-5 * large.abs().max()


@pytest.mark.parametrize(
    ("text", "size"),
    [("800MB", 800_000_000), ("60 GB", 60 * 10**9), ("1.5TiB", 3 * 2**39), ("512", 512), ("2kib", 2048), ("7B", 7)],
)
def test_sizes_read_as_people_write_them(text, size):
    assert options.size(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "1XB", "1e9", "GB"])
def test_what_is_no_size_is_refused(text, directory, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", directory, "--tokens", "10", f"--host-budget={text}"])
    assert stop.value.code == 2 and "is no size: write 800MB, 60GB" in capsys.readouterr().err


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


def test_a_plan_needs_no_weights(directory, tmp_path, capsys):
    config = tmp_path / "only" / "config.json"
    config.parent.mkdir()
    config.write_bytes((Path(directory) / "config.json").read_bytes())
    assert main(["plan", str(config.parent), "--tokens", "100000", "--device-budget", "0.5GB"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("100,000 tokens of ") and "float32, rule attnlrp" in out and "on cuda" in out
    assert main(["plan", str(config.parent), "--tokens", "1000", "--device", "cpu", "--json", "--targets", "2"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["tiers"] == ["graph"] * 3 and planned["n_tokens"] == 1000 and planned["peak"]["cpu"] > 0


@pytest.mark.parametrize("command", [["plan", "--tokens", "10"], ["doctor"]])
def test_a_quantised_config_is_read_as_one_in_floats_and_that_is_said(command, directory, tmp_path, capsys):
    config = json.loads((Path(directory) / "config.json").read_text("utf-8"))
    for quantised in (False, True):
        more = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}} if quantised else {}
        (tmp_path / "config.json").write_text(json.dumps(config | more), "utf-8")
        assert main([command[0], str(tmp_path), *command[1:]]) == 0
        assert ("is quantised: what follows is about the same model in floats" in capsys.readouterr().err) == quantised


@pytest.mark.parametrize(
    ("given", "method"),
    [
        *(({"quant_method": name}, name) for name in ("gptq", "awq", "fp8", "mxfp4", "compressed-tensors")),
        ({"bits": 4}, "a method without a name"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, None),
        ({"load_in_4bit": True}, None),
        ({"quant_method": "torchao"}, None),
        ({"quant_method": "fp8", "dequantize": True}, None),
    ],
)
def test_the_doctor_knows_which_quantised_checkpoints_can_be_read(given, method, directory, tmp_path, capsys):
    config = json.loads((Path(directory) / "config.json").read_text("utf-8")) | {"quantization_config": given}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    status = main(["doctor", str(tmp_path), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert status == (method is not None) and told["healthy"] == (method is None)
    assert all(one["rule"] for one in told["modules"]) and len(told["checks"]) > 4
    assert main(["doctor", str(tmp_path)]) == status
    out = capsys.readouterr().out
    if method is None:
        assert told["weights"] is None and "NOT COVERED" not in out
    else:
        assert told["weights"].startswith(f"the checkpoint is quantised by {method}, which lrp_fast cannot read: load")
        assert f"weights NOT COVERED: {told['weights']}" in out


def test_a_plan_counts_a_graph(directory, capsys):
    sizes = ["plan", directory, "--tokens", "1000", "--device", "cpu", "--json"]
    peaks = []
    for more in ([], ["--topk", "8"], ["--topk", "8", "--layers", "0"]):
        assert main([*sizes, *more]) == 0
        peaks.append(json.loads(capsys.readouterr().out)["peak"]["cpu"])
    assert peaks[0] < peaks[2] < peaks[1]
    assert main([*sizes, "--layers", "0"]) == 2 and "give --topk or --mass too" in capsys.readouterr().err


def test_a_plan_says_what_is_wrong(directory, tmp_path, capsys):
    assert main(["plan", str(tmp_path / "none"), "--tokens", "10"]) == 2
    assert "cannot read the config of" in capsys.readouterr().err
    assert main(["plan", directory, "--tokens", "100000", "--device-budget", "1MB"]) == 2
    assert "on cuda cannot hold one layer of 100000 tokens: at least" in capsys.readouterr().err

"""A run explains every case as `attribute` does, says what went wrong with others, and goes on where it ended."""

import copy
import errno
import json
import os
import re
import shutil
import sys

import pytest
import torch
from tokenizers import models

import lrp_fast
from lrp_fast import GraphSpec, Rules, attribute, study
from lrp_fast.study import Folder, passes
from lrp_fast.study import folder as folders
from lrp_fast.study import manifest as manifests
from tests.study.runs import SPEC, packs, raising


def test_numbers_are_those_of_attribute(run, model, tokenizer, cases, tmp_path):
    """To rounding where cases share a pass: a few hundred roundings, of 3 layers. To the bit where one is alone."""
    seen = []
    assert run(graph=SPEC, progress=seen.append) == {"done": 10, "failed": 0, "refused": 2}
    folder = Folder(tmp_path / "run")
    assert len(packs(folder.path)) >= 4 and {1} < set(map(len, packs(folder.path)))
    lengths = [len(lrp_fast.load(folder.result(ids[0])).input_ids) for ids in packs(folder.path)]
    assert lengths == sorted(lengths)
    for case in cases(12):
        if case["id"] == "malformed" or case["target"] == "rome":
            continue
        result = lrp_fast.load(folder.result(case["id"]))
        truth = attribute(model, case["prompt"], "sydney", "canberra", tokenizer=tokenizer, graph=SPEC)
        scale = truth.layers.abs().max()
        alone = [case["id"]] in packs(folder.path)
        assert (result.layers - truth.layers).abs().max() <= (0 if alone else 300 * torch.finfo().eps) * scale
        assert result.tokens == truth.tokens and result.explained.terms[0].target.text == "sydney"
        graph = lrp_fast.Graph.load(folder.graph(case["id"]))
        assert (graph.dense(1) - truth.graph.dense(1)).abs().max() <= (0 if alone else 300 * torch.finfo().eps) * scale
    assert [one.cases for one in seen] == sorted(one.cases for one in seen) and seen[0].cases == 2
    assert seen[-1][:2] == (12, 12) and seen[-1].tokens == seen[-1].all_tokens


def test_what_is_wrong_with_a_case_is_a_row(run, tmp_path):
    run()
    log = Folder(tmp_path / "run").statuses()
    assert log["malformed"]["status"] == "refused"
    assert log["malformed"]["why"] == "item 3: prompt must be a string, not 3"
    assert log["case 3"]["status"] == "refused" and log["case 3"]["why"].startswith("target 'rome' holds what")
    table = study.table(tmp_path / "run")
    assert table.id.tolist() == [one.id for one in Folder(tmp_path / "run").cases()]
    assert table.status.value_counts().to_dict() == {"done": 10, "refused": 2}
    assert table.set_index("id").why["malformed"] == log["malformed"]["why"]


def test_the_table_is_of_the_results(run, tmp_path):
    run(graph=SPEC, finding=lambda value, segments: f"{len(segments)} of {value:.3f}" if segments else None)
    table = study.table(tmp_path / "run").set_index("id")
    row, result = table.loc["case 1"], lrp_fast.load(Folder(tmp_path / "run").result("case 1"))
    (term,) = result.explained.terms
    assert (row.value, row.num_tokens, row.kind) == (result.value, 10, "difference")
    assert (row.target, row.target_id, row.target_rank) == ("sydney", term.target.id, term.target.rank)
    assert (row.contrast, row.contrast_logit) == ("canberra", term.contrast.logit)
    assert row.positions.tolist() == [9] and row.n == 1
    assert row.entropy == study.measures.measures(result.relevance)["entropy"]
    assert [one["name"] for one in row.segments] == ["instruction 1", "(rest)"]
    assert row.segments[0]["relevance"] == pytest.approx(result.layers[0, :2].double().sum().item())
    assert row.finding == f"2 of {result.value:.3f}" and row.graph["nodes"][0] >= 1
    assert table.loc["case 0"].finding is None or table.loc["case 0"].finding != table.loc["case 0"].finding


def test_a_finding_is_of_a_difference_of_two_tokens(model, tmp_path):
    """A plain logit is large whatever is right, and no instruction speaks against anything."""
    case = {"input_ids": [2, 3, 4], "target": 5, "segments": {"instruction": [0, 2]}}
    others = {"plain": {}, "mean": {"contrast": "mean"}, "two": {"contrast": 6}}
    given = [case | other | {"id": id} for id, other in others.items()]
    study.run(model, given, tmp_path / "run", finding=lambda *_: "f")
    table = study.table(tmp_path / "run")
    assert table.id[table.finding == "f"].tolist() == ["two"]


@pytest.mark.parametrize("said", [3, ["both"], True, 0.5], ids=str)
def test_a_finding_that_is_no_text_is_told_and_costs_nothing_again(said, model, tmp_path, monkeypatch):
    def mine(value, segments):
        return said

    given = [{"id": "a", "input_ids": [2, 3, 4], "target": 5, "contrast": 6}]
    with pytest.raises(TypeError) as caught:
        study.run(model, given, tmp_path / "run", finding=mine)
    assert str(caught.value).startswith("finding must give a string or None, and ")
    assert f"mine gave {said!r} for case 'a': the results are kept" in str(caught.value)
    monkeypatch.setattr(passes, "explain_pack", None)
    study.run(model, given, tmp_path / "run", finding=lambda *_: "f")
    assert study.table(tmp_path / "run").finding.tolist() == ["f"]


def test_called_again_it_does_nothing_again(run, content, tmp_path, monkeypatch):
    run(graph=SPEC)
    before = content(tmp_path / "run")
    monkeypatch.setattr(passes, "explain_pack", None)
    assert run(graph=SPEC) == {"done": 10, "failed": 0, "refused": 2}
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("torn", ["a line", "half a line", "a result", "a graph", "half a result", "the table"])
def test_what_was_lost_is_made_again(torn, run, whole, content, tmp_path):
    folder = Folder(shutil.copytree(whole, tmp_path / "run"))
    *_, last = packs(folder.path)
    log = folder.path / "log.jsonl"
    match torn:
        case "a line":
            log.write_bytes(b"".join(log.read_bytes().splitlines(True)[:-1]))
        case "half a line":
            os.truncate(log, log.stat().st_size - 20)
        case "a result":
            folder.result(last[0]).unlink()
        case "a graph":
            folder.graph(last[0]).unlink()
        case "half a result":
            os.truncate(folder.result(last[0]), folder.result(last[0]).stat().st_size - 4)
        case "the table":
            folder.table.unlink()
    (folder.path / "results" / f".{folders.key('x')}.safetensors.0123abcd.part").touch()
    run(graph=SPEC)
    assert content(folder.path) == content(whole)


def test_at_most_the_pack_that_was_running_is_run_again(run, content, tmp_path, monkeypatch):
    run("whole")
    explained, plain = [], passes.explain_pack

    def interrupted(model, asked, *how):
        if len(explained) == 2:
            raise KeyboardInterrupt
        explained.append(len(asked))
        return plain(model, asked, *how)

    with monkeypatch.context() as patch:
        patch.setattr(passes, "explain_pack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert [len(ids) for ids in packs(tmp_path / "run")[:2]] == explained
    seen = raising(None, lambda asked: explained.append(len(asked)))
    monkeypatch.setattr(passes, "explain_pack", seen)
    run()
    assert [len(ids) for ids in packs(tmp_path / "run")] == explained
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def test_a_pack_whose_files_were_being_written_is_the_one_that_was_running(run, content, tmp_path, monkeypatch):
    run("whole")
    sizes = [len(ids) for ids in packs(tmp_path / "whole")]
    number = next(i for i, size in enumerate(sizes) if size > 1)
    there = packs(tmp_path / "whole")[number]
    explained = []
    with monkeypatch.context() as patch:
        patch.setattr(passes, "explain_pack", raising(None, lambda asked: explained.append(len(asked))))
        patch.setattr(
            folders, "append", raising(KeyboardInterrupt, lambda entries: entries[0]["id"] in there, folders.append)
        )
        with pytest.raises(KeyboardInterrupt):
            run()
    assert explained == sizes[: number + 1]
    again = []
    monkeypatch.setattr(passes, "explain_pack", raising(None, lambda asked: again.append(len(asked))))
    run()
    assert again == sizes[number:] and content(tmp_path / "run") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "cp"}, "was begun with the rule name attnlrp, and this is name cp: name another folder"),
        ({"tolerance": 0.1}, "was begun with the tolerance 0.0, and this is 0.1"),
        ({"graph": SPEC}, "was begun with the graph none, and this is topk 2"),
        ({"count": 11}, "was begun with cases of the digest"),
    ],
)
def test_another_run_is_refused(given, message, run, content, tmp_path):
    run()
    before = content(tmp_path / "run")
    with pytest.raises(ValueError) as caught:
        run(**given)
    assert message in str(caught.value) and content(tmp_path / "run") == before


def test_another_checkpoint_is_refused(run, model, tokenizer, cases, tiny, tmp_path):
    run()
    other = tiny("llama", seed=1, vocab_size=11, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    with pytest.raises(ValueError, match="was begun with weights of the fingerprint"):
        study.run(other, cases(12), tmp_path / "run", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="was begun with the dtype float32, and this is float64|fingerprint"):
        study.run(tiny("llama", torch.float64, vocab_size=11), cases(12), tmp_path / "run", tokenizer=tokenizer)


def test_a_folder_is_named_by_its_own_name(model, tmp_path, monkeypatch):
    """However it was told: folders get shared, and a run goes on from another place."""
    how = passes.How(Rules(), None, None, 0.0, None)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    told = [f"{tmp_path}/there", f"{tmp_path}/there/", "there", "./there/", "org/there"]
    for name, own in zip(told, ["there"] * 4 + ["org/there"], strict=True):
        monkeypatch.setattr(model.config, "name_or_path", name)
        assert manifests.of(model, how, b"")["model"] == own


def test_another_tokenizer_is_refused(model, tokenizer, cases, small_packs, tmp_path, monkeypatch):
    """Or another chat template: some write the day that it is."""
    explained = []
    second = raising(KeyboardInterrupt, lambda asked: explained.append(asked) or len(explained) > 1)
    with monkeypatch.context() as patch:
        patch.setattr(passes, "explain_pack", second)
        with pytest.raises(KeyboardInterrupt):
            study.run(model, cases(12), tmp_path / "run", tokenizer=tokenizer)
    other = copy.deepcopy(tokenizer)
    turned = {word: (one if one < 2 else 12 - one) for word, one in tokenizer.get_vocab().items()}
    other.backend_tokenizer.model = models.WordLevel(turned, unk_token="[UNK]")
    with pytest.raises(ValueError, match="become other tokens than when the run was begun: give the tokenizer and"):
        study.run(model, cases(12), tmp_path / "run", tokenizer=other)
    assert study.run(model, cases(12), tmp_path / "run", tokenizer=tokenizer)["done"] == 10


def test_another_version_is_refused(run, tmp_path):
    run()
    path = tmp_path / "run" / "manifest.json"
    path.write_text(path.read_text().replace(torch.__version__, "2.0.0"))
    with pytest.raises(ValueError, match="begun with the versions lrp_fast .*, torch 2.0.0, .* and this is lrp_fast"):
        run()


def test_another_process_on_the_folder_is_refused(run, tmp_path):
    refused = pytest.raises(ValueError, match="another process works on .*run': wait for it to end")
    with folders.working(Folder(tmp_path / "run")), refused:
        run()
    assert run()["done"] == 10


def test_somebodys_folder_is_left_alone(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other things, 'thesis.tex': name a new one"):
        run()
    assert [one.name for one in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="thesis.tex' is no folder, or lies in none: name a new one"):
        run("run/thesis.tex")


def test_a_graph_of_layers_that_there_are_not_refuses_the_run(run, tmp_path):
    with pytest.raises(ValueError, match="there is no transition 7: this model's are numbered 0 to 2"):
        run(graph=GraphSpec(topk=2, layers=[7]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [-1, 0.5, True, "x"])
def test_a_seed_is_a_whole_number(seed, run, tmp_path):
    with pytest.raises(ValueError, match="seed must be a whole number, 0 or more, not "):
        run(seed=seed)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_must_not_be_written_says_so(run, tmp_path, monkeypatch):
    def refused(self, *given, **named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    said = pytest.raises(PermissionError, match="cannot write 'run' in the folder .*: name a folder and a file")
    with monkeypatch.context() as patch, said:
        patch.setattr("pathlib.Path.mkdir", refused)
        run()
    run()
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run" / ".lock").mkdir()  # as little to be opened as one that may not be
    with pytest.raises(OSError, match="cannot write '.lock' in the folder .*run'"):
        run()


def test_without_pyarrow_it_is_said_first(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match="a study's table is written with pyarrow"):
        run()
    assert not (tmp_path / "run").exists()


def test_names_of_files_are_not_the_ids(model, tmp_path):
    ids = ["../../up", "a/b", "a b", "A B", "", "con", "x" * 500, "\u2603", "a\0b"]
    keys = [folders.key(one) for one in ids]
    assert len({one.lower() for one in keys}) == len(ids)
    assert all(re.fullmatch("[0-9A-Za-z-]{1,61}", one) for one in keys)
    cases = [{"id": one, "input_ids": [1, 2]} for one in ids if one]
    assert study.run(model, cases, tmp_path / "run")["done"] == len(cases)
    assert sorted(one.stem for one in (tmp_path / "run" / "results").iterdir()) == sorted(
        folders.key(one["id"]) for one in cases
    )
    assert [one.id for one in Folder(tmp_path / "run").cases()] == [one["id"] for one in cases]


def test_a_folder_says_what_it_is_not(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no study's folder: it has no manifest.json"):
        Folder(tmp_path).manifest()
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="its manifest.json is not of the format lrp_fast.study/1"):
        Folder(tmp_path).manifest()
    (tmp_path / "log.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match="log.jsonl holds a line that no run wrote"):
        Folder(tmp_path).log()


def test_fields_of_the_cases_are_columns_of_one_type(model, tmp_path):
    cases = [
        {"id": "a", "input_ids": [1], "n": 1, "x": 1, "both": "s", "half": "s", "big": 2**70, "value": "v", "deep": []},
        {"id": "b", "input_ids": [2], "n": 2, "x": 0.5, "both": 2, "half": "half \ud83d", "big": 1, "ok": True},
    ]
    cases[0] = {"field.value": 3} | cases[0] | {"huge": 10**400, "half \ud83d": 4, "segments": {"half \ud83d": [0, 1]}}
    cases[1] |= {"huge": 0.5}
    study.run(model, cases, tmp_path / "run")
    table = study.table(tmp_path / "run")
    assert table.huge.tolist() == [str(10**400), "0.5"] and table["half \\ud83d"][0] == 4
    assert table["field.value"][0] == 3 and table.segments[0][0]["name"] == "half \\ud83d"
    assert table.n.tolist() == [1, 2] and table.x.tolist() == [1.0, 0.5]
    assert table.half.tolist() == ["s", "half \\ud83d"] and table.both.tolist() == ["s", "2"]
    assert table.big.tolist() == [str(2**70), "1"] and table["field.field.value"][0] == "v" and "deep" not in table
    assert table.ok[1]

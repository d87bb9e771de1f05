"""The command line on a model of labels."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lrp_fast
from lrp_fast.cli import main

PROMPT = ("--prompt", "the capital of australia is")


@pytest.fixture(scope="module")
def classifier(directory, tiny, tmp_path_factory):
    """``classifier(head, **config)``: a folder with a model and the tokenizer of ten words."""

    def make(head="SequenceClassification", **given):
        folder = tmp_path_factory.mktemp("classifier")
        shutil.copytree(directory, folder, dirs_exist_ok=True)
        config = copy.deepcopy(transformers.AutoConfig.from_pretrained(directory))
        for name, value in ({"id2label": {0: "sad", 1: "glad", 2: "neither"}, "architectures": None} | given).items():
            setattr(config, name, value)
        torch.manual_seed(0)
        getattr(transformers, f"LlamaFor{head}")(config).save_pretrained(folder)
        return str(folder)

    return make


def test_a_label_by_its_name(classifier, run):
    folder = classifier()
    status, out, err = run(*PROMPT, "--target", "glad", model=folder)
    assert status == 0 and "LlamaForCausalLM" not in err and "left out" not in err
    found = lrp_fast.load("attribution.safetensors")
    (term,) = found.explained.terms
    assert term.target.text == "glad" and term.contrast == term.runner_up and found.explained.of == "label"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    own = model(found.input_ids[None]).logits[0]
    assert found.value == pytest.approx((own[1] - own[term.contrast.id]).item(), rel=1e-4)
    assert out.startswith(f"Why 'glad' rather than {term.contrast.text!r} at position ")
    status, out, _ = run(*PROMPT, "--target", "id:2", "--contrast", "none", "--json", model=folder)
    assert status == 0 and json.loads(out)["explained"]["terms"][0]["target"]["text"] == "neither"
    status, out, _ = run(*PROMPT, model=folder)
    assert status == 0 and out.startswith("best labels at position ")
    status, _, err = run(*PROMPT, "--target", "angry", model=folder)
    assert status == 2 and "target 'angry' is no label of the model, which has 'sad', 'glad', 'neither'" in err
    status, _, err = run(*PROMPT, "--answer", "canberra", model=folder)
    assert status == 2 and "gives the logits of labels, and no answer has any" in err


def test_a_token_s_label(classifier, run):
    status, out, _ = run(*PROMPT, "--target", "glad", "--position", "2", model=classifier("TokenClassification"))
    assert status == 0 and out.startswith("Why 'glad' rather than ") and " at position 2?" in out


def test_one_score_has_no_contrast(classifier, run):
    folder = classifier(id2label={0: "LABEL_0"})
    assert run(*PROMPT, model=folder)[0] == 0
    assert lrp_fast.load("attribution.safetensors").explained.kind == "logit"
    status, out, _ = run(*PROMPT, "--cut", '{"tokens": [1]}', model=folder, command="ablate")
    assert status == 0 and "predicted" in out and "best labels of the cut model" in out
    status, _, err = run(*PROMPT, "--contrast", "mean", model=folder)
    assert status == 2 and "gives one score, which has nothing beside it to contrast with" in err
    status, _, err = run(*PROMPT, "--generated", "1:3", model=folder, command="hops")
    assert status == 2 and "gives the logits of labels, and generates no tokens for hops to go over" in err


def test_a_graph_and_what_observers_see(classifier, run):
    folder = classifier()
    status, out, _ = run(*PROMPT, "--target", "glad", model=folder, command="graph")
    assert status == 0 and out.startswith("Why 'glad' rather than ")
    status, out, _ = run(*PROMPT, "--target", "glad", "--lens", "--heads", "2", model=folder)
    assert status == 0 and "logit lens" in out


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification"])
def test_plan_and_doctor_are_about_the_classifier(head, classifier, capsys):
    folder = classifier(head)
    capsys.readouterr()
    assert main(["plan", folder, "--tokens", "10", "--device", "cpu"]) == 0
    assert main(["doctor", folder]) == 0
    out, err = capsys.readouterr()
    assert err == "" and f"LlamaFor{head}" in out and "NOT COVERED" not in out


def test_a_classifier_without_its_head_is_refused(classifier, run):
    folder = classifier()
    path = Path(folder) / "model.safetensors"
    weights = load_file(path)
    del weights["score.weight"]
    save_file(weights, path, {"format": "pt"})
    status, _, err = run(*PROMPT, model=folder)
    assert status == 2 and "has no head (score.weight)" in err and "would explain a head that nobody trained" in err
    assert "name a checkpoint of the whole LlamaForSequenceClassification" in err


@pytest.fixture
def adapters(directory, tmp_path):
    """``adapters(head, base)``: a folder of LoRA adapters with a head of three labels, and the model that they make."""
    peft = pytest.importorskip("peft")

    def make(head="SequenceClassification", base=directory, **told):
        cls = getattr(transformers, f"AutoModelFor{head}")
        given = {} if "classifier" in base else {"num_labels": 3}
        task = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}[head]
        torch.manual_seed(3)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type=task, init_lora_weights=False)
        model = peft.get_peft_model(cls.from_pretrained(base, **given), config).eval()
        model.save_pretrained(tmp_path / "adapters")
        file = tmp_path / "adapters" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"base_model_name_or_path": base} | told))
        return str(tmp_path / "adapters"), model

    return make


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification"])
def test_adapters_bring_the_head_of_their_task(head, adapters, directory, run):
    folder, model = adapters(head)
    status, _, err = run(*PROMPT, "--target", "LABEL_2", "--contrast", "none", model=folder)
    assert status == 0, err
    assert f"{folder} holds adapters of {directory}: explained with them" in err
    found = lrp_fast.load("attribution.safetensors")
    assert found.value == pytest.approx(model(found.input_ids[None]).logits.flatten()[-1].item(), rel=1e-4)
    assert (found.layers - lrp_fast.attribute(model, found.input_ids, 2).layers).abs().max() <= 1e-6


def test_adapters_of_a_classifier(adapters, classifier, run):
    base = classifier()
    folder, model = adapters(base=base)
    assert run(*PROMPT, "--target", "neither", "--contrast", "none", model=folder)[0] == 0
    found = lrp_fast.load("attribution.safetensors")
    assert found.value == pytest.approx(model(found.input_ids[None]).logits[0, 2].item(), rel=1e-4)
    folder, _ = adapters(base=base, task_type="CAUSAL_LM")
    status, _, err = run(*PROMPT, model=folder)
    assert status == 2 and f"are of task_type CAUSAL_LM, and their base model {base!r} is a LlamaForSequenceCl" in err


def test_adapters_that_do_not_bring_their_head_are_refused(adapters, run):
    folder, _ = adapters()
    path = Path(folder) / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "score" not in key}, path)
    status, _, err = run(*PROMPT, model=folder)
    assert status == 2 and "are of task_type SEQ_CLS and hold no head, nor has their base model" in err

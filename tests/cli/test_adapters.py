"""A folder of adapters: explained on their base model, as peft loads them in Python."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lrp_fast

peft = pytest.importorskip("peft")

PROMPT = ("--prompt", "the capital of australia is")
TWO = ("--target", "sydney", "--contrast", "canberra")
# Without a budget a plan says what memory the machine has free, which is another number every time.
PLAN = ("--tokens", "10", "--device", "cpu", "--host-budget", "1GB")


@pytest.fixture
def adapted(directory, tmp_path):
    """``adapted(base, **told)``: random adapters of the tiny Llama, with that in their adapter_config.json."""

    def write(base=directory, **told):
        model = transformers.AutoModelForCausalLM.from_pretrained(directory)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        folder = tmp_path / "adapters"
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        change(folder, base_model_name_or_path=base, **told)
        return folder

    return write


def change(folder, **told):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | told), "utf-8")


def said(err):
    return [line for line in err.splitlines() if not line.startswith(("loading ", "wrote "))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_they_are_explained_as_peft_loads_them(dtype, adapted, directory, run, tmp_path):
    folder = adapted()
    status, out, err = run(*PROMPT, *TWO, "--dtype", dtype, model=str(folder))
    assert status == 0 and said(err) == [f"{folder} holds adapters of {directory}: explained with them"]
    assert "adapters, rule attnlrp" in out  # the name of what was explained
    found = lrp_fast.load(tmp_path / "attribution.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    asked = ("the capital of australia is", "sydney", "canberra")
    plain = lrp_fast.attribute(base, *asked, tokenizer=tokenizer)
    expected = lrp_fast.attribute(peft.PeftModel.from_pretrained(base, folder).eval(), *asked, tokenizer=tokenizer)
    assert torch.equal(found.layers, expected.layers) and found.value == expected.value
    assert (plain.layers - expected.layers).abs().max() > 0.1 * plain.layers.abs().max(), "the adapters do nothing"
    status, _, _ = run(*PROMPT, *TWO, "--dtype", dtype, "--save", "g.safetensors", model=str(folder), command="graph")
    assert status == 0
    assert torch.equal(lrp_fast.Graph.load(tmp_path / "g.safetensors").nodes, expected.layers)


def test_they_are_explained_as_transformers_loads_them(adapted, directory, run, tmp_path):
    folder = adapted()
    assert run(*PROMPT, *TWO, model=str(folder))[0] == 0
    found = lrp_fast.load(tmp_path / "attribution.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = lrp_fast.attribute(model, "the capital of australia is", "sydney", "canberra", tokenizer=tokenizer)
    assert torch.equal(found.layers, expected.layers)


def test_plan_and_doctor_answer_for_the_base_model(adapted, directory, run):
    folder = str(adapted())
    for command, more in (("plan", PLAN), ("doctor", ())):
        status, out, err = run(*more, "--json", model=folder, command=command)
        told = f"{folder} holds adapters of {directory}: what follows is about that model without them"
        assert status == 0 and said(err) == [told]
        assert run(*more, "--json", model=directory, command=command)[1:] == (out, "")


def test_a_relative_path_begins_where_the_command_runs(adapted, directory, run, tmp_path):
    """As it does for peft."""
    shutil.copytree(directory, tmp_path / "base")
    folder = adapted("base")
    assert run(*PROMPT, model=str(folder))[0] == 0
    assert run(*PLAN, model="adapters", command="plan")[0] == 0


def test_their_own_tokenizer_comes_first(adapted, directory, run):
    folder = adapted()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{directory}/{name}", folder)
    words = (folder / "tokenizer.json").read_text("utf-8").replace('"sydney"', '"Sydney"')
    (folder / "tokenizer.json").write_text(words, "utf-8")
    assert run(*PROMPT, "--target", "Sydney", "--contrast", "canberra", model=str(folder))[0] == 0


@pytest.mark.parametrize("base", ["./absent", "/nowhere/model", "a/b/c"])
def test_a_base_model_that_is_not_there(base, adapted, directory, run):
    folder = adapted(base)
    for command, more in (("attribute", PROMPT), ("plan", PLAN), ("doctor", ())):
        status, out, err = run(*more, model=str(folder), command=command)
        (line,) = said(err)
        assert status == 2 and out == "" and f"'{folder}' holds adapters, and their base model is not to be had" in line
        assert f"'{base}' is neither a folder here nor a name on the hub; let base_model_name_or_path in its" in line
    change(folder, base_model_name_or_path=directory)
    assert run(*PLAN, model=str(folder), command="plan")[0] == 0
    for nothing in (None, "", 5, ["tm"], {"a": 1}, True):
        change(folder, base_model_name_or_path=nothing)
        status, _, err = run(*PLAN, model=str(folder), command="plan")
        assert status == 2 and "names no base model: let base_model_name_or_path do so" in err


def test_without_peft(adapted, run, monkeypatch):
    folder = str(adapted())
    monkeypatch.setitem(sys.modules, "peft", None)
    status, out, err = run(*PROMPT, model=folder)
    assert status == 2 and out == "" and "holds adapters, which peft reads: pip install peft, or merge them" in err
    assert run(*PLAN, model=folder, command="plan")[0] == 0


def test_merged_they_need_no_peft(adapted, directory, run, tmp_path, monkeypatch):
    """The other mend of that refusal."""
    folder = adapted()
    _, out, _ = run(*PROMPT, *TWO, "--json", model=str(folder))
    base = transformers.AutoModelForCausalLM.from_pretrained(directory)
    peft.PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{directory}/{name}", tmp_path / "merged")
    monkeypatch.setitem(sys.modules, "peft", None)
    status, merged, err = run(*PROMPT, *TWO, "--json", model="merged")
    assert (status, said(err)) == (0, [])
    assert json.loads(merged)["value"] == pytest.approx(json.loads(out)["value"], rel=1e-5)


def test_adapters_of_a_model_with_another_head(adapted, run):
    status, out, err = run(*PROMPT, model=str(adapted(task_type="QUESTION_ANS")))
    assert status == 2 and out == "" and "are of task_type QUESTION_ANS, no causal language model's" in err
    assert "would explain a head that nobody trained" in err


def test_adapters_that_are_not_whole_or_do_not_fit(adapted, directory, run):
    folder = adapted()
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    save_file({key: value for key, value in state.items() if key != name}, file)
    status, _, err = run(*PROMPT, model=str(folder))
    assert status == 2 and re.search(r"the adapters in '.*' lack 1 of their weights, base_model.*1.self_attn.q_pr", err)
    save_file(state | {name.replace("q_proj", "o_proj"): state[name].clone()}, file)
    status, _, err = run(*PROMPT, model=str(folder))
    assert status == 2 and "hold 1 weight that their config leaves no place for, base_model" in err
    save_file(state | {name: torch.ones(4, 63)}, file)
    status, _, err = run(*PROMPT, model=str(folder))
    assert status == 2 and f"cannot load the adapters in '{folder}' onto '{directory}': " in err and "[4, 63]" in err


def test_the_base_model_is_looked_at_too(adapted, directory, run, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(directory, base)
    told = json.loads((base / "config.json").read_text("utf-8")) | {"attention_bias": False}
    (base / "config.json").write_text(json.dumps(told), "utf-8")
    status, out, err = run(*PROMPT, model=str(adapted(str(base))))
    assert status == 2 and f"'{base}' holds 12 weights that its config.json leaves no place for" in err


def test_a_model_and_adapters_in_one_folder(adapted, directory, run, tmp_path):
    """Without the weights, a trainer has copied the base model's config; with them, one folder is two models."""
    folder = adapted()
    expected = run(*PROMPT, *TWO, model=str(folder))[1]
    shutil.copy(f"{directory}/config.json", folder)
    status, out, err = run(*PROMPT, *TWO, model=str(folder))
    assert status == 0 and out == expected and f"adapters of {directory}:" in err
    for file in Path(directory).iterdir():
        shutil.copy(file, folder)
    status, out, err = run(*PROMPT, *TWO, model=str(folder))
    assert status == 2 and out == "" and f"'{folder}' holds a whole model and adapters: move adapter_config.json" in err
    (tmp_path / "own").mkdir()
    for file in folder.glob("adapter_*"):
        shutil.move(file, tmp_path / "own")
    change(tmp_path / "own", base_model_name_or_path=str(folder))
    status, out, _ = run(*PROMPT, *TWO, model="own")
    assert status == 0 and out == expected.replace("adapters, rule", "own, rule")


def test_adapters_of_adapters(adapted, directory, run, tmp_path):
    first = adapted()
    shutil.copytree(first, tmp_path / "second")
    change(tmp_path / "second", base_model_name_or_path=str(first))
    for command, more in (("attribute", PROMPT), ("plan", PLAN)):
        status, out, err = run(*more, model="second", command=command)
        assert status == 2 and out == "" and f"not to be had: '{first}' holds adapters itself; let base_model" in err


def test_virtual_tokens_are_refused(directory, run, tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(directory), config)
    model.save_pretrained(tmp_path / "tokens")
    status, out, err = run(*PROMPT, model="tokens")
    assert status == 2 and out == "" and "are PROMPT_TUNING, tokens that no text has: name LoRA adapters" in err

"""What is no model, or has no tokenizer, is refused in one sentence, and the mend that it names works."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import lrp_fast
from lrp_fast.cli import source

PROMPT = ("--prompt", "the capital of australia is")
COMMANDS = {"attribute": PROMPT, "graph": PROMPT, "plan": ("--tokens", "10", "--device", "cpu"), "doctor": ()}


@pytest.fixture
def refused(run):
    """``refused(name)``: the sentence with which all commands (or those named) refuse a model."""

    def call(name, *commands):
        lines = set()
        for command in commands or COMMANDS:
            status, out, err = run(*COMMANDS[command], model=str(name), command=command)
            assert status == 2 and out == "" and "Traceback" not in err
            (line,) = [line for line in err.splitlines() if not line.startswith("loading ")]
            lines.add(line.removeprefix("lrp-fast: "))
        (line,) = lines
        return line

    return call


@pytest.fixture
def copy(directory, tmp_path):
    """``copy(**config)``: a copy of the tiny Llama, with more in its config.json; None: less."""

    def call(**config):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(directory, folder)
        told = json.loads((folder / "config.json").read_text("utf-8")) | config
        (folder / "config.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}), "utf-8")
        return folder

    return call


@pytest.mark.parametrize("name", ["./my-model", "a/b/c", "my model", "", "../absent", "a\\b", "-model", "models/"])
def test_what_is_neither_a_folder_nor_a_name(name, refused):
    if name.startswith("-"):
        name = "./" + name
    assert refused(name) == f"{name!r} is neither a folder here nor a name on the hub"


def test_a_folder_in_a_home_that_the_shell_did_not_read(refused):
    assert refused("~/model").endswith("nor a name on the hub; the shell alone reads ~")


@pytest.mark.parametrize("name", ["my-model", "org/my-model"])
def test_a_hub_that_may_not_be_asked(name, refused, monkeypatch, tmp_path):
    monkeypatch.setattr(source.constants, "HF_HUB_OFFLINE", True)
    line = f"{name!r} is no folder here, nor in the hub's cache, and HF_HUB_OFFLINE is set: name a folder"
    assert refused(name) == line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (source.errors.LocalEntryNotFoundError("no"), "nor in the hub's cache, and the hub cannot be reached: name a"),
        (source.errors.EntryNotFoundError("no"), "no config.json in 'org/model': it is no model of transformers"),
        (source.errors.RepositoryNotFoundError, "is neither a folder here nor a name on the hub; if it is private"),
        (source.errors.GatedRepoError, "open only to those whom its owners admit: ask for access at https://huggingface"),
        (OSError(28, "No space left on device"), "cannot be had from the hub: [Errno 28] No space left on device"),
    ],
)
def test_what_the_hub_answers(error, said, refused, monkeypatch):
    if isinstance(error, type):
        error = error.__new__(error, "no")  # otherwise it wants a response of whatever library the hub's client uses

    def answer(*_, **__):
        raise error

    monkeypatch.setattr(source, "hf_hub_download", answer)
    monkeypatch.setattr(source.constants, "HF_HUB_OFFLINE", False)
    assert said in refused("org/model")


def test_a_folder_without_a_config(refused, directory, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(f"{directory}/model.safetensors", folder)
    assert refused(folder).startswith(f"there is no config.json in '{folder}': copy that of the model whose weights")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{directory}/{name}", folder)
    assert source.find(str(folder)).config["model_type"] == "llama"


def test_folders_below_are_found(refused, run, directory, tmp_path):
    for name in ("checkpoint-500", "checkpoint-900"):
        shutil.copytree(directory, tmp_path / "runs" / name)
    below = re.search("is meant, such as '(.*)'", refused(tmp_path / "runs"))[1]
    assert below.endswith("checkpoint-900") and run(*PROMPT, model=below)[0] == 0
    shutil.copytree(directory, tmp_path / "models--org--model/snapshots/abc")
    below = re.search("is meant, such as '(.*)'", refused(tmp_path / "models--org--model"))[1]
    assert Path(below).name == "abc" and run(*PROMPT, model=below)[0] == 0


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_a_model_stands_for_its_folder(file, copy, refused, run):
    commands = ("attribute", "plan", "doctor") if file.endswith(".safetensors") else ()
    folder = re.search("name the folder that it lies in, '(.*)'", refused(copy() / file, *commands))[1]
    assert run(*PROMPT, model=folder)[0] == 0


def test_a_file_alone_is_no_model(refused, tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"1")
    assert "weights.bin' is a file: name a folder that holds it beside its config.json" in refused("weights.bin")


def write_gguf(gguf, file):
    """A random Llama of two layers and four tokens."""
    made, words, hidden, narrow = gguf.GGUFWriter(str(file), "llama"), ["<s>", "a", "b", "ab"], 32, 16
    made.add_block_count(2)
    made.add_context_length(64)
    made.add_embedding_length(hidden)
    made.add_feed_forward_length(hidden)
    made.add_head_count(2)
    made.add_head_count_kv(1)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_rope_dimension_count(narrow)
    made.add_vocab_size(len(words))
    made.add_tokenizer_model("gpt2")
    made.add_token_list(words)
    made.add_token_merges(["a b"])
    made.add_bos_token_id(0)
    made.add_eos_token_id(0)
    sizes = {"token_embd": (len(words), hidden), "output": (len(words), hidden), "output_norm": (hidden,)}
    names = ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for name in names:
        size = (hidden,) if "norm" in name else (narrow if name in ("attn_k", "attn_v") else hidden, hidden)
        sizes |= {f"blk.{layer}.{name}": size for layer in range(2)}
    for name, size in sizes.items():
        made.add_tensor(f"{name}.weight", torch.randn(size, generator=torch.Generator().manual_seed(3)).numpy())
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def test_a_gguf_file_is_for_python(refused, tmp_path):
    gguf = pytest.importorskip("gguf")
    (tmp_path / "model").mkdir()
    write_gguf(gguf, tmp_path / "model/m.gguf")
    line = refused("model/m.gguf")
    assert line.startswith("'model/m.gguf' is a GGUF file, which lrp-fast does not read: name")
    assert refused("model") == f"there is no config.json in 'model', and {line}"
    folder, file = re.search(r"by from_pretrained\('(.*?)', gguf_file='(.*?)'\)", line).groups()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    result = lrp_fast.attribute(model, "abab", tokenizer=tokenizer)
    assert result.tokens == ["ab", "ab"] and result.relevance.abs().max() > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "the config.json of '{}' cannot be read: Expecting property name"),
        ("[1]", "the config.json of '{}' is no JSON object"),
        ("{}", "the config.json of '{}' names no model_type: add it, such as 'llama'"),
        ('{"model_type": ["llama"]}', "the config.json of '{}' names no model_type"),
        (
            '{"model_type": "frobnicate"}',
            "transformers knows no model_type 'frobnicate': a newer one may (this is "
            f"{transformers.__version__}); otherwise correct the config.json of '{{}}'",
        ),
        (
            '{"model_type": "llama", "num_attention_heads": "two"}',
            "transformers cannot read the config.json of '{}': ",  # and each says in its own words why
        ),
    ],
)
def test_a_config_that_says_nothing_of_use(text, said, copy, refused):
    folder = copy()
    (folder / "config.json").write_text(text, "utf-8")
    assert refused(folder).startswith(said.replace("{}", str(folder)))


@pytest.mark.parametrize("classes", [5, [5], {"a": 1}, True])
def test_architectures_that_are_no_names(classes, copy, refused, run):
    folder = copy(architectures=classes)
    line = refused(folder)
    assert line.startswith(f"the architectures in the config.json of '{folder}' are no list of names: name the class")
    assert line.endswith("such as ['LlamaForCausalLM'], or leave it out")
    for mended in (["LlamaForCausalLM"], None):
        assert run(*PROMPT, model=str(copy(architectures=mended)))[0] == 0


def test_a_config_with_a_byte_too_many(copy, refused):
    folder = copy()
    (folder / "config.json").write_bytes(b"{\xff}")
    assert "cannot be read: 'utf-8' codec can't decode" in refused(folder)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class MineConfig(LlamaConfig):
    model_type = "mine"

class Mine(LlamaForCausalLM):
    config_class = MineConfig
"""


def test_code_from_a_checkpoint_is_not_run(copy, refused, monkeypatch, tmp_path):
    folder = copy(model_type="mine", auto_map={"AutoConfig": "code.MineConfig", "AutoModelForCausalLM": "code.Mine"})
    (folder / "code.py").write_text("raise SystemExit('it was run')", "utf-8")
    line = refused(folder)
    assert "is a 'mine', whose code is in the checkpoint (auto_map), and not run: load it" in line
    assert "in Python with trust_remote_code=True; lrp_fast.attribute explains it where rules cover" in line
    (folder / "code.py").write_text(CODE, "utf-8")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    # Its class has no code but what it inherits.
    assert lrp_fast.attribute(model, torch.tensor([2, 3, 4])).value > 0


def test_a_class_of_transformers_stands_for_code_in_the_checkpoint_and_that_is_said(copy, run, refused):
    folder = copy(auto_map={"AutoConfig": "code.MineConfig", "AutoModelForCausalLM": "code.Mine"})
    status, _, err = run(*PROMPT, model=str(folder))
    assert status == 0
    assert f"{folder} brings code of its own (auto_map), which is not run: transformers' LlamaForCausalLM is" in err
    told = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    told |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), "utf-8")
    assert "is code in the checkpoint (auto_map), and not run: load it" in refused(folder, "attribute", "graph")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2", "cohere"])
def test_a_tokenizer_that_is_not_there(family, tiny, refused, run, directory, tmp_path):
    """transformers makes one of special tokens alone for some families, and every word is unknown to it."""
    tiny(family, vocab_size=11, final_logit_softcapping=None).save_pretrained(tmp_path / "model")
    line = refused("model", "attribute", "graph")
    mend = "copy tokenizer.json and tokenizer_config.json there from the model that it was made from"
    assert line == f"'model' has no tokenizer: {mend}"
    if family == "qwen2":  # takes none but its own kind
        return
    for name in re.findall(r"\w+\.json", line):
        shutil.copy(f"{directory}/{name}", tmp_path / "model")
    status, _, err = run(*PROMPT, model="model")
    assert status == 0, err


def test_a_tokenizer_that_cannot_be_read(copy, refused):
    folder = copy()
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    assert refused(folder, "attribute").startswith(f"the tokenizer in '{folder}' cannot be loaded: ")


def test_weights_that_are_not_there(copy, refused):
    folder = copy()
    assert len(load_file(folder / "model.safetensors")) > 9
    (folder / "model.safetensors").unlink()
    assert refused(folder, "attribute").startswith(f"cannot load '{folder}': Error no file named model.safetensors")

"""What cannot be loaded, or is not what its folder says."""

import shutil

from safetensors.torch import load_file, save_file

PROMPT = ("--prompt", "the capital of australia is")


def test_a_model_that_is_not_there_exits_with_2(run, tmp_path):
    status, out, err = run(*PROMPT, model=str(tmp_path / "no-model"))
    assert status == 2 and "cannot load" in err and out == ""


def test_a_checkpoint_with_missing_weights_is_refused(run, directory, tmp_path):
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

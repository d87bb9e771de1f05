"""The demo is what the README says: a genuine mistake, and files that were written for it."""

import runpy
import subprocess
import sys

import lrp_fast


def test_the_mistake_is_genuine(smollm2, root, monkeypatch):
    model, tokenizer = smollm2
    monkeypatch.syspath_prepend(str(root / "demo"))
    prompt = runpy.run_path(str(root / "demo" / "run.py"), run_name="demo")["PROMPT"]
    result = lrp_fast.attribute(model, prompt, contrast=("top", 1), tokenizer=tokenizer)
    (term,) = result.explained.terms
    assert (term.target.text, term.contrast.text) == (" blue", " red")
    assert result.value > 1  # far beyond rounding
    without = prompt.replace(" Do not cut the blue wire.", "")
    assert without != prompt
    (term,) = lrp_fast.attribute(model, without, tokenizer=tokenizer).explained.terms
    assert term.target.text == " red"


def test_the_demo_runs(smollm2, root, tmp_path):
    command = [sys.executable, root / "demo" / "run.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.startswith("Why ' blue' rather than ' red' after position 28?")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.html", "demo.json", "demo.safetensors"]
    assert str(tmp_path) not in (tmp_path / "demo.html").read_text("utf-8") and "Traceback" not in done.stderr


def test_the_graph_is_that_of_the_readme(smollm2, root, tmp_path):
    command = [sys.executable, root / "demo" / "graph.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["demo-graph.html"]
    _, counts, paths = done.stdout.split("\n\n")
    assert paths.rstrip() in (root / "README.md").read_text("utf-8")
    assert "\nedges " in counts and str(tmp_path) not in (tmp_path / "demo-graph.html").read_text("utf-8")

"""The README's table of families: what counts as shown, and that runs on several machines add up."""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time

import pytest


@pytest.fixture
def families(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("families")


SHOWING = """
import pytest

@pytest.mark.shows("graph")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("number", [1, 2])
def test_fails_once(family, number):
    assert (family, number) != ("gpt2", 2)

@pytest.mark.shows("streaming")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("number", [1, 2])
def test_is_skipped_once(family, number):
    if (family, number) == ("gpt2", 2):
        pytest.skip()

@pytest.fixture
def broken():
    yield
    raise RuntimeError

@pytest.mark.shows("quantised", family="qwen2")
def test_leaves_with_an_error(broken):
    pass

@pytest.mark.shows("gpu", family="llama")
def test_of_the_interpreter():
    pass
"""


@pytest.mark.slow
def test_a_family_has_what_all_of_its_tests_show(families, root, tmp_path):
    """A count of a run is added to another's, and where anything failed or was skipped the table does not say yes."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_showing.py").write_text(SHOWING)
    for name in ("conftest.py", "selection.py"):
        shutil.copy(root / "tests" / name, folder)
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(root / "benchmarks" / "families.py", tmp_path / "benchmarks")
    pytest_here = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "-c", root / "pyproject.toml"]
    counts = []
    for shard in ("0/2", "1/2"):
        options = ["--rootdir", tmp_path, "--shard", shard, "--families", tmp_path / "found.json"]
        subprocess.run([*pytest_here, *options, tmp_path], cwd=tmp_path, capture_output=True)
        counts.append(json.loads((tmp_path / "found.json").read_text()))
    shown = families.added_up(counts)
    assert shown == {
        "Llama": {"graph": {"passed": 2}, "streaming": {"passed": 2}},
        "GPT-2": {"graph": {"passed": 1, "failed": 1}, "streaming": {"passed": 1, "skipped": 1}},
        "Qwen2": {"quantised": {"passed": 1, "failed": 1}},
    }
    rows = families.table({"shown": shown}).splitlines()
    assert "| Llama | not yet | yes | yes | not yet | not yet | not yet |" in rows
    assert "| GPT-2 | not yet | **fails** | not yet | not yet | not yet | not yet |" in rows
    assert "| Qwen2 | not yet | not yet | not yet | **fails** | not yet | not yet |" in rows
    with pytest.raises(ValueError, match="a test shows 'BERT', which is no family of lrp_fast"):
        families.table({"shown": {"BERT": {}}})


def test_make_gpu_keeps_what_was_shown_if_all_of_it_ran(families, tmp_path, monkeypatch, capfd):
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu, "BUILD", tmp_path)
    for i, outcomes in enumerate([{"passed": 3}, {"passed": 2, "failed": 1}]):
        (tmp_path / f"families-{i}.json").write_text(json.dumps({"Llama": {"gpu": outcomes}}))
        (tmp_path / f"tests-{i}.log").touch()
    options = argparse.Namespace(results=tmp_path / "results", commit="abc")
    out = options.results / "families-gpu.json"
    gpu.keep_families(dict(os.environ), time.monotonic() + 120, options)
    report = json.loads(out.read_text())
    assert report["results"]["shown"] == {"Llama": {"gpu": {"passed": 5, "failed": 1}}} and report["versions"]["torch"]
    out.unlink()
    (tmp_path / "tests-2.log").touch()  # of one that was stopped
    gpu.keep_families(dict(os.environ), time.monotonic() + 120, options)
    assert not out.exists() and "not all of the tests ran" in capfd.readouterr().out

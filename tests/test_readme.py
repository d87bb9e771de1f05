"""The README's figures are those of the committed benchmark results, and its snippets use what exists."""

import importlib.util
import json
import re

import pytest

import lrp_fast
from tests import decoders, encoders


@pytest.fixture
def readme(root):
    return (root / "README.md").read_text("utf-8")


def test_the_figures_are_those_of_the_results(readme, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import families
    import tables

    _, inside, _ = families.between_marks(readme, tables.MARKS)
    assert inside == tables.section(), "run benchmarks/tables.py"
    files = [tables.RESULTS / f"{group}.json" for group in tables.GROUPS]
    assert not any(json.loads(path.read_text())["tiny"] for path in files if path.is_file())


def test_the_table_of_families_is_that_of_the_results(readme, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import families

    _, inside, _ = families.between_marks(readme)
    assert inside == families.section(families.committed())
    rows = re.findall(r"^\| (.+?) \|", inside, re.MULTILINE)
    assert rows == ["family", *families.FAMILIES]


def test_the_table_of_decoders_is_that_of_the_results(readme, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import families

    _, inside, _ = families.between_marks(readme, families.DECODER_MARKS)
    shown = families.added_up(report["results"]["shown"] for report in families.committed())
    assert inside == families.decoders_table({"shown": shown}, decoders)
    explained = re.findall(r"^\| `.+` \| yes \| (yes|refused)", inside, re.MULTILINE)
    graphs = explained.count("yes")
    assert f"of transformers 5.23, {len(explained)} are explained so, {graphs} of them with graphs" in readme


def test_the_table_of_encoders_is_that_of_the_tests(readme, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import families

    _, inside, _ = families.between_marks(readme, families.ENCODER_MARKS)
    assert inside == families.encoders_table(encoders)
    assert f"Of the masked language models, {len(encoders.COVERED)} are held" in readme
    assert f"All {len(encoders.ALL)}, by their model type" in readme


def test_what_methods_came_to_is_that_of_the_results(readme, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import faithfulness_tables
    import families

    _, inside, _ = families.between_marks(readme, faithfulness_tables.MARKS)
    assert inside == faithfulness_tables.section(), "run benchmarks/faithfulness_tables.py"


def test_every_name_of_ours_in_the_readme_exists(readme):
    for dotted in set(re.findall(r"lrp_fast((?:\.\w+)+)", readme)):
        thing, path = lrp_fast, "lrp_fast"
        for name in dotted[1:].split("."):
            path += f".{name}"
            # What is not imported with lrp_fast may want a package that is not installed: that it is there is enough.
            thing = getattr(thing, name, None) or importlib.util.find_spec(path)
            assert thing, path


def test_the_picture_is_there(readme, root):
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme):
        assert (root / path).is_file()


def test_the_figures_of_a_gpu_are_those_of_the_results(readme, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import families
    import gpu_tables

    _, inside, _ = families.between_marks(readme, gpu_tables.MARKS)
    assert inside == gpu_tables.section(), "run benchmarks/gpu_tables.py"
    assert all(row.count("|") == gpu_tables.MODEL_HEAD.count("|") for row in inside.splitlines() if "B | " in row)

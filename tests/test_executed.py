"""The kernels' compiled code, executed without a GPU: faults that were put in fail; the README says what was found."""

import importlib
import json
import re
import subprocess
import sys

import pytest

TARGETS, TRITONS, DTYPES = ("sm_80", "sm_90"), ("3.6", "3.7", "3.9"), ("bfloat16", "float16")
# Triton 3.6 fences no copies of a pipelined loop, whoever's kernel it is: 3.7 and later do.
UNFENCED = "wgmma reads what cp.async wrote without fence.proxy.async"
ANEW = (
    "`python benchmarks/executed.py` says in the README what changed since the kernels were executed; "
    "`make test-ptx-all` executes them anew"
)


@pytest.fixture
def executed(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("executed")


@pytest.fixture
def report(executed):
    if not executed.RESULT.is_file():
        pytest.skip(f"no {executed.RESULT.name} yet")
    return json.loads(executed.RESULT.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90])
def test_faults_fail_by_name_line_and_kind(target, root):
    planted = root / "tests" / "kernels" / "planted.py"
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", f"--ptx={target}", planted]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8")
    assert "3 failed, 1 passed in" in done.stdout, done.stdout + done.stderr
    assert f"executed on the CPU, as PTX for sm_{target} by Triton" in done.stdout
    assert "4 launches of 3 programs" in done.stdout
    lines = {mark: number for number, text in enumerate(planted.read_text().splitlines(), 1)
             for mark in re.findall(r'# .*"(.+)"', text)}  # fmt: skip
    sections = re.split(r"_{3,} (test_\w+) _{3,}\n", done.stdout)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    for test, kernel, kind, mark in (
        ("test_race", "race_kernel", "RACE", "between programs"),
        ("test_out_of_bounds", "beyond_kernel", "global load of 2 bytes outside every tensor", "out of bounds"),
        ("test_wrong_besides", "race_kernel", "RACE", "between programs"),
    ):
        assert re.search(rf"{kernel}: {kind}.*, source line {lines[mark]} of planted.py", found[test]), found[test]
    assert "assert torch.equal(x, y)" in found["test_wrong_besides"]


def test_the_readme_says_what_was_found(executed, report, root):
    readme = (root / "README.md").read_text("utf-8")
    _, inside, _ = importlib.import_module("families").between_marks(readme, executed.MARKS)
    assert inside == executed.section(report, executed.sources()), ANEW


def test_what_the_readme_names_was_executed(report, root):
    readme = (root / "README.md").read_text("utf-8")
    runs = report["results"]["runs"]
    found = {(run["target"], run["triton"].rpartition(".")[0], run["dtype"]) for run in runs}
    assert found >= {(target, triton, dtype) for target in TARGETS for triton in TRITONS for dtype in DTYPES}
    for run in runs:
        if run["dtype"] in DTYPES:
            assert run["programs"] > 100 and run["launches"] >= run["programs"] and run["values"] > 10**6
        assert 0 <= run["worst"] <= 1 and not run["failed"] and not run["not executed"]
        known = run["target"] == "sm_90" and run["triton"].startswith("3.6.")
        assert {report.partition(": ")[2] for report in run["reports"]} <= {UNFENCED} if known else not run["reports"]
    assert "No GPU took part" in report["what"]
    claim = r"what they compile to for (\w+) and (\w+) was executed on a CPU, in (\w+) and (\w+)"
    assert re.search(claim, " ".join(readme.split())).groups() == (*TARGETS, *DTYPES)


RUN = {"target": "sm_90", "triton": "3.7.1", "sources": "now", "dtype": "bfloat16"}


def line(case, failed=None, **more):
    return RUN | {
        "case": case, "failed": failed, "programs": {"a": "one_kernel"}, "launches": 2, "values": 100, "worst": 0.5,
        "seconds": 1.5, "reports": {},
    } | more  # fmt: skip


def test_records_add_up(executed, tmp_path):
    raced = {"failed": "reports", "reports": {f"one_kernel: RACE: a write: st {n}, source line 3": 4 for n in (1, 2)}}
    lines = [
        RUN | {"needed": {"a": "module/form", "c": "module/other"}}, line("x", **raced), line("x"),
        line("y", programs={"b": "two_kernel"}, worst=0.75), line("z", sources="then", worst=9.0),
    ]  # fmt: skip
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, lines[:3])))
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, lines[3:])))
    (run,) = executed.runs(tmp_path, "now")
    assert (run["cases"], run["programs"], run["launches"], run["values"], run["worst"]) == (2, 2, 4, 200, 0.75)
    assert run["kernels"] == {"one_kernel": 1, "two_kernel": 1} and run["not executed"] == ["module/other"]
    assert run["failed"] == run["reports"] == {}
    lines = [line("y", **raced), line("z", failed="AssertionError: 3")]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (run,) = executed.runs(tmp_path, "now")
    report = {"commit": "abc", "cpu": "a CPU", "results": {"sources": {"norm.py": "1"}, "runs": [run]}}
    text = executed.section(report, {"norm.py": "2"})
    assert "| sm_90 | 3.7.1 | 1 | 6 | 300 | 0.50 | **see below** |" in text
    assert "**With sm_90, Triton 3.7.1, bfloat16: one_kernel: RACE: a write (1 of 3 cases); `z` failed; " in text
    assert "`module/other` was not executed.**" in text
    assert "**Changed since: `kernels/norm.py`.**" in text
    assert "The kernels are as they were." in executed.section(report, {"norm.py": "1"})

"""What goes wrong on a machine, or with one case: the rest is explained, or is when the run goes on."""

import copy
import errno
import importlib
import os

import pytest
import torch

from lrp_fast import Memory, Rules, study
from lrp_fast.memory import planned
from lrp_fast.study import Folder, passes
from lrp_fast.study import folder as folders
from tests.study.runs import SPEC, packs, raising

SHORT = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
    "python": MemoryError,
    "torch": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
}


@pytest.mark.parametrize("kind", SHORT)
def test_out_of_memory_halves_the_pack(kind, run, content, tmp_path, monkeypatch):
    run("whole")
    sizes = []
    several = raising(SHORT[kind], lambda asked: sizes.append(len(asked)) or len(asked) > 1)
    monkeypatch.setattr(passes, "explain_pack", several)
    assert run()["done"] == 10 and sizes.count(1) == 10
    names = [one["id"] for one in Folder(tmp_path / "run").log()]
    assert names == [one["id"] for one in Folder(tmp_path / "whole").log()]


def test_out_of_memory_alone_says_what_would_fit(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        wide = raising(SHORT["cuda"], lambda asked: max(len(one.ids) for one in asked) > 15)
        patch.setattr(passes, "explain_pack", wide)
        found = run()
    assert found["failed"] >= 1 and found["done"] + found["failed"] == 10
    table = study.table(tmp_path / "run")
    longest = int(table.num_tokens.max())
    for why in table.why[table.status == "failed"]:
        assert "out of memory at 1" in why or "out of memory at 2" in why
        assert "tokens in a pass of its own (CUDA out of memory. Tried to allocate 2 GiB.): at least " in why
        assert why.endswith(f"kB on cpu above the model have to be free; the longest that fitted had {longest}")
    assert run()["failed"] == found["failed"]  # they have been tried
    assert run(retry=True) == {"done": 10, "failed": 0, "refused": 2}
    assert len(Folder(tmp_path / "run").log()) == 12 + found["failed"]


def test_a_budget_that_holds_no_case_refuses_it(run, tmp_path):
    found = run(memory=Memory(host_budget=20_000))
    table = study.table(tmp_path / "run")
    assert found["refused"] > 2 and found["done"] + found["refused"] == 12
    assert table.why.str.contains("cannot hold one layer of .* tokens: at least").sum() == found["refused"] - 2
    assert run() == found  # they have been looked at
    assert run(retry=True) == run() == {"done": 10, "failed": 0, "refused": 2}
    ids = [id for unit in packs(tmp_path / "run") for id in unit]
    assert len(set(ids)) == len(ids) == 10


def test_room_that_came_since_the_run_was_begun_is_no_error(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(folders, "append", raising(KeyboardInterrupt, lambda entries: True, folders.append))
        with pytest.raises(KeyboardInterrupt):
            run(memory=Memory(host_budget=20_000))
    found = run()
    assert found["refused"] > 2 and run(retry=True) == {"done": 10, "failed": 0, "refused": 2}
    assert study.table(tmp_path / "run").status.tolist().count("done") == 10


def test_what_does_not_fit_is_refused_though_a_longer_case_fits(tiny, tmp_path):
    """Logits of many positions take more than tokens do."""
    model = tiny("llama", vocab_size=5000)
    many = {"id": "many", "input_ids": list(range(40)), "position": list(range(40)), "target": 5}
    long = {"id": "long", "input_ids": list(range(41)), "target": 5}
    spacious, counts = Memory(host_budget=2**40), {"many": (40, 40), "long": (41, 1)}
    needed = {id: planned(model, n, Rules(), spacious, positions=k).least["cpu"] for id, (n, k) in counts.items()}
    assert needed["long"] < needed["many"]
    budget = Memory(host_budget=(needed["long"] + needed["many"]) // 2)
    assert study.run(model, [many, long], tmp_path / "run", memory=budget) == {"done": 1, "failed": 0, "refused": 1}
    assert "cannot hold one layer" in Folder(tmp_path / "run").statuses()["many"]["why"]


def test_a_result_that_was_lost_and_cannot_be_made_again_has_failed(run, tmp_path, monkeypatch):
    run()
    folder = Folder(tmp_path / "run")
    lost = next(ids for ids in packs(folder.path) if len(ids) > 1)[-1]
    folder.result(lost).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(passes, "explain_pack", raising(MemoryError, lambda asked: True))
        assert run()["failed"] == 1  # whoever shares its pack has a result
    assert study.table(folder.path).set_index("id").why[lost].startswith("out of memory at")
    assert run(retry=True) == {"done": 10, "failed": 0, "refused": 2}


def test_a_lost_device_ends_the_run_which_goes_on_later(run, content, tmp_path, monkeypatch):
    run("whole")
    lost = lambda: torch.AcceleratorError("CUDA error: device lost\nmore")  # noqa: E731
    first, second, *_ = packs(tmp_path / "whole")
    with monkeypatch.context() as patch:
        explained = []
        patch.setattr(
            passes, "explain_pack", raising(lost, lambda asked: explained.append(asked) or len(explained) > 1)
        )
        with pytest.raises(RuntimeError, match=r"the device was lost at .* \(CUDA error: device lost\): what is fin"):
            run()
    assert set(Folder(tmp_path / "run").statuses()) == {"malformed", "case 3", *first}
    assert len(explained) == 2 and len(explained[1]) == len(second)  # it was not halved
    assert run()["done"] == 10 and content(tmp_path / "run") == content(tmp_path / "whole")


def test_an_error_of_one_case_is_its_own(run, tmp_path, monkeypatch):
    wrong = raising(lambda: RuntimeError("a kernel failed"), lambda asked: any(len(one.ids) == 10 for one in asked))
    monkeypatch.setattr(passes, "explain_pack", wrong)
    found = run()
    table = study.table(tmp_path / "run").set_index("id")
    assert found["failed"] == 1 and table.why["case 1"] == "a kernel failed"


@pytest.mark.parametrize("kind", [IndexError, TypeError, KeyError, AttributeError])
def test_an_error_that_nobody_foresaw_is_its_cases_own(kind, run, tmp_path, monkeypatch):
    wrong = raising(lambda: kind("no such thing"), lambda asked: any(len(one.ids) == 10 for one in asked))
    monkeypatch.setattr(passes, "explain_pack", wrong)
    assert run() == {"done": 9, "failed": 1, "refused": 2}
    why = study.table(tmp_path / "run").set_index("id").why["case 1"]
    assert why.startswith(f"the pass failed with {kind.__name__} (") and "no such thing" in why


def test_a_tokenizer_that_fails_refuses_the_case(run, tmp_path, monkeypatch):
    plain = passes.question.read_on

    def failing(model, prompt, *rest):
        if len(prompt.split()) == 10:
            raise IndexError("no such merge")
        return plain(model, prompt, *rest)

    monkeypatch.setattr(passes.question, "read_on", failing)
    assert run() == {"done": 9, "failed": 0, "refused": 3}
    assert study.table(tmp_path / "run").set_index("id").why["case 1"] == (
        "reading it failed with IndexError (no such merge)"
    )


def test_a_disk_that_fails_under_a_pass_is_no_cases_fault(run, monkeypatch):
    full = raising(lambda: OSError(errno.ENOSPC, "full"), lambda asked: True)
    with monkeypatch.context() as patch:
        patch.setattr(passes, "explain_pack", full)
        with pytest.raises(OSError, match="full"):
            run()
    assert run()["done"] == 10


def test_nan_logits_are_a_case_of_their_own(model, tokenizer, cases, small_packs, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.embed_tokens.weight[2] = torch.nan  # "the"
    found = study.run(broken, cases(12), tmp_path / "run", tokenizer=tokenizer)
    assert found["failed"] >= 1 and found["done"] >= 1 and sum(found.values()) == 12
    table = study.table(tmp_path / "run")
    assert table.why[table.status == "failed"].str.startswith("the logits hold NaN: nothing can be explained").all()


PLACES = {
    "result": ("lrp_fast.saved", "to_bytes", 5),
    "graph": ("lrp_fast.graph.file", "save_file", 5),
    "log": ("lrp_fast.study.folder", "append", 3),
    "table": ("pyarrow.parquet", "write_table", 0),
}


@pytest.mark.parametrize("where", PLACES)
def test_a_full_disk_ends_the_run_which_goes_on_later(where, run, whole, content, tmp_path, monkeypatch):
    home, name, limit = PLACES[where]
    module = importlib.import_module(home)
    plain, calls = getattr(module, name), []

    def full(*given, **named):
        calls.append(None)
        if len(calls) > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(OSError) as caught:
            run(graph=SPEC)
    assert caught.value.errno == errno.ENOSPC
    assert not list((tmp_path / "run").rglob("*.part"))
    run(graph=SPEC)
    assert content(tmp_path / "run") == content(whole)

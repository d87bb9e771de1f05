"""Workers of Ray make the folder that one process makes, whatever befalls one of them; and batches of cases by hand."""

import json
import os
import pickle
import signal
import sys
import time
from functools import partial

import pytest
import torch

import lrp_fast
from lrp_fast import GraphSpec, study
from lrp_fast.study import Explainer, Folder, passes

SPEC = GraphSpec(topk=2)


def load(directory, notes=None, seconds=0.0):
    """In a worker: what it loads; a note of each pack that it is at, which takes ``seconds`` longer."""
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    if notes is not None:
        plain = passes.explain_pack

        def noted(*given):
            (notes / f"{os.getpid()}-{time.monotonic_ns()}").touch()
            time.sleep(seconds)
            return plain(*given)

        passes.explain_pack = noted
    return model, transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def directory(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(directory):
    return load(directory)


def test_a_batch_of_columns_is_explained_as_attribute_does(directory, loaded, cases):
    explainer = Explainer(partial(load, directory), graph=SPEC)
    given = cases(6)
    columns = {name: [one.get(name) for one in given] for name in ("id", "prompt", "target", "contrast", "segments")}
    found = explainer(columns)
    assert found["status"] == ["done", "done", "refused", "refused", "done", "done"]
    assert found["why"][2] == "item 3: prompt must be a string, not 3" and found["why"][0] == ""
    model, tokenizer = loaded
    for i in (0, 1, 4, 5):
        truth = lrp_fast.attribute(model, given[i]["prompt"], "sydney", "canberra", tokenizer=tokenizer)
        assert found["value"][i] == pytest.approx(truth.value, rel=1e-4) and found["graphs"][i]
        assert json.loads(found["figures"][i])["num_tokens"] == len(truth.input_ids)
    rows = explainer({"case": [json.dumps(one) for one in given]})
    assert repr(rows | {"seconds": 0}) == repr(found | {"seconds": 0})  # a NaN is no NaN's equal


def test_in_a_map_of_datasets(directory, cases):
    datasets = pytest.importorskip("datasets")
    given = [{"id": one["id"], "prompt": one["prompt"], "target": "sydney"} for one in cases(7) if "n" in one]
    explainer = Explainer(partial(load, directory))
    found = datasets.Dataset.from_list(given).map(explainer, batched=True, batch_size=4, load_from_cache_file=False)
    assert found["status"] == ["done"] * 6 and found["prompt"] == [one["prompt"] for one in given]
    assert len(pickle.dumps(explainer)) < 2000  # datasets makes a digest of it: the model does not belong there
    assert found["value"] == pytest.approx(explainer({"case": list(map(json.dumps, given))})["value"], rel=1e-4)


def test_observers_and_a_name_in_place_of_a_function(directory, cases):
    explainer = Explainer(directory, observe=["lens"])
    found = explainer({"case": [json.dumps(one) for one in cases(4)[:2]]})
    assert found["status"] == ["done", "done"] and all(found["observed"]) and "lens" in json.loads(found["figures"][0])


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """Two CPUs, and little memory. Its processes find what this one imports."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    here = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(here)  # the workers do not import tests
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    ray.init(
        "local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
        logging_level="error", runtime_env={"env_vars": paths},
    )  # fmt: skip
    yield ray
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(here)


def unordered(found):
    """But for the order in which cases were finished."""
    return found | {"log.jsonl": sorted(found["log.jsonl"], key=lambda one: one["id"])}


@pytest.mark.slow  # half a minute
def test_a_worker_that_is_killed_costs_nothing(ray, loaded, directory, cases, small_packs, content, tmp_path):
    (notes := tmp_path / "notes").mkdir()
    model, tokenizer = loaded
    given = {"tokenizer": tokenizer, "graph": SPEC}
    study.run(model, cases(24), tmp_path / "here", **given)
    killed = []

    def kill(now):
        """When the first pack is finished, the worker that begins the next one, at which it is for half a second."""
        if not killed and now.cases > 2:
            before = begun = set(notes.iterdir())
            deadline = time.monotonic() + 60
            while begun == before and time.monotonic() < deadline:
                time.sleep(0.01)
                begun = set(notes.iterdir())
            killed.append(int((begun - before).pop().name.partition("-")[0]))
            os.kill(killed[0], signal.SIGKILL)

    slow = study.Ray(partial(load, directory, notes, 0.5), workers=2)
    found = study.run(model, cases(24), tmp_path / "killed", ray=slow, progress=kill, **given)
    assert found == {"done": 22, "failed": 0, "refused": 2} and killed
    begun = [int(one.name.partition("-")[0]) for one in notes.iterdir()]
    packs = Folder(tmp_path / "killed").manifest()["packs"]
    assert killed[0] in begun and len(set(begun)) == 3  # the killed one, the other one, and who stood in
    assert len(packs) < len(begun) <= len(packs) + 3  # what it was at, and what it was given besides
    here, there = (unordered(content(tmp_path / name)) for name in ("here", "killed"))
    assert here == there and len({one["id"] for one in there["log.jsonl"]}) == len(there["log.jsonl"]) == 24


@pytest.mark.slow
def test_a_run_goes_on_with_workers_and_without(ray, loaded, directory, cases, small_packs, content, tmp_path):
    model, tokenizer = loaded

    def stop(now):
        if now.cases > 5:
            raise KeyboardInterrupt

    workers = study.Ray(partial(load, directory), workers=1)
    with pytest.raises(KeyboardInterrupt):
        study.run(model, cases(12), tmp_path / "run", tokenizer=tokenizer, ray=workers, progress=stop)
    assert 5 < len(Folder(tmp_path / "run").log()) < 12
    study.run(model, cases(12), tmp_path / "run", tokenizer=tokenizer)
    study.run(model, cases(12), tmp_path / "whole", tokenizer=tokenizer)
    assert unordered(content(tmp_path / "run")) == unordered(content(tmp_path / "whole"))


@pytest.mark.slow
def test_workers_with_another_model_are_refused(ray, loaded, directory, cases, tiny, tmp_path):
    _, tokenizer = loaded
    other = tiny("llama", seed=1, vocab_size=11, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    workers = study.Ray(partial(load, directory), workers=1)
    with pytest.raises(RuntimeError, match="the workers' model has other weights than the one given"):
        study.run(other, cases(4), tmp_path / "run", tokenizer=tokenizer, ray=workers)
    failing = study.Ray(partial(load, tmp_path / "nowhere"), workers=1)
    with pytest.raises(RuntimeError, match=r"Ray's workers failed \(.*nowhere.*\): what is finished is kept"):
        study.run(other, cases(4), tmp_path / "run", tokenizer=tokenizer, ray=failing)


def test_without_ray_it_is_said_first(loaded, cases, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ModuleNotFoundError, match="need Ray: pip install"):
        study.run(loaded[0], cases(4), tmp_path / "run", ray=study.Ray("nothing"))
    assert not (tmp_path / "run").exists()

"""Bounded backward passes through whole models: what they leave out is told, everywhere, and nothing else changes."""

import dataclasses
import json

import pytest
import torch

import lrp_fast
from lrp_fast import GraphSpec, Memory, attribute, packing, patched
from lrp_fast.ops import attention_bounded
from lrp_fast.report.graph import head
from lrp_fast.report.html import write_html
from lrp_fast.report.record import as_json
from lrp_fast.report.table import table

N = 300  # five tiles of queries
TOLERANCE = 0.2
FAMILIES = ["llama", "gemma2", "gpt2", "qwen2_moe"]


@pytest.fixture(autouse=True)
def whatever_it_saves(monkeypatch):
    monkeypatch.setattr(attention_bounded, "worth", lambda *_: 1.0)


@pytest.fixture(scope="module")
def made(tiny):
    kept = {}

    def build(family, dtype=torch.float64):
        if (family, dtype) not in kept:
            kept[family, dtype] = tiny(family, dtype, max_position_embeddings=512)
        return kept[family, dtype]

    return build


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(0, 97, (1, N), generator=torch.Generator().manual_seed(2))


def distance(one, other):
    return float((one - other).abs().sum() / other.abs().sum())


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_out_is_bounded_and_told(family, rule, made, prompt):
    model = made(family)
    given = {"target": 3, "contrast": 5, "rule": rule}
    exact, result = attribute(model, prompt, **given), attribute(model, prompt, **given, tolerance=TOLERANCE)
    assert exact.tolerance == 0.0
    assert torch.equal(exact.dropped, torch.zeros(3, dtype=torch.float64))
    assert result.tolerance == TOLERANCE
    assert result.dropped.shape == (3,)
    assert (result.dropped <= TOLERANCE).all()
    assert result.dropped[2] == 0  # above the last layer one row carries relevance: that is computed as it is
    # Below a window of 7 tokens so few rows carry any, and they are computed as they are, too.
    assert result.dropped[0] > TOLERANCE / 4
    # The decision itself, and what is above the first attention, stay what they were.
    assert result.value == exact.value
    assert torch.equal(result.layers[2:], exact.layers[2:])  # the first to differ is what attention 1 hands back
    assert 0 < distance(result.relevance, exact.relevance) < 1
    again = attribute(model, prompt, **given, tolerance=TOLERANCE)
    assert torch.equal(again.layers, result.layers)
    assert torch.equal(again.dropped, result.dropped)


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_the_graph_is_of_the_same_pass(family, made, prompt):
    """Over all targets, edges out of a node are its relevance, in the bounded pass as in the exact one."""
    given = {"target": 3, "contrast": 5, "tolerance": TOLERANCE}
    alone = attribute(made(family), prompt, **given)
    result = attribute(made(family), prompt, **given, graph=GraphSpec(topk=N))
    assert torch.equal(result.layers, alone.layers)
    assert torch.equal(result.dropped, alone.dropped)
    for layer in range(3):
        sums = result.graph.dense(layer).sum(0)
        size = result.layers[layer].abs().max()
        assert (torch.as_tensor(sums) - result.layers[layer]).abs().max() <= 1e-9 * size
    assert result.graph.manifest["tolerance"] == TOLERANCE
    assert result.graph.manifest["dropped"] == result.dropped.tolist()
    assert "tolerance 0.2, " in "\n".join(head(result.graph))


@pytest.mark.parametrize("family", FAMILIES)
def test_wherever_the_layers_wait(family, made, prompt):
    model, given = made(family), {"target": 3, "contrast": 5, "tolerance": TOLERANCE}
    tight = Memory(host_budget=lrp_fast.plan(model, N, tolerance=TOLERANCE).least["cpu"])
    assert "graph" not in lrp_fast.plan(model, N, memory=tight, tolerance=TOLERANCE).tiers
    whole, streamed = attribute(model, prompt, **given), attribute(model, prompt, **given, memory=tight)
    assert distance(streamed.layers, whole.layers) <= 1e-10
    assert torch.allclose(streamed.dropped, whole.dropped, rtol=0, atol=1e-10)


def test_several_targets_each_choose_for_themselves(made, prompt):
    model = made("llama")
    both = attribute(model, prompt, target=[3, 7], contrast=[5, None], tolerance=TOLERANCE)
    for one, (target, contrast) in zip(both, [(3, 5), (7, None)], strict=True):
        alone = attribute(model, prompt, target=target, contrast=contrast, tolerance=TOLERANCE)
        assert distance(one.layers, alone.layers) <= 1e-10
        assert torch.allclose(one.dropped, alone.dropped, rtol=0, atol=1e-10)
    assert not torch.equal(both[0].dropped, both[1].dropped)


def test_within_patched(made, prompt):
    model = made("llama")
    result = attribute(model, prompt, target=3, tolerance=TOLERANCE)
    dropped = []
    with patched(model, tolerance=TOLERANCE, dropped=dropped):
        x = model.get_input_embeddings()(prompt).detach().requires_grad_()
        model(inputs_embeds=x).logits[0, -1, 3].backward()
    relevance = (x * x.grad).sum(-1)[0].detach()
    assert distance(relevance, result.relevance) <= 1e-10
    assert torch.allclose(torch.cat(dropped).flip(0), result.dropped, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="tolerance must be at least 0 and below 1"), patched(model, tolerance=2):
        pass
    assert not any("lrp_fast" in name for module in model.modules() for name in module.__dict__)


def test_a_bad_tolerance_is_refused_before_any_layer_runs(tiny, prompt):
    model = tiny("llama")
    model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
    for wrong, error in ((1, ValueError), (-1e-9, ValueError), ("0.1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="tolerance must be"):
            attribute(model, [1, 2, 3], tolerance=wrong)


def test_is_kept_on_disk_and_shown(made, prompt, tmp_path):
    result = attribute(made("llama"), prompt, target=3, contrast=5, tolerance=TOLERANCE)
    result.save(tmp_path / "r")
    again = lrp_fast.load(tmp_path / "r")
    assert again.tolerance == TOLERANCE
    assert torch.equal(again.dropped, result.dropped)
    record = json.loads(json.dumps(as_json(result)))
    assert record["tolerance"] == TOLERANCE
    assert record["dropped"] == result.dropped.tolist()
    most = 100 * result.dropped.max().item()
    told = f"at most {most:.2g} % (layer {int(result.dropped.argmax())})"
    assert told in table(result)
    write_html(result, tmp_path / "page.html")
    assert told in (tmp_path / "page.html").read_text()
    assert "tolerance" not in table(attribute(made("llama"), prompt, target=3))
    nothing = dataclasses.replace(result, dropped=result.dropped * 0)
    assert "tolerance 0.2, nothing left out" in table(nothing)
    for wrong, said in (
        ({"dropped": result.dropped * 5}, "dropped must lie between 0 and the tolerance"),
        ({"dropped": result.dropped[1:]}, r"dropped must be \(3,\), one a layer"),
        ({"dropped": result.dropped.float()}, "dropped must be float64"),
        ({"tolerance": 1.0}, "tolerance must be at least 0 and below 1"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            dataclasses.replace(result, **wrong).save(tmp_path / "wrong")


def test_files_from_before_there_was_a_tolerance_are_of_exact_passes(made, prompt, tmp_path):
    from safetensors.torch import load_file, save_file

    result = attribute(made("llama"), prompt, target=3)
    result.save(tmp_path / "r")
    tensors = load_file(tmp_path / "r")
    del tensors["dropped"]
    raw = (tmp_path / "r").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    about = json.loads(header["__metadata__"]["lrp_fast"])
    del about["tolerance"]
    save_file(tensors, tmp_path / "old", metadata={"lrp_fast": json.dumps(about)})
    again = lrp_fast.load(tmp_path / "old")
    assert again.tolerance == 0.0
    assert torch.equal(again.dropped, result.dropped)
    assert torch.equal(again.layers, result.layers)


def test_an_exact_pass_within_patched_says_that_nothing_was_left_out(made, prompt):
    model, dropped = made("llama"), []
    with patched(model, dropped=dropped):
        x = model.get_input_embeddings()(prompt).detach().requires_grad_()
        model(inputs_embeds=x).logits[0, -1, 3].backward()
    assert torch.equal(torch.cat(dropped), torch.zeros(3, dtype=torch.float64))
    assert not any("lrp_fast" in name for module in model.modules() for name in module.__dict__)


def test_rows_beside_others_that_nothing_is_left_out_of(made, monkeypatch):
    """Of a row of few tokens nothing is, and its edges are all there."""
    monkeypatch.setattr(packing, "_PASS", {"cpu": 1000})
    rows = [torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(n)) for n in (300, 100, 290)]
    given = {"target": 3, "tolerance": TOLERANCE, "graph": GraphSpec(topk=5)}
    for row, found in zip(rows, lrp_fast.attribute_batch(made("llama"), rows, **given), strict=True):
        truth = attribute(made("llama"), row, **given)
        assert bool(found.dropped.any()) == (len(row) > 100)
        for layer in range(3):
            assert (found.graph.dense(layer) - truth.graph.dense(layer)).abs().max() <= 1e-12 * truth.layers.abs().max()

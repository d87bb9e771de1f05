"""A model that stays patched between calls gives the same numbers, and is as it was behind the block."""

import copy
import importlib
import threading

import pytest
import torch

import lrp_fast
from lrp_fast import GraphSpec, hf, question
from lrp_fast.hf import linears

IDS = [5, 3, 9, 1, 7, 2]


@pytest.fixture
def model(tiny):
    return tiny("llama").double()


def explain(model, rule="attnlrp", ids=IDS, **given):
    return lrp_fast.attribute(model, ids, target=4, contrast=6, rule=rule, **given)


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient", lrp_fast.Rules("attnlrp", gamma=0.1)])
def test_numbers_are_those_without_it(model, rule):
    spec, batch = GraphSpec(topk=3), {"input_ids": [IDS, IDS[:4]], "target": 4, "rule": rule}
    alone, together = explain(model, rule, graph=spec), lrp_fast.attribute_batch(model, **batch)
    with lrp_fast.session(model, rule) as same:
        assert same is model
        for _ in range(2):
            found = explain(model, rule, graph=spec)
            assert torch.equal(found.layers, alone.layers) and torch.equal(found.graph.dense(0), alone.graph.dense(0))
        for one, other in zip(lrp_fast.attribute_batch(model, **batch), together, strict=True):
            assert torch.equal(one.layers, other.layers)
        assert torch.equal(explain(model, rule, IDS[:3]).layers, explain(model, rule, IDS[:3]).layers)
    assert torch.equal(explain(model, rule).layers, alone.layers)


def test_nothing_is_left_behind(model):
    before = [dict(module.__dict__) for module in model.modules()]
    with pytest.raises(KeyboardInterrupt), lrp_fast.session(model):
        explain(model)
        raise KeyboardInterrupt
    assert [dict(module.__dict__) for module in model.modules()] == before
    with lrp_fast.patched(model):
        pass


def test_the_model_is_looked_at_once(model, monkeypatch):
    seen = []
    found = {
        "_decoder_layers": "layers", "_dynamic": "positions", "_layer_sizes": "sizes", "_position_limit": "positions",
        "_weight_bytes": "sizes", "vouch": "coverage",
    }  # fmt: skip
    for name, room in found.items():
        room = importlib.import_module(f"lrp_fast.hf.{room}")  # a function of the package has the name of one
        own = getattr(room, name)
        monkeypatch.setattr(room, name, lambda model, own=own, name=name: seen.append(name) or own(model))
    with lrp_fast.session(model):
        for _ in range(3):
            explain(model)
            lrp_fast.hf.decoder_layers(model).clear()  # a caller's own list
    assert sorted(seen) == sorted(found)


def test_backward_passes_of_ones_own_propagate_relevance(model):
    x = model.get_input_embeddings()(torch.tensor([IDS])).detach().requires_grad_()
    with lrp_fast.session(model, "cp"):
        logits = model(inputs_embeds=x).logits[0, -1]
        (logits[4] - logits[6]).backward()
    truth = explain(model, "cp").relevance
    assert ((x * x.grad).sum(-1)[0] - truth).abs().max() <= 1e-12 * truth.abs().max()


def test_another_rule_is_refused(model):
    with lrp_fast.session(model, "cp"):
        with pytest.raises(RuntimeError, match="within lrp_fast.session, by .*cp.*: give the session's rule"):
            explain(model)
        explain(model, "cp")


def test_another_block_is_refused(model):
    with lrp_fast.session(model):
        for block in (lrp_fast.session, lrp_fast.patched):
            with pytest.raises(RuntimeError, match="patched already: leave the other lrp_fast.session block"):
                block(model).__enter__()
    with lrp_fast.patched(model), pytest.raises(RuntimeError, match="leave the other lrp_fast.patched block"):
        lrp_fast.session(model).__enter__()


def test_a_pass_within_a_pass_is_refused(model):
    with lrp_fast.session(model):
        for phase in ("forward", "backward"):

            def ask(now, *_, phase=phase):
                if now == phase:
                    explain(model)

            with pytest.raises(RuntimeError, match="in a pass of lrp_fast that this call comes from|called again"):
                explain(model, progress=ask)
        explain(model)


def test_what_cannot_be_explained_is_refused_when_it_begins(model):
    with pytest.raises(ValueError, match="training mode"), lrp_fast.session(model.train()):
        pass
    with pytest.raises(ValueError, match="rule"), lrp_fast.session(model.eval(), "lrp"):
        pass
    with lrp_fast.session(model):
        model.train()
        with pytest.raises(ValueError, match="training mode"):
            explain(model)
        model.eval()
        handle = model.model.layers[0].mlp.register_full_backward_hook(lambda *_: None)
        with pytest.raises((RuntimeError, ValueError), match="hook"):
            explain(model)
        handle.remove()


def test_other_threads_are_refused(model):
    found = []

    def elsewhere():
        try:
            explain(model)
        except RuntimeError as error:
            found.append(str(error))

    with lrp_fast.session(model):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        other = copy.copy(model)  # another object around the same parts is no model of the session's
        assert question.check_model(model) is None and hf.owner.session_of(other) is None
    assert len(found) == 1 and "is patched already by another thread: leave the other lrp_fast.session" in found[0]


def test_a_model_that_is_more_than_the_sessions_is_looked_at(model):
    with lrp_fast.session(model):
        assert hf.owner.session_of(model) is not None
        assert hf.owner.session_of(model.model) is None


def test_what_carries_no_relevance_is_looked_for_in_the_last_layer_and_the_head_alone(model, monkeypatch):
    seen, own = [], linears.ops.linear

    def spy(*args, skip, **named):
        seen.append(skip)
        return own(*args, skip=skip, **named)

    monkeypatch.setattr(linears.ops, "linear", spy)
    explain(model)
    layers, within = len(model.model.layers), 7  # linear maps of a layer
    assert seen == [False] * within * (layers - 1) + [True] * (within + 1)
    assert not any("lrp_fast_skips" in module.__dict__ for module in model.modules())

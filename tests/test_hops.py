"""Hops: against a dense solution made of one explanation a token, what cp conserves, and every bad input."""

import re

import pytest
import torch

from lrp_fast import Memory, attribute, hops, patched
from lrp_fast.ops import attention_bounded
from lrp_fast.report.hops import table

RULES = ["attnlrp", "cp", "gradient"]
FEW_RULES = ["cp"]
GENERATED = list(range(12, 21))


def written(model, ids):
    """``ids`` with the model's first choices as the generated tokens, and its last ones, of logits below 0, in turn."""
    ids = ids.clone()
    with torch.no_grad(), patched(model):  # experts have no float64 of their own
        for place in GENERATED:
            order = model(ids[:, :place]).logits[0, -1].argsort()
            ids[0, place] = order[-1 if place % 2 else 0]
    return ids


def without_biases(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


def each_token(model, ids, rule):
    """(G, N): row g is the relevance of the input for the logit of generated token g, over that logit."""
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    table = getattr(getattr(model, "transformer", None), "wpe", None)  # GPT-2's first node holds its row too
    places = 0 if table is None else table.weight[: ids.shape[1]].detach()
    rows = []
    with patched(model, rule):
        logits = model(inputs_embeds=x).logits[0]
        for place in GENERATED:
            own = logits[place - 1, ids[0, place]]
            (g,) = torch.autograd.grad(own, x, retain_graph=True)
            rows.append(((x.detach() + places) * g).sum(-1)[0] / own.detach())
    return torch.stack(rows)


def test_hops_are_the_dense_solution(family, rule, tiny, ids):
    """All hops together are r + r_G (1 - M_GG)^-1 M, M of one explanation a token: a geometric series that ends."""
    model = tiny(family, torch.float64)
    ids = written(model, ids)
    found = hops(model, ids, GENERATED, target=3, contrast=5, rule=rule, bound=0.0, most=100)
    matrix = each_token(model, ids, rule)
    bound = 2.0**-22 if family == "cohere" else 1e-11  # whose code rotates in float32
    first = attribute(model, ids, target=3, contrast=5, rule=rule)
    assert (found.first.layers - first.layers).abs().max() <= bound * first.layers.abs().max()
    assert torch.equal(found.passes[0], found.first.relevance) and found.first.explained.terms[0].target.id == 3
    inner = torch.eye(len(GENERATED), dtype=torch.float64) - matrix[:, GENERATED]
    truth = first.relevance + torch.linalg.solve(inner.T, first.relevance[GENERATED]) @ matrix
    truth[GENERATED] = 0.0
    scale = found.passes.abs().sum(0).max()
    assert (found.relevance - truth).abs().max() <= bound * scale
    assert found.left[-1] == 0 and len(found.passes) <= len(GENERATED) + 1
    received = first.relevance
    for step, passed in enumerate(found.passes[1:], 1):
        assert found.values[step] == pytest.approx(float(received[GENERATED].sum()), rel=1e-6, abs=1e-9)
        received = received[GENERATED] @ matrix
        assert (passed - received).abs().max() <= bound * scale
        assert found.totals[step] == pytest.approx(float(passed.sum()), rel=1e-12, abs=1e-12)
        assert found.left[step] == pytest.approx(float(passed[GENERATED].abs().sum()), rel=1e-12)


def test_cp_conserves_the_value_through_all_hops(family, tiny, ids):
    if family == "gpt_oss":
        pytest.skip("its experts add 1 to a factor, which keeps relevance as a bias does")
    model = without_biases(tiny(family, torch.float64))
    ids = written(model, ids)
    found = hops(model, ids, range(12, 21), target=3, contrast=5, rule="cp", bound=0.0, most=3)
    assert len(found.passes) == 4 and found.left[-1] > 0  # which stays on the generated tokens
    scale = found.passes.abs().sum()
    assert (found.totals - found.values).abs().max() <= 1e-12 * scale
    assert abs(found.relevance.sum() - found.first.value) <= 1e-12 * scale
    assert found.relevance[GENERATED].abs().sum() == found.left[-1]
    attnlrp = hops(model, ids, GENERATED, target=3, contrast=5, most=1)
    assert abs(attnlrp.totals[1] - attnlrp.values[1]) > 1e-3 * abs(attnlrp.values[1])  # softmax absorbs


def test_hops_end_at_the_bound_or_at_the_number(tiny, ids):
    model = tiny("llama", torch.float64)
    every = hops(model, ids, GENERATED, target=3, bound=0.0, most=100)
    total = float(every.passes[0].abs().sum())
    assert all(left > 0 for left in every.left[:-1])
    for step, left in enumerate(every.left.tolist()[:3]):
        few = hops(model, ids, GENERATED, target=3, bound=0.0, most=step)
        assert torch.equal(few.passes, every.passes[: step + 1])
        share = left / total * 1.0001
        assert share < 1
        done = hops(model, ids, GENERATED, target=3, bound=share, most=100)
        assert len(done.passes) == 1 + min(i for i, one in enumerate(every.left) if one <= share * total)
    none = hops(model, ids, GENERATED, target=3, most=0)
    assert torch.equal(none.relevance, none.first.relevance)


def test_what_ended_them_is_said(tiny, ids):
    model = tiny("llama", torch.float64)
    every = hops(model, ids, GENERATED, target=3, bound=0.0, most=100)
    assert every.settled and every.bound == 0.0
    assert not hops(model, ids, GENERATED, target=3, bound=0.0, most=2).settled
    total = float(every.passes[0].abs().sum())
    for share, settled in ((1.0001, True), (0.9999, False)):
        bound = float(every.left[2]) / total * share
        found = hops(model, ids, GENERATED, target=3, bound=bound, most=2)
        assert (found.settled, found.bound, len(found.passes)) == (settled, bound, 3)


def test_what_each_pass_left_out(tiny, monkeypatch):
    """As many hops as are allowed, each bounded; what one left out is that of its own pass, layer by layer."""
    monkeypatch.setattr(attention_bounded, "worth", lambda *_: 1.0)  # whatever it saves
    ids = torch.randint(3, 97, (1, 512), generator=torch.Generator().manual_seed(0))
    model, generated = tiny("llama", max_position_embeddings=512), range(480, 512, 5)
    bounded = {"target": 3, "bound": 0.0, "most": 2, "tolerance": 0.5}
    found = hops(model, ids, generated, **bounded)
    assert (found.dropped.shape, found.dropped.dtype) == ((3, 3), torch.float64)
    assert torch.equal(found.dropped[0], found.first.dropped)
    assert (found.dropped > 0).any(1).all() and (found.dropped <= 0.5).all()
    assert not torch.equal(found.dropped[1], found.dropped[0]) and not torch.equal(found.dropped[1], found.dropped[2])
    row = rf"^hop 1 .*  +{100 * found.dropped[1].mean():.2g} %  +{100 * found.dropped[1].max():.2g} %$"
    assert re.search(row, table(found), re.MULTILINE)
    exact = hops(model, ids, generated, **bounded | {"tolerance": 0.0})
    assert exact.dropped.shape == (3, 3) and not exact.dropped.any()


def test_an_answer_behind_a_chain_of_thought(tiny, ids):
    """As all of it handed in as the prompt; the answer's own tokens are among the generated ones, or left alone."""
    model = tiny("llama", torch.float64)
    whole = torch.cat([ids[0], torch.tensor([5, 7])])
    asked = {"target": (5, 7, 9), "position": (22, 23, 24)}
    for generated in (range(12, 23), range(12, 25)):
        found = hops(model, ids, generated, answer=[5, 7, 9])
        other = hops(model, whole, generated, **asked)
        assert torch.equal(found.relevance, other.relevance) and torch.equal(found.passes, other.passes)
        assert found.generated == list(generated) and len(found.relevance) == 25


def test_what_comes_after_the_decision_receives_nothing(tiny, ids):
    model = tiny("llama", torch.float64)
    one = hops(model, ids, range(12, 23), target=3, position=17)
    other = hops(model, ids, range(12, 18), target=3, position=17)
    assert torch.equal(one.passes, other.passes) and not one.passes[:, 18:].any()


def test_float32_follows_float64(tiny, ids):
    one, other = (hops(tiny("llama", dtype), ids, GENERATED, 3, 5) for dtype in (torch.float32, torch.float64))
    assert one.relevance.dtype == torch.float32 and len(one.passes) == len(other.passes)
    assert (one.relevance - other.relevance).abs().max() <= 1e-4 * other.relevance.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models_follow_float32(dtype, tiny, ids):
    ids = written(tiny("llama"), ids)
    truth, found = (
        hops(tiny("llama", one), ids, GENERATED, 3, 5, rule="cp", most=2, bound=0) for one in (torch.float32, dtype)
    )
    assert found.relevance.dtype == torch.float32
    assert (found.relevance - truth.relevance).abs().max() <= 0.2 * truth.relevance.abs().max()


def test_several_tiers_and_small_budgets_give_the_same(tiny, ids, tmp_path):
    model = tiny("llama", torch.float64)
    free = hops(model, ids, GENERATED, target=3)
    small = hops(model, ids, GENERATED, target=3, memory=Memory(host_budget=1_200_000, offload_dir=tmp_path))
    assert (free.relevance - small.relevance).abs().max() <= 1e-11 * free.relevance.abs().max()


def test_logits_that_are_no_numbers(tiny, ids):
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda _, args, out: out.masked_fill(out == out.max(), float("nan")))
    with pytest.raises(ValueError, match="the logits hold NaN"):
        hops(model, ids, GENERATED, target=3)


def test_progress_tells_of_each_pass(tiny, ids):
    seen = []
    found = hops(tiny("llama"), ids, GENERATED, most=2, bound=0.0, progress=lambda *now: seen.append(now))
    assert [now for now in seen if now == ("backward", 3, 3)] == [("backward", 3, 3)] * len(found.passes)


def test_a_logit_near_0_is_refused_before_anything_is_propagated(tiny, ids):
    model = tiny("llama")
    token = int(ids[0, 14])
    with torch.no_grad():
        model.lm_head.weight[token] = 0
    phases = []
    with pytest.raises(ValueError, match="token at position 14 has a logit near 0, .*: leave position 14 out"):
        hops(model, ids, [14, 13], target=3, progress=lambda phase, *_: phases.append(phase))
    assert "backward" not in phases
    assert hops(model, ids, [13], target=3).relevance.isfinite().all()
    assert hops(model, ids, [13, 14], target=3, position=13).relevance.isfinite().all()  # to which nothing arrives


def test_all_logits_near_0_are_named_at_once(tiny, ids):
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[ids[0, [15, 13, 20]]] = 0
    with pytest.raises(ValueError, match="4 generated tokens, at positions 12, 13, 15, 20, have logits .*: leave them"):
        hops(model, ids, GENERATED, target=3)
    with torch.no_grad():
        model.lm_head.weight[ids[0, 12:]] = 0
    with pytest.raises(ValueError, match="11 generated .* positions 12, 13, 14, 15, 16, 17, 18, 19 and 3 more, have"):
        hops(model, ids, range(12, 23), target=int(ids[0, 0]))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"generated": []}, ValueError, "generated is an empty sequence: name at least one position"),
        ({"generated": [0, 1]}, ValueError, "generated names position 0, which no token before it predicted"),
        ({"generated": [4]}, ValueError, "generated 4 is outside the prompt's 4 tokens"),
        ({"generated": [3, -1]}, ValueError, r"generated \[3, -1\] names a position twice"),
        ({"generated": "text"}, TypeError, "generated must be a whole number or a sequence of them, not 'text'"),
        ({"generated": [1.5]}, TypeError, "generated must be a whole number or a sequence of them"),
        ({"most": -1}, ValueError, "most must be 0 or more hops, not -1"),
        ({"most": 1.5}, TypeError, "most must be a whole number"),
        ({"bound": 1}, ValueError, "bound must be a share, at least 0 and below 1, not 1"),
        ({"bound": float("nan")}, ValueError, "bound must be a share"),
        ({"bound": "x"}, TypeError, "bound must be a number, not 'x'"),
        ({"target": [3, 5]}, TypeError, "hops explains one decision: call it once"),
        ({"target": 97}, ValueError, "target 97 is outside the vocabulary"),
        ({"tolerance": 1}, ValueError, "tolerance must be at least 0 and below 1"),
    ],
)
def test_bad_input_is_refused_before_any_layer_runs(arguments, error, message, tiny):
    model = tiny("llama")
    model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(error, match=message):
        hops(model, **({"input_ids": [1, 2, 3, 4], "generated": [2, 3]} | arguments))

"""attribute_batch(): each row is what it is alone, whatever the padding and the company."""

import itertools
import threading

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

import lrp_fast
from lrp_fast import GraphSpec, Memory, Rules, attribute, attribute_batch, packing

PROMPTS = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]


def padded(side):
    """(3, 6) ids whose padding is a token like any other, and their mask."""
    ids, mask = torch.full((3, 6), 3), torch.zeros(3, 6, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        where = slice(6 - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, where], mask[row, where] = torch.tensor(prompt), 1
    return ids, mask


def gap(found, truth):
    return ((found - truth).abs().max() / truth.abs().max()).item()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_comes_off(side, tiny):
    model = tiny("gemma2")
    asked = {"target": [11, 12, 13], "contrast": 5, "position": [-1, 0, (1, 2)], "graph": GraphSpec(topk=2)}
    for one, other, ids in zip(
        attribute_batch(model, *padded(side), **asked), attribute_batch(model, PROMPTS, **asked), PROMPTS, strict=True
    ):
        assert torch.equal(one.layers, other.layers) and one.value == other.value
        assert one.input_ids.tolist() == ids
        assert torch.equal(one.graph.dense(1), other.graph.dense(1))


LENGTHS = (23, 11, 1, 30)  # windows of 7 and table lookups are within
RULES, FEW_RULES = ["attnlrp", Rules("cp", 0.01, 0.1, 0.01, 0.1)], ["attnlrp"]


def test_a_row_of_a_batch_is_what_it_is_alone(family, rule, tiny, within_rounding, monkeypatch):
    """In float64 to a few thousand roundings; in float32 as near to that as the row alone is, but for rounding."""
    monkeypatch.setitem(packing._PASS, "cpu", 1000)  # all of them in one
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 97, (length,), generator=generator) for length in LENGTHS]
    asked = [(3, 11, -1), (None, "mean", (1, 3, 5)), (5, None, 0), (7, ("top", 3), 2)]
    target, contrast, position = map(list, zip(*asked, strict=True))
    given = {"target": target, "contrast": contrast, "position": position, "rule": rule}
    passes = []
    precise, model = tiny(family, torch.float64), tiny(family)
    exact = attribute_batch(
        precise, prompts, **given, graph=GraphSpec(topk=3), progress=lambda *now: passes.append(now)
    )
    assert passes.count(("backward", 3, 3)) == 1
    for row, (one, ids) in enumerate(zip(exact, prompts, strict=True)):
        truth = attribute(precise, ids, *asked[row], rule, graph=GraphSpec(topk=3))
        assert gap(one.layers, truth.layers) <= 1e-12 and abs(one.value - truth.value) <= 1e-12 * abs(truth.value)
        assert one.input_ids.tolist() == ids.tolist()
        assert [term.target.id for term in one.explained.terms] == [term.target.id for term in truth.explained.terms]
        assert gap(one.graph.self_edges, truth.graph.self_edges) <= 1e-12
        for layer in range(3):
            if truth.graph.dense(layer).any():
                assert gap(one.graph.dense(layer), truth.graph.dense(layer)) <= 1e-12
    found = attribute_batch(model, prompts, **given)
    plain = [attribute(model, ids, *what, rule) for ids, what in zip(prompts, asked, strict=True)]
    scales = [one.layers.abs().max().float() for one in exact]
    found, plain, truth = (
        torch.cat([(one.layers / scale).flatten() for one, scale in zip(several, scales, strict=True)])
        for several in (found, plain, exact)
    )
    # Both ways through 3 layers, whose longest sums are of 96 and 64 numbers. How much a model enlarges what they round
    # shows where its weights are off by as much: by sqrt(n) roundings each, which is a sum's backward error (Higham and
    # Mary 2019). What the rows alone are off by says little of it: products of one token round less than those of many.
    draws = []
    for seed in range(4):
        rounded = _rounded(precise, tiny(family, torch.float64), 96**0.5, seed)
        again = [attribute(rounded, ids, *what, rule) for ids, what in zip(prompts, asked, strict=True)]
        again = torch.cat([(one.layers / scale).flatten() for one, scale in zip(again, scales, strict=True)])
        draws.append((again - truth).abs().max().item())
    enlarged = max(draws) / (torch.finfo(plain.dtype).eps / 2)
    within_rounding(found, plain, truth, terms=max(3 * 2 * (96 + 64), enlarged**2))


def _rounded(model, other, roundings, seed):
    """``other`` with the weights of ``model``, each off by up to so many unit roundoffs of float32."""
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            off = 2 * torch.rand(weight.shape, generator=generator) - 1
            weight.mul_(1 + roundings * torch.finfo(torch.float32).eps / 2 * off)
    return other


def test_a_lone_row_is_bit_for_bit_what_it_is_alone(tiny):
    model, ids = tiny("gemma3"), list(range(30))
    (one,) = attribute_batch(model, [ids], target=5, contrast=6)
    truth = attribute(model, ids, 5, 6)
    assert torch.equal(one.layers, truth.layers) and one.explained == truth.explained


@pytest.mark.parametrize("graph", [None, GraphSpec(topk=2)], ids=["alone", "with a graph"])
def test_what_is_wrong_with_a_row_is_its_own_affair(graph, tiny):
    """The others are what they are beside rows that nothing is wrong with."""
    model = tiny("llama", torch.float64)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
    best = attribute(model, [4, 5]).explained.best[0].id
    prompts, contrast = [[1, 2, 3, 4, 5, 6], [1, 7, 2], [8, 9, 10], [4, 5]], [11, 11, 11, best]
    found = attribute_batch(model, prompts, contrast=contrast, graph=graph, return_exceptions=True)
    healthy = attribute_batch(model, [prompts[0], [1, 6, 2], prompts[2], [5, 4]], contrast=11, graph=graph)
    for row in (0, 2):
        assert gap(found[row].layers, healthy[row].layers) <= 1e-12
    assert type(found[1]) is type(found[3]) is ValueError
    assert str(found[1]).startswith("row 1: the logits hold NaN")
    assert str(found[3]).startswith(f"row 3: target and contrast are both token {best}")
    with pytest.raises(ValueError, match="^row 1: the logits hold NaN") as raised:
        attribute_batch(model, prompts, contrast=contrast, graph=graph)
    for row in (0, 2):
        assert torch.equal(raised.value.results[row].layers, found[row].layers)
    assert list(map(str, raised.value.results[1::2])) == list(map(str, found[1::2]))
    every = attribute_batch(model, [[7, 1], [7]], return_exceptions=True)
    assert [str(one)[:14] for one in every] == ["row 0: the log", "row 1: the log"]


def test_a_row_whose_relevance_overflows_alone_is_alone_in_it(tiny):
    model = tiny("llama", torch.float16)
    with torch.no_grad():
        model.lm_head.weight[5] = 300  # times 2**8, by which gradients are raised, is more than float16 holds
        healthy, loud = attribute_batch(model, [[1, 2, 3], [4, 6]], target=[3, 5], return_exceptions=True)
    assert isinstance(healthy, lrp_fast.Attribution) and healthy.layers.isfinite().all()
    assert isinstance(loud, ValueError) and str(loud).startswith("row 1: ")


def passes_of(model, prompts, **given):
    told = []
    attribute_batch(model, prompts, target=5, progress=lambda *now: told.append(now), **given)
    return sum(phase == "backward" and done == layers for phase, done, layers in told)


def test_rows_that_would_meet_or_show_their_padding_have_passes_of_their_own(tiny):
    prompts = [[1, 2, 3], [4, 5], [6, 7], [8, 9, 10]]
    assert passes_of(tiny("llama"), prompts) == 1
    hooked = tiny("llama")
    hooked.model.layers[1].mlp.register_forward_hook(lambda module, given, out: out * out.abs().max())
    assert passes_of(hooked, prompts) == 4
    for found, ids in zip(attribute_batch(hooked, prompts, target=5), prompts, strict=True):
        assert torch.equal(found.layers, attribute(hooked, ids, 5).layers)
    assert passes_of(tiny("mixtral"), prompts) == 1
    assert passes_of(tiny("mixtral", torch.bfloat16), prompts) == 4
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    assert passes_of(tiny("llama", rope_parameters=dynamic), prompts) == 2


def test_rows_share_a_pass_while_the_budget_lasts(tiny):
    """None waits further away than it would alone; what cannot be alone is refused before anything runs."""
    model, prompts = tiny("llama"), [list(range(90))] * 8
    all_at_once = lrp_fast.plan(model, 90, positions=8, prompts=8).peak["cpu"]
    alone = lrp_fast.plan(model, 90).peak["cpu"]
    assert passes_of(model, prompts) == 1
    # A plan leaves room for a layer that is run again, whether there is one or not.
    for budget, passes in ((2 * all_at_once, 1), (all_at_once, 2), (all_at_once // 2, 4), (alone, 8)):
        assert passes_of(model, prompts, memory=Memory(host_budget=budget)) == passes
    model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(ValueError, match="^row 1: .* cannot hold one layer of 90 tokens"):
        attribute_batch(model, [[1], prompts[0]], memory=Memory(host_budget=lrp_fast.plan(model, 1).least["cpu"]))


def test_prompts_are_cut_into_passes_where_it_costs_least():
    for seed in range(20):
        lengths = sorted(torch.randint(1, 41, (9,), generator=torch.Generator().manual_seed(seed)).tolist())
        for may_pad in (True, False):
            allowed = {}
            for inner in itertools.product((False, True), repeat=8):
                cuts = [0, *(place for place, cut in enumerate(inner, 1) if cut), 9]
                parts = [lengths[start:end] for start, end in itertools.pairwise(cuts)]
                fits = all(len(part) == 1 or len(part) * part[-1] <= 60 for part in parts)
                if fits and (may_pad or all(part[0] == part[-1] for part in parts)):
                    allowed[tuple(cuts)] = sum(10 + len(part) * part[-1] for part in parts)
            assert allowed[tuple(packing.cheapest(lengths, may_pad, 10, 60))] == min(allowed.values())
    assert packing.cheapest([100], True, 10, 60) == [0, 1]


def test_a_batch_leaves_other_threads_the_whole_model(tiny, ids):
    model = tiny("llama")
    plain, seen = model(ids).logits, []

    def elsewhere(*_):
        thread = threading.Thread(target=lambda: seen.append(model(ids).logits))
        thread.start()
        thread.join()

    attribute_batch(model, PROMPTS, progress=elsewhere)
    assert seen and all(torch.equal(one, plain) for one in seen)


def test_a_padded_patched_forward_agrees(tiny):
    """The same batch in one forward and backward pass: each row's relevance is that of `attribute_batch`."""
    model = tiny("llama", torch.float64)
    ids, mask = padded("right")
    last = mask.sum(-1) - 1
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with lrp_fast.patched(model):
        model(inputs_embeds=x, attention_mask=mask).logits[range(3), last, 5].sum().backward()
    relevance = (x * x.grad).sum(-1).detach()
    for row, one in enumerate(attribute_batch(model, ids, mask, target=5)):
        truth = relevance[row, : last[row] + 1]
        assert (one.relevance - truth).abs().max() <= 1e-12 * truth.abs().max()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"input_ids": "text"}, TypeError, "input_ids is one string: attribute_batch takes a sequence"),
        ({"input_ids": torch.ones(2, 3, dtype=int)}, ValueError, "give its attention_mask with it"),
        ({"input_ids": BatchEncoding({"input_ids": torch.ones(2, 3, dtype=int)})}, ValueError, "give its attention_m"),
        ({"input_ids": {"ids": [[1]]}}, TypeError, "it is a dict without 'input_ids'"),
        ({"input_ids": {"input_ids": [[1]], "pixel_values": 0}}, TypeError, "'pixel_values' is of an image, and"),
        ({"input_ids": [[1]], "pixel_values": 0}, TypeError, "'pixel_values' is of an image, .* takes text alone"),
        ({"input_ids": {"input_ids": [[1]], "attention_mask": [[1]]}, "attention_mask": [[1]]}, TypeError, "twice"),
        ({"input_ids": [{"role": "user", "content": "a"}]}, TypeError, r"one chat: .* \[chat\] for one"),
        ({"input_ids": [1, 2]}, ValueError, r"row 0: input_ids must be .* not a number: write \[1\]"),
        ({"input_ids": np.ones((2, 3), int)}, ValueError, "give its attention_mask with it"),
        ({"input_ids": None}, TypeError, "must be a sequence of prompts, not NoneType"),
        ({"input_ids": [[1]], "attention_mask": [[None]]}, ValueError, "row 0: attention_mask .* or be left out"),
        ({"input_ids": [[True, 2]], "attention_mask": [[1, 1]]}, TypeError, "row 0: input_ids must hold whole numbers"),
        ({"input_ids": [[1, 2]], "attention_mask": [[-1e9, 0.0]]}, ValueError, "1 for tokens and 0 for padding"),
        ({"input_ids": np.array(["a", "b"])}, ValueError, "row 0: input_ids is a string: give tokenizer="),
        ({"input_ids": []}, ValueError, "an empty batch"),
        ({"input_ids": torch.ones(0, 3), "attention_mask": torch.ones(0, 3)}, ValueError, "an empty batch"),
        ({"input_ids": [[1], [2, 3]], "attention_mask": [[1], [1]]}, ValueError, "or leave the mask out"),
        ({"input_ids": [[1], [2, 3, 4]], "attention_mask": [[1], [1, 0, 1]]}, ValueError, "row 1: attention_mask has"),
        ({"input_ids": [[1], [2, 3]], "attention_mask": [[1], [0, 0]]}, ValueError, "row 1: attention_mask has no"),
        ({"input_ids": [[1], [2]], "attention_mask": [[1, 1]]}, ValueError, r"not \(2, 1\) and \(1, 2\)"),
        ({"input_ids": [[1, 2], [2, 1]], "attention_mask": [[1, 1], [0, 0]]}, ValueError, "row 1: .* no real token"),
        ({"input_ids": [[1], [2, 97]]}, ValueError, "row 1: input_ids holds token 97"),
        ({"input_ids": [[1], []]}, ValueError, "row 1: input_ids is empty"),
        ({"input_ids": [[1], [2]], "target": [3]}, ValueError, "target is a list of 1 for 2 prompts"),
        ({"input_ids": [[1], [2]], "target": torch.tensor([3])}, ValueError, "target is a list of 1 for 2 prompts"),
        ({"input_ids": [[1], [2]], "target": torch.tensor([3.0, 4.0])}, TypeError, "target must be a token id or"),
        ({"input_ids": [[1], [2]], "target": [3, [4, 5]]}, TypeError, "row 1 has several targets"),
        ({"input_ids": [[1, 2], [2]], "position": 1}, ValueError, "row 1: position 1 is outside"),
    ],
)
def test_a_bad_row_is_named_before_any_layer_runs(arguments, error, message, tiny):
    model = tiny("llama")
    model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(error, match=message):
        attribute_batch(model, **arguments)
    with pytest.raises(ValueError, match="^LlamaForCausalLM is in training mode"):
        attribute_batch(model.train(), **arguments)
    model.eval()

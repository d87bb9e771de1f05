"""Every protocol against its definition, spelt out: one prompt at a time, one step at a time."""

import itertools
import math

import numpy as np
import pytest
import torch

from lrp_fast import Rules, ablate, attribute
from lrp_fast.evaluate import PROTOCOLS
from lrp_fast.evaluate.protocols.soft import scaled
from lrp_fast.evaluate.staging import GRAPH, ask, stage
from lrp_fast.study import read_cases
from tests.evaluate.conftest import CONTRAST, TARGET

CASE = {"id": "case", "target": TARGET, "contrast": CONTRAST, "gold": [[3, 4], [7, 8]]}
UNITS = ["tokens", 3]


@pytest.fixture
def staged(model, prompt):
    """``staged(units)``: the scene, and the units as lists of tokens."""

    def build(units="tokens", **changes):
        (case,) = read_cases([CASE | {"input_ids": prompt.tolist()} | changes])
        scene, _ = stage(model, case, ask(model, case, None), units, None, 5)
        size = 1 if units == "tokens" else units
        return scene, [list(range(i, min(i + size, 12))) for i in range(0, 12, size)]

    return build


@pytest.fixture
def says(prompt, alone):
    """``says(gone, replacement)``: preference, log-probability and distribution without these tokens."""
    known = {}

    def answer(gone, replacement):
        gone = frozenset(gone)
        if (gone, replacement) not in known:
            keep = torch.tensor([i not in gone for i in range(12)])
            logits = alone(prompt, keep, replacement)
            logprobs = logits.log_softmax(-1)
            known[gone, replacement] = float(logits[TARGET] - logits[CONTRAST]), float(logprobs[TARGET]), logprobs.exp()
        return known[gone, replacement]

    return answer


def scores(seed=0):
    return torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ranking(given, units):
    sums = [sum(float(given[i]) for i in unit) for unit in units]
    return sums, sorted(range(len(units)), key=lambda one: -sums[one])


def tokens_of(units, chosen):
    return [i for one in chosen for i in units[one]]


def trapezoid(values, shares):
    pairs = zip(itertools.pairwise(values), itertools.pairwise(shares), strict=True)
    return sum((b - a) * (y + z) / 2 for (y, z), (a, b) in pairs)


def rank_of(values):
    return [sum(one < own for one in values) + sum(one == own for one in values) / 2 for own in values]


def spearman(one, other):
    return float(np.corrcoef(rank_of(one), rank_of(other))[0, 1])


def kendall(one, other):
    pairs = itertools.combinations(zip(one, other, strict=True), 2)
    ways = [(np.sign(a - b), np.sign(c - d)) for (a, c), (b, d) in pairs]
    norm = math.sqrt(sum(way != 0 for way, _ in ways) * sum(way != 0 for _, way in ways))
    return sum(way * way_of_other for way, way_of_other in ways) / norm


def run(name, given, scene):
    return PROTOCOLS[name].run(given, scene)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("seed", range(4))
def test_flip(staged, says, units, seed):
    scene, units = staged(units)
    _, order = ranking(scores(seed), units)
    assert says([], "zero")[0] > 0
    expected = len(units), 0.0
    for count in range(len(units), 0, -1):
        if says(tokens_of(units, order[:count]), "zero")[0] <= 0:
            expected = count, 1.0
    found = run("flip", scores(seed), scene)
    assert (found["flipped_at"], found["flipped"], found["share"]) == (*expected, expected[0] / len(units))


def test_flips_of_a_plain_logit_are_those_of_the_first_choice(staged, model, prompt):
    scene, units = staged(contrast=None, target=None)
    with torch.no_grad():
        own = int(model(input_ids=prompt[None]).logits[0, -1].argmax())
    _, order = ranking(scores(1), units)
    expected = 12
    for count in range(12, 0, -1):
        embedded = model.get_input_embeddings()(prompt).detach().clone()
        embedded[order[:count]] = 0
        with torch.no_grad():
            if int(model(inputs_embeds=embedded[None]).logits[0, -1].argmax()) != own:
                expected = count
    assert run("flip", scores(1), scene)["flipped_at"] == expected < 12


@pytest.mark.parametrize("units", UNITS)
def test_morf_lerf(staged, says, units):
    scene, units = staged(units)
    _, order = ranking(scores(), units)
    shares = [count / len(units) for count in range(len(units) + 1)]
    curves = {}
    for name, way in (("morf", order), ("lerf", order[::-1])):
        curves[name] = [says(tokens_of(units, way[:count]), "zero")[0] for count in range(len(units) + 1)]
    p = math.exp(says([], "zero")[1])
    comprehensive, sufficient = [], []
    for share in (0.01, 0.05, 0.1, 0.2, 0.5):
        count = math.ceil(share * len(units))
        comprehensive.append(p - math.exp(says(tokens_of(units, order[:count]), "zero")[1]))
        sufficient.append(p - math.exp(says(tokens_of(units, order[count:]), "zero")[1]))
    found = run("morf_lerf", scores(), scene)
    for name, curve in curves.items():
        assert found[f"{name}_curve"] == pytest.approx(curve, abs=1e-9)
        assert found[name] == pytest.approx(trapezoid(curve, shares), abs=1e-9)
    assert found["area"] == pytest.approx(found["lerf"] - found["morf"], abs=1e-12)
    assert found["gone"] == pytest.approx(shares)
    assert found["comprehensiveness"] == pytest.approx(sum(comprehensive) / 5, abs=1e-9)
    assert found["sufficiency"] == pytest.approx(sum(sufficient) / 5, abs=1e-9)


@pytest.mark.parametrize("steps", [5, 7])  # 3, 3, 2, 2, 2 and 2, 2, 2, 2, 2, 1, 1 of 12
def test_curves_of_fewer_steps_than_units(staged, says, steps):
    scene, units = staged()
    _, order = ranking(scores(), units)
    gone = [0]
    for step in range(steps):
        left = 12 - gone[-1]
        gone.append(gone[-1] + -(-left // (steps - step)))
    found = PROTOCOLS["morf_lerf"].run(scores(), scene, steps=steps)
    assert found["gone"] == pytest.approx([count / 12 for count in gone])
    for name, way in (("morf", order), ("lerf", order[::-1])):
        curve = [says(way[:count], "zero")[0] for count in gone]
        assert found[f"{name}_curve"] == pytest.approx(curve, abs=1e-9)
        assert found[name] == pytest.approx(trapezoid(curve, [i / steps for i in range(steps + 1)]), abs=1e-9)


def test_naopc_is_exact_for_few_units(staged, says):
    scene, units = staged(2)
    p = math.exp(says([], "zero")[1])

    def aopc(order):
        gone = [tokens_of(units, order[:count]) for count in range(1, 7)]
        return sum(p - math.exp(says(one, "zero")[1]) for one in gone) / 6

    every = [aopc(order) for order in itertools.permutations(range(6))]
    _, order = ranking(scores(), units)
    found = run("naopc", scores(), scene)
    assert (found["highest"], found["lowest"]) == pytest.approx((max(every), min(every)), abs=1e-9)
    for name, way in (("comprehensiveness", order), ("sufficiency", order[::-1])):
        expected = (aopc(way) - min(every)) / (max(every) - min(every))
        assert found[name] == pytest.approx(expected, abs=1e-8)
        assert found[f"aopc_{name}"] == pytest.approx(aopc(way), abs=1e-9)


def test_naopcs_beam_is_that_of_its_definition(staged, says):
    scene, _ = staged()
    p = math.exp(says([], "zero")[1])
    for sign, name in ((1, "highest"), (-1, "lowest")):
        beam = [((), 0.0)]
        for _ in range(12):
            grown = {}
            for gone, total in beam:
                for one in set(range(12)) - set(gone):
                    more = tuple(sorted((*gone, one)))
                    value = total + sign * (p - math.exp(says(more, "zero")[1]))
                    grown[more] = max(grown.get(more, -math.inf), value)
            beam = sorted(grown.items(), key=lambda one: -one[1])[:5]
        expected = sign * beam[0][1] / 12
        assert run("naopc", scores(), scene)[name] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("units", UNITS)
def test_mas(staged, says, units):
    scene, units = staged(units)
    sums, order = ranking(scores(), units)
    positive = [max(0.0, one) for one in sums]
    steps = len(units)
    shares = [step / steps for step in range(steps + 1)]
    found = run("mas", scores(), scene)
    for name in ("deletion", "insertion"):
        deleting = name == "deletion"
        y, d = [], []
        for count in range(steps + 1):
            y.append(says(tokens_of(units, order[:count] if deleting else order[count:]), "pad")[1])
            there = order[count:] if deleting else order[:count]
            d.append(sum(positive[one] for one in there) / sum(positive))
        end = y[-1] if deleting else y[0]
        z = [min(1.0, max(0.0, (one - end) / abs(y[0] - y[-1]))) for one in y]
        z = [(min if deleting else max)(z[: i + 1]) for i in range(steps + 1)]
        sign = 1 if deleting else -1
        aligned = [min(1.0, max(0.0, one + sign * abs(one - other))) for one, other in zip(z, d, strict=True)]
        low, high = min(aligned), max(aligned)
        aligned = [(one - low) / (high - low) for one in aligned]
        assert found[name] == pytest.approx(trapezoid(z, shares), abs=1e-8)
        assert found[f"mas_{name}"] == pytest.approx(trapezoid(aligned, shares), abs=1e-8)
        assert found[f"{name}_density"] == pytest.approx(d, abs=1e-12)


@pytest.mark.parametrize("units", UNITS)
def test_disrupt_recover(staged, says, units):
    scene, units = staged(units)
    _, order = ranking(scores(), units)
    whole = says([], "zero")[1]
    disrupted, recovered = [100.0], []
    for tenth in range(1, 11):
        count = -(-tenth * len(units) // 10)
        disrupted.append(100 * math.exp(says(tokens_of(units, order[:count]), "zero")[1] - whole))
        recovered.append(100 * math.exp(says(tokens_of(units, order[count:]), "zero")[1] - whole))
    assert recovered[-1] == 100
    tenths = [tenth / 10 for tenth in range(11)]
    found = run("disrupt_recover", scores(), scene)
    disrupt, recover = trapezoid(disrupted, tenths), trapezoid(recovered, tenths[1:])
    assert (found["disrupt"], found["recover"], found["total"]) == pytest.approx((disrupt, recover, recover - disrupt))


def test_recovery(staged):
    scene, units = staged()
    given = scores(2)
    _, order = ranking([max(0.0, float(one)) for one in given], units)
    found = run("recovery", given, scene)
    gold = {3, 7}
    assert scene.gold.nonzero().flatten().tolist() == [3, 7]
    assert found["recovery"] == len(gold & set(order[:2])) / 2 and found["chance"] == 2 / 12
    assert found["rank"] == 1 + min(order.index(one) for one in gold)
    positive = given.clamp(min=0)
    assert found["mass"] == pytest.approx(float(positive[[3, 7]].sum() / positive.sum()))
    best = torch.zeros(12)
    best[[3, 7]] = 1.0
    assert run("recovery", best, scene) == {"recovery": 1.0, "rank": 1.0, "mass": 1.0, "chance": 2 / 12}
    with pytest.raises(ValueError, match="no gold spans"):
        run("recovery", best, staged(gold=None)[0])


@pytest.mark.parametrize("units", UNITS)
def test_agreement(staged, says, units):
    scene, units = staged(units)
    sums, _ = ranking(scores(), units)
    falls = [says([], "left out")[0] - says(unit, "left out")[0] for unit in units]
    found = run("agreement", scores(), scene)
    assert found["spearman"] == pytest.approx(spearman(sums, falls), abs=1e-12)
    assert found["kendall"] == pytest.approx(kendall(sums, falls), abs=1e-12)


@pytest.mark.parametrize("units", UNITS)
def test_contextcite(staged, says, units):
    scene, units = staged(units)
    sums, order = ranking(scores(), units)
    whole = says([], "left out")[1]
    found = run("contextcite", scores(), scene)
    for count in (1, 3, 5):
        drop = whole - says(tokens_of(units, order[:count]), "left out")[1]
        assert found[f"drop_{count}"] == pytest.approx(drop, abs=1e-9)
    drawn = scene.drawn("contextcite").random((32, len(units))) < 0.5
    said = [says(tokens_of(units, np.flatnonzero(~row)), "left out")[1] for row in drawn]
    predicted = [sum(one for one, there in zip(sums, row, strict=True) if there) for row in drawn]
    # Equal subsets are said, and predicted, equal but for rounding.
    expected = spearman(np.round(predicted, 10), np.round(said, 10))
    assert found["lds"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("decimals", [8, 0])  # of 0, some scores are equal
def test_soft(staged, says, model, prompt, decimals):
    scene, units = staged()
    whole = says([], "zero")[2]

    def far(distribution):
        return float((distribution.sqrt() - whole.sqrt()).square().sum().sqrt() / math.sqrt(2))

    nothing = far(says(range(12), "zero")[2])
    given = scores().round(decimals=decimals)
    importance = (np.array(rank_of(given.tolist())) - 0.5) / 11
    seeds = scene.drawn("soft").integers(0, 2**62, 4).tolist()
    found = run("soft", given, scene)
    for name, kept in (("soft_nc", 1 - importance), ("soft_ns", importance)):
        values = []
        for share in (0.25, 0.5, 0.75):
            probability = scaled(kept, share)
            assert probability.mean() == pytest.approx(share) and probability.max() <= 1
            for seed in seeds:
                drawn = torch.rand(12, 64, generator=torch.Generator().manual_seed(seed)).double()
                embedded = model.get_input_embeddings()(prompt).detach() * (drawn < torch.tensor(probability)[:, None])
                with torch.no_grad():
                    distance = far(model(inputs_embeds=embedded[None]).logits[0, -1].softmax(-1)) / nothing
                values.append(distance if name == "soft_nc" else max(0.0, 1 - distance))
        assert found[name] == pytest.approx(np.mean(values), abs=1e-7)


def test_soft_probabilities_keep_their_order_and_their_mean():
    kept = np.array([0.0, 0.1, 0.2, 0.9, 1.0, 0.0])
    for share in (0.1, 0.3, 0.5, 0.6):
        found = scaled(kept, share)
        assert found.mean() == pytest.approx(share) and found.min() >= 0 and found.max() <= 1
        assert (np.diff(found[np.argsort(kept, kind="stable")]) >= 0).all()
    assert scaled(kept, 0.9).tolist() == [0, 1, 1, 1, 1, 0]  # what is 0 stays 0


def test_graph_cuts(staged, model, prompt):
    scene, _ = staged()
    with pytest.raises(ValueError, match="the method has no rules"):
        run("graph_cuts", scores(), scene)
    scene.rules = Rules("cp")
    found = run("graph_cuts", scores(), scene)
    graph = attribute(model, prompt, TARGET, CONTRAST, rule="cp", graph=GRAPH).graph
    nodes = [(abs(float(graph.nodes[layer, i])), layer, i) for layer in (1, 2) for i in range(11)]
    dense = [graph.dense(layer) for layer in range(3)]
    pairs = [(i, j) for j in range(2, 12) for i in range(j)]
    edges = [(abs(float(dense[layer][j, i])), layer, i, j) for layer in range(3) for i, j in pairs]
    weights = {"nodes": lambda layer, i: graph.nodes[layer, i], "edges": lambda layer, i, j: dense[layer][j, i]}
    for kind, named, how in (("nodes", nodes, "mean"), ("edges", edges, "zero")):
        drawn, moved, other, right = scene.drawn("graph_cuts", kind), [], [], []
        for _, *part in sorted(named, reverse=True)[:5]:
            layer, i, *target = part
            cut = ablate(model, prompt, {kind: [tuple(part)]}, how, TARGET, CONTRAST)
            moved.append(abs(cut.change))
            right.append(np.sign(cut.change) == -np.sign(float(weights[kind](*part))))
            instead = int(drawn.choice([one for one in range(target[0] if target else 11) if one != i]))
            cut = ablate(model, prompt, {kind: [(layer, instead, *target)]}, how, TARGET, CONTRAST)
            other.append(abs(cut.change))
        assert found[f"{kind}_moved"] == pytest.approx(np.mean(moved), abs=1e-9)
        assert found[f"{kind}_random"] == pytest.approx(np.mean(other), abs=1e-9)
        assert found[f"{kind}_sign"] == np.mean(right)
        assert found[f"{kind}_gain"] == pytest.approx(np.mean(moved) - np.mean(other), abs=1e-9)


def test_a_model_of_one_layer_has_no_nodes_to_cut(tiny, prompt, recwarn):
    model = tiny("llama", torch.float64, num_hidden_layers=1)
    (case,) = read_cases([{"id": "a", "input_ids": prompt.tolist(), "target": 5, "contrast": 7}])
    scene, _ = stage(model, case, ask(model, case, None), "tokens", None, 0)
    scene.rules = Rules()
    found = run("graph_cuts", scores(), scene)
    assert [name for name, value in found.items() if math.isnan(value)] == [name for name in found if "nodes" in name]
    assert found["edges_moved"] > 0 and not recwarn.list

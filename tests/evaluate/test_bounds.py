"""Known answers: of a linear model its own weights are at every bound, and a random ranking is at chance."""

import math

import numpy as np
import pytest
import torch

from lrp_fast.evaluate import PROTOCOLS
from lrp_fast.evaluate.statistics import bootstrap

N = 12


def weights(seed=0, count=N):
    """All above 0, none like another."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05


def signed(seed=0):
    return torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(name, scores, scene):
    return PROTOCOLS[name].run(scores, scene)


def others(seed, count=200):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, generator=generator, dtype=torch.float64) for _ in range(count)]


def fewest(values, bias):
    """Of a preference of ``bias`` and these values, how many must go at least for it to be 0 or below."""
    left = bias + sum(values)
    for count, value in enumerate(sorted(values, reverse=True), 1):
        left -= value
        if left <= 0:
            return count
    return None


def test_flip_takes_the_fewest(linear):
    own, bias = weights(), -0.3 * float(weights().sum())
    scene = linear(own, bias)
    assert run("flip", own, scene)["flipped_at"] == fewest(own.tolist(), bias)
    assert all(run("flip", one, scene)["flipped_at"] >= fewest(own.tolist(), bias) for one in others(1, 50))


def test_what_never_flips_says_so(linear):
    assert run("flip", weights(), linear(weights(), 1.0)) == {"flipped_at": 12.0, "share": 1.0, "flipped": 0.0}
    with pytest.raises(ValueError, match="does not prefer the target"):
        run("flip", weights(), linear(weights(), -100.0))


def test_morf_is_the_lowest_and_lerf_the_highest_of_all_curves(linear):
    own = signed()
    scene = linear(own)
    best = run("morf_lerf", own, scene)
    for one in others(2, 50):
        found = run("morf_lerf", one, scene)
        assert best["morf"] <= found["morf"] and found["lerf"] <= best["lerf"] and found["area"] <= best["area"]
    falling = own.sort(descending=True).values
    shares = torch.arange(N + 1) / N
    lost = torch.cat([torch.zeros(1), falling.cumsum(0)])
    assert best["morf"] == pytest.approx(float(torch.trapezoid(own.sum() - lost, shares)))
    assert run("morf_lerf", -own, scene)["area"] == pytest.approx(-best["area"])


def test_comprehensiveness_and_sufficiency_are_at_their_bounds(linear):
    own = weights()
    scene = linear(own / own.sum() * 0.9, 0.1, as_probability=True)
    best = run("morf_lerf", own, scene)
    for one in others(3, 50):
        found = run("morf_lerf", one, scene)
        assert found["comprehensiveness"] <= best["comprehensiveness"] + 1e-12
        assert found["sufficiency"] >= best["sufficiency"] - 1e-12


@pytest.mark.parametrize("count", [6, 20])
def test_normalised_aopc_is_1_and_0(linear, count):
    """By the exact search, and by the beam's."""
    own = weights(1, count)
    scene = linear(own / own.sum() * 0.9, 0.1, as_probability=True)
    found = run("naopc", own, scene)
    assert found["comprehensiveness"] == pytest.approx(1, abs=1e-9)
    assert found["sufficiency"] == pytest.approx(0, abs=1e-9)
    found = run("naopc", -own, scene)
    assert found["comprehensiveness"] == pytest.approx(0, abs=1e-9)
    assert found["sufficiency"] == pytest.approx(1, abs=1e-9)


def test_orders_that_make_no_difference_have_no_naopc(linear):
    found = run("naopc", weights(), linear(torch.full((N,), 0.0), 0.5, as_probability=True))
    assert math.isnan(found["comprehensiveness"]) and math.isnan(found["sufficiency"])
    with pytest.raises(ValueError, match="33 units"):
        run("naopc", weights(0, 33), linear(weights(0, 33)))


def test_magnitudes_of_a_linear_model_align(linear):
    own = weights()
    scene = linear(own)
    found = run("mas", own, scene)
    assert found["deletion_curve"] == pytest.approx(found["deletion_density"], abs=1e-12)
    assert found["insertion_curve"] == pytest.approx(found["insertion_density"], abs=1e-12)
    assert found["mas_deletion"] == pytest.approx(found["deletion"], abs=1e-12)
    assert found["mas_insertion"] == pytest.approx(found["insertion"], abs=1e-12)
    assert found["insertion"] == pytest.approx(1 - found["deletion"], abs=1e-12)
    squared = run("mas", own**3, scene)  # the order alone is right
    assert squared["deletion"] == pytest.approx(found["deletion"], abs=1e-12)
    assert squared["mas_deletion"] > found["mas_deletion"] and squared["mas_insertion"] < found["mas_insertion"]
    for one in others(4, 50):
        other = run("mas", one, scene)
        assert other["deletion"] >= found["deletion"] - 1e-12 and other["mas_deletion"] >= found["mas_deletion"] - 1e-12
        assert other["insertion"] <= found["insertion"] + 1e-12


def test_disrupt_and_recover_are_at_their_bounds(linear):
    own = weights()
    scene = linear(own / own.sum() * 0.9, 0.1, as_probability=True)
    best = run("disrupt_recover", own, scene)
    assert best["disrupt_curve"][0] == best["recover_curve"][-1] == 100
    assert best["disrupt_curve"][-1] == pytest.approx(10)
    for one in others(5, 50):
        found = run("disrupt_recover", one, scene)
        assert best["disrupt"] <= found["disrupt"] + 1e-9 and found["recover"] <= best["recover"] + 1e-9


def test_leave_one_out_agrees_in_full(linear):
    own = signed()
    found = run("agreement", own, linear(own))
    assert found == {"spearman": pytest.approx(1), "kendall": pytest.approx(1)}
    assert run("agreement", -own, linear(own)) == {"spearman": pytest.approx(-1), "kendall": pytest.approx(-1)}
    assert math.isnan(run("agreement", torch.ones(N), linear(own))["spearman"])


def test_the_linear_datamodeling_score_of_a_linear_model_is_1(linear):
    own = signed()
    found = run("contextcite", own, linear(own))
    assert found["lds"] == pytest.approx(1)
    falling = own.sort(descending=True).values
    for count in (1, 3, 5):
        assert found[f"drop_{count}"] == pytest.approx(float(falling[:count].sum()))
    assert run("contextcite", -own, linear(own))["lds"] == pytest.approx(-1)


def test_soft_scores_are_best_for_the_true_order(linear):
    own = weights()
    scene = linear(own)
    best = run("soft", own, scene)
    assert best["soft_nc"] + best["soft_ns"] > 1 > sum(run("soft", -own, scene).values())
    for one in others(6, 50):
        found = run("soft", one, scene)
        assert found["soft_nc"] <= best["soft_nc"] + 1e-12 and found["soft_ns"] <= best["soft_ns"] + 1e-12


CHANCE = [
    ("morf_lerf", "area", 0.0),
    ("agreement", "spearman", 0.0),
    ("agreement", "kendall", 0.0),
    ("contextcite", "lds", 0.0),
    ("recovery", "recovery", 2 / 12),
]


@pytest.mark.parametrize(("protocol", "measure", "expected"), CHANCE)
def test_a_random_ranking_is_at_chance_within_its_interval(linear, protocol, measure, expected):
    gold = torch.zeros(N, dtype=torch.bool)
    gold[[2, 9]] = True
    scene = linear(signed(), gold=gold)
    found = np.array([run(protocol, one, scene)[measure] for one in others(11, 400)])
    low, high = bootstrap(found)
    assert low <= expected <= high, (low, high)
    own = run(protocol, signed() if measure != "recovery" else gold.double(), scene)[measure]
    assert not low <= own <= high


def test_random_rankings_are_halfway_between_comprehensive_and_sufficient(linear):
    own = weights()
    scene = linear(own / own.sum() * 0.9, 0.1, as_probability=True)
    for measure in ("comprehensiveness", "sufficiency"):
        low, high = bootstrap(np.array([run("naopc", one, scene)[measure] for one in others(8, 400)]))
        assert low <= 0.5 <= high, (measure, low, high)


def test_what_was_asked_once_is_not_asked_again(linear):
    scene = linear(signed())
    run("agreement", signed(), scene)
    asked = sum(scene.asked)
    assert asked == N + 1
    run("agreement", signed(3), scene)
    run("morf_lerf", signed(), scene)
    before = sum(scene.asked)
    run("morf_lerf", signed(), scene)
    assert sum(scene.asked) == before


def test_scores_that_rank_nothing_are_refused(linear):
    scene = linear(weights())
    with pytest.raises(ValueError, match=r"shape \(11,\) for a prompt of 12 tokens"):
        run("flip", torch.ones(11), scene)
    with pytest.raises(ValueError, match="first at token 4"):
        run("agreement", torch.ones(N).index_fill(0, torch.tensor([4]), torch.nan), scene)

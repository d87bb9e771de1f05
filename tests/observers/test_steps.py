"""A run's steps as a trajectory, and where two runs part."""

import pytest
import torch

from lrp_fast import attribute
from lrp_fast.observers import Steps, Trajectory, departures
from tests import decoders

SPANS = [range(0, 4), [4, 9, 7], range(10, 22), [-1], [5, 6, 8]]


def test_over_all_spans_they_are_the_nodes(family, placed, tiny, ids):
    model = tiny(family, torch.float64)
    results = attribute(model, ids, target=[3, 7], observe=[Steps(SPANS), lambda seen: seen.hidden.clone()])
    for result in results:
        steps, hidden = result.observed
        assert steps.relevance.shape == (4, 5) and steps.hidden.shape == (4, 5, 64)
        nodes = result.layers.sum(1)
        assert (steps.relevance.sum(1) - nodes).abs().max() <= 1e-10 * result.layers.abs().max()
        for layer in range(4):
            for i, span in enumerate(SPANS):
                truth = sum(hidden[layer][one] for one in span) / len(span)
                assert (steps.hidden[layer, i] - truth).abs().max() <= 1e-12 * truth.abs().max()
                relevance = sum(result.layers[layer, one] for one in span)
                assert (steps.relevance[layer, i] - relevance).abs() <= 1e-12 * result.layers[layer].abs().max()


@pytest.mark.parametrize("model_type", ["gemma4", "hy_v4"])
@decoders.RECENT
def test_side_routes_and_several_streams(model_type, ids):
    """What reached the tokens by other routes is in the nodes' relevance, not in the hidden states' alone."""
    model = decoders.build(model_type)
    result = attribute(model, ids, target=3, contrast=5, observe=[Steps([range(11), range(11, 23)])])
    (steps,) = result.observed
    assert steps.hidden.shape[2] == {"gemma4": 64, "hy_v4": 3 * 64}[model_type]
    assert (steps.relevance.sum(1) - result.layers.sum(1)).abs().max() <= 1e-10 * result.layers.abs().max()


def test_two_runs_leave_each_other_where_they_differ(tiny, ids):
    """Two prompts that differ in their last token: what stands before it never does; from layer 0 on, that one does."""
    model, other = tiny("llama", torch.float64), ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 97
    results = (attribute(model, these, target=3, observe=[Steps([range(9), [22]])]) for these in (ids, other))
    one, two = (result.observed[0] for result in results)
    assert departures(one, two, 1e-12) == [None, 0]
    assert departures(one, one, 0) == [None, None]


def test_the_distance_is_relative_to_the_norms():
    a = torch.zeros(4, 3, 2)
    a[:, 0] = torch.tensor([3.0, 4])
    b = a.clone()
    b[2:, 0] = torch.tensor([-3.0, 4])  # 2 * 6 / (5 + 5) = 1.2
    b[3, 1] = torch.tensor([1e-30, 0])  # from 0: 2
    one, other = (Trajectory(hidden, torch.zeros(4, 3)) for hidden in (a, b))
    assert departures(one, other, 1.19) == [2, 3, None]
    assert departures(one, other, 1.21) == [None, 3, None]
    assert departures(other, one, 1.19) == [2, 3, None]


def test_what_cannot_be_read_is_refused(tiny, ids):
    model = tiny("llama")
    for spans, error, words in (
        ([range(20, 24)], ValueError, "spans holds position 23, outside the prompt's 23 tokens"),
        ([[1, -22]], ValueError, "with a position twice"),
        ([[]], ValueError, "spans is empty"),
        ([3], TypeError, "spans must be a sequence of whole numbers, not 3"),
    ):
        with pytest.raises(error, match=words):
            attribute(model, ids, target=3, observe=[Steps(spans)])
    with pytest.raises(ValueError, match="spans is empty"):
        Steps([])
    with pytest.raises(TypeError, match="spans must be a sequence of spans"):
        Steps(3)
    one, other = (Trajectory(torch.ones(4, n, 2), torch.ones(4, n)) for n in (1, 2))
    with pytest.raises(ValueError, match="have no distance: give two of as many layers"):
        departures(one, other, 0.1)
    for bound in (-0.1, 2):
        with pytest.raises(ValueError, match="bound must be from 0 up to, but not including, 2"):
            departures(one, one, bound)

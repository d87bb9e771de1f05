"""What every observer is shown, and that no number of a pass hangs on it."""

import pytest
import torch

from lrp_fast import GraphSpec, Rules, attribute, load, observers, patched
from lrp_fast.observers import Heads, LogitLens, Neurons, Seen, Steps

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
RULES = ["attnlrp", "cp", Rules("attnlrp", 0.01, 0.1, 0.01, 0.1)]
FEW_RULES = ["attnlrp"]


def all_of_them(family):
    own = [Heads(), LogitLens(), Steps([range(4), range(4, 23)]), lambda seen: None]
    return own if family in MIXTURES else [*own, Neurons()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_observers_change_no_number(family, rule, dtype, placed, tiny, ids):
    """Bit for bit, the edges too; a float16 model's gradients are raised where they lie."""
    model = tiny(family, dtype)
    given = {"target": [3, 7], "contrast": [5, "mean"], "rule": rule, "graph": GraphSpec(topk=3)}
    alone = attribute(model, ids, **given)
    observed = attribute(model, ids, **given, observe=all_of_them(family))
    for one, other in zip(alone, observed, strict=True):
        assert one.value == other.value and one.explained == other.explained
        assert torch.equal(one.layers, other.layers) and torch.equal(one.graph.self_edges, other.graph.self_edges)
        for layer in range(3):
            pairs = zip(one.graph.edges(layer), other.graph.edges(layer), strict=True)
            assert all((a == b).all() for a, b in pairs)
        assert one.observed is None and len(other.observed) == len(all_of_them(family))


def test_an_observer_sees_every_layer_of_every_target(placed, tiny, ids):
    sees_every_layer(tiny("llama", torch.float64), ids)


def test_in_float16_too(tiny, ids):
    """Where no plan keeps a graph, and gradients are raised where they lie."""
    sees_every_layer(tiny("llama", torch.float16), ids)


def sees_every_layer(model, ids):
    dtype, shown = model.dtype, []

    def observer(seen):
        shown.append(Seen(*(one.clone() if isinstance(one, torch.Tensor) else one for one in seen)))  # as it is now

    results = attribute(model, ids, target=[3, 7], contrast=[5, None], position=[3, -1], observe=[observer])
    with patched(model), torch.no_grad():  # which keeps norms in float64
        hidden = model(ids, output_hidden_states=True).hidden_states
    assert [(seen.layer, seen.target) for seen in shown] == [(layer, i) for layer in (3, 2, 1, 0) for i in (0, 1)]
    for i, seen in enumerate(shown):
        relevance = results[seen.target].layers
        assert seen.positions == [3, 22] and seen.heads is seen.neurons is None
        assert seen.hidden.dtype == dtype and seen.gradient.dtype == relevance.dtype
        assert seen.hidden.shape == seen.gradient.shape == (23, 64)
        if seen.layer < 3:  # of the last layer, transformers returns what its norm makes
            truth = hidden[seen.layer][0]
            of_sums = truth.shape[-1] * torch.finfo(dtype).eps  # of products in another order
            assert (seen.hidden - truth).abs().max() <= of_sums * truth.abs().max()
        assert torch.equal(seen.relevance, relevance[seen.layer])
        sums = (seen.hidden.to(seen.gradient) * seen.gradient).sum(-1)
        assert (sums - seen.relevance).abs().max() <= 1e-5 * seen.relevance.abs().max()
        above = shown[i - 2] if i > 1 else None
        for name in ("hidden", "gradient", "relevance"):
            found = getattr(seen, f"{name}_above")
            assert found is None if above is None else torch.equal(found, getattr(above, name)), (seen.layer, name)


def test_the_gradients_are_those_under_patched(placed, tiny, ids):
    model = tiny("qwen3", torch.float64)
    (gradients,) = attribute(model, ids, target=3, observe=[lambda seen: seen.gradient.clone()]).observed
    states = []
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model):
        handles = [one.register_forward_hook(lambda _, __, out: states.append(out)) for one in model.model.layers]
        logits = model(inputs_embeds=x, use_cache=False).logits
        truth = torch.autograd.grad(logits[0, -1, 3], [x, *states])
        for handle in handles:
            handle.remove()
    for found, expected in zip(gradients, truth, strict=True):
        assert (found - expected[0]).abs().max() <= 1e-12 * expected.abs().max()


def test_what_is_returned_is_kept_by_layer_and_target(tiny, ids):
    given = {"target": [3, 7], "observe": [lambda seen: (seen.layer, seen.target), lambda seen: None]}
    for i, result in enumerate(attribute(tiny("llama"), ids, **given)):
        assert result.observed == [[(layer, i) for layer in range(4)], [None] * 4]


def test_nothing_is_summed_up_that_nobody_asked_for(placed, tiny, ids):
    def summed(seen):
        return seen.heads is not None, seen.neurons is not None

    *_, found = attribute(tiny("llama"), ids, target=3, observe=[Heads([1]), Neurons(layers=[0, 1]), summed]).observed
    assert found == [(False, True), (True, True), (False, False), (False, False)]


def test_a_file_holds_nothing_of_it(tiny, ids, tmp_path):
    result = attribute(tiny("llama"), ids, target=3, observe=[Steps([range(4)])])
    result.save(tmp_path / "case.safetensors")
    assert load(tmp_path / "case.safetensors").observed is None


def test_under_inference_mode(tiny, ids):
    model = tiny("llama", torch.float64)
    observe = [Heads(), Neurons(), LogitLens(), Steps([range(4)])]
    truth = attribute(model, ids, target=3, observe=observe).observed
    with torch.inference_mode():
        found = attribute(model, ids, target=3, observe=observe).observed
    for one, other in zip(found, truth, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, torch.Tensor))


def test_what_an_observer_has_no_state_of_may_serve_twice(tiny, ids):
    model, one = tiny("llama"), Steps([range(4)])
    first, second = (attribute(model, these, target=3, observe=[one]) for these in (ids, ids.flip(1)))
    assert torch.equal(first.observed[0].relevance[:, 0], first.layers[:, :4].sum(1))
    assert torch.equal(second.observed[0].relevance[:, 0], second.layers[:, :4].sum(1))


@pytest.mark.parametrize("name", ["hidden", "gradient", "relevance", "hidden_above", "gradient_above"])
def test_an_observer_that_writes_is_refused(name, tiny, ids):
    def writes(seen):
        if seen.layer == 1:
            getattr(seen, name).mul_(2)

    with pytest.raises(ValueError, match="an observer has written into what it was shown of layer 1"):
        attribute(tiny("llama"), ids, target=3, observe=[writes])


def test_what_is_no_observer_is_refused(tiny, ids):
    model = tiny("llama")
    for observe, words in (
        (Heads(), "observe must be a list of observers"),
        (None, "observe must be a list of observers"),
        ([Heads], r"no observer: make one, Heads\(\)"),
        (["heads"], "no observer: give objects that can be called"),
    ):
        with pytest.raises(TypeError, match=words):
            attribute(model, ids, target=3, observe=observe)


def test_layers_are_read_before_anything_runs(tiny, ids):
    model = tiny("llama")
    model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("a layer has run"))
    for make in (lambda layers: Heads(layers), lambda layers: Neurons(layers=layers)):
        for layers, error, words in (
            ([3], ValueError, "layer 3 is none of the model's decoder layers, 0 to 2"),
            ([-1], ValueError, "layer -1 is none"),
            ([], ValueError, "layers is empty"),
            (1, TypeError, "layers must be a sequence of whole numbers, not 1"),
            ([0.5], TypeError, "layers must hold whole numbers, not 0.5"),
        ):
            with pytest.raises(error, match=words):
                attribute(model, ids, target=3, observe=[make(layers)])


def test_everything_is_named_in_the_package():
    assert all(hasattr(observers, name) for name in observers.__all__)


def test_observers_cannot_change_what_others_are_shown(tiny, ids):
    model = tiny("llama", torch.float64)

    def spoil(seen):
        if seen.heads is not None:
            seen.heads.output.zero_()

    with pytest.raises(ValueError, match="an observer has written into what it was shown of layer 2"):
        attribute(model, ids, target=3, observe=[Heads(), spoil])
    longer = lambda seen: seen.positions.append(0)  # noqa: E731
    lens, _ = attribute(model, ids, target=3, observe=[LogitLens(), longer]).observed
    assert lens.positions == [22] and lens.scores.shape == (4, 1)

"""Relevance of MLP neurons: what passes the MLP, neuron by neuron."""

import pytest
import torch

from lrp_fast import Rules, attribute, hf, patched
from lrp_fast.observers import Neurons
from tests import decoders

MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss")
LAYERS = {"qwen2_moe": [2]}  # where it has an MLP
RULES = ["attnlrp", "cp", Rules("attnlrp", 0.01, 0.1, 0.01, 0.1)]
FEW_RULES = ["attnlrp", RULES[2]]
DENSE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "olmo2", "olmo3", "granite", "gemma", "gemma2",
         "gemma3", "stablelm", "cohere", "gpt_neox", "falcon", "falcon_40b", "gpt2", "qwen2_moe")  # fmt: skip


def lasts(model):
    """The maps behind the neurons, by where they stand in each family."""
    paths = [path for path, _ in model.named_modules()]
    found = []
    for layer in range(3):
        for end in ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj"):
            found += [path for path in paths if path.endswith(f".{layer}.{end}")]
    assert len(found) == 3 or model.config.model_type == "qwen2_moe"
    return [model.get_submodule(path) for path in found]


def without_bias(last, out):
    return out if getattr(last, "bias", None) is None else out - last.bias


@pytest.mark.parametrize("rule", RULES, ids=["attnlrp", "cp", "stabilised"])
@pytest.mark.parametrize("family", DENSE)
def test_all_neurons_are_those_at_the_input_of_the_last_map(family, rule, placed, tiny, ids):
    """a * g_a by a hook on it under `patched`; without stabilisers they add up to what its output, less the bias, gets.
    """
    model = tiny(family, torch.float64)
    mine = LAYERS.get(family, [0, 1, 2])
    results = attribute(model, ids, target=[3, 7], rule=rule, observe=[Neurons(None, LAYERS.get(family))])
    given, made = [], []
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model, rule):

        def note(last, args, out):
            given.append(args[0])
            made.append(out)

        handles = [last.register_forward_hook(note) for last in lasts(model)]
        logits = model(inputs_embeds=x, use_cache=False).logits[0, -1]
        for result, target in zip(results, (3, 7), strict=True):
            (found,) = result.observed
            width = given[0].shape[-1]
            gs = torch.autograd.grad(logits[target], [*given, *made], retain_graph=True)
            assert found.layer.tolist() == [layer for layer in mine for _ in range(width)]
            for place, layer in enumerate(mine):
                truth = (given[place] * gs[place]).flatten(0, -2).sum(0)
                own = found.layer == layer
                neurons, relevance = found.neuron[own], found.relevance[own]
                assert sorted(neurons.tolist()) == list(range(width))
                assert (relevance - truth[neurons]).abs().max() <= 1e-12 * truth.abs().max()
                assert (relevance[:-1].abs() >= relevance[1:].abs()).all()
                if isinstance(rule, str):
                    last, g = lasts(model)[place], gs[len(given) + place]
                    passed = (without_bias(last, made[place]) * g).sum()
                    scale = (without_bias(last, made[place]) * g).abs().sum()
                    assert (relevance.sum() - passed).abs() <= 1e-10 * scale
        for handle in handles:
            handle.remove()


def test_the_strongest_of_each_layer(tiny, ids):
    model = tiny("llama", torch.float64)
    every, few = attribute(model, ids, target=3, observe=[Neurons(None), Neurons(5)]).observed
    assert few.layer.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    for layer in range(3):
        for found, whole in zip(few[1:], every[1:], strict=True):
            assert torch.equal(found[few.layer == layer], whole[every.layer == layer][:5])


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_of_experts_are_refused(family, tiny, ids):
    with pytest.raises(ValueError, match=r"layer 0: it holds experts \(\w+\), whose neurons are not the same for all"):
        attribute(tiny(family), ids, target=3, observe=[Neurons()])


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("mamba", "layer 0: it holds no MLP of a known form"),
        ("gemma4_text", r"layer 0: it holds experts \(Gemma4TextExperts\)"),
        ("longcat_flash", "layer 0: it holds experts"),
    ],
)
@decoders.RECENT
def test_layers_without_one_mlp_are_refused(model_type, words, ids):
    with pytest.raises(ValueError, match=words):
        attribute(decoders.build(model_type), ids, target=3, observe=[Neurons()])


def test_an_mlp_without_a_known_last_map_is_refused(tiny, ids, monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(hf.within, "last_linear", lambda mlp: None)
    with pytest.raises(ValueError, match="layer 0: no linear map is known to make what LlamaMLP puts out"):
        attribute(model, ids, target=3, observe=[Neurons()])


def test_k_is_read(tiny, ids):
    attribute(tiny("llama"), ids, target=3, observe=[Neurons(1)])
    for k, error, words in ((0, ValueError, "at least 1, not 0"), (2.0, TypeError, "whole number, or None for all")):
        with pytest.raises(error, match=words):
            Neurons(k)

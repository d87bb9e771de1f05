"""The logit lens: at the last layer the value that is explained, below it what final norm and head make of a layer."""

import pytest
import torch
import transformers

from lrp_fast import attribute
from lrp_fast.observers import LogitLens
from lrp_fast.observers.logit_lens import commitment
from tests import decoders


@pytest.mark.parametrize("contrast", [5, None, "mean", ("top", 3)], ids=str)
def test_at_the_last_layer_it_is_the_value(family, contrast, placed, tiny, ids):
    model = tiny(family, torch.float64)
    result = attribute(model, ids, target=3, contrast=contrast, observe=[LogitLens()])
    (lens,) = result.observed
    assert lens.positions == [22] and lens.scores.shape == (4, 1) and lens.scores.dtype == torch.float64
    assert abs(lens.scores[-1].item() - result.value) <= 1e-10 * max(1, abs(result.value))


@pytest.mark.parametrize(
    "model_type",
    [
        "gemma3n_text", "gemma4", "zamba", "rwkv", "xlstm", "hy_v4", "qwen3_next", "opt", "bloom", "mamba",
        "longcat_flash",
    ],  # fmt: skip
)
@decoders.RECENT
def test_whatever_stands_behind_the_layers(model_type, ids):
    """Side routes, scales, several streams: by the model's own code."""
    model = decoders.build(model_type)
    result = attribute(model, ids, target=3, contrast=5, observe=[LogitLens()])
    assert abs(result.observed[0].scores[-1].item() - result.value) <= 1e-10 * max(1, abs(result.value))


def test_below_it_is_norm_and_head(tiny, ids):
    model = tiny("llama", torch.float64)
    found = attribute(model, ids, target=[3, 7], contrast=[5, "mean"], observe=[LogitLens([4, -1]), keep])
    for result, weights in zip(found, (lambda z: z[..., 3] - z[..., 5], lambda z: z[..., 7] - z.mean(-1)), strict=True):
        lens, hidden = result.observed
        assert lens.positions == [4, 22]
        for layer, x in enumerate(hidden):
            x = x[[4, 22]]
            normed = x * (x.square().mean(-1, keepdim=True) + model.model.norm.variance_epsilon).rsqrt()
            logits = model.lm_head(normed * model.model.norm.weight)
            assert (lens.scores[layer] - weights(logits)).abs().max() <= 1e-12 * logits.abs().max()


def keep(seen):
    return seen.hidden.clone()


def test_each_explained_position_has_its_own_tokens(tiny, ids):
    model = tiny("qwen3", torch.float64)
    result = attribute(model, ids, position=[3, 9, 22], contrast=("top", 1), observe=[LogitLens(), LogitLens([22, 3])])
    every, two = result.observed
    alone = [attribute(model, ids, position=one, contrast=("top", 1), observe=[LogitLens()]) for one in (3, 9, 22)]
    assert len({term.target.id for term in result.explained.terms}) > 1
    assert every.positions == [3, 9, 22] and two.positions == [22, 3]
    assert (every.scores - torch.cat([one.observed[0].scores for one in alone], 1)).abs().max() <= 1e-12
    assert torch.equal(two.commitment, every.commitment[[2, 0]])
    assert (two.scores - every.scores[:, [2, 0]]).abs().max() <= 1e-12
    assert abs(every.scores[-1].sum().item() - result.value) <= 1e-10 * abs(result.value)


def test_hooks_on_layers_are_not_called_again(tiny, ids):
    model, calls = tiny("llama"), []
    model.model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    attribute(model, ids, target=3)
    alone = len(calls)
    attribute(model, ids, target=3, observe=[LogitLens()])
    assert len(calls) == 2 * alone


def test_the_model_is_left_as_it_was(tiny, ids):
    model = tiny("gemma2")
    before, kept = model(ids).logits, [dict(module.__dict__) for module in model.modules()]
    attribute(model, ids, target=3, observe=[LogitLens()])
    assert torch.equal(model(ids).logits, before)
    assert all(module.__dict__ == one for module, one in zip(model.modules(), kept, strict=True))


def test_commitment_is_where_the_sign_settles():
    scores = torch.tensor([[1.0, -1, 1, 0], [2, 1, -1, 0], [3, 1, 1, 0], [4, 1, -1, 0]])
    assert commitment(scores).tolist() == [0, 1, 3, 0]
    assert commitment(torch.tensor([[1.0, 0], [0, -1], [2, 0]])).tolist() == [2, 2]


def test_positions_are_read(tiny, ids):
    model = tiny("llama")
    for positions, error, words in (
        ([23], ValueError, "positions of LogitLens holds position 23, outside the prompt's 23 tokens"),
        ([], ValueError, "positions of LogitLens is empty"),
        ("x", TypeError, "positions of LogitLens must be a sequence of whole numbers, not 'x'"),
        ([True], TypeError, "positions of LogitLens must hold whole numbers, not True"),
    ):
        with pytest.raises(error, match=words):
            attribute(model, ids, target=3, observe=[LogitLens(positions)])
    with pytest.raises(ValueError, match="LogitLens is to look at position 5, and 2 others are explained"):
        attribute(model, ids, position=[3, 4], target=3, observe=[LogitLens([5])])


def test_what_is_no_sum_of_logits_is_refused(tiny, ids):
    model, asked = tiny("llama"), {"observe": [LogitLens()]}
    for target in (("logprob", 3), (("logprob", 3),), lambda logits: logits[0, 3].sigmoid()):
        with pytest.raises(ValueError, match="LogitLens scores logits and their differences"):
            attribute(model, ids, target=target, **asked)
    with pytest.raises(ValueError, match="LogitLens scores logits"):
        attribute(model, ids, answer=("logprob", [3, 5]), **asked)
    result = attribute(model, ids, answer=[3, 5], **asked)
    (scores,) = result.observed
    assert scores.positions == [22, 23] and abs(float(scores.scores[-1].sum()) - result.value) <= 1e-5


@decoders.RECENT
def test_of_an_encoder_s_classifier_each_position_is_read_as_the_first_is(ids):
    model = decoders.built(transformers.BertForSequenceClassification, {"num_labels": 3})
    (lens,) = attribute(model, ids, target=1, contrast=2, observe=[LogitLens([0, 4, -1])]).observed
    hidden = model.bert(ids).last_hidden_state[0, [0, 4, -1]]
    logits = model.classifier(model.bert.pooler(hidden[:, None]))
    assert (lens.scores[-1] - (logits[:, 1] - logits[:, 2])).abs().max() <= 1e-10
    assert len(lens.scores[-1].unique()) == 3

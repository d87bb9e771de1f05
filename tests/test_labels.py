"""Models that classify prompts or tokens: explained by their labels, read and refused in words."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import GraphSpec, ablate, attribute, attribute_batch, between, compare_answers, hops, patched
from lrp_fast.explained import Explained
from lrp_fast.observers import LogitLens
from lrp_fast.ops import attention_bounded
from lrp_fast.report.html import write_html
from lrp_fast.report.record import as_json
from lrp_fast.report.table import best_table, table

LABELS = {0: "sad", 1: "glad", 2: "neither"}


def classifier(tiny, family="llama", head="SequenceClassification", dtype=torch.float64, **more):
    config = copy.deepcopy(tiny(family).config)
    for name, value in ({"id2label": LABELS, "pad_token_id": 0} | more).items():
        setattr(config, name, value)
    torch.manual_seed(0)
    cls = getattr(transformers, {"llama": "Llama", "gpt2": "GPT2", "qwen3": "Qwen3"}[family] + "For" + head)
    return cls(config).to(dtype).eval()


@pytest.fixture(scope="module")
def model(tiny):
    return classifier(tiny)


def by_autograd(model, ids, scalar, rule="attnlrp"):
    """Value and (N,) relevance, of one backward pass through the patched model."""
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model, rule):
        found = scalar(model(inputs_embeds=x).logits[0])
        found.backward()
    return found.item(), (x * x.grad).sum(-1)[0]


def odds(logits):
    return logits[0].softmax(-1)[1] / (1 - logits[0].softmax(-1)[1])


ASKED = {
    "a name": ({"target": "glad"}, lambda z: z[1]),
    "a number": ({"target": 2, "contrast": "sad"}, lambda z: z[2] - z[0]),
    "its own choice": ({"contrast": ("top", 1)}, lambda z: z.topk(2).values[0] - z.topk(2).values[1]),
    "the mean": ({"target": "glad", "contrast": "mean"}, lambda z: z[1] - z.mean()),
    "all others": ({"target": "glad", "contrast": ("top", 2)}, lambda z: z[1] - (z[0] + z[2]) / 2),
    "a log-probability": ({"target": ("logprob", "glad")}, lambda z: z.log_softmax(-1)[1]),
    "a function": ({"target": odds}, lambda z: odds(z[None])),
}


@pytest.mark.parametrize(("asked", "scalar"), ASKED.values(), ids=ASKED)
def test_relevance_is_that_of_one_backward_pass(asked, scalar, model, ids):
    value, relevance = by_autograd(model, ids, scalar)
    found = attribute(model, ids, **asked)
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.value == pytest.approx(scalar(model(ids).logits[0]).item(), rel=1e-5)
    assert (found.relevance - relevance).abs().max() <= 1e-9 * relevance.abs().max()
    if not isinstance(asked.get("target"), tuple) and asked.get("target") is not odds:  # the head has no bias
        assert found.layers[-1, -1].item() == pytest.approx(found.value, rel=1e-6)
    assert not found.layers[-1, :-1].any()


def test_several_targets_and_edges(model, ids):
    results = attribute(model, ids, target=["sad", "glad", 2], contrast="mean", graph=GraphSpec(topk=99))
    assert [one.explained.terms[0].target.text for one in results] == ["sad", "glad", "neither"]
    for one, target in zip(results, LABELS, strict=True):
        assert (one.layers - attribute(model, ids, target, "mean").layers).abs().max() <= 1e-12
        for layer in range(one.graph.num_layers):
            assert (one.graph.dense(layer).sum(0) - one.layers[layer]).abs().max() <= 1e-9
    rows = between(model, ids, 0, 2, range(ids.shape[1]), target="glad", contrast="mean")
    assert (rows.sum(0) - results[1].relevance).abs().max() <= 1e-9


def test_cp_hands_on_all_of_it(tiny, ids):
    model = classifier(tiny, "qwen3")
    found = attribute(model, ids, "glad", "sad", rule="cp")
    assert found.layers.sum(1) == pytest.approx([found.value] * len(found.layers), rel=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_token_s_label_at_any_position(family, tiny, ids):
    model = classifier(tiny, family, "TokenClassification")
    own = model(ids).logits[0]
    for position in (-1, 4):
        found = attribute(model, ids, "glad", "sad", position=position)
        assert found.value == pytest.approx((own[position, 1] - own[position, 0]).item(), rel=1e-5)
        value, relevance = by_autograd(model, ids, lambda z, at=position: z[at, 1] - z[at, 0])
        gap = (found.layers[0] - relevance).abs().max()
        assert gap <= 1e-9 * relevance.abs().max() or family == "gpt2"  # whose layer 0 has positions in it
    spread = attribute(model, ids, ("glad", "sad"), position=(3, 9))
    assert spread.value == pytest.approx((own[3, 1] + own[9, 0]).item(), rel=1e-5)
    assert "Why these 2 labels?" in table(spread) and "  at 3: 'glad'" in table(spread)


def test_one_score(tiny, ids, tmp_path):
    model = classifier(tiny, id2label={0: "LABEL_0"})
    found = attribute(model, ids)
    assert found.value == pytest.approx(model(ids).logits.item(), rel=1e-6)
    (term,) = found.explained.terms
    assert (term.runner_up, term.contrast, term.target.text) == (None, None, "LABEL_0")
    found.save(tmp_path / "one.safetensors")
    assert lrp_fast.load(tmp_path / "one.safetensors").explained == found.explained
    write_html(found, tmp_path / "one.html")
    assert best_table(found.explained).startswith(f"best labels at position {ids.shape[1] - 1}\n\nrank  label ")
    for contrast in (0, "mean", ("top", 1)):
        with pytest.raises(ValueError, match="gives one score, which has nothing beside it to contrast with"):
            attribute(model, ids, contrast=contrast)
    with pytest.raises(ValueError, match='gives one score, which is no log-probability: leave "logprob" out'):
        attribute(model, ids, ("logprob", 0))
    cut = ablate(model, ids, {"tokens": [3]}, result=found)
    assert cut.predicted == -found.relevance[3].item() and cut.after.terms[0].runner_up is None


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, None])
def test_padded_prompts_are_explained_as_if_alone(side, pad, tiny):
    model = classifier(tiny, pad_token_id=pad)
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]]
    ids, mask = torch.zeros(3, 6, dtype=torch.int64), torch.zeros(3, 6, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        where = slice(6 - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, where], mask[row, where] = torch.tensor(prompt), 1
    results = attribute_batch(model, ids, mask, target=["glad", 0, None], contrast="mean")
    for row, (prompt, found) in enumerate(zip(prompts, results, strict=True)):
        alone = attribute(model, prompt, ["glad", 0, None][row], "mean")
        assert found.explained.terms[0].position == len(prompt) - 1
        assert (found.layers - alone.layers).abs().max() <= 1e-12
        one = attribute(model, {"input_ids": ids[row], "attention_mask": mask[row]}, ["glad", 0, None][row], "mean")
        assert torch.equal(one.layers, alone.layers)
    if pad is not None:  # what transformers makes of the whole batch
        own = model(ids, attention_mask=mask).logits
        assert results[0].value == pytest.approx((own[0, 1] - own[0].mean()).item(), rel=1e-5)
        assert results[1].value == pytest.approx((own[1, 0] - own[1].mean()).item(), rel=1e-5)


def test_the_pad_token_at_a_prompt_s_end_is_padding_to_the_model(model):
    found = attribute(model, [5, 6, 7, 0, 0], "glad")
    assert found.explained.terms[0].position == 2 and not found.layers[:, 3:].any()
    assert "takes what stands behind position 2 for padding: its pad token, 0, as it is" in found.explained.note
    assert found.value == pytest.approx(model(torch.tensor([[5, 6, 7, 0, 0]])).logits[0, 1].item(), rel=1e-6)
    assert attribute(model, [5, 6, 7, 0, 0], "glad", position=2).value == found.value
    with pytest.raises(ValueError, match="reads at position 2, and position is 4: leave it out"):
        attribute(model, [5, 6, 7, 0, 0], "glad", position=4)


REFUSED = {
    "another label": ({"target": "angry"}, "target 'angry' is no label of the model, which has 'sad', 'glad', 'nei"),
    "a number too high": ({"target": 3}, "target 3 is outside the labels, 0 to 2"),
    "a fraction": ({"target": 1.5}, "target must be a label's name or its number, not 1.5"),
    "bytes": ({"target": b"glad"}, "target is bytes, which is no text yet"),
    "the same": ({"target": 1, "contrast": "glad"}, "target 1 and contrast 'glad' never diverge: their labels are"),
    "its own choice": ({"contrast": "CHOSEN"}, "target and contrast are both label . '.*' at position 22: they"),
    "too many": ({"contrast": ("top", 3)}, "needs k from 1 to 2, all labels but the target"),
    "another position": ({"position": 3}, "^LlamaForSequenceClassification has logits of the whole prompt, which it"),
    "several positions": ({"position": (3, -1)}, "reads at position 22, and position is .3, -1.: leave it out"),
    "an answer": ({"answer": [5, 6]}, "gives the logits of labels, and no answer has any: leave answer out, and"),
}


@pytest.mark.parametrize(("asked", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(asked, message, model, ids):
    if asked.get("contrast") == "CHOSEN":
        asked = {"contrast": int(model(ids).logits.argmax())}
    with pytest.raises((ValueError, TypeError), match=message):
        attribute(model, ids, **asked)


def test_what_has_no_meaning_for_labels_is_refused(model, tiny, ids):
    with pytest.raises(ValueError, match="gives the logits of labels, and generates no tokens for hops to go over"):
        hops(model, ids, [3])
    with pytest.raises(ValueError, match="gives the logits of labels, and no answer has any"):
        compare_answers(model, ids, [5], [6])
    apart = classifier(tiny, problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="true or false each by itself .* and have no log-probability among"):
        attribute(apart, ids, ("logprob", 1))
    assert attribute(apart, ids, lambda z: torch.nn.functional.logsigmoid(z[0, 1])).value < 0
    twice = classifier(tiny, id2label={0: "a", 1: "a", 2: "b"})
    with pytest.raises(ValueError, match="target 'a' is the name of labels 0 and 1: give a number"):
        attribute(twice, ids, "a")
    assert attribute(twice, ids, "b").explained.terms[0].target.id == 2
    called = classifier(tiny, id2label={0: "kind", 1: "mean", 2: "1"})
    with pytest.raises(ValueError, match="is the mean of all logits, and a label's name: give its number, or "):
        attribute(called, ids, "kind", "mean")
    assert attribute(called, ids, "1", 1).explained.terms[0].contrast.text == "mean"


def test_what_others_look_at_and_leave_out(model, ids, monkeypatch):
    found = attribute(model, ids, "glad", "sad", observe=[LogitLens()])
    (scores,) = found.observed
    assert scores.scores[-1].item() == pytest.approx(found.value, rel=1e-6) and scores.positions == [22]
    monkeypatch.setattr(attention_bounded, "worth", lambda *_: 1.0)  # whatever it saves
    longer = torch.randint(3, 97, (1, 300), generator=torch.Generator().manual_seed(1))
    exact, bounded = (attribute(model, longer, "glad", "sad", tolerance=one) for one in (0.0, 0.3))
    assert bounded.dropped.max() > 0 and 0 < (bounded.layers - exact.layers).abs().max() <= exact.layers.abs().max()
    everywhere = attribute(model, ids, "glad", observe=[LogitLens(range(23))]).observed[0].scores
    hidden = model(ids, output_hidden_states=True).hidden_states[-1]  # normalised
    assert (everywhere[-1] - model.score(hidden)[0, :, 1]).abs().max() <= 1e-5
    cut = ablate(model, ids, {"tokens": [4]}, target="glad", contrast="sad")
    zeroed = model.get_input_embeddings()(ids).index_fill(1, torch.tensor([4]), 0)
    own = model(inputs_embeds=zeroed).logits[0]
    assert cut.value == pytest.approx((own[1] - own[0]).item(), rel=1e-5)
    assert lrp_fast.plan(model, 23, positions=1).n_tokens == 23


def test_it_is_said_in_words_everywhere(model, ids, tmp_path):
    found = attribute(model, ids, "glad", ("top", 2), graph=GraphSpec(topk=4))
    lines = table(found).splitlines()
    assert lines[0] == "Why 'glad' rather than the mean of the 2 best other labels at position 22?"
    told = as_json(found)["explained"]
    assert told["of"] == "label" and told["terms"][0]["target"]["text"] == "glad"
    assert "&#x27;glad&#x27; rather than" in found._repr_html_()
    assert Explained.from_dict(asdict(found.explained)) == found.explained
    found.save(tmp_path / "a.safetensors")
    found.graph.save(tmp_path / "g.safetensors")
    assert lrp_fast.load(tmp_path / "a.safetensors").explained == found.explained
    manifest = lrp_fast.Graph.load(tmp_path / "g.safetensors").manifest
    assert Explained.from_dict(manifest["explained"]) == found.explained
    write_html(found, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text("utf-8")
    assert json.dumps({"several": "labels", "at": "at"}).replace(" ", "") in page.replace(" ", "")
    assert any("glad" in node["clerp"] for node in found.graph.to_attribution_graph("x")["nodes"])
    function = attribute(model, ids, odds)
    assert "the labels named here are the model's first choices" in function.explained.note


def test_what_was_written_before_there_were_labels_is_of_tokens(tiny, ids):
    told = asdict(attribute(tiny("llama"), ids, 3, 5).explained)
    assert told.pop("of") == "token" and Explained.from_dict(told).of == "token"

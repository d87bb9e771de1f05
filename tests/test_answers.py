"""Targets of every kind, and whole answers: held against plain autograd of their scalar, and refused in a sentence."""

import math
import re
from dataclasses import asdict, fields, replace

import pytest
import torch

import lrp_fast
from lrp_fast import GraphSpec, attribute, compare_answers, patched
from lrp_fast.explained import Explained
from lrp_fast.report.html import write_html
from lrp_fast.report.notebook import attribution as in_a_notebook
from lrp_fast.report.record import as_json
from lrp_fast.report.table import best_table, headline, table

RULES = ["attnlrp", "cp", "gradient"]
FEW_RULES = ["attnlrp"]
PLACES = [4, -1, 9]


def odds(logits):
    """Of token 5 at the first position, times the probability of token 7 at the last."""
    first, last = logits[0].softmax(-1), logits[-1].softmax(-1)
    return first[5] / (1 - first[5]) * last[7]


# name: (what attribute is asked, what scalar of the logits (N, V) of all positions that is, behind 23 tokens)
TARGETS = {
    "a log-probability": ({"target": ("logprob", 3)}, lambda z: z[22].log_softmax(-1)[3]),
    "log-probabilities at a span": (
        {"target": ("logprob", 3), "position": PLACES},
        lambda z: z[[4, 22, 9]].log_softmax(-1)[:, 3].sum(),
    ),
    "a target a position": ({"target": (3, 5, 7), "position": PLACES}, lambda z: z[4, 3] + z[22, 5] + z[9, 7]),
    "a log-probability a position": (
        {"target": ("logprob", (3, 5, 7)), "position": PLACES},
        lambda z: z.log_softmax(-1)[[4, 22, 9], [3, 5, 7]].sum(),
    ),
    "a difference a position": (
        {"target": (3, 5, 7), "contrast": (5, 6, 3), "position": PLACES},
        lambda z: z[4, 3] - z[4, 5] + z[22, 5] - z[22, 6] + z[9, 7] - z[9, 3],
    ),
    "against the mean a position": (
        {"target": (3, 5, 7), "contrast": "mean", "position": PLACES},
        lambda z: z[4, 3] + z[22, 5] + z[9, 7] - z[[4, 22, 9]].mean(-1).sum(),
    ),
    "a function": ({"target": odds, "position": [4, 9, -1]}, lambda z: odds(z[[4, 9, 22]])),
    "an answer": ({"answer": [5, 7, 9]}, lambda z: z[22, 5] + z[23, 7] + z[24, 9]),
    "an answer's log-probability": (
        {"answer": ("logprob", torch.tensor([[5, 7, 9]]))},
        lambda z: z[22:25].log_softmax(-1)[[0, 1, 2], [5, 7, 9]].sum(),
    ),
    "an answer against the mean": (
        {"answer": (5, 7, 9), "contrast": "mean"},
        lambda z: z[22, 5] + z[23, 7] + z[24, 9] - z[22:25].mean(-1).sum(),
    ),
    "an answer against another": ({"answer": [5, 7, 9, 11], "contrast": [5, 7, 8]}, lambda z: z[24, 9] - z[24, 8]),
}
READ = {"an answer": [5, 7], "an answer's log-probability": [5, 7], "an answer against the mean": [5, 7]} | {
    "an answer against another": [5, 7]
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_gradient_form_is_autograds_of_the_scalar(family, name, tiny, ids):
    model = tiny(family, torch.float64)
    asked, scalar = TARGETS[name]
    ids = torch.cat([ids, torch.tensor([READ.get(name, [])], dtype=torch.int64)], 1)
    result = attribute(model, ids[:, :23], **asked, rule="gradient")
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model, "gradient"):  # which keeps float64 where a norm would be computed in float32
        value = scalar(model(inputs_embeds=x).logits[0])
        value.backward()
    places = model.transformer.wpe.weight[: ids.shape[1]].detach() if family == "gpt2" else 0
    truth = ((x.detach() + places) * x.grad).sum(-1)[0]
    assert torch.equal(result.input_ids, ids[0])
    assert result.value == pytest.approx(value.item(), rel=1e-12)
    assert (result.relevance - truth).abs().max() <= 1e-12 * truth.abs().max()


@pytest.mark.parametrize("name", ["a log-probability a position", "a difference a position", "an answer"])
def test_the_sum_of_explanations_is_the_explanation_of_the_sum(family, rule, name, tiny, ids):
    model = tiny(family, torch.float64)
    if name == "an answer":
        whole = attribute(model, ids, answer=[5, 7, 9], rule=rule)
        context = [*ids[0].tolist(), 5, 7]
        parts = [attribute(model, context, target=t, position=p, rule=rule) for t, p in ((5, 22), (7, 23), (9, 24))]
    else:
        whole = attribute(model, ids, **TARGETS[name][0], rule=rule)
        contrasts = (5, 6, 3) if "difference" in name else (None,) * 3
        pairs = zip((3, 5, 7), contrasts, PLACES, strict=True)
        parts = [
            attribute(model, ids, t if c else ("logprob", t), contrast=c, position=p, rule=rule) for t, c, p in pairs
        ]
    total = sum(part.layers for part in parts)
    bound = 2.0**-24 if family == "cohere" else 1e-12  # whose code rotates in float32
    assert (whole.layers - total).abs().max() <= bound * sum(part.layers.abs() for part in parts).max()
    assert whole.value == pytest.approx(sum(part.value for part in parts), rel=1e-12)
    assert [t.target.id for t in whole.explained.terms] == [part.explained.terms[0].target.id for part in parts]


def test_a_list_of_all_kinds_shares_the_forward_pass(tiny, ids):
    model = tiny("llama", torch.float64)

    def spoils(logits):
        return logits.mul_(2).softmax(-1)[0, 3]  # writes into what it was given

    targets, seen = [spoils, ("logprob", 3), 4, (5,), lambda logits: logits[0, 6].exp()], []
    found = attribute(model, ids, targets, progress=lambda *now: seen.append(now))
    assert len([now for now in seen if now[0] == "forward"]) == 3
    for target, result in zip(targets, found, strict=True):
        alone = attribute(model, ids, target)
        assert (result.layers - alone.layers).abs().max() <= 1e-12 * alone.layers.abs().max()
        assert result.value == pytest.approx(alone.value, rel=1e-12)
        assert result.explained.kind == alone.explained.kind


def test_an_answer_of_one_token_is_that_target(tiny, ids):
    model = tiny("llama")
    one, other = attribute(model, ids, target=5), attribute(model, ids, answer=5)
    assert torch.equal(one.layers, other.layers) and one.explained == other.explained and one.value == other.value


def test_none_of_a_tuple_is_the_models_first_choice_there(tiny, ids):
    model = tiny("llama")
    found = attribute(model, ids, ("logprob", None), position=[3, 7])
    assert [term.target.rank for term in found.explained.terms] == [0, 0] and found.explained.kind == "logprob"
    found = attribute(model, ids, (None, 5), position=[3, 7])
    assert found.explained.terms[0].target.rank == 0 and found.explained.terms[1].target.id == 5


def test_a_probability_is_less_than_1_and_its_log_is_the_log_probability(tiny, ids):
    model = tiny("llama", torch.float64)
    one = attribute(model, ids, lambda logits: logits.softmax(-1)[0, 3], rule="cp")
    log = attribute(model, ids, ("logprob", 3), rule="cp")
    assert math.log(one.value) == pytest.approx(log.value, rel=1e-12)  # and d log p = dp / p
    assert (one.layers / one.value - log.layers).abs().max() <= 1e-12 * log.layers.abs().max()


def test_batches_and_edges_that_skip_layers_take_them_too(tiny, ids):
    model = tiny("llama", torch.float64)
    rows = lrp_fast.attribute_batch(model, [ids[0], ids[0, :9]], target=[(3, 5), odds], position=[(2, 4), (1, -1)])
    for row, alone in zip(
        rows,
        [attribute(model, ids, (3, 5), position=(2, 4)), attribute(model, ids[:, :9], odds, position=(1, -1))],
        strict=True,
    ):
        assert (row.layers - alone.layers).abs().max() <= 1e-11 * alone.layers.abs().max()
    skipping = lrp_fast.between(model, ids, 0, 2, range(23), ("logprob", 3))
    nodes = attribute(model, ids, ("logprob", 3)).layers[0]
    assert (skipping.sum(0) - nodes).abs().max() <= 1e-11 * nodes.abs().max()


def test_a_function_that_fails_leaves_the_other_rows_of_a_batch(tiny):
    found = lrp_fast.attribute_batch(
        tiny("llama"), [[1, 2], [3, 4]], target=[5, lambda logits: 1 / 0], return_exceptions=True
    )
    assert found[0].value
    assert str(found[1]).startswith("row 1: target, the function <lambda>, failed at logits of shape (1, 97): Zero")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("logprob", [False, True])
def test_two_answers(tiny, ids, rule, logprob):
    model = tiny("llama", torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    one, two = [5, 7, 9, 11], [5, 8, 3]
    given = [("logprob", each) if logprob else each for each in (one, two)]
    found = compare_answers(model, ids, *given, rule=rule)
    parts = [attribute(model, ids, answer=each, rule=rule) for each in given]
    assert found.layers.shape == (4, 24)  # the prompt, and the token with which both begin
    assert torch.equal(found.layers, parts[0].layers[:, :24] - parts[1].layers[:, :24])
    assert found.value == parts[0].value - parts[1].value and torch.equal(found.relevance, found.layers[0])
    assert torch.equal(found.answer.layers, parts[0].layers) and torch.equal(found.other.layers, parts[1].layers)
    alike = attribute(model, [*ids[0].tolist(), 5, 7, 9], target=(7, 9, 11), position=(23, 24, 25), rule=rule)
    other = attribute(model, [*ids[0].tolist(), 5, 8], target=(8, 3), position=(23, 24), rule=rule)
    if not logprob:  # what both begin with cancels
        truth = alike.layers[:, :24] - other.layers[:, :24]
        assert (found.layers - truth).abs().max() <= 1e-11 * alike.layers.abs().max()
        if rule == "cp":
            left = found.layers.sum(-1) + found.answer.layers[:, 24:].sum(-1) - found.other.layers[:, 24:].sum(-1)
            assert (left - found.value).abs().max() <= 1e-11 * found.answer.layers.abs().sum(-1).max()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"target": ("logprob", 97)}, ValueError, "target 97 is outside the vocabulary, 0 to 96"),
        ({"target": ("logprob", 3), "contrast": 5}, ValueError, 'leave out either the contrast or "logprob"'),
        ({"target": ("logprob", [3])}, TypeError, r"target must be a token id or a string, not \[3\]"),
        ({"target": ("logprob", odds)}, TypeError, r'target \("logprob", token\) takes a token id or a string, or N'),
        ({"target": ("logprob", ("logprob", 3))}, TypeError, r'target \("logprob", token\) takes a token id'),
        ({"target": ()}, ValueError, "target is an empty tuple: give a target for each position"),
        ({"target": (3, 5)}, ValueError, "target is a tuple of 2, one a position, and position names 1: give as many"),
        ({"target": (3, (5,))}, TypeError, r"target is a tuple, one a position, and holds \(5,\): a token id"),
        ({"target": (3, odds)}, TypeError, "target is a tuple, one a position, and holds <function odds"),
        ({"target": (3, 1.5), "position": (0, 1)}, TypeError, "target must be a token id or a string, not 1.5"),
        ({"target": (3, ("logprob", 5)), "position": (0, 1)}, ValueError, "different kinds, logit and logprob:"),
        (
            {"target": (3, 5), "contrast": (("top", 2), ("top", 3)), "position": (0, 1)},
            ValueError,
            "different kinds, top 2 and top 3",
        ),
        ({"target": (3, 5), "contrast": (5,), "position": (0, 1)}, ValueError, "a tuple of 2 and contrast one of 1"),
        ({"target": (3, 5), "contrast": 5, "position": (0, 1)}, ValueError, "target 5 and contrast 5 never diverge"),
        ({"target": odds, "contrast": 5}, ValueError, "a function of the logits says by itself what is compared"),
        ({"target": 3, "contrast": odds}, TypeError, "contrast must be a token id or a string"),
        ({"target": 3, "contrast": (5, 6)}, TypeError, "contrast must be a token id or a string"),
        ({"target": 3, "answer": [5]}, ValueError, "target and answer both say what is explained: give one of them"),
        ({"answer": []}, ValueError, "answer is empty: give at least one token"),
        ({"answer": [3, 97]}, ValueError, "answer 97 is outside the vocabulary, 0 to 96"),
        ({"answer": [3.5]}, TypeError, "answer must be a string or token ids, not 3.5"),
        ({"answer": torch.ones(3)}, TypeError, "answer must be a string or token ids, not tensor"),
        ({"answer": ["a", "b"]}, TypeError, "answer is a list of strings, and one answer is meant"),
        ({"answer": " Sydney"}, ValueError, "answer ' Sydney' is a string: give tokenizer= with it"),
        ({"answer": odds}, TypeError, "answer must be a string or token ids, not <function"),
        ({"answer": [5], "position": 2}, ValueError, "an answer stands behind the prompt, .*: leave position out"),
        ({"answer": ("logprob", [5]), "contrast": 3}, ValueError, 'leave out either the contrast or "logprob"'),
        ({"answer": [5, 6], "contrast": [5]}, ValueError, r"answer \[5, 6\] and contrast \[5\] never diverge: their"),
        ({"answer": [5] * 128}, ValueError, "prompt has 131 tokens, 127 of them of the answer, more than the model's"),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_any_layer_runs(arguments, error, message, tiny):
    model = tiny("gpt2")
    model.transformer.h[0].register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(error, match=message) as raised:
        attribute(model, [1, 2, 3, 4], **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda logits: 3.0, "gave a float: it must give one number as a tensor without dimensions"),
        (lambda logits: None, "gave a NoneType: it must give"),
        (lambda logits: logits[0, :2], r"gave a tensor of shape \(2,\) and torch.float32: it must give one number"),
        (lambda logits: logits[0, :1], r"gave a tensor of shape \(1,\)"),
        (lambda logits: logits.argmax(), r"gave a tensor of shape \(\) and torch.int64"),
        (lambda logits: torch.zeros(()), "gave what does not depend on the logits: compute it from them in torch"),
        (lambda logits: logits.detach().sum(), "gave what does not depend on the logits"),
        (lambda logits: torch.ones((), requires_grad=True) * 2, "gave what does not depend on the logits"),
        (lambda logits: logits.sum() * math.nan, "gave nan, which has no finite gradient"),
        (lambda logits: (logits[0, 3] - logits[0, 3].detach()).sqrt(), "gave 0.0, which has no finite gradient"),
        (lambda logits: logits[0, 99], r"failed at logits of shape \(1, 97\): IndexError: index 99"),
    ],
)
def test_functions_that_give_no_scalar_of_the_logits(function, message, tiny):
    with pytest.raises(ValueError, match=f"^target, the function <lambda>, {message}") as raised:
        attribute(tiny("llama"), [1, 2, 3, 4], function)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"answer": [5, 6], "other": [5, 6]}, ValueError, r"are the same tokens: give two answers that differ"),
        ({"answer": ("logprob", [5]), "other": [6]}, ValueError, "compare both by the same"),
        ({"answer": [5], "other": [97]}, ValueError, "the other answer: answer 97 is outside the vocabulary"),
        ({"answer": [5], "other": None}, ValueError, "two answers are compared: give both"),
    ],
)
def test_answers_that_cannot_be_compared(arguments, error, message, tiny):
    model = tiny("llama")
    model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(error, match=message):
        compare_answers(model, [1, 2, 3, 4], **arguments)


def same(one, two):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in ((getattr(one, field.name), getattr(two, field.name)) for field in fields(one))
    )


SHOWN = {
    "a log-probability": ("Why #3 after position 22?", r"log-probability -\d.* = .* \(rank \d+\)"),
    "a log-probability a position": ("Why these 3 next tokens? The sum of their log-probabilities", "  after 4: #3"),
    "a function": ("Why this value of a function of the logits after 4, 9, 22?", r"value \+"),
    "an answer": ("Why these 3 next tokens? The sum of their logits is", "  after 22: #5"),
}


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_new_kinds_are_saved_loaded_and_shown(tiny, ids, tmp_path, name, dtype):
    result = attribute(tiny("llama", dtype), ids, **TARGETS[name][0], graph=GraphSpec(topk=2))
    result.save(tmp_path / "case.safetensors")
    result.graph.save(tmp_path / "graph.safetensors")
    assert same(lrp_fast.load(tmp_path / "case.safetensors"), replace(result, graph=None))
    assert lrp_fast.Graph.load(tmp_path / "graph.safetensors").manifest == result.graph.manifest
    question, value = SHOWN[name]
    first, second, *_ = headline(result, 3, len(result.input_ids))
    assert first.startswith(question) and re.match(value, second)
    assert first in table(result) and f"{len(result.input_ids)} tokens" in table(result)
    named = result.explained.terms[-1].target.rank < 10 and name != "a function"
    assert best_table(result.explained).count("target") == named
    write_html(result, tmp_path / "case.html")
    assert as_json(result)["explained"]["kind"] == result.explained.kind and in_a_notebook(result)
    exported = result.graph.to_attribution_graph("case")
    outputs = [node for node in exported["nodes"] if node["feature_type"] == "logit"]
    links = {link["target"]: link["weight"] for link in exported["links"]}
    count = len(result.explained.terms)
    assert len(outputs) == count * (1 + (result.explained.kind == "logprob"))
    total = sum(links[node["node_id"]] for node in outputs)
    expected = result.layers[-1].sum().item() if name == "a function" else result.value
    assert total == pytest.approx(expected, rel=1e-5)


def test_notes_say_what_an_answer_and_a_function_are(tiny, ids):
    model = tiny("llama")
    assert attribute(model, ids, answer=[5, 7, 9]).explained.note == (
        "The answer is 3 tokens, all but the last of which now end the prompt; explained is the sum of their logits."
    )
    assert "of their log-probabilities." in attribute(model, ids, answer=("logprob", [5, 7])).explained.note
    assert "of their differences." in attribute(model, ids, answer=[5, 7], contrast=("top", 2)).explained.note
    against = attribute(model, ids, answer=[5, 7], contrast=[5, 8])
    assert "share their first 1 token token 5, which now ends the prompt" in against.explained.note
    long = attribute(model, ids, answer=[5] * 80, contrast=[6] * 90).explained.note
    assert long.startswith("answer [5, 5, 5") and "... is 80 tokens; its first, token 5" in long
    assert len(long) < 600
    assert attribute(model, ids, odds).explained.note == (
        "What is explained is odds, a function of the logits: the tokens named here are the model's first choices."
    )


def test_a_file_that_contradicts_the_new_kinds_is_refused(tiny, ids):
    said = asdict(attribute(tiny("llama"), ids, ("logprob", 3)).explained)
    assert Explained.from_dict(said)
    term = said["terms"][0]
    below = said | {"terms": [term | {"contrast_logit": term["runner_up"]["logit"] - 1}]}
    with pytest.raises(TypeError, match="must be the log of a sum over all tokens, and is below the highest"):
        Explained.from_dict(below)
    with pytest.raises(TypeError, match="has not the contrast of the kind 'logprob'"):
        Explained.from_dict(said | {"terms": [term | {"contrast_logit": None}]})
    with pytest.raises(TypeError, match="must be the model's first choice, as a function has no target of its own"):
        Explained.from_dict(said | {"kind": "function", "terms": [term | {"contrast_logit": None}]})


def test_an_answer_by_token_adds_up_to_the_answer(family, tiny, ids):
    """Each of its tokens is what that token alone is at its position, behind what comes before it."""
    model = tiny(family, torch.float64)
    for answer, contrast in (([5, 7, 9], None), (("logprob", [5, 7, 9]), None), ([5, 7, 9], ("top", 2))):
        found = attribute(model, ids, answer=answer, contrast=contrast, by_token=True)
        whole = attribute(model, ids, answer=answer, contrast=contrast)
        total = sum(one.layers for one in found)
        near = 2**-24 if family == "cohere" else 1e-12  # which rotates in float32
        assert (total - whole.layers).abs().max() <= near * whole.layers.abs().max()
        assert [one.explained.terms for one in found] == [[term] for term in whole.explained.terms]
        assert abs(sum(one.value for one in found) - whole.value) <= 1e-12 * abs(whole.value)
    (alone,) = attribute(model, ids, answer=[5], by_token=True)
    assert torch.equal(alone.layers, attribute(model, ids, 5).layers)


def test_what_by_token_does_not_take(tiny, ids):
    model = tiny("llama")
    for given, message in (
        ({"target": 3}, "by_token explains every token of an answer, and there is none: give answer="),
        ({"answer": [3, 5], "contrast": [3, 6]}, "the contrast is a second one: leave either out"),
    ):
        with pytest.raises(ValueError, match=message):
            attribute(model, ids, **given, by_token=True)


def test_where_prompt_and_answer_would_be_written_otherwise_is_told(smollm2):
    model, tokenizer = smollm2
    seam = "would be other tokens where they meet"
    for prompt, answer, told in (
        ("The capital of Austra", "lia is big", True),
        ("The capital is", " Canberra", False),
        ("The capital is", ("logprob", " Canberra, not"), False),
    ):
        result = attribute(model, prompt, answer=answer, tokenizer=tokenizer)
        assert (seam in result.explained.note) == told, prompt


def test_a_function_without_a_graph_costs_a_batch_its_own_row_alone(tiny):
    def five(logits):
        with torch.no_grad():
            return logits[0, 5]

    model = tiny("llama")
    with pytest.raises(ValueError, match="five, gave what does not depend on the logits"):
        attribute(model, [1, 2, 3], target=five)
    one, two = lrp_fast.attribute_batch(model, [[1, 2, 3], [4, 5]], target=[five, 7], return_exceptions=True)
    assert isinstance(one, ValueError) and abs(two.value - attribute(model, [4, 5], 7).value) <= 1e-4
    for name, given in (("answer", [3]), ("observe", []), ("sources", {})):
        with pytest.raises(TypeError, match=f"attribute_batch takes no {name}=: explain these prompts one by one"):
            lrp_fast.attribute_batch(model, [[1, 2, 3]], **{name: given})

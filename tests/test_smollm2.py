"""The identities on a real model, SmolLM2-135M-Instruct, and prompts that are out of the ordinary."""

import pytest
import torch

import lrp_fast
from lrp_fast import attribute, patched

PROMPT = "The capital of Australia is"
PAIR = {"target": " Sydney", "contrast": " Canberra"}
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def results(smollm2):
    model, tokenizer = smollm2
    return {rule: attribute(model, PROMPT, **PAIR, rule=rule, tokenizer=tokenizer) for rule in ("attnlrp", "cp")}


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
def test_last_node_is_the_logit_difference(results, rule):
    """Identity 1. The sum of D products rounds in proportion to their size, here that of the two logits."""
    result = results[rule]
    (term,) = result.explained.terms
    size = abs(term.target.logit) + abs(term.contrast.logit)
    assert abs(result.layers[-1, -1].item() - result.value) <= 576**0.5 * EPS * size
    assert result.layers.shape == (31, 5) and not result.layers[-1, :-1].any()


def test_cp_conserves_the_logit_difference_at_every_layer(results):
    """Identity 3. Each of the 30 layers rounds its sums of at most 1536 products, relative to all relevance in it."""
    result = results["cp"]
    allowed = 30 * 1536**0.5 * EPS * result.layers.abs().sum(-1).max()
    assert (result.layers.sum(-1) - result.value).abs().max() <= allowed


def test_attribution_equals_the_one_shot_route(smollm2, results):
    model, _ = smollm2
    result = results["attnlrp"]
    x = model.get_input_embeddings()(result.input_ids[None]).detach().requires_grad_()
    (term,) = result.explained.terms
    with patched(model):
        logits = model(inputs_embeds=x).logits[0, -1]
        (logits[term.target.id] - logits[term.contrast.id]).backward()
    truth = (x.detach() * x.grad).sum(-1)[0]
    assert (result.relevance - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_logits_keep_their_bits_and_the_model_is_untouched(smollm2):
    """Identities 4 and 5."""
    model, tokenizer = smollm2
    ids = tokenizer(PROMPT * 30, return_tensors="pt").input_ids
    state = [sorted(module.__dict__) for module in model.modules()]
    with torch.no_grad():
        plain = model(ids).logits
        with patched(model):
            assert torch.equal(model(ids).logits, plain)
    assert [sorted(module.__dict__) for module in model.modules()] == state
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_call_twice_gives_the_same_numbers(smollm2, results):
    model, tokenizer = smollm2
    again = attribute(model, PROMPT, **PAIR, tokenizer=tokenizer)
    assert torch.equal(again.layers, results["attnlrp"].layers) and again.explained == results["attnlrp"].explained


@pytest.mark.parametrize(
    "prompt",
    ["a", "\U0001f9d1\u200d\U0001f680 \u0645\u0631\u062d\u0628\u0627", "<|im_start|>user\n1+1<|im_end|>", "\n"],
)
def test_odd_prompts(smollm2, prompt, tmp_path):
    model, tokenizer = smollm2
    result = attribute(model, prompt, contrast=("top", 1), tokenizer=tokenizer)
    assert len(result.tokens) == len(result.special) == result.layers.shape[1] == len(result.input_ids)
    assert any(result.special) == ("<|im_start|>" in prompt)
    assert result.value > 0
    result.save(tmp_path / "odd")
    assert torch.equal(lrp_fast.load(tmp_path / "odd").layers, result.layers)


def test_the_prompt_grows_by_what_the_strings_share(smollm2):
    model, tokenizer = smollm2
    result = attribute(model, "1, 2, 3, and so on up to", target=" 123", contrast=" 124", tokenizer=tokenizer)
    assert "".join(result.tokens).endswith(" up to 12")
    assert (result.explained.terms[0].target.text, result.explained.terms[0].contrast.text) == ("3", "4")
    with pytest.raises(ValueError, match="can only be compared behind the prompt: use position=-1"):
        attribute(model, "1, 2, 3", target=" 123", contrast=" 124", tokenizer=tokenizer, position=0)

"""Methods against slow definitions of theirs, on tiny models."""

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import Rules, question
from lrp_fast.evaluate import methods
from lrp_fast.evaluate.methods import METHODS, ByRule, IntegratedGradients, LeaveOneOut, Random, named
from lrp_fast.rules import _TREATMENTS
from lrp_fast_cli import evaluate as options


@pytest.fixture(scope="module")
def llama(tiny):
    return tiny("llama", torch.float64)


def asked(model, ids, target=5, contrast=7):
    return question.read(model, ids, target, contrast, -1, "gradient", None)


def scores(name, model, ids, **given):
    method = METHODS[name] if isinstance(name, str) else name
    found = method(model, ids[0], asked(model, ids, **given))
    assert found.shape == (ids.shape[1],) and found.isfinite().all()
    return found.double()


def difference(model, embedded):
    """logit 5 - logit 7 behind the last of (1, N, D) embeddings."""
    logits = model(inputs_embeds=embedded, use_cache=False).logits[0, -1]
    return logits[5] - logits[7]


def gradient(model, embedded):
    leaf = embedded.detach().requires_grad_()
    return torch.autograd.grad(difference(model, leaf), leaf)[0]


def close(found, truth, within=1e-9):
    return (found - truth).abs().max() <= within * truth.abs().max()


def test_random_is_the_same_for_the_same_prompt_and_seed(llama, ids):
    one = scores("random", llama, ids)
    assert torch.equal(one, scores("random", llama, ids))
    assert not torch.equal(one, scores(Random(seed=1), llama, ids))
    assert not torch.equal(one[:-1], scores("random", llama, ids[:, :-1]))
    assert len(set(one.tolist())) == ids.shape[1]


def test_position(llama, ids):
    assert scores("position", llama, ids).tolist() == list(range(ids.shape[1]))


def test_gradient_is_gradient_times_input(tiny, ids):
    """In float64, where transformers' norms would compute in float32: of their code as `patched` keeps it."""
    model = tiny("llama", torch.float64)
    embedded = model.get_input_embeddings()(ids).detach()
    with lrp_fast.patched(model, "gradient"):
        truth = (embedded * gradient(model, embedded)).sum(-1)[0]
    assert close(scores("gradient", model, ids), truth)
    assert close(scores("abs_gradient", model, ids), truth.abs())
    assert (truth < 0).any()


@pytest.mark.parametrize("rule", list(_TREATMENTS))
def test_ours_is_attribute(llama, ids, rule):
    truth = lrp_fast.attribute(llama, ids, target=5, contrast=7, rule=rule).relevance
    assert torch.equal(scores(rule, llama, ids), truth)
    assert METHODS[rule].rules == Rules(rule)


def test_integrated_gradients_by_hand(tiny, ids):
    model = tiny("llama")
    embedded = model.get_input_embeddings()(ids).detach()
    total = sum(gradient(model, (k + 0.5) / 7 * embedded) for k in range(7)) / 7
    truth = (embedded * total).sum(-1)[0].double()
    assert close(scores(IntegratedGradients(steps=7), model, ids), truth, 1e-4)


def test_integrated_gradients_add_up(tiny, ids):
    """With norms that do not change at once next to zero, to the difference from zero."""
    model = tiny("llama", rms_norm_eps=1.0)
    embedded = model.get_input_embeddings()(ids).detach()
    with torch.no_grad():
        change = float(difference(model, embedded) - difference(model, torch.zeros_like(embedded)))
    assert float(scores(IntegratedGradients(steps=200), model, ids).sum()) == pytest.approx(change, rel=1e-3)


def test_integrated_gradients_take_at_least_one_step():
    with pytest.raises(ValueError, match="steps must be 1 or more, not 0"):
        IntegratedGradients(steps=0)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma2", "gpt_oss", "mistral"])
def test_attention_is_what_eager_attention_hands_out(tiny, ids, family):
    """Windows, soft-caps and sinks included."""
    model = tiny(family)
    eager = tiny(family)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        handed = eager(input_ids=ids, output_attentions=True, use_cache=False).attentions
    means = [one[0].mean(0).double() for one in handed]
    assert close(scores("last_attention", model, ids), means[-1][-1], 1e-4)
    product = torch.eye(ids.shape[1], dtype=torch.float64)
    for one in means:
        product = (one + torch.eye(len(one))) / 2 @ product
    assert close(scores("attention_rollout", model, ids), product[-1], 1e-4)
    assert model.config._attn_implementation != "eager" or family in ("gemma2", "gpt_oss")


def test_long_prompts_are_read_some_queries_at_a_time(tiny, ids, monkeypatch):
    model = tiny("llama")
    whole = scores("attention_rollout", model, ids)
    monkeypatch.setattr("lrp_fast.hf.matrices._SCORES", 4 * 23 * 5)
    assert close(scores("attention_rollout", model, ids), whole, 1e-6)


def test_a_model_without_matrices_says_so(ids):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 97, "state_size": 4}
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    with pytest.raises(ValueError, match=r"layer 0 of MambaForCausalLM gives no attention matrix, as its tokens meet"):
        scores("last_attention", model, ids)


@pytest.mark.parametrize("replacement", ["zero", "left out"])
def test_leave_one_out_by_hand(tiny, ids, replacement):
    model = tiny("llama")
    embedded = model.get_input_embeddings()(ids).detach()
    truth = []
    with torch.no_grad():
        whole = difference(model, embedded)
        for i in range(ids.shape[1]):
            without = embedded.clone()
            without[:, i] = 0
            if replacement == "left out":
                without = torch.cat([embedded[:, :i], embedded[:, i + 1 :]], 1)
            truth.append(float(whole - difference(model, without)))
    assert close(scores(LeaveOneOut(replacement), model, ids), torch.tensor(truth).double(), 1e-4)


def test_leave_some_out(tiny, ids):
    found = scores(LeaveOneOut(units=5), tiny("llama"), ids)
    assert [len(set(part.tolist())) for part in found.split(5)] == [1] * 5
    embedded = tiny("llama").get_input_embeddings()(ids).detach()
    without = embedded.clone()
    without[:, 5:10] = 0
    with torch.no_grad():
        fall = difference(tiny("llama"), embedded) - difference(tiny("llama"), without)
    assert float(found[5:10].sum()) == pytest.approx(float(fall), rel=1e-3)


def test_nothing_of_a_model_stays_changed(tiny, ids):
    model = tiny("llama")
    before = [(name, dict(module.__dict__)) for name, module in model.named_modules()]
    for name in METHODS:
        scores(name, model, ids)
    assert [(name, dict(module.__dict__)) for name, module in model.named_modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_words():
    assert named("attnlrp") == METHODS["attnlrp"]
    assert named("attnlrp:gamma=0.1,epsilon=1e-3") == ByRule(Rules("attnlrp", epsilon=1e-3, gamma=0.1))
    assert named("abs_gradient:epsilon=0.5") == ByRule(Rules("gradient", epsilon=0.5), absolute=True)
    assert named("integrated_gradients:steps=5") == IntegratedGradients(5)
    assert named("leave_one_out:units=3,replacement=pad") == LeaveOneOut("pad", 3)
    assert named("leave_one_out:units=sentences") == LeaveOneOut(units="sentences")
    assert set(methods.METHODS) == set(options.METHODS)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lrp", "there is no method 'lrp': name random, position"),
        ("attnlrp:delta=1", "method 'attnlrp:delta=1' has no option 'delta': it has epsilon, gamma"),
        ("attnlrp:gamma", "method 'attnlrp:gamma' has an option without a value: write attnlrp:option=value"),
        ("attnlrp:gamma=much", "method 'attnlrp:gamma=much': gamma must be a number, not 'much'"),
        ("attnlrp:gamma=-1", "gamma must be a finite number >= 0"),
        ("position:from=3", "method 'position:from=3' has no option 'from': it has none"),
    ],
)
def test_words_that_say_nothing(word, message):
    with pytest.raises(ValueError, match=message):
        named(word)

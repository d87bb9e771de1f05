"""LRP among inseq's attribution methods, against the real inseq."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lrp_fast import UnsupportedModuleError, patched

inseq = pytest.importorskip("inseq")
import lrp_fast.compat.inseq  # noqa: E402, F401

PROMPT = [4, 8, 15, 16]


@pytest.fixture(scope="module")
def tokenizer():
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 97)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def text(ids):
    return " ".join(f"w{i}" for i in ids)


def relevance(model, ids, explained, rule):
    """(N, H) of ``explained(logits (V,) of the last position)``."""
    x = model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
    with patched(model, rule):
        explained(model(inputs_embeds=x).logits[0, -1]).backward()
    return (x * x.grad)[0].detach()


def attributed(model, tokenizer, continuation, rule, **named):
    """(steps, N, H): what each token of the continuation owes to each before it."""
    wrapped = inseq.load_model(model, "lrp_fast", tokenizer=tokenizer, rule=rule)
    found = wrapped.attribute(text(PROMPT), text(PROMPT + continuation), show_progress=False, **named)
    return found.sequence_attributions[0].target_attributions.transpose(0, 1)


def close(found, truth):  # inseq holds what it found in float32
    return found.shape == truth.shape and (found - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
def test_each_step_is_that_of_patched(rule, tiny, tokenizer):
    model = tiny("llama")
    found = attributed(model, tokenizer, [23, 42], rule, attributed_fn="logit")
    for step, (before, token) in enumerate([([], 23), ([23], 42)]):
        truth = relevance(model, PROMPT + before, lambda logits, k=token: logits[k], rule)
        assert close(found[step, : len(truth)], truth)
        assert found[step, len(truth) :].isnan().all()  # inseq's sign for what lies ahead


@pytest.mark.filterwarnings("ignore:Contrastive inputs do not match")
@pytest.mark.parametrize(
    ("function", "value"),
    [("contrast_logits_diff", lambda logits: logits), ("contrast_prob_diff", lambda logits: logits.softmax(-1))],
)
def test_contrastive_step_functions(function, value, tiny, tokenizer):
    model = tiny("qwen3")
    found = attributed(model, tokenizer, [23], "attnlrp", attributed_fn=function, contrast_targets=text([*PROMPT, 30]))
    truth = relevance(model, PROMPT, lambda logits: value(logits)[23] - value(logits)[30], "attnlrp")
    assert close(found[0, :4], truth)


def test_nothing_is_left_behind_and_errors_come_through(tiny, tokenizer):
    model = tiny("llama")
    with pytest.raises(ValueError, match="unknown rule 'lrp'"):
        inseq.load_model(model, "lrp_fast", tokenizer=tokenizer, rule="lrp")
    before = [(vars(part).keys(), type(part)) for part in model.modules()]
    attributed(model, tokenizer, [23], "attnlrp")
    assert [(vars(part).keys(), type(part)) for part in model.modules()] == before
    model.model.layers[0].mlp.act_fn = torch.nn.CELU()
    with pytest.raises(UnsupportedModuleError, match="a CELU"):
        attributed(model, tokenizer, [23], "attnlrp")

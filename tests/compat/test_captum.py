"""Captum's conventions, against the real Captum: our method by itself, under its language model class, and its own
methods within `patched`."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import lrp_fast
from lrp_fast import Rules, patched

attr = pytest.importorskip("captum.attr")
from lrp_fast.compat.captum import LayerRelevance  # noqa: E402

RULES = ["attnlrp", "cp", Rules("attnlrp", 0.1, 0.1, 0.1, 0.1)]
FEW_RULES = ["cp", "attnlrp"]


def relevance(model, ids, explained, rule="attnlrp"):
    """(B, N, H) of ``explained(logits (B, V) of the last position)``, summed over B."""
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model, rule):
        explained(model(inputs_embeds=x).logits[:, -1]).sum().backward()
    return (x * x.grad).detach()


def close(found, truth):
    return found.shape == truth.shape and (found - truth).abs().max() <= 1e-12 * truth.abs().max()


def test_a_target_is_a_token_of_the_last_position(family, rule, tiny, ids):
    model = tiny(family, torch.float64)
    found = LayerRelevance(model, rule=rule).attribute(ids, target=3)
    assert found.shape == (1, 23, 64)
    assert close(found, relevance(model, ids, lambda logits: logits[:, 3], rule))


@pytest.mark.parametrize("target", [[3, 5], torch.tensor([3, 5])])
def test_each_row_may_have_a_target(target, tiny, ids):
    model, both = tiny("llama", torch.float64), ids[:, :22].view(2, 11)
    found = LayerRelevance(model).attribute(both, target=target)
    assert close(found, relevance(model, both, lambda logits: logits[[0, 1], [3, 5]]))


def test_a_padding_mask_is_an_additional_argument(tiny, ids):
    model = tiny("llama", torch.float64)
    mask = torch.ones(1, 23, dtype=torch.long)
    mask[0, :4] = 0
    found = LayerRelevance(model).attribute(ids, target=3, additional_forward_args=mask)
    alone = LayerRelevance(model).attribute(ids[:, 4:], target=3)
    assert not found[:, :4].any()
    # Rotary tables are float32 in transformers: shifting a row's positions moves them by their rounding.
    assert (found[:, 4:] - alone).abs().max() <= 1e-4 * alone.abs().max()


def test_a_function_of_the_model_and_other_layers(tiny, ids):
    """Contrasts, with Captum's arguments; every decoder layer's output is what `attribute` calls a layer."""
    model = tiny("llama", torch.float64)

    def difference(input_ids, scale, position):
        logits = model(input_ids).logits[:, position]
        return scale * (logits[:, 3] - logits[:, 5])

    layers = [model.get_input_embeddings(), *model.model.layers]
    found = LayerRelevance(model, layers, forward_func=difference).attribute(ids, additional_forward_args=(2.0, 17))
    truth = lrp_fast.attribute(model, ids, target=3, contrast=5, position=17).layers
    assert close(torch.cat(found).sum(-1), 2 * truth)
    inputs = LayerRelevance(model, model.model.layers[1], forward_func=difference)
    assert close(
        inputs.attribute(ids, additional_forward_args=(2.0, 17), attribute_to_layer_input=True).sum(-1), 2 * truth[1:2]
    )


@pytest.fixture(scope="module")
def tokenizer():
    words = {"<unk>": 0} | {f"w{i}": i for i in range(1, 97)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
def test_under_llm_gradient_attribution(rule, tiny, tokenizer):
    model = tiny("qwen2", torch.float64)
    method = attr.LLMGradientAttribution(LayerRelevance(model, rule=rule), tokenizer)
    prompt = attr.TextTokenInput("w4 w8 w15 w16 w23 w42", tokenizer)
    found = method.attribute(prompt, target="w3 w5")
    assert found.input_tokens == ["w4", "w8", "w15", "w16", "w23", "w42"]
    assert found.token_attr.shape == (2, 6)
    for row, (before, token) in enumerate([([], 3), ([3], 5)]):
        ids = torch.tensor([[4, 8, 15, 16, 23, 42, *before]])
        truth = relevance(model, ids, lambda logits, k=token: logits.log_softmax(-1)[:, k], rule).sum(-1)[0, :6]
        assert close(found.token_attr[row], truth)
    assert close(found.seq_attr, found.token_attr.sum(0))


def test_under_llm_gradient_attribution_what_the_model_generates(tiny, tokenizer):
    model = tiny("llama")
    method = attr.LLMGradientAttribution(LayerRelevance(model), tokenizer)
    prompt = attr.TextTokenInput("w4 w8 w15 w16", tokenizer, skip_tokens=["w8"])
    found = method.attribute(prompt, gen_args={"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0})
    assert found.token_attr.shape == (len(found.output_tokens), 3)
    ids = torch.tensor([[4, 8, 15, 16]])
    with torch.no_grad():
        token = model(ids).logits[0, -1].argmax().item()
    truth = relevance(model, ids, lambda logits: logits.log_softmax(-1)[:, token]).sum(-1)[0, [0, 2, 3]]
    assert (found.token_attr[0] - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_captums_own_gradient_methods_within_patched(tiny, ids):
    model = tiny("llama", torch.float64)
    x = model.get_input_embeddings()(ids).detach()
    with patched(model):
        found = attr.InputXGradient(lambda x: model(inputs_embeds=x).logits[:, -1]).attribute(x, target=3)
    assert close(found.detach(), relevance(model, ids, lambda logits: logits[:, 3]))


def test_nothing_is_left_behind_and_errors_come_through(tiny, ids):
    model = tiny("llama").requires_grad_(False)
    before = [(vars(part).keys(), len(part._forward_hooks)) for part in model.modules()]
    LayerRelevance(model).attribute(ids, target=3)
    assert [(vars(part).keys(), len(part._forward_hooks)) for part in model.modules()] == before
    with pytest.raises(ValueError, match="unknown rule 'lrp'"):
        LayerRelevance(model, rule="lrp")
    with pytest.raises(AssertionError, match="Target not provided"):
        LayerRelevance(model).attribute(ids)
    model.model.layers[0].mlp.act_fn = torch.nn.CELU()
    with pytest.raises(lrp_fast.UnsupportedModuleError, match="a CELU"):
        LayerRelevance(model).attribute(ids, target=3)

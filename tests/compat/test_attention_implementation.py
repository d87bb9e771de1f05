"""`attn_implementation="lrp_fast"`, by itself: a plain attention for any model, and the rule within `patched`."""

import subprocess
import sys

import pytest
import torch

from lrp_fast import patched

WITHOUT_SDPA = ("gemma2", "gpt_oss")  # soft-cap, sinks: their default is eager, which is for float32
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")


@pytest.fixture
def pair(family, tiny):
    """The same weights under transformers' default attention and under ours, and the rounding between them."""
    dtype = torch.float32 if family in WITHOUT_SDPA else torch.float64
    models = tiny(family, dtype), tiny(family, dtype)
    if family in MIXTURES:
        for model in models:
            model.set_experts_implementation("eager")  # the default takes no float64
    models[1].set_attn_implementation("lrp_fast")
    if family.startswith("falcon"):
        assert models[1].config._attn_implementation == "sdpa"
        pytest.skip("Falcon's attention does not go through the interface")
    assert models[1].config._attn_implementation == "lrp_fast"
    if hasattr(models[1].base_model, "_update_causal_mask"):
        with pytest.raises(ValueError, match="a ready attention mask .* newer transformers"):
            models[1](torch.tensor([[1, 2, 3]]))
        pytest.skip("a release of transformers that makes masks of N x N for StableLM")
    return *models, 1e-4 if family in WITHOUT_SDPA else 1e-11


def relevance(model, ids):
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=x).logits[0, -1]
    (logits[3] - logits[5]).backward()
    return (x * x.grad).detach()


def close(found, truth, tolerance):
    return (found - truth).abs().max() <= tolerance * truth.abs().max()


def test_plain_logits_and_gradients_outside_of_patched_and_the_rule_inside(pair, ids):
    default, ours, rounding = pair
    with torch.no_grad():
        assert close(ours(ids).logits, default(ids).logits, rounding)
    plain = relevance(default, ids)
    assert close(relevance(ours, ids), plain, 10 * rounding)
    with patched(default):
        truth = relevance(default, ids)
    with patched(ours):
        assert torch.equal(relevance(ours, ids), truth)
    assert not close(truth, plain, 1e-2)
    assert close(relevance(ours, ids), plain, 10 * rounding)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(pair, side):
    default, ours, rounding = pair
    ids, mask = torch.arange(5, 38).view(3, 11), torch.ones(3, 11, dtype=torch.long)
    for row, n_padded in enumerate((0, 7, 2)):
        mask[row, :n_padded] = 0
    mask = mask if side == "left" else mask.flip(-1)
    with torch.no_grad():
        found, truth = (model(ids, attention_mask=mask).logits for model in (ours, default))
    assert close(found[mask.bool()], truth[mask.bool()], rounding)


def test_generation_with_a_cache(pair, ids):
    """Beyond every window, and with padding that the windows leave behind."""
    default, ours, rounding = pair
    ids, mask = ids[:, :20].view(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    for rows, given in ((ids[1:], mask[1:]), (ids, mask)):
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        options |= {"output_scores": True, "return_dict_in_generate": True, "attention_mask": given}
        found, truth = (model.generate(rows, **options) for model in (ours, default))
        assert torch.equal(found.sequences, truth.sequences)
        for one, other in zip(found.scores, truth.scores, strict=True):
            assert close(one, other, rounding)
        assert len(truth.scores) == 12


def test_padding_that_a_cache_cannot_follow_is_refused(tiny):
    model = tiny("llama")
    model.set_attn_implementation("lrp_fast")
    ids, mask = torch.arange(5, 17).view(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, :4] = 0
    with torch.no_grad():
        cache = model(ids[:, :3], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="row 1 is padded behind its beginning, .*: pad on the left"):
            model(ids[:, 3:], attention_mask=mask, past_key_values=cache)
        cache = model(ids[:, :3], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="row 1 is padded behind its beginning, .*: pad on the left"):
            model(ids[:, 3:], attention_mask=mask.flip(-1), past_key_values=cache)


BY_ITSELF = """
import sys, torch, transformers
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
tables = ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS
before = [dict(table) for table in tables]
directory, ids = sys.argv[1], torch.arange(5, 28)[None]
default = transformers.AutoModelForCausalLM.from_pretrained(directory)
plain = default(ids).logits

import lrp_fast
for table, then in zip(tables, before, strict=True):
    now = {name: one for name, one in table.items() if not name.startswith("lrp_fast")}
    assert now == then and "lrp_fast" in table, now.keys() ^ then.keys()
ours = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="lrp_fast")
assert ours.config._attn_implementation == "lrp_fast" and default.config._attn_implementation == "sdpa"
found = ours(ids).logits
assert (found - plain).abs().max() <= 1e-5 * plain.abs().max()
assert torch.equal(default(ids).logits, plain)
"""


@pytest.mark.slow
def test_from_pretrained_after_nothing_but_the_import(tiny, tmp_path):
    tiny("mistral").save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", BY_ITSELF, tmp_path], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_another_model_of_the_class_keeps_its_attention(tiny, ids):
    one, other = tiny("llama"), tiny("llama")
    plain = other(ids).logits
    one.set_attn_implementation("lrp_fast")
    assert other.config._attn_implementation == "sdpa"
    assert torch.equal(other(ids).logits, plain)

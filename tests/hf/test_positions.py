"""Prompts beyond what the config says: as transformers runs them, in both ways of the backward pass."""

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import Memory, attribute, attribute_batch
from lrp_fast.hf import made_for, position_limit
from tests import decoders, encoders

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [3.0] * 8, "factor": 4.0, "rope_theta": 1e4,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4,
    "original_max_position_embeddings": 32,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


def plain_gradient(model, ids):
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=x, use_cache=False).logits[0, -1, 5].backward()
    return (x * x.grad).sum(-1)[0].detach()


@pytest.mark.parametrize("rope", [YARN, DYNAMIC, LONGROPE, LLAMA3, PLAIN], ids=lambda rope: rope["rope_type"])
def test_any_length_is_what_autograd_makes_of_it_whatever_ran_before(rope, tiny):
    # Its norms compute in float64, as Llama's do not.
    rotations = {"rope_parameters": rope | {"partial_rotary_factor": 1.0}, "rotary_pct": 1.0}
    model = tiny("gpt_neox", torch.float64, max_position_embeddings=32, **rotations)
    for length in (20, 60, 40, 32, 20):
        ids = torch.arange(length)[None] + 7
        truth = plain_gradient(model, ids)
        for memory in (None, Memory(host_budget=lrp_fast.plan(model, length).least["cpu"])):
            result = attribute(model, ids, target=5, rule="gradient", memory=memory)
            assert (result.relevance - truth).abs().max() <= 1e-12 * truth.abs().max()
            beyond = rope is PLAIN and length > 32
            assert result.explained.note == beyond * (
                f"The prompt has {length} tokens, more than the 32 positions that the config says the model was made "
                "for."
            )


def test_a_longer_prompt_leaves_no_trace_in_dynamic_rotations(tiny):
    model = tiny("llama", max_position_embeddings=32, rope_parameters=DYNAMIC)
    long, short = list(range(90)), list(range(40))
    alone = attribute(model, short, target=5).layers
    first, second = attribute_batch(model, [long, short], target=5)
    assert torch.equal(second.layers, alone)
    lrp_fast.between(model, long, 0, 1, [3], target=5)
    assert torch.equal(attribute(model, short, target=5).layers, alone)


def test_a_stretched_model_has_a_length_too(tiny):
    model = tiny("llama", max_position_embeddings=32, rope_parameters=YARN)
    assert attribute(model, [1] * 128, target=5).explained.note == ""
    assert "has 129 tokens, more than the 128 positions" in attribute(model, [1] * 129, target=5).explained.note


def test_which_models_end():
    def config(name, **given):
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **given))

    gpt2 = config("gpt2", n_layer=1, n_positions=77)
    assert position_limit(gpt2) == 77
    opt = config("opt", num_hidden_layers=1, max_position_embeddings=50)
    assert position_limit(opt) == 50  # its table has two rows more
    roberta = config("roberta", num_hidden_layers=1, max_position_embeddings=50, pad_token_id=1)
    assert position_limit(roberta) == 48  # of padding, and of nothing
    gemma3 = config("gemma3_text", num_hidden_layers=1, max_position_embeddings=64)
    assert (position_limit(gemma3), made_for(gemma3)) == (None, 64)
    falcon = config("falcon", num_hidden_layers=1)
    assert (position_limit(falcon), made_for(falcon)) == (None, 2048)


@decoders.TABLE  # of encoders nothing is promised with others
def test_a_table_that_begins_behind_padding_ends_early():
    model = encoders.build("roberta", max_position_embeddings=20)
    most = 19 - model.config.pad_token_id
    assert attribute(model, [*range(5, 5 + most)], target=3, position=2).layers.isfinite().all()
    with pytest.raises(ValueError, match=f"the prompt has {most + 1} tokens, more than the model's {most} positions"):
        attribute(model, [*range(5, 6 + most)], target=3, position=2)

"""Layers that carry a state: what their config, their caches and others' blocks change, and what they do not."""

import pytest
import torch

from lrp_fast import Memory, Rules, attribute, between, patched, plan
from lrp_fast.hf import decoder_layers
from tests import decoders

pytestmark = decoders.RECENT
IDS = torch.randint(3, 97, (1, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
def test_blocks_of_lightning_attention_change_nothing(rule):
    whole, parts = (attribute(decoders.build("minimax", block_size=size), IDS, 3, 5, rule=rule) for size in (256, 4))
    # The tables of both are in float32.
    assert (whole.layers - parts.layers).abs().max() <= 1e-5 * whole.layers.abs().max()


@pytest.mark.parametrize(
    "model_type", ["kimi_linear", "mamba", "mamba2", "minimax", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm"]
)
def test_a_cache_that_a_state_is_to_be_kept_in_is_refused(model_type):
    model = decoders.build(model_type, torch.float32)
    with patched(model), pytest.raises(ValueError, match="to keep its state in a cache: call with use_cache=False"):
        model(IDS, use_cache=True)


def test_a_model_that_runs_long_prompts_in_parts_runs_them_whole():
    whole, parts = (decoders.build("xlstm", max_inference_chunksize=size) for size in (100, 5))
    assert torch.equal(attribute(whole, IDS, 3, 5).layers, attribute(parts, IDS, 3, 5).layers)
    assert parts.config.max_inference_chunksize == 5


@pytest.mark.parametrize("model_type", ["kimi_linear", "minimax", "recurrent_gemma", "rwkv", "xlstm", "zamba2"])
def test_logits_are_the_models_own_and_it_is_left_as_it_was(model_type):
    """Bits may differ: sums are made in other chunks."""
    model = decoders.build(model_type, torch.float32)
    long = torch.randint(3, 97, (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = model(long, use_cache=False).logits
        with patched(model):
            found = model(long, use_cache=False).logits
        assert torch.equal(model(long, use_cache=False).logits, own)
    assert (found - own).abs().max() <= 1e-4 * own.abs().max()


def test_no_epsilon_rule_for_linear_attention():
    with pytest.raises(ValueError, match="is linear attention, for which lrp_fast has no epsilon and gamma rule"):
        attribute(decoders.build("minimax"), IDS, 3, 5, rule=Rules("attnlrp", epsilon=0.1))


@pytest.mark.parametrize("model_type", ["zamba", "zamba2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_what_layers_pass_to_the_embeddings_arrives_there(model_type, dtype):
    """Some layers read these besides their hidden states: autograd, over all layers at once, knows of it."""
    model = decoders.build(model_type, dtype)
    x = model.get_input_embeddings()(IDS).detach().requires_grad_()
    with patched(model):
        logits = model(inputs_embeds=x, use_cache=False).logits[0, -1].double()
        (logits[3] - logits[5]).backward()
    truth = (x.double() * x.grad.double()).sum(-1)[0].detach()
    for memory in (None, Memory(host_budget=plan(model, 11).least["cpu"])):
        found = attribute(model, IDS, 3, 5, memory=memory).relevance
        assert (found - truth).abs().max() <= (1e-12 if dtype == torch.float64 else 0.05) * truth.abs().max()


def test_between_layers_what_passes_by_a_node_is_not_its_own():
    """From a node to the embeddings by whatever route, also past the layers below it."""
    model, kept = decoders.build("zamba"), []
    handle = decoder_layers(model)[2].register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    x = model.get_input_embeddings()(IDS).detach().requires_grad_()
    with patched(model):
        logits = model(inputs_embeds=x, use_cache=False).logits[0, -1]
        handle.remove()
        (g,) = torch.autograd.grad(logits[3] - logits[5], kept[0], retain_graph=True)
        rows = []
        for row in (2, 9):
            only = torch.zeros_like(g)
            only[:, row] = g[:, row]
            rows.append((x * torch.autograd.grad(kept[0], x, only, retain_graph=True)[0]).sum(-1)[0].detach())
    found = between(model, IDS, 0, 2, [2, 9], 3, 5)
    assert (found - torch.stack(rows)).abs().max() <= 1e-12 * found.abs().max()


@pytest.mark.parametrize("rule", ["cp", "gradient"])
@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba", "jamba"])
def test_a_loop_over_tokens_cuts_no_token_out_by_itself(model_type, rule):
    """Each such view would go back as large as all tokens."""
    found = []
    for length in (5, 11):
        model = decoders.build(model_type)
        x = model.get_input_embeddings()(IDS[:, :length]).detach().requires_grad_()
        with patched(model, rule=rule):
            coming, seen = [model(inputs_embeds=x, use_cache=False).logits[0, -1, 3].grad_fn], set()
        while coming:
            step = coming.pop()
            if step is not None and step not in seen:
                seen.add(step)
                coming += [one for one, _ in step.next_functions]
        found.append(sum(step.name().startswith("SelectBackward") for step in seen))
    assert found[0] == found[1]

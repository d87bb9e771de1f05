"""The rule "gim" on a whole model, against plain autograd through a Llama that is written out here."""

import pytest
import torch
from torch.nn import functional as F

import lrp_fast
from lrp_fast import Rules


class Tempered(torch.autograd.Function):
    """softmax(s) forth, and back the Jacobian of softmax at s / 2."""

    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx, g):
        (scores,) = ctx.saved_tensors
        p = (scores / 2).softmax(-1)
        return p * g - p * (p * g).sum(-1, keepdim=True)


def half(x):
    """x, of whose gradient one half is handed on."""
    return x / 2 + (x / 2).detach()


def norm(x, weight, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt().detach() * weight


def rotated(x, cos, sin):
    one, other = x.chunk(2, -1)
    return x * cos + torch.cat([-other, one], -1) * sin


def oracle(model, ids, target, contrast):
    """x * g of the input embeddings, of logits' difference behind the last token."""
    config, body = model.config, model.model
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    size, length = config.hidden_size // heads, ids.shape[1]
    leaf = body.embed_tokens(ids)[0].detach().requires_grad_()
    cos, sin = body.rotary_emb(leaf, torch.arange(length)[None])  # in float32, as transformers makes them
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    x = leaf
    for layer in body.layers:
        y = norm(x, layer.input_layernorm.weight, config.rms_norm_eps)
        attention = layer.self_attn
        q, k, v = (
            part(y).unflatten(-1, (-1, size)).transpose(0, 1)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        k, v = (one.repeat_interleave(groups, 0) for one in (k, v))
        scores = (half(q) @ half(k).mT * size**-0.5).masked_fill(hidden, -torch.inf)
        out = half(Tempered.apply(scores)) @ half(v)
        x = x + attention.o_proj(out.transpose(0, 1).flatten(1))
        y = norm(x, layer.post_attention_layernorm.weight, config.rms_norm_eps)
        mlp = layer.mlp
        x = x + mlp.down_proj(half(F.silu(mlp.gate_proj(y))) * half(mlp.up_proj(y)))
    logits = model.lm_head(norm(x, body.norm.weight, config.rms_norm_eps))[-1]
    (g,) = torch.autograd.grad(logits[target] - logits[contrast], leaf)
    return (leaf * g).sum(-1).detach(), logits.detach()


@pytest.fixture(scope="module")
def llama(tiny):
    return tiny("llama", torch.float64)


def test_equals_autograd_in_float64(llama, ids):
    truth, logits = oracle(llama, ids, 5, 7)
    result = lrp_fast.attribute(llama, ids, target=5, contrast=7, rule="gim")
    assert abs(result.value - float(logits[5] - logits[7])) <= 1e-10
    assert (result.relevance - truth).abs().max() <= 1e-9 * truth.abs().max()
    other = lrp_fast.attribute(llama, ids, target=5, contrast=7).relevance
    assert (other - truth).abs().max() > 1e-3 * truth.abs().max()


def test_patched_equals_the_pass(llama, ids):
    truth, _ = oracle(llama, ids, 5, 7)
    x = llama.get_input_embeddings()(ids).detach().requires_grad_()
    with lrp_fast.patched(llama, "gim"):
        logits = llama(inputs_embeds=x).logits[0, -1]
        (logits[5] - logits[7]).backward()
    assert ((x * x.grad).sum(-1)[0] - truth).abs().max() <= 1e-9 * truth.abs().max()


def test_streamed_and_in_a_batch(llama, ids, tmp_path):
    alone = lrp_fast.attribute(llama, ids, target=5, contrast=7, rule="gim").layers
    least = max(lrp_fast.plan(llama, ids.shape[1], rule="gim", device="cpu").least.values())
    memory = lrp_fast.Memory(host_budget=2 * least, offload_dir=str(tmp_path))
    streamed = lrp_fast.attribute(llama, ids, target=5, contrast=7, rule="gim", memory=memory).layers
    assert (streamed - alone).abs().max() <= 1e-10 * alone.abs().max()
    rows = [ids[0, :17].tolist(), ids[0].tolist()]
    _, second = lrp_fast.attribute_batch(llama, rows, target=5, contrast=7, rule="gim")
    assert (second.layers - alone).abs().max() <= 1e-10 * alone.abs().max()


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "qwen3_moe", "falcon"])
def test_the_pass_equals_patched_in_other_families(tiny, ids, family):
    """Soft-caps, sinks, windows, experts and code of its own."""
    model = tiny(family, torch.float64)
    found = lrp_fast.attribute(model, ids, target=5, contrast=7, rule="gim").relevance
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with lrp_fast.patched(model, "gim"):
        logits = model(inputs_embeds=x).logits[0, -1]
        (logits[5] - logits[7]).backward()
    of_patched = (x * x.grad).sum(-1)[0]
    assert found.any() and (found - of_patched).abs().max() <= 1e-8 * of_patched.abs().max()


@pytest.mark.parametrize("what", ["graph", "tolerance"])
def test_graph_and_tolerance_are_refused_before_anything_runs(llama, ids, what, monkeypatch):
    more = {what: lrp_fast.GraphSpec(topk=4) if what == "graph" else 0.1}
    monkeypatch.setattr("lrp_fast.attribution.propagate", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=f"rule 'gim' takes no {what}: leave it out"):
        lrp_fast.attribute(llama, ids, target=5, contrast=7, rule=Rules("gim"), **more)

"""Decoder layers of each kind against the definitions: the layer's formula, each operation's backward the reference's.

Each formula is written out here from the family's paper or report; rotations and sums are left to autograd.
"""

import pytest
import torch

from lrp_fast import Rules, patched, reference
from lrp_fast.hf import decoder_layers

N = 23
RULES = [
    Rules("attnlrp"), Rules("cp"), Rules("gradient"), Rules("attnlrp", 0.01, 0.1, 0.02, 0.2), Rules("cp", 0.01),
]  # fmt: skip


class By(torch.autograd.Function):
    """``forward(*tensors)``, whose backward pass is ``backward(g, *tensors)``."""

    @staticmethod
    def forward(ctx, forward, backward, *tensors):
        ctx.rule = backward
        ctx.save_for_backward(*tensors)
        return forward(*tensors)

    @staticmethod
    def backward(ctx, g):
        found = ctx.rule(g, *ctx.saved_tensors)
        return None, None, *(found if isinstance(found, tuple) else (found,))


class Definitions:
    """The operations of one layer under one rule."""

    def __init__(self, rules):
        self.rules, self.rule = rules, {"rule": rules.name}
        self.linears = {"epsilon": rules.epsilon, "gamma": rules.gamma}
        self.scores = {"epsilon": rules.attention_epsilon, "gamma": rules.attention_gamma}

    def linear(self, x, weight, bias=None):
        def backward(g, x):
            return reference.linear_backward(g, x, weight, bias, **self.linears)

        return By.apply(lambda x: reference.linear(x, weight, bias), backward, x)

    def of(self, module, x):
        return self.linear(x, module.weight.T if hasattr(module, "nf") else module.weight, module.bias)

    def rms_norm(self, x, weight, eps):
        def backward(g, x):
            return reference.rms_norm_backward(g, x, weight, eps, **self.rule)

        return By.apply(lambda x: reference.rms_norm(x, weight, eps), backward, x)

    def layer_norm(self, x, weight, bias, eps):
        def backward(g, x):
            return reference.layer_norm_backward(g, x, weight, eps, **self.rule)

        return By.apply(lambda x: reference.layer_norm(x, weight, bias, eps), backward, x)

    def activation(self, z, kind):
        def backward(g, z):
            return reference.activation_backward(g, z, kind, **self.rule)

        return By.apply(lambda z: reference.activation(z, kind), backward, z)

    def gated(self, gate, up, kind):
        def backward(g, gate, up):
            return reference.gated_mlp_backward(g, gate, up, kind, **self.rule)

        return By.apply(lambda gate, up: reference.gated_mlp(gate, up, kind), backward, gate, up)

    def identity(self, z, function, ratio):
        if self.rules.name == "gradient":
            return function(z)
        return By.apply(function, lambda g, z: g * ratio(z), z)

    def product(self, weight, value):
        """Half each, or all to the value."""
        one, two = {"attnlrp": (0.5, 0.5), "cp": (0, 1), "gradient": (1, 1)}[self.rules.name]

        def backward(g, weight, value):
            return (one * g * value).sum_to_size(weight.shape), two * g * weight

        return By.apply(lambda weight, value: weight * value, backward, weight, value)

    def attention(self, query, key, value, **given):
        window = given.pop("window", None)
        mask = reference.visible(1, N, N, window=window)

        def backward(g, *tensors):
            return reference.attention_backward(g, *tensors, mask, **given, **self.rule, **self.scores)

        return By.apply(lambda *tensors: reference.attention(*tensors, mask, **given), backward, query, key, value)


def heads(x, count):
    return x.view(1, N, count, -1).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).reshape(1, N, -1)


def rotated(x, tables):
    """The first features of each head, as many as the tables have, turned in pairs of one half and the other."""
    cos, sin = (table.to(x.dtype).unsqueeze(1) for table in tables)
    turned, still = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    one, two = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-two, one], -1) * sin, still], -1)


def gpt_neox(do, layer, h, tables):
    first, second, attention = layer.input_layernorm, layer.post_attention_layernorm, layer.attention
    x = do.layer_norm(h, first.weight, first.bias, first.eps)
    query, key, value = heads(do.of(attention.query_key_value, x), 4).chunk(3, -1)
    a = do.attention(rotated(query, tables), rotated(key, tables), value, scale=16**-0.5)
    y = do.layer_norm(h, second.weight, second.bias, second.eps)
    m = do.of(layer.mlp.dense_4h_to_h, do.activation(do.of(layer.mlp.dense_h_to_4h, y), "gelu"))
    return h + do.of(attention.dense, joined(a)) + m


def falcon(do, layer, h, tables):
    """Of one key/value head or some; the MLP behind the attention, or beside it with a norm of its own or the same."""
    attention, norms = layer.self_attention, dict(layer.named_children())

    def norm(*names):
        module = next(norms[name] for name in names if name in norms)
        return lambda h: do.layer_norm(h, module.weight, module.bias, module.eps)

    first = norm("ln_attn", "input_layernorm")
    fused, keys = do.of(attention.query_key_value, first(h)), attention.num_kv_heads
    query, key, value = fused.view(1, N, keys, 4 // keys + 2, 16).split([4 // keys, 1, 1], 3)
    query, key, value = (part.reshape(1, N, -1, 16).transpose(1, 2) for part in (query, key, value))
    a = do.attention(rotated(query, tables), rotated(key, tables), value, scale=16**-0.5)
    a = do.of(attention.dense, joined(a))
    behind = "post_attention_layernorm" in norms
    x = norm("post_attention_layernorm")(h + a) if behind else norm("ln_mlp", "input_layernorm")(h)
    return h + a + do.of(layer.mlp.dense_4h_to_h, do.activation(do.of(layer.mlp.dense_h_to_4h, x), "gelu"))


def gpt2(do, layer, h, tables):
    x = do.layer_norm(h, layer.ln_1.weight, layer.ln_1.bias, layer.ln_1.eps)
    query, key, value = (heads(part, 4) for part in do.of(layer.attn.c_attn, x).chunk(3, -1))
    h = h + do.of(layer.attn.c_proj, joined(do.attention(query, key, value, scale=16**-0.5)))
    x = do.layer_norm(h, layer.ln_2.weight, layer.ln_2.bias, layer.ln_2.eps)
    return h + do.of(layer.mlp.c_proj, do.activation(do.of(layer.mlp.c_fc, x), "gelu_tanh"))


def projected(do, attention, x):
    return (heads(do.of(getattr(attention, f"{name}_proj"), x), n) for name, n in (("q", 4), ("k", 2), ("v", 2)))


def gemma(do, layer, h, tables):
    """Gemma 2 and 3: norms before and after each branch, their weights kept less 1."""

    def norm(module, x):
        return do.rms_norm(x, 1 + module.weight, module.eps)

    attention = layer.self_attn
    query, key, value = projected(do, attention, norm(layer.input_layernorm, h))
    given = {"scale": 10**-0.5, "window": attention.sliding_window}
    if hasattr(attention, "q_norm"):
        query, key = norm(attention.q_norm, query), norm(attention.k_norm, key)
    else:
        given["softcap"] = 3.0
    a = do.attention(rotated(query, tables), rotated(key, tables), value, **given)
    h = h + norm(layer.post_attention_layernorm, do.of(attention.o_proj, joined(a)))
    x = norm(layer.pre_feedforward_layernorm, h)
    hidden = do.gated(do.of(layer.mlp.gate_proj, x), do.of(layer.mlp.up_proj, x), "gelu_tanh")
    return h + norm(layer.post_feedforward_layernorm, do.of(layer.mlp.down_proj, hidden))


def attended(do, layer, h, tables, **given):
    """The first half of a pre-norm layer with RMSNorm, and what its second half starts from."""
    attention, first, second = layer.self_attn, layer.input_layernorm, layer.post_attention_layernorm
    query, key, value = projected(do, attention, do.rms_norm(h, first.weight, first.variance_epsilon))
    if hasattr(attention, "q_norm"):
        query, key = (
            do.rms_norm(x, norm.weight, norm.variance_epsilon)
            for x, norm in ((query, attention.q_norm), (key, attention.k_norm))
        )
    a = do.attention(rotated(query, tables), rotated(key, tables), value, **given)
    return do.of(attention.o_proj, joined(a)), lambda h: do.rms_norm(h, second.weight, second.variance_epsilon)


def granite(do, layer, h, tables):
    a, norm = attended(do, layer, h, tables, scale=0.2)
    h = h + 0.4 * a
    x, mlp = norm(h), layer.mlp
    return h + 0.4 * do.of(mlp.down_proj, do.gated(do.of(mlp.gate_proj, x), do.of(mlp.up_proj, x), "silu"))


def phi3(do, layer, h, tables):
    attention, first, second = layer.self_attn, layer.input_layernorm, layer.post_attention_layernorm
    x = do.rms_norm(h, first.weight, first.variance_epsilon)
    query, key, value = do.of(attention.qkv_proj, x).split([64, 32, 32], -1)
    query, key, value = rotated(heads(query, 4), tables), rotated(heads(key, 2), tables), heads(value, 2)
    a = do.attention(query, key, value, scale=16**-0.5, window=7)
    h = h + do.of(attention.o_proj, joined(a))
    x = do.rms_norm(h, second.weight, second.variance_epsilon)
    return h + do.of(layer.mlp.down_proj, do.gated(*do.of(layer.mlp.gate_up_proj, x).chunk(2, -1), "silu"))


def routed(do, weights, expert, chosen):
    """The weighted sum of what each token's experts say, token by token."""
    out = []
    for n in range(N):
        terms = [do.product(weights[n, k : k + 1], expert(chosen[n, k], n)) for k in range(2)]
        out.append(sum(terms))
    return torch.stack(out)[None]


def qwen_moe(do, layer, h, tables):
    attention = layer.self_attn
    window = getattr(attention, "sliding_window", None)
    a, norm = attended(do, layer, h, tables, scale=attention.head_dim**-0.5, window=window)
    h = h + a
    x, mlp = norm(h), layer.mlp
    weights, chosen = torch.softmax(do.linear(x[0], mlp.gate.weight), -1).topk(2, -1)
    if mlp.gate.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)

    def expert(e, n):
        gate, up = do.linear(x[0, n], mlp.experts.gate_up_proj[e]).chunk(2, -1)
        return do.linear(do.gated(gate, up, "silu"), mlp.experts.down_proj[e])

    m = routed(do, weights, expert, chosen)
    if hasattr(mlp, "shared_expert"):
        shared = mlp.shared_expert
        y = do.of(shared.down_proj, do.gated(do.of(shared.gate_proj, x), do.of(shared.up_proj, x), "silu"))
        m = m + do.product(torch.sigmoid(do.of(mlp.shared_expert_gate, x)), y)
    return h + m


def gpt_oss(do, layer, h, tables):
    attention = layer.self_attn
    tables = [torch.cat([table, table], -1) for table in tables]
    given = {"window": attention.sliding_window, "sinks": attention.sinks}
    a, norm = attended(do, layer, h, tables, scale=24**-0.5, **given)
    h = h + a
    x, router, experts = norm(h), layer.mlp.router, layer.mlp.experts
    weights, chosen = do.linear(x[0], router.weight, router.bias).topk(2, -1)
    weights, limit = torch.softmax(weights, -1), experts.limit

    def swish(z):
        return z.clamp(max=limit) * torch.sigmoid(1.702 * z.clamp(max=limit))

    def expert(e, n):
        both = do.linear(x[0, n], experts.gate_up_proj[e].T, experts.gate_up_proj_bias[e])
        gate = do.identity(both[::2], swish, lambda z: swish(z) / z)
        up = do.identity(both[1::2], lambda z: z.clamp(-limit, limit), lambda z: z.clamp(-limit, limit) / z)
        return do.linear(do.product(gate, up + 1), experts.down_proj[e].T, experts.down_proj_bias[e])

    return h + routed(do, weights, expert, chosen)


LAYERS = {
    "gpt_neox": gpt_neox, "falcon": falcon, "falcon_40b": falcon, "gpt2": gpt2, "gemma2": gemma, "gemma3": gemma,
    "phi3": phi3, "granite": granite,
    "qwen2_moe": qwen_moe, "qwen3_moe": qwen_moe, "gpt_oss": gpt_oss,
}  # fmt: skip


@pytest.mark.shows("attribution")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.epsilon}-{rule.gamma}")
@pytest.mark.parametrize(
    ("family", "config"),
    [(family, {}) for family in LAYERS]
    + [
        ("falcon", {"parallel_attn": False, "multi_query": False, "bias": True}),
        ("falcon_40b", {"num_ln_in_parallel_attn": 1}),
    ],
)
def test_a_layer_is_the_composition_of_the_definitions(family, config, rule, tiny, ids):
    model = tiny(family, torch.float64, **config)
    model.requires_grad_(False)
    calls = []
    layer = decoder_layers(model)[0]
    handle = layer.register_forward_pre_hook(lambda _, args, named: calls.append((args, named)), with_kwargs=True)
    g = torch.randn(1, N, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with patched(model, rule):
        model(ids, use_cache=False)
        handle.remove()
        (h, *rest), named = calls[0]
        leaf = h.clone().requires_grad_()
        out = layer(leaf, *rest, **named)
        out = out[0] if isinstance(out, tuple) else out  # as of older transformers
        (found,) = torch.autograd.grad(out, leaf, g)
    leaf = h.clone().requires_grad_()
    truth = LAYERS[family](Definitions(rule), layer, leaf, named.get("position_embeddings"))
    assert (out - truth).abs().max() <= 1e-10 * truth.abs().max()
    (expected,) = torch.autograd.grad(truth, leaf, g)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.shows("attribution")
@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_capped_logits_pass_relevance_by_the_identity_rule(family, rule, tiny):
    model = tiny(family, torch.float64)
    plain = model(torch.tensor([[1, 2, 3]])).logits
    x = torch.randn(1, 3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    kept = []
    handle = model.model.norm.register_forward_hook(lambda *_: kept.append(x.clone().requires_grad_()) or kept[-1])
    with patched(model, rule):
        logits = model(torch.tensor([[1, 2, 3]])).logits
        g = torch.autograd.grad(logits[0, -1, 5], kept[0])[0][0, -1]
        handle.remove()
        assert (model(torch.tensor([[1, 2, 3]])).logits - plain).abs().max() <= 1e-5 * plain.abs().max()
    scores = model.lm_head.weight @ x[0, -1]
    assert (logits[0, -1] - 4 * torch.tanh(scores / 4)).abs().max() <= 1e-12
    factor = 1 - torch.tanh(scores[5] / 4) ** 2 if rule == "gradient" else 4 * torch.tanh(scores[5] / 4) / scores[5]
    assert (g - factor * model.lm_head.weight[5]).abs().max() <= 1e-12 * g.abs().max()

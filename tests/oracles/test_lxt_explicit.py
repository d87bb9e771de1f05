"""AttnLRP of a small Llama, rebuilt from LXT's explicit rules, against ours.

LXT's explicit functions hand *relevance* down, each operation by its own rule, where we hand down a relevance gradient.
The two share no code and no algebra, which is what makes this an oracle.
"""

import importlib
import sys

import pytest
import torch
import transformers

import lrp_fast

# z + EPSILON is LXT's stabiliser, with no regard to the sign of z, so only its limit can be compared with ours.
# No denominator of these models is exactly 0: the weights are dense and random, and masked scores never divide.
EPSILON = 0.0

N_TOKENS = 23


@pytest.fixture(scope="module")
def lxt():
    """LXT's two explicit modules, gone from sys.modules again afterwards."""
    before = {name for name in sys.modules if name.partition(".")[0] == "lxt"}
    try:
        functional = importlib.import_module("lxt.explicit.functional")
        rules = importlib.import_module("lxt.explicit.rules")
    except ImportError as error:
        pytest.skip(f"LXT's explicit rules do not import ({error}); `pip install --no-deps lxt==2.1` brings them")
    yield functional, rules
    for name in [name for name in sys.modules if name.partition(".")[0] == "lxt"]:
        if name not in before:
            del sys.modules[name]


def random_llama(dtype: torch.dtype, attention_bias: bool = False) -> torch.nn.Module:
    """Three layers with grouped queries; weights large enough that attention and gates are far from uniform."""
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_bias=attention_bias,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif "embed" in name:
                parameter.copy_(noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(1.2 * noise / parameter.shape[1] ** 0.5)
    return model.to(dtype)


def random_ids() -> torch.Tensor:
    return torch.randint(0, 97, (1, N_TOKENS), generator=torch.Generator().manual_seed(1))


def first_and_last(model: torch.nn.Module, input_ids: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """The last position's logits and the ids of the largest and the smallest.

    Two logits that all but cancel would make a test of the model's rounding (its norms go through float32 even in a
    float64 model) instead of a test of the rules.
    """
    with torch.no_grad():
        logits = model(input_ids).logits[0, -1]
    return logits, logits.argmax().item(), logits.argmin().item()


def explicit_relevance(lxt, model, input_ids, target: int, contrast: int) -> torch.Tensor:
    """(L + 1, N) AttnLRP relevance of a Llama's hidden states for logit(target) - logit(contrast) at the last position.

    Args:
        lxt: the modules ``lxt.explicit.functional`` and ``lxt.explicit.rules``.
        model: a LlamaForCausalLM; its weights and its rotary tables are used, none of its forward methods.
        input_ids: (1, N).
    """
    functional, rules = lxt

    def linear(module, x):
        return functional.linear_epsilon(x, module.weight, module.bias, EPSILON)

    def rms_norm(module, x):
        # LXT's own rms_norm_identity goes through float32 whatever it is given; the identity rule takes any function.
        def normalise(x):
            return module.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon))

        return rules.identity(normalise, x)

    def attention(module, x, cos, sin):
        def heads(x):  # (1, N, H * D) -> (1, H, N, D); moving numbers about moves relevance about
            return x.unflatten(-1, (-1, module.head_dim)).transpose(1, 2)

        def rotate(x):
            half = module.head_dim // 2

            def rotation(x):
                return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin

            return rules.epsilon_lrp(rotation, EPSILON, x)  # linear in x, its coefficients are constants

        query = rotate(heads(linear(module.q_proj, x)))
        key = rotate(heads(linear(module.k_proj, x))).repeat_interleave(module.num_key_value_groups, dim=1)
        value = heads(linear(module.v_proj, x)).repeat_interleave(module.num_key_value_groups, dim=1)

        scores = functional.matmul(query, key.transpose(-1, -2), epsilon=EPSILON)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = functional.softmax(scores.masked_fill(future, -torch.inf), -1, temperature=module.scaling**-1)
        output = functional.matmul(weights, value, epsilon=EPSILON)
        return linear(module.o_proj, output.transpose(1, 2).flatten(-2))

    def gated_mlp(module, x):
        gate = rules.identity(torch.nn.functional.silu, linear(module.gate_proj, x))
        return linear(module.down_proj, functional.mul2(gate, linear(module.up_proj, x)))

    decoder = model.model
    hidden = decoder.embed_tokens(input_ids).detach().requires_grad_()
    cos, sin = decoder.rotary_emb(hidden, torch.arange(input_ids.shape[1])[None])
    cos, sin = cos[:, None], sin[:, None]

    nodes = [hidden]
    for layer in decoder.layers:
        mixed = attention(layer.self_attn, rms_norm(layer.input_layernorm, hidden), cos, sin)
        hidden = functional.add2(hidden, mixed, epsilon=EPSILON)
        transformed = gated_mlp(layer.mlp, rms_norm(layer.post_attention_layernorm, hidden))
        hidden = functional.add2(hidden, transformed, epsilon=EPSILON)
        nodes.append(hidden)

    logits = linear(model.lm_head, rms_norm(decoder.norm, hidden))
    relevance = torch.zeros_like(logits)
    relevance[0, -1, target] = logits[0, -1, target]
    relevance[0, -1, contrast] = -logits[0, -1, contrast]
    of_nodes = torch.autograd.grad(logits, nodes, relevance.detach())
    return torch.stack([node.sum(-1)[0] for node in of_nodes])


def worst_layer_gap(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest over layers of max |ours - truth| / max |truth|."""
    gap = (ours.double() - truth.double()).abs().amax(-1) / truth.double().abs().amax(-1)
    return gap.max().item()


def test_last_layer_carries_the_logit_difference(lxt):
    """The oracle itself: the last node's relevance is the logit difference of the model's own forward pass."""
    model, input_ids = random_llama(torch.float64), random_ids()
    logits, target, contrast = first_and_last(model, input_ids)
    relevance = explicit_relevance(lxt, model, input_ids, target, contrast)
    assert relevance.shape == (4, N_TOKENS)
    # 1e-6, because the model's norms go through float32 and the oracle's do not.
    torch.testing.assert_close(relevance[-1, -1], logits[target] - logits[contrast], rtol=1e-6, atol=0)
    assert relevance[-1, :-1].abs().max() == 0


@pytest.mark.parametrize("attention_bias", [False, True])
@pytest.mark.parametrize(("dtype", "gate"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_attribute_agrees_with_lxt_explicit(lxt, dtype, gate, attention_bias):
    """Every layer's relevance; the oracle runs in float64 on the same (rounded) weights in either case."""
    model, input_ids = random_llama(dtype, attention_bias), random_ids()
    _, target, contrast = first_and_last(model, input_ids)
    ours = lrp_fast.attribute(model, input_ids, target=target, contrast=contrast, rule="attnlrp").layers
    truth = explicit_relevance(lxt, model.double(), input_ids, target, contrast)
    assert ours.dtype == dtype
    assert ours.shape == truth.shape
    assert worst_layer_gap(ours, truth) <= gate

"""Attentions that go past transformers' interface, and ALiBi: padding, caches, options, and what is refused.

Nodes and edges of the families are in test_decoders.py.
"""

import pytest
import torch
from torch import nn
from transformers import activations

import lrp_fast
from lrp_fast import GraphSpec, UnsupportedModuleError, attribute, patched
from lrp_fast.hf import check, check_language_model, contributions, decoder_layers, head_dims, layer_sizes
from lrp_fast.hf.alibi import folded
from tests import decoders
from tests.oracles.functional import explained

pytestmark = decoders.RECENT
IDS = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(1))
ALIBI = {"alibi": True, "multi_query": False}
FALCONS = {
    "a head each": ALIBI,
    "one for all": ALIBI | {"multi_query": True},
    "groups": {"alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2},
}
ROUNDED = ("bloom", "mpt")  # their own softmax is of float32, where the least float64 is minus infinity
FAMILIES = [
    "bloom", "ctrl", "falcon", "git", "megatron-bert", "mpt", "mvp", "openai-gpt", "rembert", "roformer", "trocr",
    "xglm",
]  # fmt: skip


def built(family, **more):
    # XGLM's own code computes in float64 only where that is the default.
    dtype = torch.float32 if family == "xglm" else torch.float64
    return decoders.build(family, **{"dtype": dtype} | (ALIBI if family == "falcon" else {}) | more)


def close(found, expected, allowed=1e-12):
    allowed = 2e-5 if expected.dtype == torch.float32 else allowed
    assert (found - expected).abs().max() <= allowed * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_left_changes_no_logits(family):
    model = built(family, **({"dtype": torch.float32} if family in ROUNDED else {}))
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    with torch.no_grad():
        expected = model(IDS, attention_mask=mask, use_cache=False).logits
        with patched(model):
            found = model(IDS, attention_mask=mask, use_cache=False).logits
        assert torch.equal(model(IDS, attention_mask=mask, use_cache=False).logits, expected)
    close(found[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("family", [one for one in FAMILIES if one != "openai-gpt"])
def test_nor_does_a_cache(family):
    model = built(family, **({"encoder_layers": 3} if family == "mvp" else {}))  # its own cache has as many
    with torch.no_grad():
        expected = model(IDS, use_cache=False).logits[:, 7:]
        with patched(model):
            cache = model(IDS[:, :7], use_cache=True).past_key_values
            found = model(IDS[:, 7:], past_key_values=cache, use_cache=True).logits
    close(found, expected, 1e-6 if family in ROUNDED else 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_cp_conserves_without_biases(family):
    model = built(family)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.data.zero_()
    found = attribute(model, IDS[:1], 3, 5, rule="cp", graph=GraphSpec(topk=10**6))
    sums = found.layers.sum(-1)
    assert (sums - found.value).abs().max() <= (1e-4 if family == "xglm" else 1e-11) * found.layers.abs().max()
    for layer in range(3):
        close(found.graph.dense(layer).sum(1), found.layers[layer + 1])


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("heads", FALCONS)
def test_falcon_with_alibi_is_that_of_detached_rules(heads, rule):
    model, plain = (decoders.build("falcon", **FALCONS[heads]) for _ in range(2))
    model.config._attn_implementation = "eager"
    value, nodes, edges = explained(plain, decoder_layers(plain), IDS[:1], 3, 5, rule)
    found = attribute(model, IDS[:1], 3, 5, rule=rule, graph=GraphSpec(topk=10**6))
    assert abs(found.value - value) <= 1e-12
    close(found.layers, nodes)
    for layer, matrix in enumerate(edges):
        close(found.graph.dense(layer), matrix)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_falcon_adds_its_biases_twice_where_its_attention_is_eager_and_so_do_we(implementation):
    model = decoders.build("falcon", **ALIBI)
    model.config._attn_implementation = implementation
    with torch.no_grad():
        expected = model(IDS).logits
        with patched(model):
            close(model(IDS).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [True, False], ids=["in the model's dtype", "in float32"])
def test_a_bias_is_what_it_was_in_the_products_of_any_dtype(own, dtype):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, n, 80, generator=generator).to(dtype).requires_grad_() for n in (2, 70_000))
    bias = torch.tensor([0.5, 2**-0.7, 2**-8.3])[:, None] * torch.arange(-69_999, 1)
    bias = bias.to(dtype)[None] if own else bias[None]
    scale = 80**-0.5
    wide_query, wide_key = folded(query, key, bias, scale)
    assert wide_query.dtype == wide_key.dtype == dtype and wide_key.shape[-1] % 8 == 0
    alone = wide_query[..., 80:].double() @ wide_key[..., 80:].double().transpose(2, 3) * scale
    expected = bias[:, :, None].double().expand_as(alone)
    assert ((alone - expected).abs() <= 2**-22 * expected.abs() + 1e-6 * (dtype == torch.float16)).all()
    assert torch.equal(wide_query[..., :80], query) and torch.equal(wide_key[..., :80], key)


def test_what_an_alibi_adds_to_keys_is_no_contribution():
    model = decoders.build("mpt")
    model.config.attn_config.clip_qkv = None
    for block in model.transformer.blocks:
        block.attn.clip_qkv = None
    check(model)
    assert not layer_sizes(model)[0].plain  # keys are not the map of the input alone
    layer, seen = decoder_layers(model)[0], {}
    see = lambda _, args, named: seen.update(args=args, named=named)  # noqa: E731
    handle = layer.register_forward_pre_hook(see, with_kwargs=True)
    with torch.no_grad(), patched(model):
        model(IDS[:1])
        handle.remove()
        x, rest = seen["args"][0], seen["args"][1:]
        ((keys, values),) = contributions(layer, lrp_fast.Rules(), x, rest, seen["named"], 1)
    assert keys.shape[-1] > 16 and keys[..., :16].any() and not (keys[..., 16:].any() or values[..., 16:].any())


def test_pytorchs_own_gelu_is_either():
    found = []
    for act in (nn.GELU(approximate="tanh"), activations.GELUTanh()):
        model = decoders.build("mpt")
        for block in model.transformer.blocks:
            block.ffn.act = act
        found.append(attribute(model, IDS[:1], 3, 5).layers)
    close(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", ["bloom", "falcon", "mpt"])
def test_a_plan_knows_how_wide_heads_are(family, dtype, monkeypatch):
    model, seen = built(family, dtype=dtype), set()
    own = lrp_fast.ops.attention

    def attend(query, *given, **named):
        seen.add(query.shape)
        return own(query, *given, **named)

    monkeypatch.setattr(lrp_fast.ops, "attention", attend)
    with torch.no_grad(), patched(model):
        model(IDS)
    ((_, heads, _, features),) = seen
    assert head_dims(model) == (features,) and layer_sizes(model)[0].key == heads * features


@pytest.mark.parametrize("family", ["megatron-bert", "rembert", "roformer"])
def test_what_reads_in_both_directions_has_no_next_token(family):
    model = built(family, is_decoder=False)
    with pytest.raises(ValueError, match="reads tokens in both directions .is_decoder is False in its config., so"):
        check_language_model(model)


def test_blooms_product_in_parts_is_refused():
    model = decoders.build("bloom", pretraining_tp=2, slow_but_exact=True)
    with pytest.raises(UnsupportedModuleError, match="BloomAttention, adds up parts .*slow_but_exact=False"):
        check(model)
    check(decoders.build("bloom", pretraining_tp=2))


@pytest.mark.parametrize("family", ["trocr", "xglm", "megatron-bert"])
def test_a_second_sequence_is_refused(family):
    more = {} if family == "trocr" else {"add_cross_attention": True}
    model, other = built(family, **more), torch.randn(1, 5, 64)
    with patched(model), pytest.raises(ValueError, match="does not run where a prompt of text is read"):
        model(IDS[:1], encoder_hidden_states=other.to(model.dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_of_attention_weights_are_refused(family):
    model = built(family)
    with patched(model), pytest.raises(ValueError, match="asks for N x N matrices"):
        model(IDS, output_attentions=True)


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ({"pixel_values": torch.zeros(1, 3, 28, 28)}, "GitVisionModel does not run where a prompt of text is read"),
        ({"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7]])}, "GitModel is given position_ids"),
    ],
)
def test_git_reads_text_alone(named, why):
    model = built("git")
    with patched(model), pytest.raises(ValueError, match=why):
        model(IDS[:1], **named)


@pytest.mark.parametrize("family", ["mpt", "openai-gpt", "xglm"])
def test_a_ready_mask_is_refused(family):
    model = built(family)
    mask = torch.ones(2, 1, 11, 11, dtype=torch.bool).tril()
    mask = mask[:, 0].to(model.dtype) if family == "openai-gpt" else mask
    with patched(model), pytest.raises(ValueError, match="a ready attention mask of shape"):
        model(IDS, attention_mask=mask)


def test_a_prompt_that_is_longer_than_mpts_alibi_is_refused():
    model = decoders.build("mpt", max_seq_len=10)
    with pytest.raises(ValueError, match="11 tokens, and the model's ALiBi ends at 10"):
        attribute(model, IDS[:1], 3, 5)


def test_dropout_is_refused_in_training():
    for family, more in [("bloom", {"hidden_dropout": 0.1}), ("xglm", {"attention_dropout": 0.1})]:
        model = built(family, **more).train()
        with pytest.raises(ValueError, match=r"applies dropout: call model.eval\(\) first"), patched(model):
            model(IDS)

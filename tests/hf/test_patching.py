"""Patching: the identities that every rule and family must keep, scope, and what is refused."""

import copy
import functools
import sys
import types

import pytest
import torch
import transformers
from torch import nn

import lrp_fast
from lrp_fast import Rules, UnsupportedModuleError, attribute, patched, plan
from lrp_fast.hf import coverage, rotations
from lrp_fast.hf.overlay import calling

RULES = ["attnlrp", "cp", "gradient", Rules("attnlrp", 0.1, 0.1, 0.1, 0.1)]
FEW_RULES = ["cp", Rules("attnlrp", 0.1, 0.1, 0.1, 0.1)]
WITHOUT_SDPA = ("gemma2", "gpt_oss")  # soft-cap, sinks
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")  # experts sum their rows in an order of their own
TO_ROUNDING = (*MIXTURES, "falcon", "falcon_40b")  # Falcon hands sdpa a mask, where is_causal would do


def state(model):
    """Everything that patching could leave behind: instance attributes of every module, config contents, hooks."""
    return [
        (path, sorted(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks))
        for path, module in model.named_modules()
    ] + [model.config.to_dict(), model.config._attn_implementation]


def relevance(model, ids, rule="attnlrp", target=3, contrast=5):
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model, rule):
        logits = model(inputs_embeds=x).logits[0, -1]
        (logits[target] - logits[contrast]).backward()
    return (x.detach() * x.grad).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_keep_their_bits(family, dtype, rule, tiny, ids):
    if family in MIXTURES and dtype == torch.bfloat16:
        pytest.skip("rounding may choose another expert")
    model = tiny(family, dtype)
    with torch.no_grad():
        if family in WITHOUT_SDPA:  # what then has the same bits is all but the attention
            eager = model(ids).logits
            model.set_attn_implementation("lrp_fast")
            tolerance = 100 * torch.finfo(dtype).eps
            assert (model(ids).logits - eager).abs().max() <= tolerance * eager.abs().max()
        plain = model(ids).logits
        with patched(model, rule):
            found = model(ids).logits
        if family in TO_ROUNDING:
            assert (found - plain).abs().max() <= 20 * torch.finfo(dtype).eps * plain.abs().max()
        else:
            assert torch.equal(found, plain)
        assert torch.equal(model(ids).logits, plain)


@pytest.mark.shows("attribution")
def test_float64_logits_differ_by_the_norms_float32_rounding_alone(family, tiny, ids):
    model = tiny(family, torch.float64)
    if family in MIXTURES:
        model.set_experts_implementation("eager")  # the default takes no float64
    with torch.no_grad():
        plain = model(ids).logits
        with patched(model):
            found = model(ids).logits
    assert (found - plain).abs().max() <= 1e-5 * plain.abs().max()


@pytest.mark.shows("attribution")
def test_gradient_rule_is_the_plain_gradient(family, tiny, ids):
    model = tiny(family, torch.float32)
    found = relevance(model, ids, "gradient")
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=x).logits[0, -1]
    (g,) = torch.autograd.grad(logits[3] - logits[5], x)
    truth = (x.detach() * g).sum(-1)
    assert (found - truth).abs().max() <= 1e-4 * truth.abs().max()  # both are float32, through 3 layers


@pytest.mark.shows("attribution")
def test_rules_differ(family, tiny, ids):
    model = tiny(family)
    found = [
        relevance(model, ids, rule)
        for rule in ("attnlrp", "cp", "gradient", Rules(epsilon=0.5), Rules(gamma=0.5), Rules(attention_epsilon=0.5))
    ]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 1e-3 * one.abs().max()


@pytest.mark.shows("attribution")
def test_nothing_is_left_behind(family, tiny, ids):
    model = tiny(family)
    before = state(model)
    relevance(model, ids)
    assert state(model) == before
    with pytest.raises(KeyboardInterrupt), patched(model):
        raise KeyboardInterrupt
    assert state(model) == before
    # A look-up's weights get theirs as ever: positions that are learned, even where tokens come as embeddings.
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "wpe" not in name)


def test_other_models_are_untouched_even_with_the_same_config_object(tiny, ids):
    model = tiny("mistral")
    twin = type(model)(model.config).eval()
    twin.load_state_dict(model.state_dict())
    assert twin.config is model.config
    before = state(twin)
    plain = relevance(copy.deepcopy(twin), ids, "gradient")
    with patched(model):
        assert state(twin) == before
        x = twin.get_input_embeddings()(ids).detach().requires_grad_()
        logits = twin(inputs_embeds=x).logits[0, -1]
        (g,) = torch.autograd.grad(logits[3] - logits[5], x)
    torch.testing.assert_close((x.detach() * g).sum(-1), plain, rtol=1e-4, atol=1e-5)


def test_two_models_may_be_patched_at_once_with_different_rules(tiny, ids):
    one, two = tiny("llama"), tiny("qwen3")
    alone = relevance(one, ids, "attnlrp"), relevance(two, ids, "cp")
    with patched(two, "cp"):
        assert torch.equal(relevance(one, ids, "attnlrp"), alone[0])
    with patched(one, "attnlrp"):
        assert torch.equal(relevance(two, ids, "cp"), alone[1])


def test_patching_a_patched_model_is_an_error_and_leaves_the_first_patch(tiny, ids):
    model = tiny("llama")
    expected = relevance(model, ids)
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model):
        for part in (model, model.model, model.model.layers[1].mlp):
            with (
                pytest.raises(RuntimeError, match="is patched already: leave the other lrp_fast.patched block first"),
                patched(part),
            ):
                pass
        logits = model(inputs_embeds=x).logits[0, -1]
        (logits[3] - logits[5]).backward()
    assert torch.equal((x.detach() * x.grad).sum(-1), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_give_each_row_what_it_gives_alone(family, side, tiny):
    model = tiny(family, torch.float64)
    rows = [torch.arange(5, 5 + n) for n in (11, 4, 9)]
    ids, mask = torch.zeros(3, 11, dtype=torch.long), torch.zeros(3, 11, dtype=torch.long)
    places = []
    for row, one in enumerate(rows):
        real = slice(11 - len(one), 11) if side == "left" else slice(0, len(one))
        ids[row, real], mask[row, real] = one, 1
        places.append(real)
    # Of those that shift nothing themselves, learned positions have to be told what is padding.
    learned = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if family == "gpt2" else {}
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model):
        logits = model(inputs_embeds=x, attention_mask=mask, **learned).logits
        sum(logits[row, real.stop - 1, 3] - logits[row, real.stop - 1, 5] for row, real in enumerate(places)).backward()
    for row, real in enumerate(places):
        found = (x * x.grad).detach()[row].sum(-1)
        alone = relevance(model, rows[row][None])[0]
        # Rotary tables are float32 in transformers: shifting a row's positions moves them by their rounding.
        assert (found[real] - alone).abs().max() <= 1e-4 * alone.abs().max()
        outside = [i for i in range(11) if not real.start <= i < real.stop]
        assert not found[outside].any()


@pytest.mark.parametrize("family", ["qwen2", "stablelm", "falcon"])
def test_generation_works_inside(family, tiny, ids):
    model = tiny(family)
    plain = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    with patched(model):
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), plain)


class Strange(nn.Module):
    def forward(self, x):
        return x.sin()


def test_a_module_without_a_rule_is_refused_by_name_before_anything_changes(tiny):
    model = tiny("llama")
    model.model.layers[1].mlp.act_fn = Strange()
    before = state(model)
    with (
        pytest.raises(
            UnsupportedModuleError, match=r"'model.layers.1.mlp.act_fn', a Strange: register one with"
        ),
        patched(model),
    ):
        pass
    assert state(model) == before


def test_a_subclass_is_not_taken_for_its_parent(tiny):
    model = tiny("llama")

    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model.lm_head.__class__ = Scaled
    with pytest.raises(UnsupportedModuleError, match="'lm_head', a Scaled"), patched(model):
        pass


def test_register(tiny, ids, monkeypatch):
    monkeypatch.setattr(lrp_fast.hf.families, "_TABLE", dict(lrp_fast.hf.families._TABLE))

    class MySiLU(nn.SiLU):
        pass

    lrp_fast.hf.register(MySiLU, lrp_fast.hf.handlers.activation("silu"))
    model = tiny("llama")
    expected = relevance(model, ids)
    model.model.layers[1].mlp.act_fn = MySiLU()
    assert torch.equal(relevance(model, ids), expected)
    with pytest.raises(ValueError, match="has a handler already"):
        lrp_fast.hf.register(MySiLU, lrp_fast.hf.handlers.leave)
    with pytest.raises(TypeError, match="takes a torch.nn.Module class"):
        lrp_fast.hf.register("MySiLU", lrp_fast.hf.handlers.leave)
    with pytest.raises(TypeError, match="must be callable"):
        lrp_fast.hf.register(Strange, None)


def test_falcon_is_refused_in_training(tiny):
    training = tiny("falcon", hidden_dropout=0.1).train()
    with pytest.raises(ValueError, match=r"applies dropout: call model.eval\(\) first"), patched(training):
        pass


def test_falcons_other_attention_class_is_replaced_as_well(tiny, ids):
    model = tiny("falcon_40b")
    expected = relevance(model, ids)
    for layer in model.transformer.h:
        layer.self_attention.__class__ = transformers.models.falcon.modeling_falcon.FalconFlashAttention2
    assert torch.equal(relevance(model, ids), expected)


def test_an_attention_that_leaves_out_the_cap_is_refused(tiny):
    model = tiny("gemma2")
    model.config._attn_implementation_internal = "sdpa"  # what older releases do by themselves
    with pytest.raises(ValueError, match=r"sdpa, leaves that out: call model.set_attn_impl"), patched(model):
        pass


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
NO_RULE = r"no propagation rule covers (module '[\w.]+'|the model itself), a {1}, "


@pytest.mark.parametrize(
    ("name", "config", "message", "culprit"),
    [
        ("XLNetLMHeadModel", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16}, NO_RULE, "XLNetModel"),
        ("XLMWithLMHeadModel", {"emb_dim": 16, "n_layers": 1, "n_heads": 2}, NO_RULE, "XLMModel"),
        (
            "T5ForConditionalGeneration",
            {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 16},
            "{0} is an encoder-decoder model: lrp_fast explains decoders and encoders",
            "T5(Stack|Block)",
        ),
    ],
)
def test_other_architectures_are_refused_before_anything_runs(name, config, message, culprit):
    model_class = getattr(transformers, name)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = model_class(model_class.config_class(vocab_size=9, **ids, **config)).eval()
    hooks = [m.register_forward_pre_hook(lambda *_: pytest.fail("it ran")) for m in model.modules()]
    for call in (lambda: attribute(model, [1, 2, 3]), lambda: plan(model, 3)):
        with pytest.raises((ValueError, UnsupportedModuleError), match=message.format(name, culprit)) as refused:
            call()
        assert "\n" not in str(refused.value)
    both_ways = f"a {culprit}, reads tokens in both directions"
    with pytest.raises(UnsupportedModuleError, match=f"{NO_RULE.format(name, culprit)}|{both_ways}"), patched(model):
        pass
    for hook in hooks:  # transformers' activation is one module for all models
        hook.remove()


def test_somebody_elses_forward_is_refused(tiny):
    model = tiny("llama")
    model.lm_head.forward = lambda x: x
    with (
        pytest.raises(RuntimeError, match="something else overrides the forward of 'lm_head': undo that first"),
        patched(model),
    ):
        pass


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"attention_mask": torch.tensor([[1, 1, 0, 1]])}, "row 0 of attention_mask has a gap between real tokens"),
        ({"attention_mask": torch.tensor([[0, 0, 0, 0]])}, "row 0 of attention_mask has no real token"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, r"a ready attention mask of shape \(1, 1, 4, 4\)"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1]]), "use_cache": False}, "position_ids restart"),
        ({"output_attentions": True}, "output_attentions=True asks for N x N matrices"),
    ],
)
def test_masks_that_cannot_be_honoured_are_refused(arguments, message, tiny):
    model = tiny("llama")
    with pytest.raises(ValueError, match=message), patched(model):
        model(torch.tensor([[1, 2, 3, 4]]), **arguments)


def test_dropout_is_refused(tiny, ids):
    model = tiny("llama", attention_dropout=0.1).train()
    message = r"LlamaAttention of layer 0 applies dropout: call model.eval\(\) first"
    with pytest.raises(ValueError, match=message), patched(model):
        model(ids)


def test_attention_options_without_a_rule_are_refused(tiny):
    from lrp_fast.hf.attention import attention_forward

    layer = tiny("llama").model.layers[0].self_attn
    q = torch.ones(1, 4, 3, 16)
    with pytest.raises(ValueError, match="passes position_bias to its attention, which lrp_fast has no rule for"):
        attention_forward(layer, q, q, q, None, position_bias=torch.ones(1))


def test_as_a_plain_attention_implementation_outside_of_patched(tiny, ids):
    model = tiny("mistral")
    plain = model(ids).logits
    model.set_attn_implementation("lrp_fast")
    assert torch.equal(model(ids).logits, plain)


@pytest.mark.parametrize("family", ["llama", "stablelm", "falcon"])
def test_a_cache_longer_than_its_content_is_refused(family, tiny, ids):
    model = tiny(family)
    cache = transformers.StaticCache(config=model.config, max_cache_len=64)
    with pytest.raises(ValueError), patched(model):  # older releases ask for a packed mask and are refused for that
        model(ids, past_key_values=cache)


def test_autocast_is_refused(tiny):
    model, half = tiny("llama"), torch.autocast("cpu", torch.bfloat16)
    with pytest.raises(RuntimeError, match="does not run under torch.autocast"), half, patched(model):
        pass


def test_an_activation_that_would_be_passed_over_is_refused(tiny, ids, monkeypatch):
    model = tiny("llama")
    part = model.model.layers[0].mlp.act_fn
    for register in (part.register_forward_hook, part.register_forward_pre_hook, part.register_full_backward_hook):
        handle = register(lambda *_: None)
        with pytest.raises(RuntimeError, match="a hook on SiLU.* would be passed over: remove it"), patched(model):
            model(ids)
        handle.remove()
    monkeypatch.setattr(lrp_fast.hf.families, "_TABLE", dict(lrp_fast.hf.families._TABLE))
    lrp_fast.hf.register(Strange, lrp_fast.hf.handlers.leave)
    model.model.layers[0].mlp.act_fn = Strange()
    with pytest.raises(TypeError, match="Strange, .* without saying what it computes"), patched(model):
        model(ids)


@pytest.mark.parametrize(
    ("family", "name", "value", "by_hand"),
    [
        *((family, "use_bidirectional_attention", True, False) for family in ("gemma", "gemma2", "gemma3")),
        *((family, "is_causal", False, False) for family in ("llama", "gpt2", "falcon")),
        *((family, "is_causal", False, True) for family in ("mistral", "gpt_neox")),
    ],
)
def test_what_reads_both_ways_is_refused(family, name, value, by_hand, tiny, ids):
    """transformers' eager attention reads some of these causally, and its sdpa does not."""
    model = tiny(family, **{} if by_hand else {name: value})
    for part in (part for part in model.modules() if by_hand and type(part).__name__.endswith("Attention")):
        part.is_causal = False
    why = "reads tokens in both directions .*, which lrp_fast has no rule for: lrp_fast explains decoders that read cau"
    for call in (lambda: attribute(model, ids), lambda: plan(model, 23), patched(model).__enter__):
        with pytest.raises(UnsupportedModuleError, match=f"^module '.*', a .*Attention, {why}sally, and encoders$"):
            call()
    assert any(why[:29] in one.mend for one in coverage(model))
    if name == "use_bidirectional_attention":
        model.set_attn_implementation("lrp_fast")
        with pytest.raises(ValueError, match="reads tokens in both directions|neither causal nor a sliding window"):
            model(ids)


def test_attention_to_an_encoder_that_text_does_not_run_is_no_reading_both_ways(tiny, ids):
    model = tiny("gpt2", add_cross_attention=True)
    assert attribute(model, ids).layers.shape == (4, 23)


def test_rotary_positions_of_llamas_functions_go_by_one_operation(tiny, ids, monkeypatch):
    calls, own = [], lrp_fast.ops.rotary
    monkeypatch.setattr(lrp_fast.ops, "rotary", lambda *given: calls.append(given) or own(*given))
    expected = {}
    for family, count in (("llama", 3), ("gpt2", 0)):  # queries and keys of a layer together
        model = tiny(family)
        with torch.no_grad():
            expected[family] = model(ids).logits
        calls.clear()
        with patched(model):
            assert torch.equal(model(ids).logits, expected[family])
        assert len(calls) == count
        with torch.no_grad():
            model(ids)
        assert len(calls) == count


def test_rotary_positions_of_other_functions_go_by_these(tiny, ids, monkeypatch):
    interleaved = sys.modules[type(model := tiny("cohere")).__module__]
    assert not rotations.rotates(model.model.layers[0].self_attn)
    model = tiny("llama")
    llama, attention = sys.modules[type(model).__module__], model.model.layers[0].self_attn
    assert rotations.rotates(attention)
    with monkeypatch.context() as patch:
        patch.setattr(llama, "rotate_half", interleaved.rotate_half)
        assert not rotations.rotates(attention)
    elsewhere = types.FunctionType(
        llama.apply_rotary_pos_emb.__code__,
        vars(llama) | {"rotate_half": interleaved.rotate_half},
        argdefs=llama.apply_rotary_pos_emb.__defaults__,
    )
    with monkeypatch.context() as patch:  # what it calls counts, not what stands beside it
        patch.setattr(llama, "apply_rotary_pos_emb", elsewhere)
        assert not rotations.rotates(attention)
    assert rotations.rotates(attention)


@pytest.mark.parametrize("name", ["rotate_half", "apply_rotary_pos_emb"])
def test_a_rotation_that_somebody_has_wrapped_is_run(name, tiny, ids, monkeypatch):
    model = tiny("llama")
    llama = sys.modules[type(model).__module__]
    own = getattr(llama, name)

    @functools.wraps(own)
    def wrapped(x, *rest):
        return own(2 * x, *rest)

    monkeypatch.setattr(llama, name, wrapped)
    with torch.no_grad():
        expected = model(ids).logits
    with patched(model):
        assert torch.equal(model(ids).logits, expected)


def test_what_wraps_the_forward_pass_of_a_class_is_run(tiny, ids, monkeypatch):
    """As transformers' own do, which give an argument its new name."""
    model, calls, wrapped, rotate = tiny("llama"), [], [], lrp_fast.ops.rotary
    kind, expected = type(model.model.layers[0].self_attn), model(ids).logits
    own = kind.forward

    @functools.wraps(own)
    def forward(self, *args, **named):
        wrapped.append(self)
        return own(self, *args, **named)

    monkeypatch.setattr(kind, "forward", forward)
    monkeypatch.setattr(lrp_fast.ops, "rotary", lambda *given: calls.append(given) or rotate(*given))
    with patched(model):
        calls.clear(), wrapped.clear()  # those of the audit of a class that has changed
        assert torch.equal(model(ids).logits, expected)
    assert len(wrapped) == 3 and len(calls) == 3


def test_a_wrapper_that_does_not_show_the_code_of_a_forward_pass(tiny, monkeypatch):
    attention = tiny("llama").model.layers[0].self_attn
    own = type(attention).forward

    class Opaque:
        __wrapped__ = own

    monkeypatch.setattr(type(attention), "forward", Opaque())
    assert not rotations.rotates(attention)
    with pytest.raises(TypeError, match="LlamaAttention.forward is wrapped by what does not show its code"):
        calling(attention)


def test_a_wrapper_whose_closure_holds_something_else(tiny, ids, monkeypatch):
    model = tiny("llama")
    kind, expected = type(model.model.layers[0].self_attn), model(ids).logits
    own = kind.forward

    def wrapper(bound, call):
        if bound:
            ahead, zzz = 1, 2

        @functools.wraps(own)
        def forward(*args, **named):
            return call(*args, **named) if own is not None else (ahead, zzz)

        return forward

    @functools.wraps(own)
    def made(*args, **named):
        return own(*args, **named)

    monkeypatch.setattr(kind, "forward", wrapper(False, own))  # with empty cells
    assert rotations.rotates(model.model.layers[0].self_attn)
    with patched(model):
        assert torch.equal(model(ids).logits, expected)
    monkeypatch.setattr(kind, "forward", wrapper(True, made))  # which calls what is made of it
    assert not rotations.rotates(model.model.layers[0].self_attn)
    monkeypatch.setattr(kind, "forward", torch.compile(own, backend="eager"))
    assert calling(model.model.layers[0].self_attn).__code__ is own.__code__


def test_wide_maps_without_relevance(tiny, ids, monkeypatch):
    """A mixture's experts without the explained token, as of vocabularies, get zeros alone."""
    model = tiny("mixtral", torch.float64)
    expected = [attribute(model, ids[0], target=3).relevance, lrp_fast.between(model, ids[0], 0, 1, [2, 8], target=3)]
    monkeypatch.setattr(sys.modules["lrp_fast.ops.linear"], "_MANY", 1)
    found = [attribute(model, ids[0], target=3).relevance, lrp_fast.between(model, ids[0], 0, 1, [2, 8], target=3)]
    for one, truth in zip(found, expected, strict=True):
        assert (one - truth).abs().max() <= 1e-12 * truth.abs().max()

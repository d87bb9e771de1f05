"""attribute(): identities, equality with the one-shot route, targets, files, and every bad input."""

import dataclasses
import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import lrp_fast
from lrp_fast import Rules, attribute, patched

RULES = ["attnlrp", "cp", "gradient", Rules("attnlrp", 0.01, 0.1, 0.01, 0.1)]
FEW_RULES = ["attnlrp"]


def without_biases(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()


@pytest.mark.shows("attribution")
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
def test_last_node_at_the_target_is_the_value(family, rule, tiny, ids):
    """Identity 1: frozen norm, soft-cap and lm_head without bias pass the logit difference on whole."""
    model = tiny(family, torch.float64)
    without_biases(model)
    result = attribute(model, ids, target=3, contrast=5, rule=rule)
    assert result.layers[-1, -1].item() == pytest.approx(result.value, rel=1e-12)
    assert not result.layers[-1, :-1].any()
    assert result.layers.dtype == torch.float64 and result.layers.shape == (4, 23)


def test_cp_conserves_relevance_at_every_layer(family, tiny, ids):
    """Identity 3, which biases would break."""
    model = tiny(family, torch.float64)
    without_biases(model)
    if family == "gpt_oss":
        pytest.skip("its experts add 1 to a factor, which keeps relevance as a bias does")
    result = attribute(model, ids, target=3, contrast=5, rule="cp")
    assert (result.layers.sum(-1) - result.value).abs().max() <= 1e-12 * result.layers.abs().sum(-1).max()
    attnlrp = attribute(model, ids, target=3, contrast=5).layers.sum(-1)
    assert (attnlrp[0] - result.value).abs() > 1e-3 * abs(result.value)  # softmax absorbs


@pytest.mark.shows("attribution")
def test_layer_by_layer_equals_one_shot(family, rule, tiny, ids):
    model = tiny(family, torch.float64)
    result = attribute(model, ids, target=3, contrast=5, rule=rule)
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model, rule):
        logits = model(inputs_embeds=x).logits[0, -1]
        (logits[3] - logits[5]).backward()
    positions = model.transformer.wpe.weight[:23].detach() if family == "gpt2" else 0  # the first node's part too
    truth = ((x.detach() + positions) * x.grad).sum(-1)[0]
    assert (result.relevance - truth).abs().max() <= 1e-12 * truth.abs().max()
    assert result.value == pytest.approx((logits[3] - logits[5]).item(), rel=1e-12)


@pytest.mark.shows("attribution")
def test_no_relevance_comes_from_the_future_and_the_same_call_gives_the_same_bits(family, tiny, ids):
    model = tiny(family)
    one, two = (attribute(model, ids, target=3, contrast=5, position=9) for _ in range(2))
    assert torch.equal(one.layers, two.layers) and one.value == two.value
    assert not one.layers[:, 10:].any()
    assert one.layers[0, :10].all()


def test_16_bit_models_follow_float32(tiny, ids):
    truth = attribute(tiny("llama"), ids, target=3, contrast=5, rule="cp")
    found = attribute(tiny("llama", torch.bfloat16), ids, target=3, contrast=5, rule="cp")
    assert found.layers.dtype == torch.float32
    assert (found.relevance - truth.relevance).abs().max() <= 0.1 * truth.relevance.abs().max()


def test_defaults_explain_the_first_choice_as_a_plain_logit(tiny, ids):
    model = tiny("llama")
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    result = attribute(model, ids[0])
    (term,) = result.explained.terms
    assert result.explained.kind == "logit" and term.contrast is None and term.contrast_logit is None
    assert (term.position, term.target.id, term.target.rank) == (22, int(logits.argmax()), 0)
    assert result.value == pytest.approx(float(logits.max()), rel=1e-6)
    assert [t.id for t in result.explained.best] == logits.topk(10).indices.tolist()
    assert term.runner_up == result.explained.best[1]
    assert result.tokens is None and torch.equal(result.input_ids, ids[0])


def test_contrasts(tiny, ids):
    model = tiny("llama", torch.float64)
    with torch.no_grad(), patched(model):
        logits = model(ids).logits[0, -1]
    order = logits.argsort(descending=True).tolist()
    last = order[-1]
    cases = {
        "mean": logits[last] - logits.mean(),
        ("top", 3): logits[last] - logits[order[:3]].mean(),
        7: logits[last] - logits[7],
    }
    for contrast, value in cases.items():
        result = attribute(model, ids, target=last, contrast=contrast)
        assert result.value == pytest.approx(value.item(), rel=1e-12)
        assert result.explained.terms[0].target.rank == 96
        assert result.layers[-1, -1].item() == pytest.approx(value.item(), rel=1e-10)
    best = attribute(model, ids, target=order[1], contrast=("top", 2))  # the target is not among the others
    assert best.value == pytest.approx(float(logits[order[1]] - logits[[order[0], order[2]]].mean()), rel=1e-12)


def test_a_span_explains_the_sum(tiny, ids):
    model = tiny("llama", torch.float64)
    span = attribute(model, ids, target=3, contrast=5, position=[4, -1, 9])
    parts = [attribute(model, ids, target=3, contrast=5, position=p) for p in (4, -1, 9)]
    assert span.value == pytest.approx(sum(p.value for p in parts), rel=1e-12)
    total = sum(p.layers for p in parts)
    assert (span.layers - total).abs().max() <= 1e-12 * total.abs().max()
    assert [t.position for t in span.explained.terms] == [4, 22, 9]
    middle, alone = span.explained.terms[1], parts[1].explained.terms[0]
    assert (middle.target.id, middle.contrast.id, middle.runner_up.id) == (3, 5, alone.runner_up.id)
    assert middle.target.logit == pytest.approx(
        alone.target.logit, rel=1e-12
    )  # one matrix product of three rows, or of one


def test_one_token(tiny):
    result = attribute(tiny("llama", torch.float64), [5], target=3, contrast=4, rule="gradient")
    assert result.layers.shape == (4, 1)


def test_progress_tells_every_layer(tiny, ids):
    seen = []
    attribute(tiny("llama"), ids, progress=lambda *now: seen.append(now))
    assert seen == [("forward", i, 3) for i in (1, 2, 3)] + [("backward", i, 3) for i in (0, 1, 2, 3)]


def test_an_interrupt_leaves_the_model_as_it_was(tiny, ids):
    model = tiny("llama")
    before = [(sorted(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    for when in ("forward", "backward"):

        def stop(phase, done, total, when=when):
            if (phase, done) == (when, 2):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            attribute(model, ids, progress=stop)
        assert [
            (sorted(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
        ] == before


def test_works_under_no_grad_and_with_frozen_parameters(tiny, ids):
    model = tiny("llama")
    expected = attribute(model, ids).layers
    with torch.inference_mode():
        assert torch.equal(attribute(model, ids).layers, expected)
    with torch.no_grad():
        assert torch.equal(attribute(model.requires_grad_(False), ids).layers, expected)


def test_save_and_load(tiny, ids, tmp_path):
    result = attribute(tiny("llama"), ids, target=3, contrast=("top", 2), rule=Rules("cp", epsilon=0.1))
    result = dataclasses.replace(result, tokens=["<a>", "\u2028", *map(str, range(21))], special=[True] + [False] * 22)
    result.save(tmp_path / "r.safetensors")
    again = lrp_fast.load(tmp_path / "r.safetensors")
    for field in dataclasses.fields(result):
        one, two = getattr(result, field.name), getattr(again, field.name)
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two, field.name
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]


def test_a_failed_save_leaves_the_old_file_and_no_rest(tiny, ids, tmp_path, monkeypatch):
    result = attribute(tiny("llama"), ids)
    result.save(tmp_path / "r.safetensors")
    old = (tmp_path / "r.safetensors").read_bytes()

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "r.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]
    assert (tmp_path / "r.safetensors").read_bytes() == old


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no attribution at"):
        lrp_fast.load(tmp_path / "absent")
    (tmp_path / "text").write_text("hello, this is no safetensors file at all")
    with pytest.raises(ValueError, match="is not a whole file that Attribution.save wrote"):
        lrp_fast.load(tmp_path / "text")
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="not one that Attribution.save wrote"):
        lrp_fast.load(tmp_path / "other")
    mine = json.dumps({"format": "lrp_fast.attribution/1"})
    for text, said in (("[]", "not one that"), ("{", "not a whole file"), (mine, "not a whole file")):
        save_file({"x": torch.ones(1)}, tmp_path / "other", metadata={"lrp_fast": text})
        with pytest.raises(ValueError, match=said):
            lrp_fast.load(tmp_path / "other")
    save_file({"x": torch.ones(1)}, tmp_path / "other", metadata={"lrp_fast": json.dumps({"format": "x"})})
    with pytest.raises(ValueError, match="not one that Attribution.save wrote"):
        lrp_fast.load(tmp_path / "other")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"input_ids": []}, ValueError, "input_ids is empty: give at least one token"),
        ({"input_ids": [1, 97]}, ValueError, "input_ids holds token 97, outside the vocabulary, 0 to 96"),
        ({"input_ids": [1, -1]}, ValueError, "input_ids holds token -1, outside the vocabulary"),
        ({"input_ids": [[1, 2], [3, 4]]}, ValueError, r"one prompt, not \(2, 2\): attribute_batch takes several"),
        ({"input_ids": [1.0, 2.0]}, TypeError, "input_ids must hold whole numbers, not torch.float32"),
        ({"input_ids": {"a": 1}}, TypeError, r"input_ids must be a LongTensor \(N,\) or \(1, N\), or a str"),
        ({"input_ids": "text"}, ValueError, "input_ids is a string: give tokenizer= with it"),
        ({"target": 97}, ValueError, "target 97 is outside the vocabulary, 0 to 96"),
        ({"target": -1}, ValueError, "target -1 is outside the vocabulary"),
        ({"target": 1.5}, TypeError, "target must be a token id or a string, not 1.5"),
        ({"target": True}, TypeError, "target must be a token id or a string, not True"),
        ({"target": " Paris"}, ValueError, "target ' Paris' is a string: give tokenizer= with it, or a token id"),
        ({"contrast": 200}, ValueError, "contrast 200 is outside the vocabulary"),
        ({"contrast": ("top", 0)}, ValueError, r'contrast \("top", 0\) needs k from 1 to 96'),
        ({"contrast": ("top", 97)}, ValueError, r'contrast \("top", 97\) needs k from 1 to 96'),
        ({"contrast": ("top", "x")}, TypeError, r'contrast \("top", k\) takes a whole number k'),
        ({"contrast": ("best", 2)}, TypeError, r'contrast must be a token id or a string, "mean" or \("top", k\)'),
        ({"target": 3, "contrast": 3}, ValueError, "target 3 and contrast 3 never diverge"),
        ({"position": 4}, ValueError, "position 4 is outside the prompt's 4 tokens"),
        ({"position": -5}, ValueError, "position -5 is outside the prompt's 4 tokens"),
        ({"position": []}, ValueError, "position is an empty sequence"),
        ({"position": [1, -3]}, ValueError, r"position \[1, -3\] names a position twice"),
        ({"position": True}, TypeError, "position must be a whole number or a sequence of them, not True"),
        ({"position": torch.tensor([False, True, False, False])}, TypeError, "position must be a whole number"),
        ({"target": torch.tensor(2.7)}, TypeError, "target must be a token id or a string"),
        ({"position": 1.5}, TypeError, "position must be a whole number or a sequence of them, not 1.5"),
        ({"rule": "lrp"}, ValueError, "unknown rule 'lrp': choose one of 'attnlrp', 'cp', 'gradient'"),
        ({"rule": 3}, TypeError, "rule must be a name or lrp_fast.Rules, not int"),
        ({"contrast": ["top", 3]}, ValueError, "is a list, which means several: write"),
        ({"graph": 1}, TypeError, "graph must be a lrp_fast.GraphSpec"),
        ({"memory": 1}, TypeError, "memory must be a lrp_fast.Memory"),
    ],
)
def test_bad_input_is_refused_before_any_layer_runs(arguments, error, message, tiny):
    model = tiny("llama")
    model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(error, match=message):
        attribute(model, **({"input_ids": [1, 2, 3, 4]} | arguments))


@pytest.mark.parametrize("field", ["epsilon", "gamma", "attention_epsilon", "attention_gamma"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_stabilisers(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a finite number >= 0"):
        Rules(**{field: value})


def test_a_contrast_that_turns_out_to_be_the_models_own_choice(tiny, ids):
    model = tiny("llama")
    top = attribute(model, ids).explained.best[0].id
    with pytest.raises(ValueError, match=f"target and contrast are both token {top} .*give two different tokens"):
        attribute(model, ids, contrast=top)


@pytest.mark.parametrize("value, message", [(float("nan"), "the logits hold NaN"), (float("inf"), "the logits hold")])
def test_logits_that_are_no_numbers(value, message, tiny, ids):
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[7, 0] = value
    with pytest.raises(ValueError, match=message):
        attribute(model, ids)


@pytest.mark.parametrize(
    ("dtype", "mend"),
    [
        (torch.float16, "load the model in float32 or bfloat16"),
        *(
            (one, f"the model's weights, or what it computes of them in {name}, give that: look for such among")
            for one, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.float64, "float64"))
        ),
    ],
)
def test_only_float16_is_told_of_wider_dtypes(dtype, mend, tiny, ids):
    model = tiny("llama", dtype)
    weight = model.model.layers[0].mlp.down_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match=f"the logits hold NaN: nothing can be explained; {mend}"):
        attribute(model, ids)
    with torch.no_grad():
        weight.copy_(kept)
    assert attribute(model, ids).relevance.isfinite().all()


def test_relevance_that_overflows_is_refused_not_returned(tiny, ids):
    model = tiny("llama", torch.float16)
    with torch.no_grad():  # a tiny last hidden state: the final norm multiplies its gradient by up to 1 / sqrt(eps)
        model.model.embed_tokens.weight.mul_(1e-5)
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.mul_(1e-5)
                projection.bias.zero_()
        model.lm_head.weight.mul_(300)
    with pytest.raises(
        ValueError, match="relevance is not finite from layer 3 down: torch.float16 cannot hold it"
    ):
        attribute(model, ids)


def test_models_that_cannot_be_explained(tiny, ids):
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 99,
    }
    with pytest.raises(
        ValueError, match="BertModel has no next-token logits .* load its checkpoint with AutoModelForMaskedLM, if it"
    ):
        attribute(transformers.BertModel(transformers.BertConfig(**small)).eval(), ids)
    with pytest.raises(ValueError, match="LlamaModel has no next-token logits"):
        attribute(tiny("llama").model, ids)
    t5 = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=99)
    with pytest.raises(ValueError, match="is an encoder-decoder model"):
        attribute(transformers.T5ForConditionalGeneration(t5).eval(), ids)
    with pytest.raises(TypeError, match="model must be a loaded transformers model, not str"):
        attribute("gpt2", ids)
    with pytest.raises(ValueError, match=r"is in training mode: call model.eval\(\) first"):
        attribute(tiny("llama").train(), ids)
    xlnet = transformers.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=16, vocab_size=99)
    message = "no propagation rule covers module 'transformer', a XLNetModel, which"
    with pytest.raises(lrp_fast.UnsupportedModuleError, match=message):
        attribute(transformers.XLNetLMHeadModel(xlnet).eval(), ids)


def test_runner_up_and_best_tokens(tiny, ids):
    model = tiny("llama")
    with torch.no_grad():
        order = model(ids).logits[0].argsort(-1, descending=True).tolist()
    for rank, runner_up in ((0, 1), (3, 0)):
        (term,) = attribute(model, ids, target=order[-1][rank]).explained.terms
        assert (term.target.rank, term.runner_up.id) == (rank, order[-1][runner_up])
    span = attribute(model, ids, position=[-1, 4])
    assert [token.id for token in span.explained.best] == order[4][:10]
    assert [term.target.id for term in span.explained.terms] == [order[-1][0], order[4][0]]


def test_a_prompt_gets_the_tokenizers_bos_and_a_target_does_not(tiny):
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<s>", "<unk>", "a", "b", "c"])}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")
    result = attribute(tiny("llama"), "a b", target="c", contrast="a", tokenizer=tokenizer)
    assert result.tokens == ["<s>", "a", "b"] and result.special == [True, False, False]
    (term,) = result.explained.terms
    assert (term.target.id, term.contrast.id, result.explained.note) == (4, 2, "")
    beyond = attribute(tiny("llama"), [90, 2], tokenizer=tokenizer)
    assert beyond.tokens == ["<90>", "a"]


def test_a_table_of_positions_may_be_used_to_its_end_and_no_further(tiny):
    model = tiny("gpt2")
    assert attribute(model, [1] * 128).layers.shape == (4, 128)
    model.transformer.h[0].register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(ValueError, match="the prompt has 129 tokens, more than the model's 128 positions: shorten it"):
        attribute(model, [1] * 129)
    with pytest.raises(ValueError, match="129 tokens are more than the model's table of 128 positions: shorten"):
        lrp_fast.plan(model, 129)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_tokens_of_one_row_have_nothing_between_them(dtype, tiny, ids):
    model = tiny("gpt_neox", dtype)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[96] = head.weight[40]
    spec = lrp_fast.GraphSpec(topk=2)
    result = attribute(model, ids, target=96, contrast=40, graph=spec)
    assert not result.layers.any()
    assert result.explained.note == (
        "The relevance is zero everywhere: tokens 96 and 40 have equal rows in the model's head, as tokens have that "
        "were never trained, so that their logits are always the same."
    )
    assert result.graph.manifest["explained"]["note"] == result.explained.note
    assert attribute(model, ids, target=96, contrast=41).explained.note == ""
    one, other = attribute(model, ids, target=[96, 96], contrast=[40, 41])
    assert one.explained.note == result.explained.note and other.explained.note == ""


def test_zeros_of_other_causes_are_said_to_be_zeros(tiny, ids):
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = 0
    result = attribute(model, ids, target=3)
    assert not result.relevance.any() and result.value == 0
    assert result.explained.note.startswith("The relevance of every input token is zero: what is explained does not")


def test_a_value_of_zero_with_relevance_in_it(tiny, ids):
    model = tiny("llama", torch.bfloat16)
    with torch.no_grad():  # rows that differ by so little that 16 bits round it away
        top = []
        handle = model.lm_head.register_forward_pre_hook(lambda _, args: top.append(args[0][0, -1]))
        model(ids)
        handle.remove()
        model.lm_head.weight[3] = model.lm_head.weight[5]
        model.lm_head.weight[3, top[0].abs().argmin()] += 2.0**-7
    result = attribute(model, ids, target=3, contrast=5)
    assert result.value == 0 and result.relevance.any()
    assert result.explained.note == "The value is exactly 0.0: what speaks for it and what speaks against it cancel."

"""Cut it and see: against forward passes that are changed by hand, with attention spelt out here."""

import threading

import pytest
import torch
import transformers
from torch import nn
from transformers import AttentionInterface

import lrp_fast
from lrp_fast import GraphSpec, ablate, attribute, patched
from lrp_fast.hf import cutting
from lrp_fast.prompt import Prompt
from tests import decoders
from tests.hf.test_patching import state

LAST = ("down_proj", "dense_4h_to_h", "c_proj")  # what the families call an MLP's last linear map
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
OWN_ATTENTION = ("falcon", "falcon_40b")  # past transformers' attention interface


def attend(module, query, key, value, attention_mask, *, scaling=None, softcap=None, s_aux=None, **given):
    """transformers' attention interface, dense, in the dtype of what it is given; ``lrp_fast_test`` on the module is
    handed the scores and what the heads read."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    i, j = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])
    window = given.get("sliding_window", getattr(module, "sliding_window", None))
    hidden = (j > i) if window is None else (j > i) | (j <= i - window)
    scores = scores.masked_fill(hidden, -torch.inf)
    do_scores, do_out = module.__dict__.get("lrp_fast_test", (None, None))
    scores = scores if do_scores is None else do_scores(scores)
    if s_aux is not None:
        sinks = s_aux.view(1, -1, 1, 1).expand(len(scores), -1, scores.shape[2], 1).to(scores.dtype)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    out = weights @ value
    out = out if do_out is None else do_out(out)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("lrp_fast_tests_by_hand", attend)


def layers_of(model):
    core = model.transformer.h if hasattr(model, "transformer") else getattr(model, "model", model)
    core = model.gpt_neox.layers if hasattr(model, "gpt_neox") else core
    return core if isinstance(core, nn.ModuleList) else core.layers


def attention_of(layer):
    names = ("self_attn", "attn", "attention", "self_attention")
    return next(part for name, part in layer.named_children() if name in names)


def by_hand(model, ids, layer=None, scores=None, out=None):
    """The last logits, of a patched model whose attention is `attend`, changed in one layer."""
    with torch.no_grad(), patched(model, "gradient"):
        for one in layers_of(model):
            attention_of(one).config._attn_implementation = "lrp_fast_tests_by_hand"
        if layer is not None:
            attention_of(layers_of(model)[layer]).__dict__["lrp_fast_test"] = (scores, out)
        try:
            return model(input_ids=ids, use_cache=False).logits[0, -1]
        finally:
            for one in layers_of(model):
                attention_of(one).__dict__.pop("lrp_fast_test", None)


def hide(*pairs):
    """On scores: -inf at (source, target, head or None)."""

    def do(scores):
        scores = scores.clone()
        for source, target, head in pairs:
            scores[:, slice(None) if head is None else head, target, source] = -torch.inf
        return scores

    return do


def value(logits):
    return float(logits[3] - logits[5])


def close(found, truth, logits):
    assert abs(found - truth) <= 1e-12 * float(logits.abs().max())


QUESTION = {"target": 3, "contrast": 5}


def test_an_edge_against_a_hand_masked_pass(family, tiny, ids):
    model, changes = tiny(family, torch.float64), []
    for pairs in ([(18, 22, None)], [(19, 22, 2), (20, 22, None), (9, 9, None), (14, 17, 0)]):
        for layer in (0, 2):
            edges = [(layer, i, j) if head is None else (layer, i, j, head) for i, j, head in pairs]
            found = ablate(model, ids, {"edges": edges}, **QUESTION)
            if family in OWN_ATTENTION:
                mask = torch.zeros(1, 4, 23, 23, dtype=torch.float64)
                mask = hide(*pairs)(mask.masked_fill(torch.ones(23, 23).triu(1).bool(), -torch.inf))

                def masked(module, args, named, mask=mask):
                    return args, {**named, "attention_mask": mask}

                handle = attention_of(layers_of(model)[layer]).register_forward_pre_hook(masked, with_kwargs=True)
                with torch.no_grad():
                    logits = model(ids).logits[0, -1]
                handle.remove()
                whole = model(ids).logits[0, -1]
            else:
                logits = by_hand(model, ids, layer, hide(*pairs))
                whole = by_hand(model, ids)
            close(found.value, value(logits), logits)
            close(found.before, value(whole), whole)
            assert found.change == found.value - found.before
            changes.append(abs(found.change))
    assert max(changes) > 1e-3


# ALiBi folded in, methods of their own, chunks, chosen keys, chosen blocks, numbers of each key's own, values of width.
OTHERS = ["bloom", "mpt", "gptj", "gpt_neo", "llama4_text", "deepseek_v32", "minimax_m3_vl_text", "doge", "deepseek_v3"]


@decoders.RECENT
@pytest.mark.parametrize("model_type", [one for one in OTHERS if one in decoders.COVERED])
def test_what_is_read_anew_is_what_was_read_but_for_the_pair(model_type, monkeypatch):
    real, gaps = cutting._without, []

    def check(out, query, key, value, pairs, number, **given):
        rows = torch.tensor(sorted({pair.target for pair in pairs}))
        seen = cutting.seen_keys(rows, query, key, **given).expand(1, query.shape[1], -1, -1)
        sinks = given.get("sinks")
        told = {"scale": given["scale"], "softcap": given.get("softcap"), "sinks": sinks}
        again = lrp_fast.reference.attention(query[:, :, rows], key, value, seen, **told)
        gaps.append(float((again - out[:, :, rows]).abs().max() / out.abs().max()))
        return real(out, query, key, value, pairs, number, **given)

    monkeypatch.setattr(cutting, "_without", check)
    model = decoders.build(model_type)
    ids = torch.randint(3, 97, (1, 11), generator=torch.Generator().manual_seed(1))
    changes = []
    for source in range(10):
        try:
            changes.append(ablate(model, ids, {"edges": [(1, source, 10)]}, **QUESTION).change)
        except ValueError as error:  # a key that is out of reach, or was not chosen
            assert "cuts nothing" in str(error)
    assert any(changes) and len(gaps) == 10 and max(gaps) <= 1e-12


def test_a_head_against_a_hand_hooked_pass(family, tiny, ids):
    model = tiny(family, torch.float64)
    others = ids.flip(1)
    if family in OWN_ATTENTION:
        pytest.skip("its heads are those of the same code")
    kept = []
    by_hand(model, others, 1, out=lambda out: kept.append(out) or out)
    for how, do in (
        ("zero", lambda out: torch.zeros_like(out[:, [0, 2]])),
        ("mean", lambda out: out[:, [0, 2]].mean(2, keepdim=True)),
        (others, lambda out: kept[0][:, [0, 2]]),
    ):

        def change(out, do=do):
            out = out.clone()
            out[:, [0, 2]] = do(out).expand_as(out[:, [0, 2]])
            return out

        logits = by_hand(model, ids, 1, out=change)
        close(ablate(model, ids, {"heads": [(1, 2), (1, 0)]}, how, **QUESTION).value, value(logits), logits)


def test_tokens_against_zeroed_embeddings(family, tiny, ids):
    model = tiny(family, torch.float64)
    x, other = (model.get_input_embeddings()(one).detach() for one in (ids, ids.flip(1)))
    for how, do in (("zero", 0.0), ("mean", x.mean(1)), (ids.flip(1), other[:, [4, 22]])):
        changed = x.clone()
        changed[:, [4, 22]] = do
        with torch.no_grad(), patched(model, "gradient"):
            logits = model(inputs_embeds=changed, use_cache=False).logits[0, -1]
        close(ablate(model, ids, {"tokens": [4, -1]}, how, **QUESTION).value, value(logits), logits)
    spans = {"a": (4, 5), "b": [(20, 21), (22, 23)]}
    by_name = ablate(model, ids, {"sources": spans}, **QUESTION)
    assert by_name.value == ablate(model, ids, {"tokens": [4, 20, 22]}, **QUESTION).value


def hooked(model, ids, module, change, output=False):
    def do(_, given, out=None):
        given = out if output else given
        return (change(given[0]), *given[1:]) if isinstance(given, tuple) else change(given)

    with torch.no_grad(), patched(model, "gradient"):
        handle = module.register_forward_hook(do) if output else module.register_forward_pre_hook(do)
        try:
            return model(input_ids=ids, use_cache=False).logits[0, -1]
        finally:
            handle.remove()


def test_nodes_against_hand_hooked_passes(family, tiny, ids):
    model = tiny(family, torch.float64)
    for layer in range(4):
        module = layers_of(model)[min(layer, 2)]
        for how in ("zero", "mean"):

            def change(x, how=how):
                x = x.clone()
                x[:, [20, 22]] = 0.0 if how == "zero" else x.mean(1, keepdim=True)
                return x

            logits = hooked(model, ids, module, change, output=layer == 3)
            found = ablate(model, ids, {"nodes": [(layer, 20), (layer, -1)]}, how, **QUESTION)
            close(found.value, value(logits), logits)


@decoders.RECENT
def test_nodes_of_streams_that_lie_in_front(ids):
    """All streams of a token, (S, B, N, D)."""
    model = decoders.build("gemma3n_text")

    def change(x):
        x = x.clone()
        x[:, :, [20, 22]] = x.mean(2, keepdim=True)
        return x

    for layer, output in ((2, False), (5, True)):
        logits = hooked(model, ids, model.model.layers[min(layer, 4)], change, output)
        found = ablate(model, ids, {"nodes": [(layer, 20), (layer, -1)]}, "mean", **QUESTION)
        close(found.value, value(logits), logits)


def test_neurons_against_hand_hooked_passes(family, tiny, ids):
    model = tiny(family, torch.float64)
    if family in EXPERTS:
        with pytest.raises(ValueError, match=r"layer 0: it holds experts \(.*\), whose neurons are not the same"):
            ablate(model, ids, {"neurons": [(0, 7)]})
        return
    linear = next(part for name, part in layers_of(model)[1].mlp.named_modules() if name in LAST)
    for how in ("zero", "mean"):

        def change(x, how=how):
            x = x.clone()
            x[..., [7, 90]] = 0.0 if how == "zero" else x[..., [7, 90]].mean(1, keepdim=True)
            return x

        logits = hooked(model, ids, linear, change)
        close(ablate(model, ids, {"neurons": [(1, 90), (1, 7)]}, how, **QUESTION).value, value(logits), logits)


def test_several_kinds_at_once(tiny, ids):
    model = tiny("qwen3", torch.float64)

    def change(out):
        out = out.clone()
        out[:, 3] = 0.0
        return out

    logits = by_hand(model, ids, 1, hide((3, 22, None)), change)
    found = ablate(model, ids, {"heads": [(1, 3)], "edges": [(1, 3, -1)]}, **QUESTION)
    close(found.value, value(logits), logits)
    assert found.predicted is None


# ---- the question


def test_the_question_stays_the_whole_models(tiny, ids):
    model = tiny("llama", torch.float64)
    x = model.get_input_embeddings()(ids).detach()
    with torch.no_grad(), patched(model, "gradient"):
        before = model(inputs_embeds=x).logits[0]
        for cut in range(22, -1, -1):
            after = model(inputs_embeds=x.index_fill(1, torch.tensor([cut]), 0.0)).logits[0]
            if after[-1].argmax() != before[-1].argmax():
                break
    best = before[-1].argsort(descending=True).tolist()
    found = ablate(model, ids, {"tokens": [cut]})
    close(found.value, float(after[-1, best[0]]), after)
    assert found.explained.terms[0].target.id == best[0] != found.after.best[0].id == int(after[-1].argmax())
    mean = float(after[-1, best[0]] - after[-1].mean())
    close(ablate(model, ids, {"tokens": [cut]}, contrast="mean").value, mean, after)
    top = float(after[-1, best[0]] - after[-1, best[1:5]].mean())
    found = ablate(model, ids, {"tokens": [cut]}, contrast=("top", 4))
    close(found.value, top, after)
    close(found.after.terms[0].contrast_logit, float(after[-1, best[1:5]].mean()), after)
    runner_up = float(after[-1, best[0]] - after[-1, best[1]])
    close(ablate(model, ids, {"tokens": [cut]}, contrast=("top", 1)).value, runner_up, after)
    several = ablate(model, ids, {"tokens": [cut]}, position=[5, -1])
    close(several.value, float(after[5, before[5].argmax()] + after[-1, best[0]]), after)
    assert [term.position for term in several.after.terms] == [5, 22]


@pytest.mark.parametrize("contrast", [None, 5, "mean", ("top", 1), ("top", 3)])
def test_a_result_asks_its_own_question(tiny, ids, contrast):
    model = tiny("gemma3", torch.float64)
    result = attribute(model, ids, contrast=contrast, position=[9, -1], sources={"a": (2, 5)})
    plain = ablate(model, ids, {"tokens": [2, 3, 4]}, contrast=contrast, position=[9, -1])
    for what in ({"tokens": [2, 3, 4]}, {"sources": ["a"]}, {"sources": {"b": (2, 5)}}):
        found = ablate(model, ids, what, result=result)
        assert (found.value, found.before, found.after) == (plain.value, plain.before, plain.after)
        assert found.predicted == pytest.approx(-float(result.relevance[2:5].sum()), rel=1e-12)
    assert plain.predicted is None and found.before == pytest.approx(result.value, rel=1e-12)


# ---- what relevance predicts


@pytest.fixture
def linear(tiny):
    """A model that is linear in its embeddings: attention is uniform, norms and MLPs do nothing."""
    model = tiny("llama", torch.float64, attention_bias=False, mlp_bias=False)
    model.model.norm = nn.Identity()
    for layer in model.model.layers:
        layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
        nn.init.zeros_(layer.self_attn.q_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


@pytest.mark.parametrize("rule", ["cp", "gradient"])
def test_of_a_linear_model_the_prediction_is_the_change(linear, ids, rule):
    result = attribute(linear, ids, 3, 5, rule=rule, sources={"a": (0, 9)})
    for what in ({"tokens": [3, 22]}, {"sources": ["a", "(rest)"]}, {"nodes": [(1, 4), (1, -1)]}, {"nodes": [(3, -1)]}):
        found = ablate(linear, ids, what, result=result)
        assert found.predicted == pytest.approx(found.change, abs=1e-12) and abs(found.change) > 1e-3


def test_tokens_are_predicted_where_they_are_the_nodes_of_layer_0(family, tiny, ids):
    """A scaled embedding is; of GPT-2's first nodes a learned position stays, and relevance is of both."""
    model = tiny(family, torch.float64)
    result = attribute(model, ids, 3, 5, sources={"a": (3, 5)})
    nodes = ablate(model, ids, {"nodes": [(0, 3), (0, 4)]}, result=result)
    assert nodes.predicted == pytest.approx(-float(result.relevance[3:5].sum()), rel=1e-12)
    for what in ({"tokens": [3, 4]}, {"sources": ["a"]}):
        found = ablate(model, ids, what, result=result)
        if family == "gpt2":
            assert found.predicted is None and found.value != nodes.value
        else:
            assert (found.predicted, found.value) == (nodes.predicted, nodes.value)


@pytest.mark.parametrize(
    ("change", "predicted"), [(lambda x: 3 * x, True), (lambda x: x + 0.1, False), (lambda x: x + x.roll(1, 1), False)]
)
def test_what_comes_between_embeddings_and_layer_0_decides(change, predicted, tiny, ids):
    model = tiny("llama", torch.float64)
    model.model.embed_tokens.register_forward_hook(lambda _, args, out: change(out))  # behind what is cut
    found = ablate(model, ids, {"tokens": [3]}, result=attribute(model, ids, 3, 5))
    assert (found.predicted is not None) == predicted


def test_of_an_edge_the_prediction_is_its_weight(tiny, ids):
    model = tiny("llama", torch.float64)
    result = attribute(model, ids, 3, 5, graph=GraphSpec(topk=23))
    dense = result.graph.dense(1) - torch.diag(result.graph.self_edges[1])
    edges = [(1, 4, 22), (1, 9, 9), (1, 4, 22)]
    found = ablate(model, ids, {"edges": edges}, result=result)
    assert found.predicted == pytest.approx(-float(dense[22, 4] + dense[9, 9]), rel=1e-12)
    few = attribute(model, ids, 3, 5, graph=GraphSpec(topk=1))
    (weakest,) = [i for i in range(23) if i not in few.graph.edges(1).columns][:1]
    assert ablate(model, ids, {"edges": [(1, weakest, 22)]}, result=few).predicted is None
    for what in ({"edges": [(1, 4, 22, 0)]}, {"edges": [(1, 4, 22), (2, 4, 22)]}, {"heads": [(1, 0)]}):
        assert ablate(model, ids, what, result=result).predicted is None
    for what in ({"nodes": [(1, 4), (2, 4)]}, {"tokens": [1], "nodes": [(1, 4)]}, {"neurons": [(0, 0)]}):
        assert ablate(model, ids, what, result=result).predicted is None
    assert ablate(model, ids, {"tokens": [1]}, "mean", result=result).predicted is None


# ---- scope

EVERYTHING = {"tokens": [22], "nodes": [(1, 2), (3, 3)], "edges": [(0, 1, 22)], "heads": [(0, 1)], "neurons": [(2, 3)]}


def test_nothing_stays_behind(tiny, ids):
    model = tiny("llama")
    before, plain = state(model), model(ids).logits
    everything = EVERYTHING | {"tokens": [1], "edges": [(0, 1, 4)]}
    ablate(model, ids, everything)
    assert state(model) == before and torch.equal(model(ids).logits, plain)
    with pytest.raises(ValueError, match="would have no key left"):  # found within the pass
        ablate(model, ids, everything | {"edges": [(2, 0, 0)]})
    assert state(model) == before

    calls = []

    def interrupt(module, given):
        calls.append(None)
        if len(calls) == 2:  # the cut pass
            raise KeyboardInterrupt

    handle = model.model.norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        ablate(model, ids, everything)
    handle.remove()
    assert state(model) == before and torch.equal(model(ids).logits, plain)


def test_other_threads_run_the_model_whole(tiny, ids):
    model = tiny("llama")
    plain, found = model(ids).logits, []

    def elsewhere(module, given):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: found.append(model(ids).logits))
            thread.start()
            thread.join()

    handle = model.model.norm.register_forward_pre_hook(elsewhere)
    ablate(model, ids, EVERYTHING)
    handle.remove()
    assert len(found) == 2 and all(torch.equal(one, plain) for one in found)


# ---- what is refused


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ([3], TypeError, "what must be a dict that says what is cut, of 'tokens'"),
        ({}, TypeError, "what must be a dict"),
        ({"layers": [1]}, ValueError, "what names 'layers': it may name 'tokens', 'sources'"),
        ({"tokens": 3}, TypeError, "'tokens' must be a list of positions, not 3"),
        ({"tokens": []}, ValueError, "'tokens' is an empty list"),
        ({"tokens": [1.5]}, TypeError, "'tokens' must be a list of positions"),
        ({"tokens": [23]}, ValueError, "'tokens' names position 23, and there are 23"),
        ({"nodes": [(4, 0)]}, ValueError, "'nodes' names layer 4, and there are 4"),
        ({"nodes": [(-1, 0)]}, ValueError, "'nodes' names layer -1"),
        ({"nodes": [(0, 1, 2)]}, TypeError, r"'nodes' must be a list of \(layer, position\)"),
        ({"heads": [(0, 4)]}, ValueError, "'heads' names head 4, and there are 4"),
        ({"neurons": [(0, 96)]}, ValueError, "'neurons' names neuron 96, and there are 96"),
        ({"edges": [(0, 1)]}, TypeError, r"'edges' must be a list of \(layer, source, target\)"),
        ({"edges": [(3, 1, 2)]}, ValueError, "'edges' names layer 3, and there are 3"),
        ({"edges": [(0, 5, 2)]}, ValueError, r"edge \(0, 5, 2\) would come from the future"),
        ({"edges": [(0, 1, 2, 9)]}, ValueError, "'edges' names head 9, and there are 4"),
        ({"edges": [(0, 1, 20)]}, ValueError, r"edge \(0, 1, 20\) cuts nothing: in layer 0, position 20 does not read"),
        ({"edges": [(1, 0, 0)]}, ValueError, "position 0 of layer 1 would have no key left to read"),
        ({"tokens": torch.tensor([False, False, True])}, TypeError, "'tokens' must be a list of positions, not tensor"),
        ({"tokens": [False, True]}, TypeError, "'tokens' must be a list of positions, not .False, True."),
        ({"tokens": iter([True])}, TypeError, "'tokens' must be a list of positions"),
        ({"nodes": torch.ones(4, 2).bool()}, TypeError, r"'nodes' must be a list of \(layer, position\)"),
        ({"edges": [(0, 1, 2, True)]}, TypeError, r"'edges' must be a list of \(layer, source, target\)"),
        ({"heads": [(0, torch.tensor(True))]}, TypeError, r"'heads' must be a list of \(layer, head\)"),
        ({"tokens": torch.ones(2, device="meta").long()}, TypeError, "'tokens' must be a list of positions"),
        ({"sources": ["a"]}, ValueError, "'sources' names some, and no result with sources is given"),
        ({"sources": "a"}, TypeError, "'sources' must be a list of names"),
    ],
)
def test_what_is_refused(tiny, ids, what, error, message):
    with pytest.raises(error, match=message):
        ablate(tiny("mistral"), ids, what)


def test_questions_that_are_refused(tiny, ids):
    model = tiny("llama")
    result = attribute(model, ids)
    with pytest.raises(TypeError, match="ablate asks one question"):
        ablate(model, ids, {"tokens": [1]}, target=[1, 2])
    with pytest.raises(ValueError, match="result says what is asked"):
        ablate(model, ids, {"tokens": [1]}, target=1, result=result)
    with pytest.raises(TypeError, match="result must be what lrp_fast.attribute returned, not list"):
        ablate(model, ids, {"tokens": [1]}, result=[result])
    with pytest.raises(ValueError, match="result is of other tokens than input_ids"):
        ablate(model, ids.flip(1), {"tokens": [1]}, result=result)
    with pytest.raises(ValueError, match="give the one that it is of"):
        ablate(tiny("llama", seed=1), ids, {"tokens": [1]}, result=result)
    with pytest.raises(ValueError, match="replacement is a prompt of 22 tokens, and this one has 23"):
        ablate(model, ids, {"tokens": [1]}, ids[:, 1:])
    with pytest.raises(ValueError, match="replacement is given, and edges alone are cut"):
        ablate(model, ids, {"edges": [(1, 1, 2)]}, "mean")
    with pytest.raises(ValueError, match="there is no source 'b': they are 'a', "):
        ablate(model, ids, {"sources": ["b"]}, result=result.by_source({"a": (0, 3)}))


@pytest.mark.parametrize(
    ("replacement", "error", "message"),
    [
        (None, TypeError, 'replacement must be "zero", "mean" or another prompt, not None'),
        ("Zero", ValueError, "replacement 'Zero' would be a prompt: write 'zero', or that prompt's token ids"),
        ("zeros", ValueError, "replacement 'zeros' would be a prompt: write 'zero'"),
        ("Mean", ValueError, "replacement 'Mean' would be a prompt: write 'mean'"),
        ("means", ValueError, "replacement 'means' would be a prompt: write 'mean'"),
        ("avg", ValueError, "replacement 'avg' would be a prompt: write 'mean'"),
        (Prompt(torch.tensor([1]), text="zeros"), ValueError, "replacement 'zeros' would be a prompt: write 'zero'"),
        ([97] * 23, ValueError, "^replacement: it holds token 97, outside the vocabulary, 0 to 96"),
        (3.5, ValueError, r"^replacement: it must be \(N,\) or \(1, N\), one prompt, not a number"),
        ([1.5] * 23, TypeError, "^replacement: it must hold whole numbers"),
        ("some text", ValueError, "^replacement: it is a string: give tokenizer="),
        ([1, 2], ValueError, "replacement is a prompt of 2 tokens, and this one has 23: give one of as many$"),
    ],
)
def test_replacements_that_are_refused(tiny, ids, replacement, error, message):
    with pytest.raises(error, match=message):
        ablate(tiny("llama"), ids, {"tokens": [1]}, replacement)


def test_a_replacement_covers_the_answer_too(tiny, ids):
    model = tiny("llama")
    message = "of 23 tokens, and this one has 25: give one of as many, the 2 included that are read behind the prompt"
    with pytest.raises(ValueError, match=message):
        ablate(model, ids, {"tokens": [1]}, ids.flip(1), answer=[3, 5, 7])
    with pytest.raises(ValueError, match=message):
        ablate(model, ids, {"tokens": [1]}, ids.flip(1), result=attribute(model, ids, answer=[3, 5, 7]))


def test_scans_have_nodes_alone(ids):
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=97, state_size=4)
    model = transformers.MambaForCausalLM(config).eval()
    assert ablate(model, ids, {"nodes": [(1, -1)]}).change != 0
    with pytest.raises(ValueError, match="tokens meet in the MambaMixer of layer 1, where no pair of them can be"):
        ablate(model, ids, {"edges": [(1, 2, 3)]})
    with pytest.raises(ValueError, match="layer 0: it holds no softmax attention"):
        ablate(model, ids, {"heads": [(0, 0)]})
    with pytest.raises(ValueError, match="layer 0: it holds no MLP of a known form, .* name nodes or heads there"):
        ablate(model, ids, {"neurons": [(0, 0)]})


def test_public_names():
    assert {"Ablation", "ablate", "Sources"} <= set(lrp_fast.__all__)


def test_answers_log_probabilities_and_functions_are_asked_again(tiny, ids):
    """Each against the cut model's own logits; a result's question, and the same one asked anew."""
    model, node = tiny("llama", torch.float64), {"nodes": [(1, 4)]}

    def zeroed(module, args):
        return (args[0].index_copy(1, torch.tensor([4]), torch.zeros_like(args[0][:, :1])), *args[1:])

    def logits(read):
        with torch.no_grad(), patched(model, "gradient"):
            whole = model(read).logits[0]
            handle = model.model.layers[1].register_forward_pre_hook(zeroed)
            found = whole, model(read).logits[0]
            handle.remove()
            return found

    whole, cut = logits(ids)
    longer = torch.cat([ids, torch.tensor([[3, 5]])], 1)
    of_answer = [one[[22, 23, 24], [3, 5, 9]].sum() for one in logits(longer)]
    odds = lambda logits: logits[0, 3].sigmoid() - logits[1, 7] ** 2  # noqa: E731
    cases = (
        ({"target": ("logprob", 3)}, [one[-1].log_softmax(-1)[3] for one in (whole, cut)]),
        ({"answer": [3, 5, 9]}, of_answer),
        ({"target": odds, "position": [22, 9]}, [odds(one[[22, 9]]) for one in (whole, cut)]),
    )
    for asked, (before, after) in cases:
        function = {"target": odds} if asked.get("target") is odds else {}
        for found in (
            ablate(model, ids, node, **asked),
            ablate(model, ids, node, result=attribute(model, ids, **asked), **function),
        ):
            assert abs(found.before - float(before)) <= 1e-12 and abs(found.value - float(after)) <= 1e-12
    with pytest.raises(ValueError, match="of a function of the logits, which it does not hold: give it as target"):
        ablate(model, ids, node, result=attribute(model, ids, target=odds, position=[22, 9]))
    with pytest.raises(ValueError, match="leave target, contrast, position and answer out, or the result"):
        ablate(model, ids, node, answer=[3, 5], result=attribute(model, ids, answer=[3, 5]))


DTYPES = [torch.float32, torch.float64, torch.bfloat16]
KINDS = [{}, {"contrast": 5}, {"contrast": "mean"}, {"contrast": ("top", 3)}, {"target": ("logprob", 3)}]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_of_the_same_model_passes(family, dtype, tiny, ids, tmp_path):
    model = tiny(family, dtype)
    odds = lambda logits: logits[0, 3].sigmoid() - logits[1, 7] ** 2  # noqa: E731
    asked = [*KINDS, {"target": odds}, {"rule": "cp", "graph": GraphSpec(topk=4)}, {"tolerance": 0.2}]
    asked.append({"memory": lrp_fast.Memory(host_budget=200_000_000, offload_dir=tmp_path)})
    for one in asked:
        result = attribute(model, ids, position=[9, -1], **one)
        function = {"target": odds} if one.get("target") is odds else {}
        assert ablate(model, ids, {"tokens": [1]}, result=result, **function).before == pytest.approx(result.value)


@pytest.mark.parametrize(("dtype", "by"), [(torch.float32, 1.001), (torch.float64, 1 + 1e-9), (torch.bfloat16, 2.0)])
@pytest.mark.parametrize("asked", KINDS)
def test_a_result_of_another_model_is_refused(asked, dtype, by, tiny, ids):
    model = tiny("llama", dtype)
    result = attribute(model, ids, position=[9, -1], **asked)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight *= by
    with pytest.raises(ValueError, match="result is of a model that says .* this one says .*: give the one that it is"):
        ablate(model, ids, {"tokens": [1]}, result=result)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_of_another_function_is_refused(dtype, tiny, ids):
    model = tiny("llama", dtype)
    functions = [lambda logits: logits[0, 3].sigmoid(), lambda logits: logits[0, 3] / 8]
    functions += [lambda logits: logits[0].softmax(-1)[3], lambda logits: logits[0].softmax(-1)[5]]
    for of, other in ((0, 1), (1, 0), (2, 3), (3, 2), (2, 0)):
        result = attribute(model, ids, target=functions[of])
        assert ablate(model, ids, {"tokens": [1]}, target=functions[of], result=result).before == result.value
        with pytest.raises(ValueError, match="result is of a function that gives .* target gives .*: give the one"):
            ablate(model, ids, {"tokens": [1]}, target=functions[other], result=result)

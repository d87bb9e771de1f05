"""Other people's hooks: every kind, on every kind of module, counts whatever memory a pass has, or is refused."""

from dataclasses import replace

import pytest
import torch
from torch.nn.modules import module as everywhere

from lrp_fast import GraphSpec, Memory, Rules, attribute, attribute_batch, between, patched, plan
from lrp_fast.stream import propagate

MODULES = {
    "layer": lambda model: model.model.layers[1],
    "attention": lambda model: model.model.layers[1].self_attn,
    "linear in the attention": lambda model: model.model.layers[1].self_attn.o_proj,
    "MLP": lambda model: model.model.layers[1].mlp,
    "linear in the MLP": lambda model: model.model.layers[1].mlp.down_proj,
    "norm": lambda model: model.model.layers[1].post_attention_layernorm,
    "last norm": lambda model: model.model.norm,
    "head": lambda model: model.lm_head,
}


def first(given):
    return given[0] if isinstance(given, tuple) else given


def with_first(given, value):
    return (value, *given[1:]) if isinstance(given, tuple) else value


def pre_hook(module, do):
    """``do`` with a module's first input, whether it comes by position or by name."""

    def hook(_, args, named):
        given = args[0] if args else named["hidden_states"]
        changed = do(given)
        if changed is None:
            return None
        return ((changed, *args[1:]), named) if args else (args, named | {"hidden_states": changed})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def scaled(x):
    return x * torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)


def tensor_hook(x):
    x.register_hook(lambda g: g * torch.linspace(0.5, 1.5, g.shape[-1], dtype=g.dtype))


KINDS = {
    "output": lambda module: module.register_forward_hook(lambda m, a, out: with_first(out, scaled(first(out)))),
    "input": lambda module: pre_hook(module, scaled),
    "gradient of the output": lambda module: module.register_forward_hook(lambda m, a, out: tensor_hook(first(out))),
    "gradient of the input": lambda module: pre_hook(module, tensor_hook),
}
REFUSED = {
    "full": lambda module: module.register_full_backward_hook(lambda *_: None),
    "full, before": lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    "old": lambda module: module.register_backward_hook(lambda *_: None),
}


def in_all_tiers(model, ids):
    """Relevance in all tiers, MLPs whole and in parts."""
    count = ids.shape[1]
    planned = plan(model, count)
    for tier in ("graph", "host", "file"):
        for rows in (count, 5):
            given = replace(planned, tiers=(tier,) * len(planned.tiers), chunk_tokens=rows)
            yield propagate(model, ids, [count - 1], difference, Rules("attnlrp"), given)[0][0][0]


def difference(logits):
    return [logits[0, 5] - logits[0, 7]]


def by_hand(model, ids):
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model):
        difference(model(inputs_embeds=x, use_cache=False).logits[0, -1:])[0].backward()
    return (x.detach() * x.grad).sum(-1)[0]


@pytest.mark.parametrize("where", MODULES)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_tensor_hooks_count_in_every_tier(kind, where, tiny, ids):
    model = tiny("llama", torch.float64)
    plain = by_hand(model, ids)
    KINDS[kind](MODULES[where](model))
    truth = by_hand(model, ids)
    assert (truth - plain).abs().max() > 1e-3 * truth.abs().max(), "the hook does nothing here"
    for found in in_all_tiers(model, ids):
        assert (found - truth).abs().max() <= 1e-12 * truth.abs().max()


@pytest.mark.parametrize("where", MODULES)
def test_tensors_retain_their_gradients_in_every_tier(where, tiny, ids):
    model, kept = tiny("llama", torch.float64), []
    MODULES[where](model).register_forward_hook(lambda m, a, out: kept.append(first(out)) or first(out).retain_grad())
    by_hand(model, ids)
    truth = kept.pop().grad
    for _ in in_all_tiers(model, ids):  # the last call is the one that autograd went back through
        found = kept[-1].grad
        expected = truth[:, -found.shape[1] :]  # the head sees the explained position alone
        assert (found - expected).abs().max() <= 1e-12 * truth.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hooks_that_do_not_do_the_same_each_time_are_noticed(dtype, tiny, ids):
    """One that steers the first call alone: whether there is a second hangs on the memory."""
    model, calls = tiny("llama", dtype), []

    def steer(module, args, out):
        calls.append(1)
        return out * 1.5 if len(calls) == 1 else out

    small = Memory(host_budget=plan(model, 23).least["cpu"])
    handle = model.model.layers[1].mlp.register_forward_hook(steer)
    with pytest.raises(RuntimeError, match="a hook on LlamaDecoderLayer, .* did not do the same when the layer ran"):
        attribute(model, ids, memory=small)
    handle.remove()
    model.model.layers[1].mlp.register_forward_hook(lambda m, a, out: out * 1.5)
    steered = attribute(model, ids, memory=small)
    if dtype == torch.float32:
        assert "graph" in plan(model, 23).tiers
        assert (attribute(model, ids).layers - steered.layers).abs().max() <= 1e-5 * steered.layers.abs().max()


@pytest.mark.filterwarnings("ignore:.*backward hook")
@pytest.mark.parametrize("where", ["layer", "linear in the MLP", "head", "embeddings", "model"])
@pytest.mark.parametrize("kind", REFUSED)
def test_backward_hooks_are_refused_and_run_under_patched(kind, where, tiny, ids):
    model = tiny("llama")
    others = {"embeddings": model.get_input_embeddings(), "model": model}
    handle = REFUSED[kind](others[where] if where in others else MODULES[where](model))
    with pytest.raises(ValueError, match="has a backward hook.*: remove it, or call backward yourself within"):
        list(in_all_tiers(model, ids))
    for call in (lambda: attribute_batch(model, [ids[0]]), lambda: between(model, ids, 0, 1, [2])):
        with pytest.raises(ValueError, match="has a backward hook"):
            call()
    by_hand(model, ids)
    handle.remove()
    list(in_all_tiers(model, ids))


def test_backward_hooks_of_all_modules_are_refused(tiny, ids):
    handle = everywhere.register_module_full_backward_hook(lambda *_: None)
    try:
        with pytest.raises(ValueError, match="every module .* has a backward hook"):
            attribute_batch(tiny("llama"), [ids[0]])
    finally:
        handle.remove()


def test_hooks_of_all_modules_that_change_what_passes_between_layers_are_refused(tiny, ids):
    model = tiny("llama")
    layers = set(model.model.layers)
    handle = everywhere.register_module_forward_pre_hook(
        lambda module, args: (args[0] * 1.5, *args[1:]) if module in layers else None
    )
    try:
        with pytest.raises(
            ValueError, match="the hidden states change on their way from one decoder layer to the next"
        ):
            list(in_all_tiers(model, ids))
    finally:
        handle.remove()


@pytest.mark.parametrize("where", ["layer", "norm", "MLP"])
def test_hooks_may_write_over_what_they_are_given(where, tiny, ids):
    model = tiny("llama", torch.float64)
    plain = by_hand(model, ids)

    def double(x):
        with torch.no_grad():
            x[:, 3:] *= 2

    pre_hook(MODULES[where](model), double)
    truth = by_hand(model, ids)
    assert (truth - plain).abs().max() > 1e-3 * truth.abs().max(), "the hook does nothing here"
    for found in in_all_tiers(model, ids):
        assert (found - truth).abs().max() <= 1e-12 * truth.abs().max()


def test_edges_under_forward_hooks_are_refused(tiny, ids):
    """Their closed form is that of the layer's own code."""
    model = tiny("llama", attention_bias=False, mlp_bias=False)
    model.lm_head.register_forward_hook(lambda m, a, out: out * 2)  # not within a layer
    attribute(model, ids, graph=GraphSpec(topk=4))
    handle = model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda m, a, out: out + 1)
    with pytest.raises(ValueError, match="'self_attn.v_proj of layer 1' has a forward hook, .*leave the graph out"):
        attribute(model, ids, graph=GraphSpec(topk=4))
    attribute(model, ids)
    handle.remove()
    attribute(model, ids, graph=GraphSpec(topk=4))


def test_forward_hooks_of_all_modules_see_whole_modules(tiny, ids):
    model, shapes = tiny("llama", torch.float64), set()
    truth = by_hand(model, ids)

    def note(module, args, out):
        if type(module).__name__ == "LlamaMLP":
            shapes.add((tuple(out.shape), bool(out.isnan().any())))

    handle = everywhere.register_module_forward_hook(note)
    try:
        for found in in_all_tiers(model, ids):
            assert (found - truth).abs().max() <= 1e-12 * truth.abs().max()
    finally:
        handle.remove()
    assert shapes == {((1, 23, 64), False)}


@pytest.mark.parametrize("what", [lambda x: x.retain_grad(), tensor_hook])
def test_gradients_of_the_embeddings_are_not_promised(what, tiny, ids):
    model = tiny("llama")
    model.get_input_embeddings().register_forward_hook(lambda m, a, out: what(out))
    for memory in (None, Memory(host_budget=plan(model, 23).least["cpu"])):
        with pytest.raises(ValueError, match="asked the embeddings for their gradient"):
            attribute_batch(model, [ids[0]], memory=memory)


def test_hooks_that_transformers_leaves_behind_do_not_count(tiny, ids):
    """A model that was once asked for its hidden states keeps hooks that see them where it is asked again."""
    model, spec = tiny("llama"), GraphSpec(topk=4)
    before = attribute(model, ids, 3, 5, graph=spec).graph
    model(ids, output_hidden_states=True)
    after = attribute(model, ids, 3, 5, graph=spec).graph
    assert torch.equal(before.nodes, after.nodes) and torch.equal(before.weights, after.weights)

"""The layers that run, in the order in which they run; models that something else has been done to beforehand."""

import types

import pytest
import torch
from torch import nn

import lrp_fast
from lrp_fast import GraphSpec, Memory, attribute, patched, plan
from lrp_fast.hf import decoder_layers
from lrp_fast.hf.overlay import forward_of


def layers_of(model):
    body = getattr(model, model.base_model_prefix)
    return body, "h" if hasattr(body, "h") else "layers"


def rebuilt(choose):
    """A change of a model's list of layers: those of these numbers."""

    def change(model):
        body, name = layers_of(model)
        held = getattr(body, name)
        setattr(body, name, nn.ModuleList([held[i] for i in choose]))
        model.config.num_hidden_layers = len(choose)
        return choose

    return change


def early_exit(model):
    model.config.num_hidden_layers = 2
    families = ("GPT2LMHeadModel", "FalconForCausalLM", "GPTNeoXForCausalLM", "StableLmForCausalLM")
    return [0, 1, 2] if type(model).__name__ in families else [0, 1]  # these run what there is


def more_in_the_config(model):
    model.config.num_hidden_layers = 9
    return [0, 1, 2]


def another_forward(model):
    """Somebody's own: the first layer twice, the second not at all."""
    body, name = layers_of(model)
    held, own = list(getattr(body, name)), body.forward

    def forward(self, *args, **named):
        getattr(self, name)._modules.update({"0": held[0], "1": held[0], "2": held[2]})
        try:
            return own(*args, **named)
        finally:
            getattr(self, name)._modules.update({"0": held[0], "1": held[1], "2": held[2]})

    body.forward = types.MethodType(forward, body)
    return [0, 0, 2]


CHANGES = {
    "one twice": rebuilt([0, 1, 1, 2]),
    "all twice": rebuilt([0, 1, 2, 0, 1, 2]),
    "one thrice": rebuilt([1, 1, 1]),
    "turned round": rebuilt([2, 1, 0]),
    "one left out": rebuilt([0, 2]),
    "early exit": early_exit,
    "more in the config": more_in_the_config,
    "another forward": another_forward,
}


def by_hand(model, ids, rule="attnlrp"):
    with torch.no_grad():
        x = model.get_input_embeddings()(ids).clone().requires_grad_()
    with patched(model, rule):
        model(inputs_embeds=x, use_cache=False).logits[0, -1, 5].backward()
    return (x.detach() * x.grad).sum(-1)[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "stablelm"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_layers_that_run_are_taken_in_their_order(change, family, tiny, ids):
    model = tiny(family, torch.float64)
    body, name = layers_of(model)
    held = list(getattr(body, name))
    order = CHANGES[change](model)
    assert decoder_layers(model) == [held[i] for i in order]
    first = [None]

    def keep(module, args, named):  # GPT-2's first node holds positions too
        if first[0] is None:
            hidden = args[0] if args else named["hidden_states"]
            first[0] = hidden.detach().requires_grad_()
            return ((first[0], *args[1:]), named) if args else (args, named | {"hidden_states": first[0]})
        return None

    handle = held[order[0]].register_forward_pre_hook(keep, with_kwargs=True)
    with patched(model):
        model(ids, use_cache=False).logits[0, -1, 5].backward()
    handle.remove()
    truth = (first[0] * first[0].grad).sum(-1)[0].detach()
    for memory in (None, Memory(host_budget=plan(model, 23).least["cpu"])):
        found = attribute(model, ids, target=5, memory=memory).layers
        assert len(found) == len(order) + 1
        assert (found[0] - truth).abs().max() <= 1e-12 * truth.abs().max()


def test_a_graph_of_a_looped_model_adds_up(tiny, ids):
    model = tiny("llama", torch.float64)
    CHANGES["one twice"](model)
    result = attribute(model, ids, target=5, graph=GraphSpec(topk=23))
    for layer in range(4):
        sums = result.graph.dense(layer).sum(0)
        assert (sums - result.layers[layer]).abs().max() <= 1e-12 * sums.abs().max()


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo3", "qwen2"])
@pytest.mark.parametrize("choose", [[1, 0, 2], [1, 2], [0, 1, 1, 2]])
def test_layers_with_windows_stand_where_the_config_says_so(choose, family, tiny, ids):
    """transformers' masks go by the place; what the refusal advises makes the two agree."""
    model = tiny(family, torch.float64)
    kinds = model.config.layer_types
    moved = [kinds[i] for i in choose]
    model.model.layers = nn.ModuleList([model.model.layers[i] for i in choose])
    model.config.num_hidden_layers = len(choose)
    model.config.layer_types = kinds = (kinds * 2)[: len(choose)]  # or transformers finds none for the last
    if moved != kinds:
        for call in (lambda: attribute(model, ids, target=5), lambda: by_hand(model, ids)):
            with pytest.raises(ValueError, match="stands in place [0-3], of which the config's layer_types say"):
                call()
        model.config.layer_types = moved
    with torch.no_grad():
        own = model(ids, use_cache=False).logits[0, -1, 5]  # a cache has one place for a layer that runs twice
    result = attribute(model, ids, target=5)
    assert abs(result.value - own) <= 1e-4 * abs(own)
    assert (result.relevance - by_hand(model, ids)).abs().max() <= 1e-12 * result.relevance.abs().max()


def test_looking_runs_nobodys_hooks(tiny, ids):
    model = tiny("llama")
    model.config.num_hidden_layers = 2
    model.get_input_embeddings().register_forward_hook(lambda m, a, out: pytest.fail("a hook ran"))
    assert len(decoder_layers(model)) == 2


def test_a_model_that_runs_other_layers_at_other_lengths_is_refused(tiny, ids):
    model = tiny("llama")
    own = model.model.forward

    def forward(self, *args, **named):
        self.config.num_hidden_layers = 3 if named["input_ids"].shape[1] == 1 else 2
        return own(*args, **named)

    model.model.forward = types.MethodType(forward, model.model)
    with pytest.raises(RuntimeError, match="runs others at other lengths"):
        attribute(model, ids)


def test_a_model_that_runs_no_layer_is_refused(tiny, ids):
    model = tiny("llama")
    model.config.num_hidden_layers = 0
    for call in (lambda: attribute(model, ids), lambda: plan(model, 23)):
        with pytest.raises(ValueError, match="runs no decoder layer .num_hidden_layers is 0 in its config"):
            call()


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_layers(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def wrapped_layers(model):
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = torch.compile(layer, backend="eager")
    return model


def wrapped_body(model):
    model.model = torch.compile(model.model, backend="eager")
    return model


def wrapped(model):
    return torch.compile(model, backend="eager")


def compiled_linear(model):
    model.model.layers[1].mlp.down_proj.forward = torch.compile(model.model.layers[1].mlp.down_proj.forward)
    return model


@pytest.mark.parametrize(
    "how",
    [
        compiled_in_place, compiled_forward, compiled_layers, wrapped_layers, wrapped_body, wrapped, compiled_linear,
    ],
)  # fmt: skip
def test_what_was_compiled_runs_as_it_is_written(how, tiny, ids):
    model = tiny("llama", torch.float64)
    truth, by_itself = attribute(model, ids, target=5).layers, by_hand(model, ids)
    model = how(model)

    def state():
        return [(path, sorted(module.__dict__)) for path, module in model.named_modules()]

    before = state()
    for memory in (None, Memory(host_budget=plan(model, 23).least["cpu"])):
        found = attribute(model, ids, target=5, memory=memory).layers
        assert (found - truth).abs().max() <= 1e-14 * truth.abs().max()
    assert (by_hand(model, ids) - by_itself).abs().max() <= 1e-14 * by_itself.abs().max()
    assert state() == before


def test_a_compiled_model_still_is_one_in_other_threads_and_afterwards(tiny, ids):
    model, calls = tiny("llama"), []

    def backend(graph, inputs):
        return lambda *given: calls.append(1) or graph(*given)

    with torch.no_grad():
        truth = model(ids).logits
        model.compile(backend=backend)
        assert torch.equal(model(ids).logits, truth) and calls
        calls.clear()
        attribute(model, ids)
        assert not calls
        assert torch.equal(model(ids).logits, truth) and calls


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral", "phi3", "cohere", "gpt_oss", "falcon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_made_under_inference_mode(dtype, family, tiny, ids):
    truth = attribute(tiny(family, dtype), ids, target=5).layers
    with torch.inference_mode():
        model = tiny(family, dtype)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    made = [parameter.is_inference() for parameter in model.parameters()]
    assert all(made), "they are ordinary: the test shows nothing"
    before = [(sorted(module.__dict__), list(module._parameters)) for module in model.modules()]
    for memory in (None, Memory(host_budget=plan(model, 23).least["cpu"])):
        found = attribute(model, ids, target=5, memory=memory).layers
        assert (found - truth).abs().max() <= 1e-5 * truth.abs().max() or dtype == torch.bfloat16
    assert torch.equal(attribute(model, ids, target=5).layers, truth)
    by_hand(model, ids)
    assert [(sorted(module.__dict__), list(module._parameters)) for module in model.modules()] == before
    assert [parameter.is_inference() for parameter in model.parameters()] == made


def test_dynamic_rotations_made_under_inference_mode(tiny, ids):
    """Their table is made anew as they run."""
    given = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}}
    given |= {"max_position_embeddings": 32}
    long = torch.arange(60)[None] % 97
    truth = attribute(tiny("llama", **given), long, target=5).layers
    with torch.inference_mode():
        model = tiny("llama", **given)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    assert torch.equal(attribute(model, long, target=5).layers, truth)


@pytest.mark.parametrize(
    ("family", "part"),
    [("llama", "self_attn"), ("gpt2", "attn"), ("gpt_neox", "mlp"), ("gpt2", "mlp"), ("llama", "mlp")],
)
def test_a_part_whose_forward_somebody_has_replaced_is_refused(family, part, tiny, ids):
    model = tiny(family)
    body, name = layers_of(model)
    module = getattr(getattr(body, name)[1], part)
    own = module.forward
    module.forward = lambda *args, **named: own(*args, **named)
    for call in (lambda: attribute(model, ids), lambda: patched(model).__enter__()):
        with pytest.raises(RuntimeError, match=f"overrides the forward of '.*{part}': undo that first"):
            call()
    del module.forward
    attribute(model, ids)


def test_a_decoder_without_weights_does_not_show_which_layers_run(tiny):
    """Albert does: tests/hf/test_sizes.py."""
    model = tiny("llama").to("meta")
    assert len(plan(model, 23, device="cpu").tiers) == 3
    model.config.num_hidden_layers = 2
    with pytest.raises(ValueError, match="counts 2 layers, it holds 3, .* weights, or let the config count as many$"):
        plan(model, 23, device="cpu")


def test_a_config_that_wants_tuples(tiny, ids):
    for family in ("falcon", "llama", "gpt2"):
        model = tiny(family)
        truth = attribute(model, ids, target=5).layers
        model.config.return_dict = False
        assert torch.equal(attribute(model, ids, target=5).layers, truth)


def test_the_code_under_a_compiled_method_is_bound():
    class Part(nn.Module):
        @torch.compile(backend="eager")
        def forward(self, x):
            return x + len(self._modules)

    assert forward_of(Part())(1) == 1
    assert lrp_fast.hf.overlay.is_compiled(Part().forward)

"""Models that accelerate spreads over devices and loads piece by piece."""

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import Memory, attribute, patched

pytest.importorskip("accelerate")


@pytest.fixture
def spread(tmp_path, tiny):
    """(a model, the same with two of its layers on disk, loaded whenever they run)"""
    model = tiny("llama", torch.float64)
    model.save_pretrained(tmp_path / "model")
    places = {f"model.layers.{i}": place for i, place in enumerate(("disk", "cpu", "disk"))}
    places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "weights", dtype=torch.float64
    )
    assert loaded.model.layers[0].mlp.down_proj.weight.device.type == "meta"
    return model, loaded.eval()


@pytest.mark.parametrize("rule", ["attnlrp", lrp_fast.Rules("cp", epsilon=0.1, gamma=0.1)])
@pytest.mark.parametrize("small", [False, True])
def test_layers_on_disk_are_explained_as_any(rule, small, spread, ids):
    model, loaded = spread
    memory = Memory(host_budget=lrp_fast.plan(loaded, 23, rule=rule).least["cpu"]) if small else None
    before = [sorted(module.__dict__) for module in loaded.modules()]
    expected, found = (attribute(one, ids, target=3, contrast=5, rule=rule, memory=memory) for one in (model, loaded))
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert (found.layers - expected.layers).abs().max() <= 1e-12 * expected.layers.abs().max()
    assert [sorted(module.__dict__) for module in loaded.modules()] == before


def test_patching_goes_below_what_accelerate_lays_over(spread, ids):
    model, loaded = spread
    found = []
    for one in (model, loaded):
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        with patched(one):
            one(inputs_embeds=x).logits[0, -1, 3].backward()
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_a_plan_reckons_with_where_layers_run(spread):
    model, loaded = spread
    whole, offloaded = lrp_fast.plan(model, 23), lrp_fast.plan(loaded, 23)
    assert whole.tiers == ("graph",) * 3 and whole.forward_flops == offloaded.forward_flops
    assert offloaded.tiers == ("host", "graph", "host"), "a graph would keep the weights that were loaded"
    layer = sum(weight.nbytes for weight in model.model.layers[0].parameters())
    assert offloaded.working["cpu"] > layer


def test_a_layer_that_nothing_loads_has_no_weights(spread, ids):
    model, loaded = spread
    loaded.model.layers[1].mlp.to("meta")
    with pytest.raises(ValueError, match="^model.layers.1.mlp.gate_proj of LlamaForCausalLM has no weights"):
        attribute(loaded, ids)
    loaded.model.layers[1].mlp = model.model.layers[1].mlp
    assert attribute(loaded, ids).layers.isfinite().all()


@pytest.mark.parametrize("several", [False, True])
def test_weights_that_come_with_those_of_a_part_above(several, spread, ids):
    """As accelerate loads modules that are named as wholes (preload_module_classes); and beside another hook."""
    from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module

    model, _ = spread
    truth = attribute(model, ids, target=3).layers
    mlp = model.model.layers[1].mlp
    weights = {name: weight.detach().clone() for name, weight in mlp.state_dict().items()}
    hook = AlignDevicesHook("cpu", offload=True, weights_map=weights, place_submodules=True)
    add_hook_to_module(mlp, hook)
    if several:
        add_hook_to_module(mlp, ModelHook(), append=True)
    assert mlp.down_proj.weight.is_meta
    assert torch.equal(attribute(model, ids, target=3).layers, truth)

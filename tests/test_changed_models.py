"""A model that somebody changes between two calls is explained as it is then: nothing of the first call is used."""

import copy

import pytest
import torch
from torch import nn

import lrp_fast
from lrp_fast import UnsupportedModuleError, attribute


class Unknown(nn.Module):
    def forward(self, x):
        return x


def wider(model, layer):
    mlp = layer.mlp
    for name, shape in (("gate_proj", (160, 64)), ("up_proj", (160, 64)), ("down_proj", (64, 160))):
        linear = nn.Linear(*shape[::-1], bias=False)
        nn.init.normal_(linear.weight, std=0.2, generator=torch.Generator().manual_seed(3))
        setattr(mlp, name, linear)


def another_map(model, layer):
    with torch.no_grad():
        linear = nn.Linear(64, 96, bias=False)
        linear.weight.copy_(layer.self_attn.q_proj.weight.flip(0))
    layer.self_attn.q_proj = linear.eval()


def another_weight(model, layer):
    layer.self_attn.v_proj.weight = nn.Parameter(layer.self_attn.v_proj.weight.detach().flip(0))


def a_layer_fewer(model, layer):
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2


def hooked(model, layer):
    layer.mlp.register_forward_hook(lambda module, args, output: output * 1.5)


def adapted(model, layer):
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    given = {"r": 2, "target_modules": ["v_proj", "down_proj"], "init_lora_weights": False}
    peft.inject_adapter_in_model(peft.LoraConfig(**given), model)
    model.eval()


CHANGES = [wider, another_map, another_weight, a_layer_fewer, hooked, adapted]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_explained_as_it_is_now(change, tiny, ids):
    model, fresh = tiny("qwen3"), tiny("qwen3")
    before = attribute(model, ids, 3, 5)
    planned = lrp_fast.plan(model, 23)
    for one in (model, fresh):
        change(one, one.model.layers[1])
    after, truth = attribute(model, ids, 3, 5), attribute(copy.deepcopy(fresh), ids, 3, 5)
    assert torch.equal(after.layers, truth.layers) and after.value == truth.value
    assert after.value != before.value
    if change is wider:
        assert sum(lrp_fast.plan(model, 23).stored.values()) > sum(planned.stored.values())


def test_what_can_no_longer_be_explained_is_refused(tiny, ids):
    model = tiny("qwen3")
    for _ in range(2):
        attribute(model, ids, 3, 5)
        layer = model.model.layers[1]
        kept, layer.mlp = layer.mlp, Unknown()
        with pytest.raises(UnsupportedModuleError, match=r"model\.layers\.1\.mlp"):
            attribute(model, ids, 3, 5)
        layer.mlp = kept
        handle = layer.mlp.register_full_backward_hook(lambda *given: None)
        with pytest.raises(ValueError, match="backward hook"):
            attribute(model, ids, 3, 5)
        handle.remove()
        model.train()
        with pytest.raises(ValueError, match="training mode"):
            attribute(model, ids, 3, 5)
        model.eval()

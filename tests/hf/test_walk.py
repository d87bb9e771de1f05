"""Walks over a model's modules, and what is asked of all of them."""

import gc
import weakref

import pytest
from torch import nn

from lrp_fast.hf import families, handlers
from lrp_fast.hf.walk import modules_of, named_modules_of


@pytest.fixture
def model():
    shared = nn.Linear(2, 2)
    return nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared), nn.LayerNorm(2))


def test_they_are_those_of_pytorch(model):
    model.register_module("nothing", None)
    assert named_modules_of(model) == [*model.named_modules()]
    assert named_modules_of(model, once=False) == [*model.named_modules(remove_duplicate=False)]
    assert modules_of(model) == [*model.modules()]


def test_a_model_that_was_walked_is_gone_with_its_last_name():
    """Without waiting for Python to look for cycles: on a GPU its memory is."""
    model = nn.Sequential(nn.Linear(2, 2))
    gone = weakref.ref(model)
    gc.disable()
    try:
        named_modules_of(model), named_modules_of(model, once=False), modules_of(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_modules_at_rest_are_asked_for_while_another_thread_finds_more(model, monkeypatch):
    class Growing(weakref.WeakSet):
        def __iter__(self):
            raise RuntimeError("Set changed size during iteration")

    monkeypatch.setattr(families, "_IDLE", Growing([model[2]]))
    assert families.handlers_of([*model[:1], model[2]]) == [handlers.linear, handlers.idle]

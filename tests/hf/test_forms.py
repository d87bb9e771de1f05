"""The forms of code that somebody has read: every part of the families that the suite runs has one, and what counts.

Small models do not show every change of their code: an option that is off in them shows in other people's alone. So no
part of these families is left to the audit, and a change upstream is read before it is explained. forms.json has the
forms of transformers 5.0.0, 5.23.0 and 5.24.0, and of the newest patch of each minor release in between: all of these
families', and of other decoders those that do the same by the rule of the class that has a form in one of those three.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import FunctionType

import pytest
import torch
import transformers

from lrp_fast.hf import families, forms

PART = '''
from torch import nn

TABLE = {table}


def _turned(x):
    return x {turn} 2


class Famous{base}:
    def __init__(self, {setting}):
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x{annotation}):
        {docstring}
        y: {kind} = _turned(x){term}
        return FamousOutput(y)


def FamousOutput(y):
    return y
'''
PLAIN = {
    "setting": "config", "annotation": "", "docstring": "", "term": "", "turn": "*", "base": "(nn.Module)",
    "kind": "int", "table": "0",
}  # fmt: skip


def test_every_part_of_a_model_has_a_form_that_is_known(family, tiny):
    for cls in {type(part) for part in tiny(family).modules()}:
        if cls.__module__.startswith("transformers.models."):
            calls = {one.__name__: forms.form(one) for one in forms.functions_of(cls)}
            assert forms.handler_name(cls) is not None, (
                f"{cls.__name__} of transformers {transformers.__version__} has no form that is known: read what has "
                f"changed, mend its handler if a rule has to change, then add {forms.form(cls)} to it in forms.json, "
                f"and under 'function' what of {calls} is not there"
            )


def test_a_form_has_one_handler_that_exists():
    found = json.loads(Path(forms.__file__).with_name("forms.json").read_text("utf-8"))
    digests = [digest for of_one in found.values() for digest in of_one]
    assert len(digests) == len(set(digests))
    assert all(name == "function" or any(hasattr(room, name) for room in families._ROOMS) for name in found)


@pytest.fixture
def made(tmp_path):
    """``made(name, **parts)``: the class of that module."""

    def make(name, **parts):
        path = tmp_path / f"{name}.py"
        path.write_text(PART.format(**PLAIN | parts))
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module.Famous

    return make


@pytest.mark.parametrize(
    ("what", "becomes", "same"),
    [
        ("setting", "config, device", True),
        ("annotation", ": int", True),
        ("docstring", '"""What it is."""  # and why', True),
        ("kind", "float", True),
        ("table", "1", True),
        ("term", " * self.scale", False),
        ("annotation", ", mask=None", False),
    ],
)
def test_a_form_is_what_is_computed(what, becomes, same, made):
    assert (forms.form(made("other.modeling_famous", **{what: becomes})) == forms.form(made("modeling_famous"))) == same


def test_a_function_that_is_called_counts_too(made, monkeypatch):
    cls, other = made("modeling_famous"), made("other.modeling_famous", turn="**")
    assert forms.form(cls) == forms.form(other)
    known = {forms.form(cls): "leave", **{forms.form(one): "function" for one in forms.functions_of(cls)}}
    monkeypatch.setattr(forms, "known", lambda: known)
    monkeypatch.setattr(forms, "_is_shipped", lambda function: True)
    forms._read.clear()
    try:
        assert forms.handler_name(cls) == "leave" and forms.handler_name(other) is None
        subclass = type("Sub", (cls,), {})
        subclass.__module__ = cls.__module__
        assert forms.handler_name(subclass) == "leave"  # it has no code of its own
    finally:
        forms._read.clear()


@pytest.mark.parametrize("folder", ["/opt/torch/lib/site-packages/transformers/models", "/home/lrp_fast/transformers"])
def test_whose_code_it_is_does_not_rest_on_what_folders_are_called(folder):
    """An environment may lie anywhere, and a project be called anything."""

    def own(self):
        pass

    elsewhere = own.__code__.replace(co_filename=f"{folder}/modeling_famous.py")
    moved = FunctionType(elsewhere, own.__globals__)
    assert not forms._is_torchs(moved) and not forms._is_shipped(moved)
    assert forms._is_torchs(torch.nn.Linear.forward) and forms._is_shipped(torch.nn.Linear.forward)
    assert forms._is_shipped(transformers.models.llama.modeling_llama.LlamaRMSNorm.forward)

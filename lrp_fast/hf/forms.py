"""What a class does by its code, whatever it is called: classes whose code is equal share a handler.

`forms.json` has, for each handler, a digest of every form of code that somebody has read and found right for it. What
counts is what is computed: annotations, docstrings, comments, decorators, set-up and the family's own name do not. A
class that changes upstream falls out of the table, and is audited like any other that is not in it.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.resources
import inspect
import json
import os
import re
import textwrap
from pathlib import Path
from types import CodeType, FunctionType

import torch
import transformers
from torch import nn

_SET_UP = ("__init__", "_init_weights", "extra_repr", "compute_default_rope_parameters")
# What all models share: whatever it does, it is none of a layer's own computation.
_SHARED = ("torch.", "transformers.", "builtins.", "abc.", "collections.")
_MIXINS = ("GenericFor",)  # but for whole classes: models with labels have no code besides
# Called by attentions where no other implementation is named; patched models name ours.
_PAST_AUTOGRAD = {
    "data", "Parameter", "_make_subclass", "as_subclass", "register_hook", "is_meta", "set_", "resize_", "__dict__",
}  # fmt: skip
_REPLACED = ("eager_attention_forward", "repeat_kv")
# Where code lies that others have read. By the packages' own folders: any path may have "torch" in it.
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_HOMES = (
    _TORCH, os.path.join(os.path.dirname(transformers.__file__), ""), os.path.join(Path(__file__).parents[1], ""),
    contextlib.__file__,
)  # fmt: skip


@functools.cache
def known() -> dict[str, str]:
    """Digest -> the name of its handler; "function" for functions that classes call, which need none."""
    text = (importlib.resources.files(__package__) / "forms.json").read_text(encoding="utf-8")
    return {digest: handler for handler, digests in json.loads(text).items() for digest in digests}


def handler_name(cls: type[nn.Module]) -> str | None:
    """The name of the handler of a class's form, in one of the rooms of `families`; None for a form that is not
    known, for one that calls a function whose form is not, and for code that transformers does not ship."""
    return _handler_name(cls, cls.forward)


@functools.lru_cache(4096)
def _handler_name(cls: type[nn.Module], forward: object) -> str | None:
    if not all(map(_is_shipped, _methods(cls, unwrapped=False).values())):
        return None
    found = known().get(form(cls) or "")
    if found is None or any(known().get(form(one) or "") != "function" for one in functions_of(cls)):
        return None
    return found


def form(thing: type | FunctionType) -> str | None:
    """12 hexadecimal digits of what a function or the methods of a class do, but for those that set it up; None where
    there is no source, or nothing in it."""
    try:
        methods = [thing] if inspect.isfunction(thing) else _methods(thing).values()
        text = "\n".join(filter(None, map(_bare, methods)))
    except (OSError, TypeError, SyntaxError):  # no source: an interactive class, a frozen program
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else None


def functions_of(cls: type[nn.Module]) -> list[FunctionType]:
    """The functions that a class's methods call, of the module that the method is from, and those that they call."""
    coming, found = list(_methods(cls).values()), {}
    while coming:
        caller = coming.pop()
        for name in _names(caller.__code__):
            one = caller.__globals__.get(name)
            one = inspect.unwrap(one) if inspect.isfunction(one) else None
            if one is None or one.__module__ != caller.__module__ or name in _REPLACED or one in found:
                continue
            found[one] = None
            coming.append(one)
    return list(found)


def reads_past_autograd(cls: type[nn.Module]) -> str | None:
    """What its code says that takes tensors out of autograd's sight, or asks where it runs."""
    methods = [*_methods(cls).values(), *functions_of(cls)]
    names = {name for one in methods for name in _names(inspect.unwrap(one).__code__)}
    return min(names & _PAST_AUTOGRAD, default=None)


def _names(code: CodeType) -> set[str]:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _is_shipped(function: FunctionType) -> bool:
    """Whether a method, and whatever was wrapped around it, is code of transformers', PyTorch's or ours."""
    while True:
        if not function.__code__.co_filename.startswith(_HOMES):
            return False
        if not inspect.isfunction(getattr(function, "__wrapped__", None)):
            return True
        function = function.__wrapped__


def _methods(cls: type, unwrapped: bool = True) -> dict[str, FunctionType]:
    """Its own and those that it inherits, up to what PyTorch and transformers give to all modules."""
    found = {}
    for base in reversed(cls.__mro__):
        own = base.__module__.startswith("transformers.models.") or base.__name__.startswith(_MIXINS)
        if own or not f"{base.__module__}.".startswith(_SHARED):
            own = {name: _function(one) for name, one in vars(base).items()}
            own = {name: one for name, one in own.items() if one is not None and not _is_torchs(one)}
            found |= {name: inspect.unwrap(one) if unwrapped else one for name, one in own.items()}
    return {name: one for name, one in found.items() if name not in _SET_UP}


def _is_torchs(function: FunctionType) -> bool:
    """Whether it is PyTorch's own that somebody has wrapped, as `lrp_fast.compat.lxt` does ``__call__``."""
    return inspect.unwrap(function).__code__.co_filename.startswith(_TORCH)


def _function(one: object) -> FunctionType | None:
    one = one.fget if isinstance(one, property) else getattr(one, "__func__", one)
    return one if inspect.isfunction(one) else None


def _prefix(function: FunctionType) -> str:
    """What the names of its family begin with: modeling_gpt_neox.py has GPTNeoXMLP."""
    stem = function.__module__.rsplit(".", 1)[-1].removeprefix("modeling_").replace("_", "")
    taken, name = "", function.__qualname__.partition(".")[0]
    for end in range(len(name), 0, -1):
        if name[:end].replace("_", "").lower() == stem:
            taken = name[:end]
            break
    return taken


class _Bare(ast.NodeTransformer):
    """Without annotations, decorators and docstrings, as without comments and line breaks."""

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.returns, node.decorator_list = None, []
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value, lineno=node.lineno), node)


def _bare(function: FunctionType) -> str:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    text = ast.unparse(_Bare().visit(node))
    if prefix := _prefix(function):
        text = re.sub(rf"\b{prefix}(?=[A-Z_a-z])", "", text)
    # transformers 5.24 calls a cache otherwise, and hands it all that the layer was given.
    text = re.sub(r"(\.update\(.*), kwargs=kwargs\)", r"\1)", text)
    return re.sub(r"\b(cache|cache_params)\b", "past_key_values", text)

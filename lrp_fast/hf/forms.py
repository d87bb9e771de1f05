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
import linecache
import os
import re
import textwrap
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

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


class _Read(NamedTuple):
    """What was read of a class: its handler's name, the functions that are its code, and where each was found, to see
    whether it is there still: a name in a class, or in the globals of a module."""

    handler: str | None
    code: tuple[FunctionType, ...]
    places: tuple[tuple[type | dict, str, object], ...]

    def holds(self) -> bool:
        return all(_found(place, name) is one for place, name, one in self.places)


_MOST = 4096  # classes; beyond, they are read anew
_read: dict[type[nn.Module], _Read] = {}


def handler_name(cls: type[nn.Module]) -> str | None:
    """The name of the handler of a class's form, in one of the rooms of `families`; None for a form that is not
    known, for one that calls a function whose form is not, and for code that transformers does not ship."""
    return _reading(cls).handler


def code_of(cls: type[nn.Module]) -> tuple[FunctionType, ...]:
    """The functions that a class's code consists of, as they are now: other ones where somebody has replaced one."""
    return _reading(cls).code


def _reading(cls: type[nn.Module]) -> _Read:
    """Once for a class, until somebody replaces a method of its, or a function that one calls."""
    found = _read.get(cls)
    if found is None or not found.holds():
        if len(_read) >= _MOST:
            _read.clear()
        found = _read[cls] = _read_anew(cls)
    return found


def _read_anew(cls: type[nn.Module]) -> _Read:
    methods = _methods(cls, unwrapped=False)
    called = _called(cls)
    places = [(cls, name, _found(cls, name)) for name in methods]
    places += [(globals_, name, globals_.get(name)) for globals_, name, _ in called]
    functions = list(dict.fromkeys(one for *_, one in called))
    name = None
    if all(map(_is_shipped, methods.values())):
        name = known().get(form(cls) or "")
        if any(known().get(form(one) or "") != "function" for one in functions):
            name = None
    return _Read(name, (*methods.values(), *functions), tuple(places))


def _found(place: type | dict, name: str) -> object:
    """What stands there under the name, as it is written."""
    if isinstance(place, dict):
        return place.get(name)
    return next((vars(base)[name] for base in place.__mro__ if name in vars(base)), None)


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
    """The functions that a class's methods call, of the module that the method is from, and those that they call; and
    those of anybody that somebody has put into their place."""
    return list(dict.fromkeys(one for *_, one in _called(cls)))


def _called(cls: type[nn.Module]) -> list[tuple[dict, str, FunctionType]]:
    """Those, in the order in which they are met, each with where it stands."""
    coming, found, seen = list(_methods(cls).values()), [], set()
    while coming:
        caller = coming.pop()
        for name in _names(caller.__code__):
            one = caller.__globals__.get(name)
            one = inspect.unwrap(one) if inspect.isfunction(one) else None
            if one is None or name in _REPLACED or one in seen:
                continue
            foreign = one.__module__ != caller.__module__  # imported, as a rule: then it is no family's own
            if foreign and name not in _defined(caller.__code__.co_filename):
                continue
            seen.add(one)
            found.append((caller.__globals__, name, one))
            coming.append(one)
    return found


@functools.lru_cache(4096)
def _defined(path: str) -> frozenset[str]:
    """The functions that a file defines."""
    return frozenset(re.findall(r"^def (\w+)", "".join(linecache.getlines(path)), re.MULTILINE))


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

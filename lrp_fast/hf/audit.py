"""Classes without a handler of their own: what they do to what they are given, found out by running them.

A copy of the model, without weights, reads a few tokens on PyTorch's "meta" device. Every operation of the code of such
a class (what it calls of classes with handlers apart) is looked at. Vouched for is what is linear in all that depends
on the hidden states: sums, views, casts, gathers by constant indices, products with constants such as rotary tables and
scales. Plain gradients are the rule for that. The call of transformers' attention interface is an attention. Anything
else, a product of two numbers that both depend on them among it, is a finding, and the class is refused.

What is found is true of the code that ran: of the model's config and dtype, at two lengths, in eval mode, without cache
and padding. What transformers' making of masks asks of constants (is the mask full, are the positions those of one
prompt) is answered with yes, its warning of padding with no; other code that asks for a number stops the audit, and is
refused.
"""

from __future__ import annotations

import copy
import inspect
import json
import linecache
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from types import FunctionType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .directions import is_causal
from .forms import code_of, reads_past_autograd
from .tokens import Places
from .walk import named_modules_of

NAME = "lrp_fast_audit"
NOT_AUDITED = "has not been audited"
_SHORT, _LENGTHS = 7, (4099, 1021, 251, 61)  # of prompts: some code differs with that, and some tables end

# Linear in all that they are given, or in what is no index, mask or shape.
_LINEAR = {
    "_reshape_alias", "_to_copy", "_unsafe_view", "add", "add_", "alias", "as_strided", "cat", "chunk",
    "clone", "constant_pad_nd", "contiguous", "copy", "copy_", "cumsum", "diagonal", "expand", "flip",
    "gather", "index", "index_add", "index_add_", "index_copy", "index_copy_", "index_put", "index_put_",
    "index_select", "lift_fresh", "masked_fill", "masked_fill_", "masked_scatter", "mean", "movedim", "narrow",
    "neg", "permute", "pixel_shuffle", "repeat", "repeat_interleave", "reshape", "roll", "rsub", "scatter",
    "scatter_", "scatter_add", "scatter_add_", "select", "select_scatter", "slice", "slice_scatter", "split",
    "split_with_sizes", "squeeze", "squeeze_", "stack", "sub", "sub_", "sum", "swapaxes", "t", "transpose",
    "transpose_", "tril", "triu", "unbind", "unflatten", "unfold", "unsafe_split", "unsqueeze", "unsqueeze_",
    "view", "view_as_complex", "view_as_real", "where",
}  # fmt: skip
# As many as one of what they multiply may depend on the hidden states.
_PRODUCTS = {
    "_grouped_mm", "addbmm", "addcmul", "addmm", "baddbmm", "bmm", "convolution", "dot", "einsum", "linear",
    "matmul", "mm", "mul", "mul_", "mv",
}  # fmt: skip
_ASKING = ("_local_scalar_dense", "is_nonzero", "item")
_QUOTIENTS = ("div", "div_")  # the first of two
# Make a tensor like another, with nothing in it of what that holds.
_LIKE = {
    "empty_like", "full_like", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones_like",
    "zeros_like",
}  # fmt: skip


class Seen(NamedTuple):
    """What an audit found out.

    Attributes:
        kinds: for each class that it vouches for, what it is: "glue", "attention", "decoder layer", or a "holder" of
            others that does not run itself.
        findings: for each that it does not vouch for, why, as the end of a sentence that names it.
        idle: the paths of modules that did not run, but for what only holds others.
        moving: classes in whose own code, within a decoder layer, tokens meet.
    """

    kinds: dict[type[nn.Module], str]
    findings: dict[type[nn.Module], str]
    idle: tuple[str, ...] = ()
    moving: frozenset[type[nn.Module]] = frozenset()


_seen: dict[tuple, Seen] = {}
_now = threading.local()


def audit(
    model: PreTrainedModel, unknown: set[type[nn.Module]], stubs: dict[type[nn.Module], bool], past: set[type]
) -> Seen:
    """What the classes ``unknown`` of a model do; those of ``stubs`` put out what has the shape of what they are given,
    or a pair of that and None; attentions of ``past`` go past transformers' interface, by a method of their own.

    Once for a model class, its config, and the code of these classes as it is now, in a process.
    """
    eager = getattr(model.config, "_attn_implementation", None) == "eager"
    key = (type(model), _said(model.config), model.dtype, _codes(unknown), _states(model, unknown), eager)
    if key not in _seen:
        _seen[key] = _run(model, unknown, stubs, past, eager)
    return _seen[key]


def _codes(classes: set[type]) -> frozenset:
    return frozenset((cls, code_of(cls)) for cls in classes)


def _states(model: nn.Module, unknown: set[type]) -> tuple:
    """What the modules of these classes were told since they were made, as far as it can be told to another."""
    return tuple(
        (path, name, value)
        for path, module in named_modules_of(model)
        if type(module) in unknown
        for name, value in sorted(_told(module).items())
    )


def _told(module: nn.Module) -> dict[str, bool | int | float | str | None]:
    """Its attributes that are no tensors, modules or objects, whether it trains apart."""
    plain = bool | int | float | str | None
    return {name: value for name, value in vars(module).items() if name != "training" and isinstance(value, plain)}


def _said(config) -> str:
    told = config.to_dict()
    return json.dumps({name: told[name] for name in sorted(told) if not name.startswith("_")}, default=str)


def _run(model: PreTrainedModel, unknown: set[type], stubs: dict[type, bool], past: set[type], eager: bool) -> Seen:
    try:
        blank = _blank(model)
    except Exception as error:  # whatever a set-up cannot do without weights: not audited, and so refused
        why = f"{NOT_AUDITED}, as a copy without weights cannot be made ({type(error).__name__}: {error})"
        return Seen({}, dict.fromkeys(unknown, why))
    embeddings = blank.get_input_embeddings()
    if not isinstance(embeddings, nn.Module):  # Perceiver's are of what it keeps of a prompt, not of tokens
        return Seen({}, dict.fromkeys(unknown, f"{NOT_AUDITED}, as the model's input embeddings are no module"))
    nodes = _layers(blank)
    for module in blank.modules():
        if type(module) in stubs:
            module.forward = _pair if stubs[type(module)] else _same
        elif type(module) in past:
            module._attn = lambda query, key, value, *_: [torch.empty_like(query) * query + 0 * value, None]
        elif type(module).__name__.endswith("RotaryEmbedding"):  # not what stretches tables by the prompt's length
            own = inspect.unwrap(type(module).forward)
            # transformers 5.0's knows no "meta" device.
            names = own.__globals__ | {"maybe_autocast": lambda *_, **__: nullcontext()}
            module.forward = FunctionType(own.__code__, names, own.__name__, own.__defaults__).__get__(module)
    # A clone, as some write into it.
    embeddings.register_forward_hook(lambda *given: _leaf(given[-1]).clone())
    config = blank.config.get_text_config()
    # Where no heads are named there is no attention, and what carries a state may take a step of Python a token.
    attends = getattr(config, "num_attention_heads", None) is not None
    most = getattr(config, "max_position_embeddings", None) or _LENGTHS[0 if attends else 1]
    lengths = [_SHORT, max((length for length in _LENGTHS if length <= most), default=_SHORT)]
    said = _past_autograd(unknown)
    short, long = (_read(blank, _Watch(unknown, stubs, nodes, said, length, eager), length) for length in lengths)
    findings = long.findings | short.findings
    kinds = {cls: kind for cls, kind in short.kinds.items() if cls not in findings}
    idle = [path for path in short.idle if path in long.idle]
    return Seen(kinds, findings, tuple(idle), short.moving | long.moving)


def _read(blank: PreTrainedModel, watch: _Watch, length: int) -> Seen:
    """What is seen of a prompt of so many tokens."""
    handles = []
    for module in blank.modules():
        watch.idle.add(module)
        handles.append(module.register_forward_pre_hook(watch.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(watch.leave, always_call=True))
    token = torch.zeros(1, length, dtype=torch.int64, device="meta")
    _now.watch = watch
    try:
        with torch.device("meta"), torch.enable_grad(), watch:
            out = blank(input_ids=token, use_cache=False)
        watch.ended(type(blank), out)
    except Exception as error:  # of their code: what it may be, the class it is found in says
        watch.stopped(error)
    finally:
        _now.watch = None
        for handle in handles:
            handle.remove()
    return watch.seen(blank)


def _past_autograd(classes: set[type]) -> dict[type, str]:
    """Those whose code says what a run without weights cannot show."""
    named = {cls: reads_past_autograd(cls) for cls in classes}
    return {cls: f"says {name} in its code, of which gradients know nothing" for cls, name in named.items() if name}


def is_running() -> bool:
    """Whether this thread is at an audit."""
    return getattr(_now, "watch", None) is not None


def _layers(model: nn.Module) -> set[nn.Module]:
    """Between which the hidden states are nodes: what transformers can checkpoint, or else the longest list of
    modules."""
    found = {module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    found = found or set(max(lists, key=len, default=()))
    return found - {part for one in found for part in one.modules() if part is not one}


def _blank(model: PreTrainedModel) -> PreTrainedModel:
    """The same model without weights, on the "meta" device, that calls our attention."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    config._experts_implementation = "batched_mm"  # the one that asks no numbers
    with torch.device("meta"):
        blank = type(model)(config)
    held = set(model.modules())
    for part in [*blank.modules()]:
        for name, one in [*part.named_children()]:
            if one in held:  # the first GPT's activation is one for all models: hooks are for this one alone
                part._modules[name] = object.__new__(type(one))
                nn.Module.__init__(part._modules[name])
    blank.eval().requires_grad_(False).to(model.dtype)
    of_paths = dict(blank.named_modules())
    for path, module in named_modules_of(model):
        if path in of_paths:
            vars(of_paths[path]).update(_told(module))
    for module in blank.modules():
        own = module.__dict__.get("config")
        if own is not None and hasattr(own, "_attn_implementation"):
            own._attn_implementation = NAME
    config._attn_implementation = NAME
    return blank


class _Watch(TorchDispatchMode):
    """Looks at the operations of some classes' own code."""

    def __init__(
        self,
        classes: set[type],
        stubs: dict,
        nodes: set[nn.Module],
        findings: dict[type, str],
        length: int,
        eager: bool,
    ) -> None:
        super().__init__()
        self.eager = eager  # the attention that the model runs with knows of no future but by a mask
        self.classes, self.stubs, self.nodes, self.within = classes, stubs, nodes, []
        self.places = Places(length)
        self.ran: set[type] = set()
        self.idle: set[nn.Module] = set()
        self.moving: set[type] = set()
        self.attentions: set[type] = set()
        self.layers: set[type] = set()
        self.findings = dict(findings)
        self.masks: dict[int, tuple] = {}
        self.between: tuple[Tensor, int] | None = None  # what the last decoder layer put out, and its version
        self.leaves: dict[int, Tensor] = {}  # where what this one puts out may come from: its input, its attention
        self.blind = self.inside = False  # inside: of a decoder layer
        self.unfinished: str | None = None  # why, where the model did not run to its end

    def seen(self, model: nn.Module) -> Seen:
        if self.unfinished is not None:  # nobody has run to their end
            return Seen({}, dict.fromkeys(self.classes, self.unfinished) | self.findings)
        held = {type(module) for module in model.modules()}
        for cls in self.classes - held:
            self.findings[cls] = f"{NOT_AUDITED}: it is not what the model's config makes"
        kinds = dict.fromkeys(self.classes & held - self.ran, "holder")
        kinds |= dict.fromkeys(self.ran & self.classes - self.findings.keys(), "glue")
        kinds |= {cls: "attention" for cls in self.attentions & kinds.keys()}
        kinds |= {cls: "decoder layer" for cls in self.layers & kinds.keys()}
        return Seen(kinds, self.findings, tuple(self._idle_paths("", model)), frozenset(self.moving))

    def _idle_paths(self, path: str, module: nn.Module) -> Iterator[str]:
        """The outermost, classes of PyTorch's and what is called past its forward pass apart."""
        for name, part in module.named_children():
            below = f"{path}.{name}".lstrip(".")
            runs = not self.idle.issuperset(part.modules())
            if runs or type(part).__module__.startswith("torch."):
                yield from self._idle_paths(below, part)
            else:
                yield below

    def find(self, cls: type | None, why: str) -> None:
        if cls in self.classes:
            self.findings.setdefault(cls, why + _line(cls))

    def enter(self, module: nn.Module, args: tuple, named: dict) -> tuple[tuple, dict] | None:
        """A decoder layer gets its hidden states as a leaf of autograd's: see `leave`."""
        above, cls = self.within[-1] if self.within else None, type(module)
        self.within.append(cls)
        self.ran.add(cls)
        self.idle.difference_update(module.modules() if cls in self.stubs else [module])
        if module not in self.nodes:
            return None
        self.layers.add(cls)
        self.inside = True
        hidden, *others = [one for one in tree_leaves((args, named)) if _depends(one)] or [None]
        if hidden is None:
            self.find(cls, "is a decoder layer that is given no hidden states")
        elif others:
            self.find(cls, "is a decoder layer that is given more than one tensor that depends on the hidden states")
        if self.between is not None and not (hidden is self.between[0] and hidden._version == self.between[1]):
            self.find(above, "changes the hidden states between its decoder layers")
        if hidden is None:
            return None
        given = self.begin_anew(hidden)
        return tree_map(lambda one: given if one is hidden else one, (args, named))

    def leave(self, module: nn.Module, args: tuple, out: object) -> object:
        cls = self.within.pop()
        if out is None:  # an error is on its way
            return None
        if module in self.nodes:
            self.inside = False
            found = [one for one in tree_leaves(out) if _depends(one)]
            if len(found) != 1:
                self.find(cls, f"is a decoder layer that hands on {len(found)} tensors made of its hidden states")
            if any(id(leaf) not in self.leaves for leaf in _leaves(found)):  # one of its unknown parts is to blame
                for one in {type(part) for part in module.modules()}:
                    self.find(one, "is, or is part of, a decoder layer that reads what others have left behind")
            if not found:
                return None
            given = self.begin_anew(found[0])  # nothing behind it reads what is before
            self.between = (given, given._version)
            return tree_map(lambda one: given if one is found[0] else one, out)
        return None

    def begin_anew(self, hidden: Tensor) -> Tensor:
        """The same numbers, of a new leaf: what follows may come of that alone. A clone, as some write into it."""
        self.blind = True
        leaf = _leaf(hidden)
        given = leaf.clone()
        self.blind = False
        self.leaves = {id(leaf): leaf}
        return given

    def ended(self, cls: type, out: object) -> None:
        """The model's own output comes of its last decoder layer alone."""
        found = [one for one in tree_leaves(dict(out)) if _depends(one)]
        if any(id(leaf) not in self.leaves for leaf in _leaves(found)):
            for one in (cls, *(one for one in self.ran if one not in self.layers)):
                self.find(one, "is, or is part of, a model that reads more than what its last decoder layer puts out")

    def attend(self, module, query, key, value, mask, window, given) -> Tensor:
        cls = type(module)
        if any(map(_depends, tree_leaves(given))):
            self.find(cls, "hands its attention more than queries, keys and values that depends on the hidden states")
        causal = is_causal(module)
        if given.get("is_causal") not in (None, causal):
            self.find(cls, "tells its attention to read in both directions, or not to, other than its module says")
        self.attentions.add(cls)
        self.blind = True
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]).requires_grad_()
        self.blind = False
        self.leaves[id(out)] = out
        if mask is not None and id(mask) in self.masks:
            why = _not_like(self.masks[id(mask)][0], window, causal)
            if why:
                self.find(cls, why)
        elif mask is not None:
            self.find(cls, "is given a mask that its model makes by itself")
        elif self.eager:  # Moshi's, up to transformers 5.17 at least, where the caller gives none either
            self.find(  # an attention that has been read is not to blame, but what runs it
                next((one for one in (cls, *reversed(self.within)) if one in self.classes), None),
                "reads tokens in both directions: its model makes no mask where it is given none, and eager attention "
                'needs one (model.set_attn_implementation("sdpa") has it read causally)',
            )
        return out

    def stopped(self, error: Exception) -> None:
        """By an error, within the classes that are still running."""
        name, text = type(error).__name__, str(error).splitlines()[0] if str(error) else ""
        at, running = error.__traceback__, []
        while at is not None:
            running.append(type(at.tb_frame.f_locals.get("self")))
            at = at.tb_next
        cls = next((one for one in reversed(running) if one in self.classes), None)
        why = f"cannot be audited: run without weights, its code stops with {name}: {text[:200]}"
        self.unfinished = f"{NOT_AUDITED}: {cls.__name__} cannot be" if cls is not None else why
        if cls is not None:
            self.findings.setdefault(cls, why + _line(cls, error.__traceback__))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        asks = func.overloadpacket.__name__ in _ASKING and not _depends(args[0])
        if asks and (answer := _answer()) is not None:
            return answer
        cls = self.within[-1] if self.within else None
        if not self.blind and cls in self.classes:
            given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            if any(map(_depends, given)):
                why = _objection(func, args, kwargs)
                if why is not None:
                    self.find(cls, why)
                out, name = func(*args, **kwargs), func.overloadpacket.__name__
                if name in _LIKE:
                    return out
                if self.places.follow(name, args, out, _depends):
                    if self.inside:
                        self.moving.add(cls)
                    elif self.between is None:
                        self.find(cls, "lets tokens meet, or changes their places, before the first decoder layer")
                if not all(map(_is_number, tree_leaves(out))):
                    self.find(cls, "makes integers of what depends on the hidden states")
                return out
        return func(*args, **kwargs)


def _answer() -> bool | None:
    """What transformers' own code, if it is that which asks, hears of constants: a mask is of ones and positions are of
    one prompt, where masks are made; there is no padding, where it would warn of that."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.replace(chr(92), "/").endswith("transformers/masking_utils.py"):
            return True
        if frame.f_code.co_name == "warn_if_padding_and_no_attention_mask":
            return False
        frame = frame.f_back
    return None


def _is_number(one: object) -> bool:
    """One that gradients go through; or no tensor."""
    return not isinstance(one, Tensor) or one.is_floating_point() or one.is_complex()


def _same(hidden_states, *_, **__):
    return hidden_states.clone()


def _pair(hidden_states, *_, **__):
    return hidden_states.clone(), None


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _depends(one: object) -> bool:
    return isinstance(one, Tensor) and one.requires_grad


def _leaves(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Where autograd's graph of them begins."""
    coming, seen = [one.grad_fn for one in tensors], set()
    while coming:
        node = coming.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        coming += [before for before, _ in node.next_functions]


def _objection(func, args: tuple, kwargs: dict) -> str | None:
    """Why an operation on what depends on the hidden states is none that plain gradients are the rule of."""
    name = func.overloadpacket.__name__
    if name in _LIKE:
        return None
    if not torch.is_grad_enabled():
        return f"computes {name} of what depends on the hidden states without gradients"
    if func.namespace != "aten":
        return f"calls {func.namespace}::{name}, of which nothing is known"
    if name in _LINEAR and func._overloadname != "dtype" and "reduce" not in func._overloadname:
        return None
    depending = [place for place, one in enumerate(args) if any(map(_depends, tree_leaves(one)))]
    if name in _PRODUCTS:
        factors = [place for place in depending if not (place == 0 and name.startswith(("add", "baddbmm")))]
        if len(factors) < 2 and not any(map(_depends, tree_leaves(kwargs))):
            return None
        return f"multiplies ({name}) two tensors that both depend on the hidden states"
    if name in _QUOTIENTS:
        rounded = kwargs.get("rounding_mode") is not None
        return None if depending == [0] and not rounded else "divides by what depends on the hidden states"
    if name == "detach":
        return "cuts what depends on the hidden states off from its gradients (detach)"
    if name in _ASKING:
        return "decides by numbers that depend on the hidden states"
    return f"computes {name} of what depends on the hidden states"


def _line(cls: type, traceback=None) -> str:
    """Where the code of a class is just now: ", at modeling_llama.py:123: `x = x * x`"."""
    home = getattr(sys.modules.get(cls.__module__), "__file__", None)
    frames = []
    if traceback is not None:
        while traceback is not None:
            frames.insert(0, (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
            traceback = traceback.tb_next
    else:
        frame = sys._getframe(2)
        while frame is not None:
            frames.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
    for file, number in frames:
        if file == home:
            line = linecache.getline(file, number).strip()
            return f", at {file.replace(chr(92), '/').rsplit('/', 1)[-1]}:{number}: {line}"
    return ""


def _not_like(mask_function, window: int | None, causal: bool) -> str | None:
    """Whether a mask of transformers' hides anything but the future, where the attention is causal, and what lies
    before its window, or on both sides of it."""
    edge = window or 8
    with torch.device("cpu"):
        places = torch.tensor(sorted({0, 1, edge - 1, edge, edge + 1, 2 * edge, 2 * edge + 1, 3 * edge + 2, 5 * edge}))
        zero = torch.zeros((), dtype=torch.int64)
        rows = [[torch.as_tensor(mask_function(zero, zero, q, k)) for k in places] for q in places]
    found = torch.stack([torch.stack(row) for row in rows]).bool()
    query, key = places[:, None], places[None]
    expected = key <= query if causal else torch.ones_like(found)
    if window:
        expected = expected & ((query - key).abs() < edge)
    if torch.equal(found, expected):
        return None
    how = "causally" if causal else "in both directions"
    return f"is masked otherwise than {how} within the window that it passes on ({window})"


def _attention(module, query, key, value, attention_mask, **given):
    window = given.get("sliding_window", getattr(module, "sliding_window", None))
    watch = _now.watch
    return watch.attend(module, query, key, value, attention_mask, window, given), None


def _mask(batch_size: int, mask_function=None, **given) -> Tensor:
    with torch.device("cpu"):
        mask = torch.empty(batch_size, 2, dtype=torch.int64)
    _now.watch.masks[id(mask)] = (mask_function, mask)
    return mask


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)

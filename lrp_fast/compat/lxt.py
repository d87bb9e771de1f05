"""LXT's `monkey_patch` over `lrp_fast.patched`: a script written for LXT 2.1 runs with its import lines changed.

    from lrp_fast.compat.lxt import monkey_patch, cp_LRP     # was: lxt.efficient, lxt.efficient.models.llama

**This is global, by LXT's contract, and nothing else in lrp_fast is.** From `monkey_patch` to `unpatch`, every model
of the patched file, made before or after, computes with modified gradients in the whole process. Write
``with lrp_fast.patched(model):`` where you can.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from torch import nn
from transformers import PreTrainedModel

from ..hf import handlers
from ..hf.audit import is_running
from ..hf.coverage import check
from ..hf.families import handler_of
from ..hf.overlay import laid
from ..hf.owner import is_ours, owned
from ..hf.patching import overlaid
from ..rules import Rules

# LXT has a map of patches for each family; here one rule serves them all, and any other `Rules` will do as well.
attnLRP = Rules("attnlrp")
cp_LRP = Rules("cp")

_NOTHING = object()

# Of each patched module: class, attribute, what the class itself held there, what holds the place now.
_in_force: dict[ModuleType, list[tuple[type, str, object, Callable]]] = {}


def monkey_patch(module: ModuleType, patch_map: Rules | None = None, verbose: bool = False) -> None:
    """Have every model class of ``module`` propagate relevance, in the whole process, until `unpatch`.

        from transformers.models.llama import modeling_llama
        monkey_patch(modeling_llama)
        model = modeling_llama.LlamaForCausalLM.from_pretrained(name)
        model(inputs_embeds=x).logits[0, -1, k].backward()      # x * x.grad is LRP relevance

    While such a model runs, it is `lrp_fast.patched`; in between, its instances are as they were. What is changed are
    ``__call__`` and ``forward`` of the module's model classes, and of nothing of PyTorch's or of other modules. A model
    class that no rule covers is refused when it is called.

    Otherwise than with LXT: weights of linear maps and norms get no gradients; every module of a model must have a
    rule; a decoder layer or MLP that is called by itself, not by its model, computes plain gradients. As with LXT,
    dropout is left out, so that `model.train()` may switch gradient checkpointing on.

    Args:
        module: a file of transformers that holds models of a supported family, such as
            ``transformers.models.llama.modeling_llama``.
        patch_map: `attnLRP` (None means that one), `cp_LRP` or any `lrp_fast.Rules`.
        verbose: print what is patched.

    Raises:
        TypeError: if ``module`` is no module, or ``patch_map`` a map of LXT's own patches.
        ValueError: if no rule covers the models of ``module``.
        RuntimeError: if ``module`` is patched already.
    """
    if not isinstance(module, ModuleType):
        raise TypeError(f"monkey_patch takes a module, such as modeling_llama, not {type(module).__name__}")
    rules = attnLRP if patch_map is None else patch_map
    if not isinstance(rules, Rules):
        raise TypeError(
            "patch_map must be attnLRP or cp_LRP of lrp_fast.compat.lxt, or lrp_fast.Rules, not "
            f"{type(rules).__name__}: to teach lrp_fast a class of modules, call lrp_fast.hf.register"
        )
    if module in _in_force:
        raise RuntimeError(f"{module.__name__} is patched already: call unpatch first")
    classes = _model_classes(module)
    if not any(handler_of(cls) for cls in classes):
        raise ValueError(f"{module.__name__} holds no model that a propagation rule covers")
    changes = _in_force[module] = []
    for cls in classes:
        for name in ("__call__", "forward"):  # accelerate lays a forward of its own over instances
            own, wrapper = vars(cls).get(name, _NOTHING), _propagating(getattr(cls, name), rules)
            changes.append((cls, name, own, wrapper))
            setattr(cls, name, wrapper)
        if verbose:
            print(f"Patched {cls.__name__}")


def unpatch(module: ModuleType) -> None:
    """Take back what `monkey_patch` did: the classes hold the very objects that they held before.

    Raises:
        RuntimeError: if ``module`` is not patched, or somebody has patched its classes since; then nothing changes.
    """
    if module not in _in_force:
        raise RuntimeError(f"{getattr(module, '__name__', module)} is not patched")
    for cls, name, _, wrapper in _in_force[module]:
        if vars(cls).get(name) is not wrapper:
            raise RuntimeError(f"something else has replaced {cls.__name__}.{name} since: undo that first")
    for cls, name, own, _ in reversed(_in_force.pop(module)):
        if own is _NOTHING:
            delattr(cls, name)
        else:
            setattr(cls, name, own)


def _model_classes(module: ModuleType) -> list[type[PreTrainedModel]]:
    """The models defined in ``module`` itself, abstract ones left out."""
    return [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type)
        and issubclass(thing, PreTrainedModel)
        and thing.__module__ == module.__name__
        and thing.forward is not nn.Module.forward
    ]


def _propagating(own: Callable, rules: Rules) -> Callable:
    @functools.wraps(own)
    def wrapper(self, *args, **named):
        with _patched_unless_it_is(self, rules):
            return own(self, *args, **named)

    return wrapper


@contextmanager
def _patched_unless_it_is(module: nn.Module, rules: Rules) -> Iterator[None]:
    """`patched`, but within a model that is patched, by whichever rule, that one's stays in force."""
    if is_ours(module) or is_running():
        yield
        return
    check(module)
    with owned(module, passing=True):
        overlays = []
        for part in module.modules():
            if handler_of(part) in (handlers.dropout, *handlers.ATTENTIONS):
                overlays.append((part, "training", False))
            if "_gradient_checkpointing_func" in part.__dict__:
                overlays.append((part, "_gradient_checkpointing_func", _recomputing(part, rules)))
        with laid(overlays), overlaid(module, rules):
            yield


def _recomputing(part: nn.Module, rules: Rules) -> Callable:
    """A checkpointed part of a model runs again in the backward pass, when the model is unpatched: so patch it anew."""
    checkpoint = part._gradient_checkpointing_func

    def checkpointed(function, *args, **named):
        def run(*args, **named):
            with _patched_unless_it_is(part, rules):
                return function(*args, **named)

        return checkpoint(run, *args, **named)

    return checkpointed

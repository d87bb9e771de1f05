"""Other people's hooks on a model's modules: which a pass can honour, whatever memory it has, and which it cannot."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules import module as everywhere

from .walk import modules_of, named_modules_of

_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")
_FORWARD = ("_forward_hooks", "_forward_pre_hooks")

# Whose hooks stay on a model that was once asked for output_hidden_states, and do nothing unless it is asked again.
_CAPTURING = "transformers.utils."


def check_hooks(model: nn.Module) -> None:
    """Refuse backward hooks of modules: a pass cuts autograd's graph at the layers, and may run a layer's part twice.

    Raises:
        ValueError: for the first module that has one, or where one holds for all modules of the process.
    """
    if (where := _where(named_modules_of(model), _BACKWARD)) is not None:
        raise ValueError(
            f"{where} has a backward hook, which a pass that goes layer by layer cannot run as autograd would: remove "
            "it, or call backward yourself within lrp_fast.patched, where it runs"
        )


def check_edges(layers: list[nn.Module]) -> None:
    """Refuse forward hooks within decoder layers: the closed form of their edges is that of their own code.

    Raises:
        ValueError: for the first module that has one, or where one holds for all modules of the process.
    """
    inner = ((i, path, one) for i, layer in enumerate(layers) for path, one in named_modules_of(layer))
    parts = ((f"{path} of layer {i}".strip(), one) for i, path, one in inner)
    if (where := _where(parts, _FORWARD, left_alone=_CAPTURING)) is not None:
        raise ValueError(
            f"{where} has a forward hook, which the closed form of a graph's edges knows nothing of: remove it, or "
            "leave the graph out"
        )


def _where(modules: Iterable[tuple[str, nn.Module]], kinds: tuple[str, ...], left_alone: str = "") -> str | None:
    """The first that has a hook of these kinds, in words."""
    if any(getattr(everywhere, f"_global{kind}") for kind in kinds):
        return "every module (torch.nn.modules.module.register_module_...)"
    found = (f"module {path or type(one).__name__!r}" for path, one in modules if _has(one, kinds, left_alone))
    return next(found, None)


def is_watched(module: nn.Module) -> bool:
    """Whether anybody's hook sees what goes into a module, or into a part of it, or what comes out."""
    return any(getattr(everywhere, f"_global{kind}") for kind in _FORWARD) or any(
        _has(part, _FORWARD) for part in modules_of(module)
    )


def check_unhooked(part: nn.Module, where: str) -> None:
    """Refuse hooks on a module that is not called itself while its model is patched.

    Raises:
        RuntimeError: if it has any.
    """
    if _has(part, _FORWARD + _BACKWARD):
        raise RuntimeError(f"a hook on {type(part).__name__}, {where}, would be passed over: remove it")


def _has(module: nn.Module, kinds: tuple[str, ...], left_alone: str = "") -> bool:
    found = [some for kind in kinds if (some := getattr(module, kind))]
    if not found:  # as a rule
        return False
    hooks = (hook for some in found for hook in some.values())
    return any(not left_alone or not getattr(hook, "__module__", "").startswith(left_alone) for hook in hooks)

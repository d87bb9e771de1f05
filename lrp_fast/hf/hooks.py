"""Other people's hooks on a model's modules: which a pass can honour, whatever memory it has, and which it cannot."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as everywhere

_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")
_FORWARD = ("_forward_hooks", "_forward_pre_hooks")


def check_hooks(model: nn.Module) -> None:
    """Refuse backward hooks of modules: a pass cuts autograd's graph at the layers, and may run a layer's part twice.

    Raises:
        ValueError: for the first module that has one, or where one holds for all modules of the process.
    """
    if any(getattr(everywhere, f"_global{kind}") for kind in _BACKWARD):
        where = "every module (register_module_full_backward_hook)"
    else:
        paths = (path or type(module).__name__ for path, module in model.named_modules() if _has(module, _BACKWARD))
        if (path := next(paths, None)) is None:
            return
        where = f"module {path!r}"
    raise ValueError(
        f"{where} has a backward hook, which a pass that goes layer by layer cannot run as autograd would: remove it, "
        "or call backward yourself within lrp_fast.patched, where it runs"
    )


def is_watched(module: nn.Module) -> bool:
    """Whether anybody's hook sees what goes into a module, or into a part of it, or what comes out."""
    return any(getattr(everywhere, f"_global{kind}") for kind in _FORWARD) or any(
        _has(part, _FORWARD) for part in module.modules()
    )


def check_unhooked(part: nn.Module, where: str) -> None:
    """Refuse hooks on a module that is not called itself while its model is patched.

    Raises:
        RuntimeError: if it has any.
    """
    if _has(part, _FORWARD + _BACKWARD):
        raise RuntimeError(f"a hook on {type(part).__name__}, {where}, would be passed over: remove it")


def _has(module: nn.Module, kinds: tuple[str, ...]) -> bool:
    return any(getattr(module, kind) for kind in kinds)

"""The modules of a model. PyTorch's own walks are generators within generators, and a pass takes many.

No function here holds on to itself: one that did would keep the model, and its memory, until Python next looks for
cycles.
"""

from __future__ import annotations

from torch import Tensor, nn


def named_modules_of(model: nn.Module, once: bool = True) -> list[tuple[str, nn.Module]]:
    """As ``named_modules``; with ``once=False`` every module wherever it is held, however often."""
    found: list[tuple[str, nn.Module]] = []
    _visit_named("", model, found, set() if once else None)
    return found


def _visit_named(path: str, module: nn.Module, found: list, seen: set[nn.Module] | None) -> None:
    if seen is not None:
        if module in seen:
            return
        seen.add(module)
    found.append((path, module))
    if held := module._modules:
        within = f"{path}." if path else ""
        for name, part in held.items():
            if part is None:
                continue
            if part._modules:
                _visit_named(within + name, part, found, seen)
            elif seen is None:
                found.append((within + name, part))
            elif part not in seen:
                seen.add(part)
                found.append((within + name, part))


def modules_of(module: nn.Module) -> list[nn.Module]:
    """As ``modules``."""
    found: dict[nn.Module, None] = {}
    _visit(module, found)
    return list(found)


def _visit(part: nn.Module, found: dict[nn.Module, None]) -> None:
    found[part] = None
    for one in part._modules.values():
        if one is None or one in found:
            continue
        if one._modules:
            _visit(one, found)
        else:  # as most are: not worth a call
            found[one] = None


def without_adapters(model: nn.Module) -> nn.Module:
    """The model that peft has put its adapters into, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def own_weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    """As ``named_parameters(recurse=False)``."""
    return [(name, weight) for name, weight in module._parameters.items() if weight is not None]

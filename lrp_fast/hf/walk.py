"""The modules of a model. PyTorch's own walks are generators within generators, and a pass takes many."""

from __future__ import annotations

from torch import Tensor, nn


def named_modules_of(model: nn.Module, once: bool = True) -> list[tuple[str, nn.Module]]:
    """As ``named_modules``; with ``once=False`` every module wherever it is held, however often."""
    found, seen, coming = [], set(), [("", model)]
    while coming:
        path, module = coming.pop()
        if once and module in seen:
            continue
        seen.add(module)
        found.append((path, module))
        if held := module._modules:
            within = f"{path}." if path else ""
            coming += [(within + name, part) for name, part in [*held.items()][::-1] if part is not None]
    return found


def modules_of(module: nn.Module) -> list[nn.Module]:
    """As ``modules``."""
    found, coming = {}, [module]
    while coming:
        part = coming.pop()
        if part not in found:
            found[part] = None
            if held := part._modules:
                coming += [one for one in [*held.values()][::-1] if one is not None]
    return list(found)


def without_adapters(model: nn.Module) -> nn.Module:
    """The model that peft has put its adapters into, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def own_weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    """As ``named_parameters(recurse=False)``."""
    return [(name, weight) for name, weight in module._parameters.items() if weight is not None]

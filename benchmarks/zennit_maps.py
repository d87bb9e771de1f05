"""Zennit's rules on one linear map: a peer in bench_linear.py and, on CUDA, in kernel_cases.py."""

from __future__ import annotations

import importlib.util
import sys
import types

import torch


def linear(weight: torch.Tensor, bias: torch.Tensor, epsilon: float = 0.0, gamma: float = 0.0) -> torch.nn.Linear:
    """A torch.nn.Linear of these weights under Zennit's own hooks: Gamma where ``gamma`` is given, Epsilon otherwise.

    Raises:
        ImportError: where Zennit is not installed.
    """
    for absent, name in (("torchvision", "zennit.torchvision"), ("PIL", "PIL")):  # for pictures; it imports both
        if name not in sys.modules and importlib.util.find_spec(absent) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].Image = None
    from zennit.rules import Epsilon, Gamma

    module = torch.nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    module.load_state_dict({"weight": weight, "bias": bias})
    rule = Gamma(gamma=gamma) if gamma else Epsilon(epsilon=epsilon)
    rule.copy().register(module.requires_grad_(False))
    return module

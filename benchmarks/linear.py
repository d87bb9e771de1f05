"""Forward + backward of the epsilon and gamma rules through one linear map, against the plain one, in turn."""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
import types

import torch

from lrp_fast import ops

SHAPES = {  # rows, in, out
    "SmolLM2-135M down_proj": (2048, 1536, 576),
    "SmolLM2-135M gate_proj": (2048, 576, 1536),
    "square": (2048, 2048, 2048),
}


def measure(repeats: int = 15) -> dict:
    """Seconds and ratios to plain for every shape; Zennit's rules as well where it is installed."""
    return {name: measure_shape(*shape, repeats) for name, shape in SHAPES.items()}


def measure_shape(rows: int, fan_in: int, fan_out: int, repeats: int) -> dict:
    torch.manual_seed(0)
    x = torch.randn(rows, fan_in, requires_grad=True)
    weight, bias = torch.randn(fan_out, fan_in) * fan_in**-0.5, torch.randn(fan_out)
    g = torch.randn(rows, fan_out)

    def through(forward):
        return lambda: torch.autograd.grad(forward(), x, g)

    cases = {
        "plain": through(lambda: torch.nn.functional.linear(x, weight, bias)),
        "epsilon": through(lambda: ops.linear(x, weight, bias, epsilon=0.01)),
        "gamma": through(lambda: ops.linear(x, weight, bias, gamma=0.25)),
        "gamma_and_epsilon": through(lambda: ops.linear(x, weight, bias, epsilon=0.01, gamma=0.25)),
        **zennit_cases(weight, bias, x, g),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(2 + repeats):
        for name, fn in cases.items():
            start = time.perf_counter()
            fn()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[2:]) for name, times in seconds.items()}
    per_round = {
        name: [one / plain for one, plain in zip(times[2:], seconds["plain"][2:], strict=True)]
        for name, times in seconds.items()
    }
    return {
        "rows, in, out": [rows, fan_in, fan_out],
        "median_s": medians,
        "ratio_to_plain": {name: statistics.median(ratios) for name, ratios in per_round.items()},
        "ratio_quartiles": {name: statistics.quantiles(ratios, n=4)[::2] for name, ratios in per_round.items()},
    }


def zennit_cases(weight, bias, x, g) -> dict:
    """Zennit's own hooks on a torch.nn.Linear of the same weights; nothing without Zennit."""
    if importlib.util.find_spec("zennit") is None:
        return {}
    for absent, name in (
        ("torchvision", "zennit.torchvision"),
        ("PIL", "PIL"),
    ):  # for pictures; its package asks for both
        if name not in sys.modules and importlib.util.find_spec(absent) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].Image = None
    from zennit.rules import Epsilon, Gamma

    cases = {}
    for name, rule in (("zennit_epsilon", Epsilon(epsilon=0.01)), ("zennit_gamma", Gamma(gamma=0.25))):
        module = torch.nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        module.load_state_dict({"weight": weight, "bias": bias})
        module.requires_grad_(False)
        rule.copy().register(module)
        cases[name] = lambda module=module: torch.autograd.grad(module(x), x, g)
    return cases

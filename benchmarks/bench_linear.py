"""Forward and backward of the epsilon and gamma rules through one linear map, against the plain one and Zennit's hooks.

Two threads, a minute. Ours and Zennit's relevance are held against each other.
"""

import importlib.util
import sys
import types

import pytest
import torch
from turns import Reference

from lrp_fast import ops

SHAPES = {  # rows, in, out
    "SmolLM2-135M down_proj": (2048, 1536, 576),
    "SmolLM2-135M gate_proj": (2048, 576, 1536),
    "square": (2048, 2048, 2048),
}
RULES = {"epsilon": {"epsilon": 0.01}, "gamma": {"gamma": 0.25}}
CASES = {"plain": {}} | RULES | {"gamma and epsilon": RULES["gamma"] | RULES["epsilon"]}
ZENNIT = {"Zennit's epsilon": "epsilon", "Zennit's gamma": "gamma"}
BOUND = 1e-4  # Zennit's gamma divides by another stabiliser than ours, 1e-6 of the denominators


def pytest_generate_tests(metafunc):
    number = 2 if metafunc.config.getoption("--tiny") else 15
    given = [
        pytest.param(shape, turn, case, id=f"{shape}-{case}-turn{turn}")
        for shape in SHAPES
        for turn in range(number)
        for case in (*CASES, *ZENNIT)
    ]
    metafunc.parametrize(("tokens", "turn", "case"), given)  # "tokens": what conftest.py groups by


@pytest.fixture(scope="module")
def problems(request):
    found = {}
    for name, (rows, fan_in, fan_out) in SHAPES.items():
        torch.manual_seed(0)
        rows = 32 if request.config.getoption("--tiny") else rows
        weight, bias = torch.randn(fan_out, fan_in) * fan_in**-0.5, torch.randn(fan_out)
        found[name] = torch.randn(rows, fan_in, requires_grad=True), weight, bias, torch.randn(rows, fan_out)
    return found


def test_linear(timed, problems, tokens, turn, case):
    x, weight, bias, g = problems[tokens]
    if case in ZENNIT:
        forward = zennit(ZENNIT[case], weight, bias)
        # Zennit passes on relevance, z * g, where ours passes on g
        g = g * torch.nn.functional.linear(x, weight, bias).detach()
    elif case == "plain":
        forward = lambda x: torch.nn.functional.linear(x, weight, bias)  # noqa: E731
    else:
        forward = lambda x: ops.linear(x, weight, bias, **CASES[case])  # noqa: E731
    other = {ours: theirs for theirs, ours in ZENNIT.items()} | ZENNIT
    timed(
        f"linear, {tokens}", case, lambda: torch.autograd.grad(forward(x), x, g)[0], warm_ups=2,
        against=Reference(other[case], BOUND, summed=True) if case in other else None,
        numbers=lambda found: (found if case in ZENNIT else x.detach() * found).flatten()[:100_000].tolist(),
    )  # fmt: skip


def zennit(rule: str, weight, bias):
    """Zennit's own hooks on a torch.nn.Linear of the same weights."""
    if importlib.util.find_spec("zennit") is None:
        pytest.skip("Zennit is not installed: pip install --no-deps zennit")
    for absent, name in (
        ("torchvision", "zennit.torchvision"),
        ("PIL", "PIL"),
    ):  # for pictures; its package asks for both
        if name not in sys.modules and importlib.util.find_spec(absent) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].Image = None
    from zennit.rules import Epsilon, Gamma

    rule = {"epsilon": Epsilon, "gamma": Gamma}[rule](**RULES[rule])
    module = torch.nn.Linear(weight.shape[1], weight.shape[0])
    module.load_state_dict({"weight": weight, "bias": bias})
    rule.copy().register(module.requires_grad_(False))
    return module

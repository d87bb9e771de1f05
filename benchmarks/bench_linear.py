"""Forward and backward of the epsilon and gamma rules through one linear map, against the plain one and Zennit's hooks.

Two threads, a minute. Relevance is held against ours in float64.
"""

import pytest
import torch
import turns
import zennit_maps
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


def test_linear(request, timed, problems, tokens, turn, case):
    x, weight, bias, g = problems[tokens]
    group, rules = f"linear, {tokens}", CASES[ZENNIT.get(case, case)]
    seed = g
    if case in ZENNIT:
        try:
            forward = zennit_maps.linear(weight, bias, **rules)
        except ImportError as error:
            request.config.stash[turns.KEY].missing(group, case, str(error))
        # Zennit passes on relevance, z * g, where ours passes on g
        seed = g * torch.nn.functional.linear(x, weight, bias).detach()
    elif case == "plain":
        forward = lambda x: torch.nn.functional.linear(x, weight, bias)  # noqa: E731
    else:
        forward = lambda x: ops.linear(x, weight, bias, **rules)  # noqa: E731
    held = Reference(f"float64, {rules}", BOUND, summed=True)
    if turn == 0:
        wide = x.detach().double().requires_grad_()
        z = ops.linear(wide, weight.double(), bias.double(), **rules, impl="torch")
        truth = wide.detach() * torch.autograd.grad(z, wide, g.double())[0]
        request.config.stash[turns.KEY].results[group, held.name] = some(truth)
    timed(
        group, case, lambda: torch.autograd.grad(forward(x), x, seed)[0], warm_ups=2, against=held,
        numbers=lambda found: some(found if case in ZENNIT else x.detach() * found),
    )  # fmt: skip


def some(relevance: torch.Tensor) -> list[float]:
    return relevance.flatten()[:100_000].tolist()

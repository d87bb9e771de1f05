"""The forms of a linear map."""

from __future__ import annotations

import torch

from .. import ops, reference
from .case import Case, Size, through

_FEW = 9  # rows, for which the gamma rule has tiles of their own


def cases(size: Size) -> list[Case]:
    forms = {
        "plain": ({}, size.rows),
        "epsilon": ({"epsilon": 0.1}, size.rows),
        "gamma": ({"gamma": 0.25}, size.rows),
        "epsilon and gamma, few rows": ({"epsilon": 0.1, "gamma": 0.25}, _FEW),
    }
    ins, outs = size.features // 2, size.features // 3
    return [
        case
        for name, (rule, rows) in forms.items()
        for case in (_forward(name, rule, rows, ins, outs), _backward(name, rule, rows, ins, outs))
    ]


def _draw(rows: int, ins: int, outs: int):
    def draw(generator):
        g, x = torch.randn(rows, outs, generator=generator), torch.randn(rows, ins, generator=generator)
        return g, x, torch.randn(outs, ins, generator=generator), torch.randn(outs, generator=generator)

    return draw


def _forward(name, rule, rows, ins, outs) -> Case:
    def prepare(impl, g, x, weight, bias):
        return lambda: (ops.linear(x, weight, bias, **rule, impl=impl),)

    def define(found, g, x, weight, bias):
        return (reference.linear(x, weight, bias),)

    return Case("linear", name, _draw(rows, ins, outs), prepare, define, (ins,))


def _backward(name, rule, rows, ins, outs) -> Case:
    def prepare(impl, g, x, weight, bias):
        return through(lambda x: ops.linear(x, weight, bias, **rule, impl=impl), (g,), x)

    def define(found, g, x, weight, bias):
        return (reference.linear_backward(g, x, weight, bias, **rule),)

    return Case("linear backward", name, _draw(rows, ins, outs), prepare, define, (ins + outs,))

"""What the doctor says of the kernels: in Triton's interpreter, or on a GPU, where it is what a user sees."""

import itertools

import pytest
import torch
import triton

from lrp_fast import doctor, operations
from lrp_fast.kernels import attention, relevance
from lrp_fast.operations import FULL, SMALL

INTERPRETED = triton.knobs.runtime.interpret
SIZE = SMALL if INTERPRETED else FULL
DTYPES = [torch.float16] if INTERPRETED else [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_operation_is_as_it_is_defined(dtype, device):
    found = doctor.operations(device, dtype, impl="triton" if INTERPRETED else "auto")
    assert [one for one in found if not one.passed] == []
    not_ours = {(one.operation, one.form) for one in found if one.path != "triton"}
    linear = {("linear", "plain"), ("linear", "epsilon"), ("linear backward", "plain")}
    if not INTERPRETED and dtype != torch.float16:  # which goes by PyTorch's products, because they are faster
        linear |= {("linear", "gamma"), ("linear backward", "gamma")}
    assert linear <= not_ours
    if INTERPRETED or dtype == torch.float32:  # elsewhere PyTorch's attention serves some of its forms
        wide = set() if INTERPRETED else {("edges, lists", "attnlrp, head_dim 256")}  # too wide for it in float32
        assert not_ours == linear | wide
    for one in found:
        if one.path == "triton" and one.operation.startswith(("attention", "edges, l", "edges, t", "linear, gamma")):
            assert one.tiles and all(tile.endswith("s") for tile in one.tiles), one


def held(operation, form, device, dtype=torch.float32):
    case = operations.case(operation, form, SIZE.head_dims[0], SIZE)
    return operations.hold(case, torch.device(device), dtype, "triton")


@pytest.mark.parametrize("share", ["value_share", "score_share"])
def test_a_wrong_factor_in_a_kernel_is_seen(share, device, monkeypatch):
    own = attention.backward

    def wrong(*args, **given):
        return own(*args, **given | {share: 1.01 * given[share]})

    assert held("attention backward", "sinks", device).passed
    monkeypatch.setattr(attention, "backward", wrong)
    one = held("attention backward", "sinks", device)
    assert not one.passed and one.path == "triton" and one.error > one.allowed and one.same_bits and not one.failed


def test_bits_that_differ_are_seen(device, monkeypatch):
    own, count = relevance.node_relevance, itertools.count()
    monkeypatch.setattr(relevance, "node_relevance", lambda x, g: own(x, g) * (1 + next(count) * 2e-7))
    one = held("node relevance", f"{SIZE.features} features", device)
    assert not one.passed and one.error <= one.allowed and not one.same_bits


@pytest.mark.skipif(not INTERPRETED, reason="about the interpreter")
def test_the_interpreter_is_not_given_bfloat16():
    with pytest.raises(ValueError, match="interpreter computes bfloat16 wrongly: take float32 or float16"):
        doctor.operations("cpu", torch.bfloat16, impl="triton")

"""The node relevance kernel against the definition."""

import pytest
import torch

from lrp_fast.kernels import relevance


@pytest.mark.parametrize("layout", ["contiguous", "gaps", "transposed"])
@pytest.mark.parametrize("shape", [(1, 1), (63, 111), (2, 3, 257), (5, 2050), (1025,)])
@pytest.mark.parametrize("g_dtype", [None, torch.float32])
def test_node_relevance(shape, g_dtype, layout, dtype, draw, within_rounding):
    x, g = draw(*shape, dtype=dtype, layout=layout), draw(*shape, dtype=g_dtype or dtype, layout=layout)
    found = relevance.node_relevance(x, g)
    assert found.shape == x.shape[:-1]
    plain = (x.float() * g.float()).sum(-1)
    within_rounding(found, plain, (x.double() * g.double()).sum(-1), shape[-1])


def test_sums_in_float32(device):
    x = torch.full((2, 4096), 8.0, dtype=torch.float16, device=device)
    assert relevance.node_relevance(x, x).tolist() == [4096 * 64.0] * 2  # beyond float16


def test_no_rows(draw):
    x = draw(2, 5, dtype=torch.float32)
    assert relevance.node_relevance(x[:0], x[:0]).shape == (0,)


def test_beyond_int32(draw, far_apart, same):
    x, g = draw(3, 65, dtype=torch.float16), draw(3, 65, dtype=torch.float16)
    same(relevance.node_relevance(far_apart(x), far_apart(g)), relevance.node_relevance(x, g), 65)

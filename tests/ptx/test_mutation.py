"""A product of matrices compiled by Triton: right, and with each of its synchronisations taken out."""

import pytest
import torch
import triton
import triton.language as tl

from tests.ptx.compiling import compiled, copies
from tests.ptx.launching import Program, launch
from tests.ptx.mutation import judged, mutants, sites

pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled")


def product_kernel(a, b, c, columns, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    """c = a b, both contiguous."""
    o_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    o_c = tl.arange(0, COLUMNS)[None, :]
    o_k = tl.arange(0, STEP)
    b_c = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i_k in range(0, K, STEP):
        b_a = tl.load(a + o_r * K + i_k + o_k[None, :])
        b_b = tl.load(b + (i_k + o_k[:, None]) * columns + o_c)
        b_c = tl.dot(b_a, b_b, b_c)
    tl.store(c + o_r * columns + o_c, b_c.to(c.dtype.element_ty))


@pytest.fixture(scope="module", params=[(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
def case(request):
    """(PTX, shared memory, programs, arguments) and the result."""
    torch.manual_seed(0)
    a, b = torch.randn(256, 384).bfloat16(), torch.randn(384, 64).bfloat16()
    c = torch.full((256, 64), torch.nan).bfloat16()
    constants = {"ROWS": 128, "COLUMNS": 64, "STEP": 64}
    ptx, shared, given = compiled(triton.jit(product_kernel), (a, b, c, 64, 384), constants, 8, 3, request.param)
    return ptx, shared, 2, given, a.float() @ b.float()


def test_the_kernel_as_it_is(case):
    ptx, shared, programs, arguments, expected = case
    given = copies(arguments)
    assert not launch(Program(ptx), shared, programs, given)
    assert (given[2].float() - expected).abs().max() <= 2.0**-8 * expected.abs().max()


def test_a_missing_synchronisation_is_noticed(case):
    """Each but the first barrier: it stands between the copies of the first and of the second step, to memory that
    nobody has used before.
    """
    ptx, *rest, _ = case
    places = list(sites(ptx))
    first_copy, first_wait = (next(n for n, line in enumerate(ptx.splitlines(), 1) if word in line)
                              for word in ("cp.async.c", "cp.async.wait_group"))  # fmt: skip
    assert len(places) >= 7 and ptx.splitlines()[places[0] - 1].strip().startswith("bar.sync")
    assert first_copy < places[0] < first_wait
    missed = [(n, how) for n, how, kinds, _ in judged(ptx, *rest) if not kinds]
    assert missed == [(places[0], "deleted")]


def test_mutants():
    text = "a;\n\tbar.sync \t0;\n\twgmma.wait_group.sync.aligned 1;\nb;\n"
    assert sites(text) == {2: "bar.sync \t0;", 3: "wgmma.wait_group.sync.aligned 1;"}
    assert list(mutants(text)) == [
        (2, "deleted", "a;\n\twgmma.wait_group.sync.aligned 1;\nb;\n"),
        (3, "deleted", "a;\n\tbar.sync \t0;\nb;\n"),
        (3, "weakened", "a;\n\tbar.sync \t0;\n\twgmma.wait_group.sync.aligned 2;\nb;\n"),
    ]

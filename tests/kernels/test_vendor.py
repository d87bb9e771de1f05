"""PyTorch's FlashAttention, on a GPU cuDNN's attention too, and our kernels go on from each other's passes: the real
ones on a GPU, in the interpreter a stand-in for the first that takes and gives back what the real one does."""

import itertools

import pytest
import torch
import triton

from lrp_fast import Rules, ops, reference

INTERPRETED = triton.knobs.runtime.interpret
DTYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
# queries, keys, heads, key/value heads, head_dim, window, causal
SIZES = [(63, 63, 2, 1, 64, None, True), (33, 63, 4, 2, 64, 17, True), (1, 33, 2, 1, 64, None, True)]
SIZES += [(33, 33, 2, 2, 80, 9, False)]
if not INTERPRETED:
    SIZES += [(1500, 1500, 8, 2, dim, None, True) for dim in (64, 80, 96, 128, 192, 256)]
    SIZES += [(700, 1500, 8, 2, 128, 300, True), (1500, 1500, 4, 4, 128, 2, True), (1, 1500, 8, 2, 128, 300, True)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(map(str, size)))


@pytest.fixture(autouse=True)
def stand_in(request):
    if INTERPRETED:
        request.getfixturevalue("flash_attention")


@pytest.fixture
def tensors(draw, dtype):
    def make(queries, keys, heads, kv_heads, dim, *_):
        shapes = ((heads, queries), (kv_heads, keys), (kv_heads, keys), (heads, queries))
        return [draw(1, tokens, count, dim, dtype=dtype).transpose(1, 2) for count, tokens in shapes]

    return make


def define(rule, size, *tensors):
    *_, dim, window, causal = size
    mask = reference.visible(1, *size[:2], causal=causal, window=window).to(tensors[0].device)
    return reference.attention_backward(*tensors, mask, scale=dim**-0.5, rule=rule)


def passes(first, second, size, query, key, value, g, rule="attnlrp", traces=None):
    """The gradients by one implementation from the forward pass of another."""
    flags = {"rule": rule, "window": size[5], "causal": size[6]}
    kept = ops.attention_forward(query, key, value, **flags, impl=first)
    leaves = [t.detach().requires_grad_() for t in (query, key, value)]
    out = ops.attention(*leaves, **flags, kept=kept, traces=traces, impl=second)
    return kept, torch.autograd.grad(out, leaves, g)


def all_of(size):
    """Who serves; cuDNN as `lrp_fast.ops.attention_cudnn` says."""
    queries, keys, *_, dim, window, causal = size
    serves = not INTERPRETED and window is None and dim <= 128 and (queries == keys or not causal)
    return ("vendor", "triton", *["cudnn"] * serves)


@sizes
@pytest.mark.parametrize("rule", ["attnlrp", "gradient"])
def test_either_goes_back_from_either(size, rule, tensors, judge):
    query, key, value, g = tensors(*size)
    terms = size[1] + size[4]
    for first, second in itertools.product(all_of(size), repeat=2):
        if first == second == "triton":
            continue  # test_attention's
        kept, grads = passes(first, second, size, query, key, value, g, rule)
        assert kept.lse.dtype == torch.float32 and kept.size is None
        for i, grad in enumerate(grads):
            judge(grad, lambda *given, i=i: define(rule, size, *given)[i], (g, query, key, value), terms)


@sizes
def test_output_and_lse_are_those_of_the_kernels(size, tensors, within_rounding):
    query, key, value, _ = tensors(*size)
    flags = {"window": size[5], "causal": size[6]}
    mask = reference.visible(1, *size[:2], **flags).to(query.device)
    plain, truth = (
        reference.attention(*(t.to(wide) for t in (query, key, value)), mask, scale=size[4] ** -0.5)
        for wide in (query.dtype, torch.float64)
    )
    found = {impl: ops.attention_forward(query, key, value, **flags, impl=impl) for impl in all_of(size)}
    for impl, theirs in found.items():
        if impl != "triton":
            within_rounding(theirs.out, plain, truth, 4)
            torch.testing.assert_close(theirs.lse, found["triton"].lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choice", [{"topk": 3}, {"mass": 0.7}], ids=str)
def test_edges_read_what_it_kept(choice, tensors, dtype):
    size = SIZES[0]
    query, key, value, g = tensors(*size)
    found = []
    for impl in ("vendor", "triton"):
        traces = []
        passes(impl, impl, size, query, key, value, g, traces=traces)
        rows = torch.arange(5, size[0], device=query.device)
        given = {"own": g.new_zeros(size[0], dtype=torch.float32)} if "mass" in choice else {}
        found.append(ops.attention_edges(traces[0], rows, **choice, **given, impl="triton"))
    # Edges that lie nearer to each other than 16 bits of output are chosen by their rounding: their sums are not.
    sums = [torch.cat([one.weights.sum(0, keepdim=True), one.dropped.sum(0)]).double().sum() for one in found]
    largest = found[1].weights.abs().max()
    assert abs(sums[0] - sums[1]) <= 8 * torch.finfo(dtype).eps * largest * size[0]
    assert (found[0].weights.abs().max() - largest).abs() <= 8 * torch.finfo(dtype).eps * largest


@pytest.mark.skipif(INTERPRETED, reason="of the real operations")
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_all_but_the_query_gradient_repeats_its_bits(dim, tensors):
    """And the query's agree to rounding: what the documentation says of them, no more."""
    size = (1500, 1500, 8, 2, dim, None, True)
    given = tensors(*size)
    kept, first = passes("vendor", "vendor", size, *given)
    for _ in range(9):
        again, grads = passes("vendor", "vendor", size, *given)
        assert torch.equal(again.out, kept.out) and torch.equal(again.lse, kept.lse)
        assert torch.equal(grads[1], first[1]) and torch.equal(grads[2], first[2])
        assert (grads[0] - first[0]).abs().max() <= 4 * torch.finfo(first[0].dtype).eps * first[0].abs().max()


@pytest.mark.skipif(INTERPRETED, reason="of the real operations")
def test_it_is_what_auto_means(tensors, monkeypatch):
    used = []
    for name in ("_forward", "_backward"):
        whole = getattr(ops.attention_vendor, name)
        monkeypatch.setattr(ops.attention_vendor, name, lambda *a, w=whole, n=name, **k: used.append(n) or w(*a, **k))
    *leaves, g = tensors(1500, 1500, 8, 2, 96)  # of 64 and 128, ours go first on sm_90
    leaves = [t.requires_grad_() for t in leaves]
    torch.autograd.grad(ops.attention(*leaves), leaves, g)
    assert used == ["_forward", "_backward"]
    g = torch.zeros_like(g)
    g[:, :, -1] = 1
    torch.autograd.grad(ops.attention(*leaves), leaves, g)
    torch.autograd.grad(ops.attention(*leaves, rule=Rules("cp")), leaves[2:], g)
    assert used == ["_forward", "_backward", "_forward"]

"""Attention's backward pass by the C++ core, against the dense definition and its own form in plain PyTorch."""

import numpy as np
import pytest
import torch

from lrp_fast import Rules, _native, ops, reference
from lrp_fast.ops import attention_bounded, attention_flash, attention_native, attention_tiled
from lrp_fast.ops.attention import Reach

pytestmark = pytest.mark.skipif(not attention_native.takes(64), reason="the C++ core does not serve here")

RULES = ["attnlrp", "cp", "gradient", Rules("attnlrp", attention_epsilon=1.0)]


@pytest.fixture
def used(monkeypatch):
    """Whose backward pass ran."""
    names = []
    for module in (attention_native, attention_flash, attention_tiled):
        own = module.backward
        monkeypatch.setattr(
            module, "backward", lambda *a, m=module, f=own, **k: names.append(m.__name__.split("_")[-1]) or f(*a, **k)
        )
    return names


def make(queries, keys, heads=4, kv_heads=2, dim=32, batch=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(heads, tokens):  # strided, as transformers hands it over
        return torch.randn(batch, tokens, heads, dim, generator=generator).transpose(1, 2).to(dtype)

    return draw(heads, queries), draw(kv_heads, keys), draw(kv_heads, keys), draw(heads, queries)


def run(query, key, value, g, **flags):
    leaves = [t.detach().requires_grad_() for t in (query, key, value)]
    out = ops.attention(*leaves, **flags)
    return torch.autograd.grad(out, leaves, g, allow_unused=True)


def check(tensors, rule, scale=None, sinks=None, **reach):
    """Against the definition in float64, within what float32 can have lost: of a sum of n products n units of the sum
    of their magnitudes, and of P = exp(S - lse) the errors of S and lse, and all of what is below exp(-87)."""
    rules = rule if isinstance(rule, Rules) else Rules(rule)
    query, key, value, g = (t.double() for t in tensors)
    scale, unit = query.shape[3] ** -0.5 if scale is None else scale, torch.finfo(torch.float32).eps
    mask = reference.visible(len(query), query.shape[2], key.shape[2], **reach)
    given = {"scale": scale, "sinks": None if sinks is None else sinks.double()}
    truth = reference.attention_backward(
        g, query, key, value, mask, **given, rule=rules.name, epsilon=rules.attention_epsilon
    )
    grads = run(*tensors, rule=rule, scale=scale, sinks=sinks, **reach)

    groups = query.shape[1] // key.shape[1]
    wide_key, wide_value = (t.repeat_interleave(groups, 1).abs() for t in (key, value))
    query, g = query.abs(), g.abs()
    p = reference.attention_weights(*(t.double() for t in tensors[:2]), mask, **given)
    terms = key.shape[2] + query.shape[3] + 8
    scores = query @ wide_key.mT * abs(scale)
    off = unit * terms * (1 + scores + scores.amax(-1, keepdim=True))  # of P, relative; lse is no more than the largest
    flow = g @ wide_value.mT + (g * (p @ wide_value)).sum(-1, keepdim=True)
    if rules.attention_epsilon:  # it divides by an output, which is off itself
        off = off / rules.attention_epsilon
    off = off * p + 2e-38
    flow = off * flow * abs(scale)
    bounds = flow @ wide_key, flow.mT @ query, off.mT @ g
    for one, exact, bound in zip(grads, truth, bounds, strict=True):
        if one is None:
            assert not exact.any()
            continue
        if bound.shape != exact.shape:
            bound = bound.unflatten(1, (-1, groups)).sum(2)
        assert ((one - exact).abs() <= 2 * bound).all(), ((one - exact).abs() / bound).max()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(
    "flags",
    [{}, {"window": 50}, {"window": 1}, {"causal": False}, {"causal": False, "window": 70}, {"scale": -0.4},
     {"sinks": torch.linspace(-1, 3, 4)}],
    ids=str,
)  # fmt: skip
def test_equals_the_definition(rule, flags, lanes, used, monkeypatch):
    monkeypatch.setattr(attention_native, "FEW", 0)
    for queries, keys in ((1, 1), (1, 129), (63, 64), (64, 64), (65, 200), (150, 150)):
        check(make(queries, keys), rule, **flags)
    assert set(used) == {"native"}


@pytest.mark.parametrize("dim", [16, 48, 64, 80, 128, 256])
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (9, 3), (8, 1), (20, 20)])
def test_heads_of_any_width_and_number(dim, heads, kv_heads, lanes, used):
    check(make(130, 130, heads, kv_heads, dim), "attnlrp")
    assert used == ["native"]


def test_what_it_does_not_take_goes_elsewhere(used):
    for tensors, flags, by in (
        (make(9, 64), {}, "flash"),
        (make(9, 65), {}, "native"),
        (make(9, 9), {"rule": "cp"}, "native"),
        (make(9, 9, dim=24), {}, "flash"),
        (make(9, 9, dim=272), {}, "flash"),
        (make(9, 9, dtype=torch.float64), {}, "flash"),
        (make(9, 9, dtype=torch.bfloat16), {}, "flash"),
        (make(9, 9), {"softcap": 3.0}, "tiled"),
        (make(9, 9), {"rule": Rules("attnlrp", attention_gamma=0.1)}, "tiled"),
        (make(9, 9), {"until": torch.arange(1, 10)[None]}, "tiled"),
    ):
        run(*tensors, **flags)
        assert used.pop() == by and not used, (flags, tensors[0].shape)


def test_a_batch_and_any_strides():
    query, key, value, g = make(70, 90, batch=3)
    grads = run(query, key, value, g)
    for b in range(3):
        alone = run(*(t[b : b + 1] for t in (query, key, value, g)))
        assert all(torch.equal(one[b], other[0]) for one, other in zip(grads, alone, strict=True))
    strange = [t.mT.contiguous().mT for t in (query, key, value, g)]
    assert all(map(torch.equal, run(*strange), grads))
    assert all(map(torch.equal, run(query, key, value, g.contiguous()), grads))
    ones = torch.ones(()).expand(g.shape)
    assert all(map(torch.equal, run(query, key, value, ones), run(query, key, value, ones.contiguous())))


def test_of_many_threads_it_leaves_the_work_to_others(monkeypatch):
    query, _, value, _ = make(9, 9)
    reach = Reach(0.4, True, None, None)
    for threads, openmp, serves in ((16, True, True), (17, True, False), (2, False, False), (1, False, True)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        monkeypatch.setattr(_native, "has_openmp", openmp)
        assert attention_native.serves(query, value, reach) == serves


@pytest.mark.parametrize(
    "native, queries, most", [(True, 1024, 0.0), (True, 1025, 0.7), (False, 1024, 0.0), (False, 1025, 0.5)]
)
def test_how_many_tiles_may_stay_hangs_on_who_computes(native, queries, most):
    assert attention_bounded.worth(native, queries) == most


def test_its_bits_do_not_hang_on_the_threads():
    tensors, before, found = make(300, 300, 9, 3), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(run(*tensors))
    finally:
        torch.set_num_threads(before)
    assert all(all(map(torch.equal, one, found[0])) for one in found[1:])


def test_very_small_weights_are_zero_and_great_scores_whole():
    query, key, value, g = make(150, 150)
    check((30 * query, key, value, g), "attnlrp", scale=1.0)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_passed_on(which, wrong, lanes):
    tensors = [t.clone() for t in make(150, 150)]
    tensors[which][0, 1, 70, 3] = wrong
    found = run(*tensors)
    with torch.no_grad():
        kept = ops.attention_forward(*tensors[:3])
    reach = Reach(32**-0.5, True, None, None)
    expected = attention_tiled.backward(tensors[3], *tensors[:3], *kept[:2], reach, rows=None, scores=True, ratio=False)
    for one, other in zip(found, expected, strict=True):
        if which == 0 and wrong != wrong:  # plain PyTorch passes it on to hidden keys as well
            assert not (~one.isfinite() & other.isfinite()).any()
        else:
            assert torch.equal(one.isfinite(), other.isfinite())
    assert not all(one.isfinite().all() for one in found)
    if which == 0:
        assert found[0][0, 1, 70].isnan().all() and found[1][0, 0, :71].isnan().all()


@pytest.mark.parametrize("bits", [0x7FC00001, 0x7F800001, -1])
def test_a_nan_of_any_bits_stays_one(bits, lanes, monkeypatch):
    monkeypatch.setattr(attention_native, "FEW", 0)
    query, key, value, g = make(9, 9)
    query[0, 0, 5, 0] = torch.tensor([bits], dtype=torch.int32).view(torch.float32)[0]
    for rule in ("attnlrp", "cp"):
        assert run(query, key, value, g, rule=rule)[2][0, 0, :6].isnan().all()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_keys_that_are_values(rule):
    query, key, _, g = make(70, 90)
    _, *apart = run(query, key, key.clone(), g, rule=rule)
    query, both = (t.detach().requires_grad_() for t in (query, key))
    (found,) = torch.autograd.grad(ops.attention(query, both, both, rule=rule), [both], g)
    expected = sum(one for one in apart if one is not None)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_what_lay_in_its_memory_before_does_not_matter():
    tensors = make(130, 150, 9, 3)
    expected = run(*tensors)
    torch.use_deterministic_algorithms(True)  # which fills new memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        found = run(*tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, found, expected))


def test_the_tiles_that_are_visited_and_their_mass(lanes):
    """As in plain PyTorch, some now and the others later."""
    for flags in ({}, {"window": 100}, {"causal": False}):
        query, key, value, g = make(200, 261, heads=4, kv_heads=2)
        reach = Reach(0.4, flags.get("causal", True), flags.get("window"), None)
        kept = ops.attention_forward(query, key, value, scale=0.4, **flags)
        norm = g[0].norm(dim=-1)
        sums = [
            form(g, query, key, value, *kept[:2], norm, reach, True, False)
            for form in (attention_bounded._Native, attention_bounded._Blocks)
        ]
        first = torch.rand(4, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.4
        reached = attention_bounded._guessed(norm, query, key, kept.lse, reach, False) > 0
        for tiles in (first & reached, ~first & reached):
            for one in sums:
                one.add(tiles)
            assert sums[0].mass == pytest.approx(sums[1].mass, rel=1e-5)
            assert sums[0].mass > 0
        whole = attention_native.backward(g, query, key, value, *kept[:2], reach, scores=True)
        for one, other, all_of_it in zip(sums[0].grads(), sums[1].grads(), whole, strict=True):
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()
            assert (one - all_of_it).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("tolerance", [1e-3, 0.2])
@pytest.mark.parametrize("flags", [{}, {"window": 100}, {"causal": False}], ids=str)
def test_what_is_left_out_is_what_the_definition_says_of_it(flags, tolerance, lanes, monkeypatch):
    by, sums = [], attention_bounded._Native
    monkeypatch.setattr(attention_bounded, "worth", lambda *_: 1.0)
    monkeypatch.setattr(attention_bounded, "_Native", lambda *given: by.append("native") or sums(*given))
    query, key, value, g = make(500, 512)
    query, g = 3 * query, g * torch.logspace(-3, 0, 500)[:, None]  # it lies on few keys, and few queries carry much
    leaves, dropped, traces = [t.requires_grad_() for t in (query, key, value)], [], []
    out = ops.attention(*leaves, scale=0.4, tolerance=tolerance, dropped=dropped, traces=traces, **flags)
    torch.autograd.grad(out, leaves, g)
    mask = reference.visible(1, 500, 512, **flags)
    entries = reference.attention_mass(*(t.detach().double() for t in (g, query, key, value)), mask, scale=0.4)[0]
    rows, columns = (torch.arange(n) // attention_native.TILE for n in (500, 512))
    kept = traces[0].tiles[0][:, rows][:, :, columns]
    lost = 1 - (entries * kept).sum() / entries.sum()
    assert lost > 0 and by == ["native"]
    # A weight's error is its score's, of 32 products, and its sum's, of 512 weights: units of rounding by their root.
    scores = (query @ key.repeat_interleave(2, 1).mT).abs().max().item() * 0.4
    assert abs(dropped[0].item() - lost.item()) <= torch.finfo(torch.float32).eps * (512**0.5 + 32**0.5 * scores)
    assert dropped[0].item() <= tolerance


@pytest.mark.parametrize("flags", [{}, {"window": 90}, {"causal": False}, {"causal": False, "window": 70}], ids=str)
def test_the_masses_that_tiles_are_chosen_by(flags, lanes):
    for queries, keys in ((200, 261), (1000, 1000), (9, 300)):
        query, key, value, g = make(queries, keys)
        kept = ops.attention_forward(query, key, value, scale=0.4, **flags)
        reach, norm = Reach(0.4, flags.get("causal", True), flags.get("window"), None), g[0].norm(dim=-1)
        found, expected = (attention_bounded._guessed(norm, query, key, kept.lse, reach, native) for native in (1, 0))
        # Sums of 512 weights, of scores below 16.
        assert ((found - expected).abs() <= 64 * torch.finfo(torch.float32).eps * expected).all()


def given(**change):
    """What `_native.attention_backward` takes."""
    tokens = {name: np.zeros((4, 9, 16), np.float32) for name in ("g", "query", "out", "d_query")}
    tokens |= {name: np.zeros((2, 9, 16), np.float32) for name in ("key", "value", "d_key", "d_value")}
    rows = {name: np.zeros((4, 9), np.float32) for name in ("lse", "norm")}
    work = np.zeros(_native.attention_backward_floats(4, 2, 9, 9, 16, True), np.float32)
    rest = {"tiles": np.ones((4, 1, 1), np.uint8), "scale": 1.0, "behind": 9, "ahead": 1, "work": work, "threads": 1}
    return tokens | rows | rest | change


def test_bad_arguments():
    assert _native.attention_backward(**given()) == 0
    wide, narrow = np.zeros((4, 9, 16)), np.zeros((4, 9, 8), np.float32)
    for change, error, message in (
        ({"query": wide}, TypeError, "query must be a float32 numpy array"),
        ({"g": narrow}, ValueError, "g does not fit: dimension 2"),
        ({"query": narrow, "key": narrow[:2]}, ValueError, "multiple of 16"),
        ({"value": np.zeros((2, 8, 16), np.float32)}, ValueError, "value does not fit: dimension 1"),
        ({"key": np.zeros((3, 9, 16), np.float32)}, ValueError, "multiple of those of keys"),
        ({"key": np.zeros((2, 8, 16), np.float32)}, ValueError, "queries 1 to all keys"),
        ({"d_key": None}, ValueError, "may be None"),
        ({"lse": None}, ValueError, "may be None"),
        ({"lse": np.zeros((4, 8), np.float32)}, ValueError, "lse must have size 9"),
        ({"tiles": np.ones((4, 1, 2), np.uint8)}, ValueError, "tiles must have size 1"),
        ({"d_value": np.zeros((2, 16, 9), np.float32).swapaxes(1, 2)}, ValueError, "the last of them dense"),
        ({"work": np.zeros(7, np.float32)}, ValueError, "work must have size"),
        ({"behind": -1}, ValueError, "behind must not be negative"),
    ):
        with pytest.raises(error, match=message):
            _native.attention_backward(**given(**change))
    read_only = np.zeros((2, 9, 16), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        _native.attention_backward(**given(d_value=read_only))
    with pytest.raises(ValueError, match="there must be heads"):
        _native.attention_backward_floats(0, 1, 1, 1, 16, True)
    drawn, found = np.zeros((4, 1, 8), np.int64), np.zeros((4, 1, 1), np.float32)
    work = np.zeros(_native.attention_masses_floats(2, 9, 16), np.float32)
    all_of_it = given()
    tokens = [all_of_it[name] for name in ("query", "key", "lse")]
    _native.attention_masses(*tokens, drawn, 1.0, 9, 1, found, work, 1)
    for wrong in (-1, 9):
        with pytest.raises(ValueError, match="drawn must be queries"):
            _native.attention_masses(*tokens, drawn + wrong, 1.0, 9, 1, found, work, 1)
    with pytest.raises(ValueError, match="masses must have size"):
        _native.attention_masses(*tokens, drawn, 1.0, 9, 1, found[:3].copy(), work, 1)

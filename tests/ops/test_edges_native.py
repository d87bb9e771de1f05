"""Edges by the C++ core against those of plain PyTorch in float64, and its choice against that of `select`."""

import numpy as np
import pytest
import torch

from lrp_fast import Rules, _native, ops
from lrp_fast.ops import attention_native, edges, edges_native, select

pytestmark = pytest.mark.skipif(not attention_native.takes(64), reason="the C++ core does not serve here")

RULES = ["attnlrp", "cp", "gradient", Rules("attnlrp", attention_epsilon=1.0)]


def make(queries, keys, rule="attnlrp", heads=4, kv_heads=2, dim=32, parts=False, **flags):
    generator = torch.Generator().manual_seed(0)
    sizes = [(queries, heads), (queries, heads), *[(keys, kv_heads)] * 4]
    query, g, key, value, *both = (
        torch.randn(1, tokens, number, dim, generator=generator).transpose(1, 2) for tokens, number in sizes
    )
    traces, leaves = [], [t.requires_grad_() for t in (query, key, value)]
    torch.autograd.grad(ops.attention(*leaves, rule=rule, traces=traces, **flags), leaves, g, allow_unused=True)
    return traces[0], both if parts else [None, None]


def strongest(trace, rows, both, k):
    return select.listed(*edges_native.strongest(rows, trace, *both, k))


def whole(tiles, trace):
    """(R, S)."""
    found = []
    for _, keys, entries in tiles:
        row = entries.new_zeros(len(entries), trace.key.shape[2])
        row[:, keys] = entries
        found.append(row)
    return torch.cat(found)


def wide(trace, parts):
    def each(t):
        return t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t

    kept = trace.kept._replace(**{name: each(t) for name, t in trace.kept._asdict().items()})
    given = {name: each(t) for name, t in trace._asdict().items() if name != "kept"}
    return trace._replace(**given | {"kept": kept}), [each(t) for t in parts]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("parts", [False, True], ids=["", "parts"])
@pytest.mark.parametrize("flags", [{}, {"window": 50}, {"causal": False}, {"sinks": torch.ones(4)}], ids=str)
def test_are_those_of_plain_pytorch(rule, parts, flags, lanes):
    for queries, keys, step in ((1, 1, 1), (64, 64, 1), (65, 129, 1), (150, 200, 3)):
        trace, both = make(queries, keys, rule, parts=parts, **flags)
        assert edges_native.serves(trace)
        rows = torch.arange(0, queries, step)
        found = whole(edges_native.tiles(trace, rows, *both), trace)
        doubled, wide_parts = wide(trace, both)
        expected = whole(edges.edge_tiles(doubled, rows, *wide_parts), trace)
        # Sums of 32 products in scores, and in what is passed on, and of 4 heads; scores here are below 8.
        off = (found - expected).abs().max(-1).values / expected.abs().max(-1).values.clamp(min=1e-3)
        assert off.max() <= 4 * torch.finfo(torch.float32).eps * (2 * 32 + 8 + 4)


def test_only_half_of_the_parts(lanes):
    trace, (key_part, value_part) = make(70, 70, parts=True)
    rows = torch.arange(70)
    for both in ((key_part, None), (None, value_part)):
        doubled, wide_parts = wide(trace, both)
        expected = whole(edges.edge_tiles(doubled, rows, *wide_parts), trace)
        found = whole(edges_native.tiles(trace, rows, *both), trace)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("k", [1, 16, 80, 1000])
def test_chooses_as_plain_pytorch_does(k, lanes):
    for flags in ({}, {"window": 40}, {"causal": False}):
        trace, both = make(150, 150, **flags)
        for t in (trace.key, trace.value):  # equal edges
            t[:, :, 60:90] = t[:, :, 50:51]
        rows = torch.arange(150)[5:]
        found = strongest(trace, rows, both, k)
        expected = select.by_row(edges_native.tiles(trace, rows, *both), k)
        for one, other in zip(found[:3], expected[:3], strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)
        assert found.dropped.dtype == expected.dropped.dtype
        assert torch.allclose(found.dropped, expected.dropped, rtol=1e-5, atol=1e-5)
        if k == 1000:
            assert not found.dropped.any()


def test_zeros_are_no_edges_and_nan_is_the_strongest():
    trace, both = make(70, 70)
    trace.g[:, :, 30] = 0
    found = strongest(trace, torch.arange(70), both, 5)
    assert found.counts[30] == 0 and found.counts[20] == 5 and found.counts[2] == 3
    trace.value[0, 0, 3, 1] = torch.nan
    found = strongest(trace, torch.tensor([40]), both, 2)
    assert found.columns.tolist()[0] == 3 and found.weights.isnan()[0] and found.dropped.isfinite().all()
    trace.value[0, 0, [5, 7], 1] = torch.nan
    expected = select.by_row(edges_native.tiles(trace, torch.tensor([40]), *both), 2)
    found = strongest(trace, torch.tensor([40]), both, 2)
    assert found.dropped.isnan().all() and expected.dropped.isnan().all()


def test_chunks():
    for spec in ({"topk": 5}, {"mass": 0.9}):
        trace, _ = make(150, 150, chunk=70)
        found = ops.attention_edges(trace, torch.arange(150), **spec)
        doubled, _ = wide(trace, [])
        expected = ops.attention_edges(doubled, torch.arange(150), **spec)
        assert torch.equal(found.counts, expected.counts) and torch.equal(found.columns, expected.columns)
        assert (found.weights - expected.weights).abs().max() <= 1e-5 * expected.weights.abs().max()


def test_a_call_for_more_rows_takes_the_keys_as_they_lie(monkeypatch):
    trace, both = make(200, 200)
    expected = whole(edges_native.tiles(trace, torch.arange(200), *both), trace)
    monkeypatch.setattr(edges_native, "rows_at_a_time", lambda keys: 70)
    assert torch.equal(whole(edges_native.tiles(trace, torch.arange(200), *both), trace), expected)


def test_its_bits_do_not_hang_on_the_threads():
    (trace, both), before, found = make(300, 300, heads=9, kv_heads=3), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(strongest(trace, torch.arange(300), both, 7))
    finally:
        torch.set_num_threads(before)
    assert all(all(map(torch.equal, one, found[0])) for one in found[1:])


def test_of_tiles_that_were_left_out_there_are_none(lanes):
    trace, both = make(200, 261)
    kept = torch.rand(4, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    trace, rows = trace._replace(tiles=[kept], unit=(64, 64)), torch.arange(0, 200, 2)
    found = whole(edges_native.tiles(trace, rows, *both), trace)
    doubled, _ = wide(trace, both)
    expected = whole(edges.bounded_tiles(doubled, rows), trace)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(found != 0, expected != 0)


def test_who_computes(monkeypatch):
    used, own = [], _native.attention_edges_strongest
    monkeypatch.setattr(_native, "attention_edges_strongest", lambda *given: used.append(1) or own(*given))
    trace, _ = make(20, 20)
    ops.attention_edges(trace, torch.arange(20), topk=3)
    assert used == [1]
    for flags in ({"dim": 24}, {"softcap": 3.0}, {"rule": Rules("attnlrp", attention_gamma=0.1)}):
        trace, _ = make(20, 20, **flags)
        assert not edges_native.serves(trace)
        ops.attention_edges(trace, torch.arange(20), topk=3)
    assert used == [1]


def given(**change):
    """What `_native.attention_edges` takes first."""
    tokens = {name: np.zeros((4, 9, 16), np.float32) for name in ("g", "out", "query")}
    tokens |= {name: np.zeros((2, 9, 16), np.float32) for name in ("key", "value")}
    rest = {"key_part": None, "value_part": None, "lse": np.zeros((4, 9), np.float32), "tiles": None, "scale": 1.0}
    work = np.zeros(_native.attention_edges_floats(2, 9, 16, False, False), np.float32)
    rest |= {"behind": 9, "ahead": 1, "share": 0.5, "ratio": 1.0, "rows": np.arange(9), "work": work, "threads": 1}
    return tokens | rest | change


def test_bad_arguments():
    room = np.zeros((9, 9), np.float32)
    _native.attention_edges(given(), 0, 9, room)
    for change, keys, to, message in (
        ({"rows": np.array([3, 3])}, (0, 9), room, "ascending"),
        ({"rows": np.array([3, 9])}, (0, 9), room, "ascending"),
        ({"rows": np.array([-1])}, (0, 9), room, "ascending"),
        ({"lse": None}, (0, 9), room, "may be None"),
        ({"key_part": np.zeros((2, 8, 16), np.float32)}, (0, 9), room, "key_part does not fit"),
        ({"work": np.zeros(3, np.float32)}, (0, 9), room, "work must have size"),
        ({}, (1, 9), room[:, 1:], "hold all keys"),
        ({}, (0, 8), room[:, 1:], "hold all keys"),
        ({}, (0, 10), room, "must be keys"),
        ({}, (0, 9), room[1:], "edges must have size"),
    ):
        with pytest.raises(ValueError, match=message):
            _native.attention_edges(given(**change), *keys, to)
    columns, weights, dropped = np.zeros((9, 3), np.int32), np.zeros((9, 3), np.float32), np.zeros((9, 2), np.float32)
    _native.attention_edges_strongest(given(), columns, weights, dropped)
    with pytest.raises(ValueError, match="columns must have size"):
        _native.attention_edges_strongest(given(), columns[:, :2].copy(), weights, dropped)
    with pytest.raises(TypeError, match="columns must be a int32 array"):
        _native.attention_edges_strongest(given(), columns.astype(np.int64), weights, dropped)

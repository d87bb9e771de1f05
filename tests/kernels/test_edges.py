"""The edge kernels against the definition, and their choices against sorting the dense matrix."""

from dataclasses import dataclass, fields, replace

import pytest
import torch

from lrp_fast import ops, reference
from lrp_fast.kernels import attention
from lrp_fast.kernels import edges as kernels
from lrp_fast.kernels.attention import Tiles, arguments
from lrp_fast.kernels.edges import listed
from lrp_fast.ops import edges, select
from lrp_fast.ops.attention import Kept, Reach, Trace
from lrp_fast.rules import Rules
from tests.kernels.ways import BRAIN, DEVICE, DTYPES, EXECUTED, HALF, INTERPRETED, ON_GPU, SINGLE


@dataclass(frozen=True)
class Case:
    """One call. ``tiles``: replaces the table of configurations, to see several tiles of every kind in a small call."""

    rules: Rules
    queries: int = 111
    keys: int = 111
    heads: int = 2
    kv_heads: int = 1
    dim: int = 64
    dtype: torch.dtype = torch.float32
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    parts: str = ""  # "key", "value" or "key value": which are given
    tiles: Tiles | None = None

    def __str__(self):
        parts = [str(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        rules = self.rules
        parts[0] = f"{rules.name} e{rules.attention_epsilon} g{rules.attention_gamma}"
        return ", ".join(parts).replace("torch.", "")

    def tensors(self, seed=0):
        """g, query, key, value, and what the input contributes to keys and values or None; NaN after every row."""
        generator = torch.Generator().manual_seed(seed)

        def draw(heads, length):
            whole = torch.full((1, length + 1, heads, self.dim + 16), float("nan"), dtype=self.dtype, device=DEVICE)
            x = whole[:, :length, :, : self.dim].transpose(1, 2)
            return x.copy_(torch.randn(x.shape, generator=generator))

        mine, theirs = (self.heads, self.queries), (self.kv_heads, self.keys)
        g, query, key, value, *parts = (draw(*size) for size in (mine, mine, theirs, theirs, theirs, theirs))
        named = zip(("key", "value"), parts, strict=True)
        return g, query, key, value, *(t if name in self.parts else None for name, t in named)

    def some_sinks(self):
        return torch.linspace(-1, 2, self.heads).to(DEVICE, self.dtype) if self.sinks else None

    def trace(self, g, query, key, value):
        """As `ops.attention` leaves one, its forward pass by the kernels."""
        reach = Reach(self.dim**-0.5, self.causal, self.window, self.softcap)
        absolute = self.rules.attention_gamma > 0
        given = reach.for_kernels() | {"sinks": self.some_sinks(), "absolute": absolute}
        kept = attention.forward(query, key, value, **given)
        return Trace(g, query, key, value, Kept(*kept), None, None, reach, self.rules)


def rows_of(*numbers):
    return torch.tensor(numbers, dtype=torch.int64, device=DEVICE)


def dense(trace, rows, key_part=None, value_part=None):
    """(R, S) by the tile kernel."""
    given = edges._prepared(trace, key_part, value_part)
    keys = trace.key.shape[2]
    return kernels.tile(given, rows, slice(0, keys), torch.empty(len(rows) * keys + 7, device=DEVICE)).clone()


def define(case, g, query, key, value, key_part, value_part, dtype):
    """(T, S) by one backward pass a query."""
    parts = (key if key_part is None else key_part, value if value_part is None else value_part)
    tensors = [t.to(dtype) for t in (g, query, key, value)]
    mask = reference.visible(1, case.queries, case.keys, causal=case.causal, window=case.window).to(DEVICE)
    sinks = case.some_sinks()
    rules = case.rules
    return reference.attention_edges(
        *tensors, mask, *(t.to(dtype) for t in parts), scale=case.dim**-0.5, softcap=case.softcap,
        sinks=None if sinks is None else sinks.to(dtype), rule=rules.name, epsilon=rules.attention_epsilon,
        gamma=rules.attention_gamma,
    )[0]  # fmt: skip


SMALL = Tiles(32, 16, 4, 1)
WIDE = Tiles(16, 64, 4, 1)
BOTH = {"attention_epsilon": 0.01, "attention_gamma": 0.25}
CASES = [
    # The shipped tiles: every rule, odd lengths, heads that share keys and heads that do not
    Case(Rules("attnlrp"), 63, 111, 4, 2),
    Case(Rules("cp"), 33, 111, 2, 2),
    Case(Rules("gradient"), 33, 63, 3, 1),
    Case(Rules("attnlrp"), 1, 111, 2, 1),
    Case(Rules("cp"), 1, 1, 2, 1),
    Case(Rules("attnlrp"), 111, 111, dtype=HALF),
    Case(Rules("cp"), 63, 63, 2, 2, dtype=HALF),
    Case(Rules("gradient"), 33, 111, 2, 1, dtype=HALF, window=40, softcap=5.0),
    # head_dim, with and without a wider tile than it
    Case(Rules("attnlrp"), 63, 63, 2, 2, dim=80, dtype=HALF),
    Case(Rules("cp"), 33, 33, dim=96, parts="value"),
    Case(Rules("attnlrp"), 63, 63, dim=128, parts="key value"),
    Case(Rules("attnlrp"), 63, 63, 1, 1, dim=256, dtype=HALF, softcap=30.0),
    Case(Rules("gradient", **BOTH), 33, 33, 1, 1, dim=256, dtype=HALF, parts="key value"),
    # What the input contributes, one or both
    Case(Rules("attnlrp"), 63, 63, parts="key"),
    Case(Rules("attnlrp"), 63, 63, parts="value", dtype=HALF),
    Case(Rules("gradient"), 63, 63, 2, 2, parts="key value", softcap=3.0, sinks=True),
    Case(Rules("cp"), 63, 63, parts="key value"),
    # Stabilisers
    Case(Rules("attnlrp", attention_epsilon=0.01), 33, 111, softcap=5.0),
    Case(Rules("attnlrp", **BOTH), 33, 63, 4, 2, sinks=True, window=17),
    Case(Rules("attnlrp", **BOTH), 33, 33, parts="key value", dtype=HALF),
    Case(Rules("cp", attention_gamma=0.25), 33, 63, 2, 2),
    Case(Rules("cp", **BOTH), 33, 33, parts="value"),
    Case(Rules("gradient", attention_gamma=0.25), 33, 63, parts="key", causal=False),
    # Masks, with open, border and closed tiles of either shape
    Case(Rules("attnlrp"), 63, 63, tiles=SMALL),
    Case(Rules("attnlrp"), 33, 111, tiles=WIDE, window=50, sinks=True),
    Case(Rules("gradient"), 47, 111, tiles=SMALL, causal=False, window=30),
    Case(Rules("attnlrp"), 63, 63, tiles=WIDE, window=2, softcap=5.0, sinks=True),
    Case(Rules("cp"), 33, 63, tiles=WIDE, causal=False),
]
if not INTERPRETED:
    CASES += [replace(case, dtype=BRAIN) for case in CASES if case.dtype is HALF]
if EXECUTED:
    CASES = [replace(case, dtype=DTYPES[i % 2]) if case.dtype is SINGLE else case for i, case in enumerate(CASES)]
if ON_GPU:
    CASES += [
        *(Case(Rules("attnlrp"), 700, 1500, 4, 2, dim=dim, dtype=BRAIN) for dim in (64, 80, 128, 256)),
        *(Case(Rules("cp"), 700, 700, 2, 2, dim=dim, dtype=BRAIN) for dim in (64, 128, 256)),
        *(Case(Rules("attnlrp"), 500, 500, dim=dim, parts="key value", dtype=BRAIN) for dim in (64, 128, 256)),
        *(Case(Rules("attnlrp", **BOTH), 500, 500, dim=dim, parts="key value", softcap=30.0, window=300, sinks=True,
               dtype=BRAIN) for dim in (64, 128, 256)),
        *(Case(Rules("attnlrp"), 500, 500, dim=dim, parts="key value") for dim in (64, 128)),
    ]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_edges_round_no_worse_than_the_definition(case, within_rounding, monkeypatch):
    if case.tiles is not None:
        monkeypatch.setattr(arguments, "config", lambda *_: case.tiles)
    compare(case, within_rounding)


def compare(case, within_rounding):
    """The edges of all queries, and what they come from: the trace, and what keys and values take from the input."""
    tensors = case.tensors()
    rows = torch.arange(case.queries, device=DEVICE)
    trace, parts = case.trace(*tensors[:4]), tensors[4:]
    found = dense(trace, rows, *parts)
    assert found.dtype == torch.float32
    # As `lrp_fast.operations.edges` counts them: four sums of head_dim products, two over the keys, one over the heads.
    terms = 4 if case.dtype != torch.float32 else 4 * case.dim + 2 * case.keys + case.heads
    truth, plain = (define(case, *tensors, dtype) for dtype in (torch.float64, case.dtype))
    within_rounding(found.to(case.dtype), plain, truth, terms)
    hidden = ~reference.visible(1, case.queries, case.keys, causal=case.causal, window=case.window)[0]
    assert not found[hidden.view(found.shape).to(DEVICE)].any()
    return found, trace, parts


def test_few_rows_are_divided_further():
    """Into programs of 512 keys or more, until there are 512; what comes of it is in the tests below."""
    found = {
        (blocks, keys): listed._segments(blocks, keys, 128)
        for blocks, keys in ((64, 4096), (256, 16384), (1024, 65536), (1, 65536), (3, 700))
    }
    assert found == {(64, 4096): (4, 8), (256, 16384): (32, 4), (1024, 65536): (32, 16), (1, 65536): (4, 128),
                     (3, 700): (4, 2)}  # fmt: skip


def chosen(matrix, k):
    """(columns, weights) of each row, by sorting it."""
    for row in matrix.tolist():
        best = sorted((i for i, a in enumerate(row) if a), key=lambda i: (-abs(row[i]), i))[:k]  # noqa: B023
        yield sorted(best), [row[i] for i in sorted(best)]


def check_lists(matrix, columns, weights, dropped, k):
    """Lists of the ``k`` strongest of a dense matrix: bit for bit, but for the rounding of two compiled kernels."""
    assert columns.shape == weights.shape == (len(matrix), k) and dropped.shape == (len(matrix), 2)
    assert columns.dtype == torch.int32 and weights.dtype == dropped.dtype == torch.float32
    matrix, columns, weights, dropped = (t.cpu() for t in (matrix, columns, weights, dropped))
    allowed = 0 if INTERPRETED else 64 * torch.finfo(torch.float32).eps * matrix.abs().max().item()
    for row, (best, values) in enumerate(chosen(matrix, k)):
        there = weights[row] != 0
        mine = columns[row][there].tolist()
        assert mine == sorted(set(mine)) and (columns[row][~there] == 2**31 - 1).all()
        if INTERPRETED:
            assert mine == best and weights[row][there].tolist() == values
        else:
            assert len(mine) == len(best)
            assert (matrix[row][mine] - weights[row][there]).abs().le(allowed).all()
            one, other = (torch.tensor([abs(a) for a in x]).sort().values for x in (values, weights[row][there]))
            assert (one - other).abs().le(allowed).all()
        rest = matrix[row].double()
        rest[mine] = 0
        truth = torch.stack([rest.clamp(min=0).sum(), rest.clamp(max=0).sum()])
        bound = len(rest) * (torch.finfo(torch.float32).eps * rest.abs().sum() + allowed)
        assert (dropped[row] - truth).abs().max() <= bound
        assert dropped[row, 0] >= 0 >= dropped[row, 1]


PROMPTS = [
    Case(Rules("attnlrp"), 111, 111, 2, 1),
    Case(Rules("cp"), 63, 111, 2, 2, dtype=HALF),
    Case(Rules("gradient"), 33, 63, 2, 1, window=20, softcap=5.0),
    Case(Rules("attnlrp"), 63, 63, parts="key value", causal=False),
    Case(Rules("cp"), 1, 1),
]
if ON_GPU:
    PROMPTS += [Case(Rules("attnlrp"), 3000, 3000, 4, 2, dim=dim, dtype=BRAIN) for dim in (64, 128)]


@pytest.mark.parametrize("shipped", [True, False])
@pytest.mark.parametrize("case", PROMPTS, ids=str)
def test_lists_are_those_of_a_sort(case, shipped, monkeypatch):
    if not shipped:  # several tiles a segment, several segments a row, several launches
        monkeypatch.setattr(arguments, "config", lambda *_: Tiles(16, 16, 4, 1))
        monkeypatch.setattr(listed, "_SEGMENT", 48)
        monkeypatch.setattr(listed, "_LISTED", 2**9)
    tensors = case.tensors()
    trace, parts = case.trace(*tensors[:4]), tensors[4:]
    rows = torch.arange(case.queries, device=DEVICE)
    matrix, given = dense(trace, rows, *parts), edges._prepared(trace, *parts)
    for k in (1, 3, 16, 64):
        check_lists(matrix, *kernels.strongest(given, rows, k), k)


def test_of_equal_edges_those_further_to_the_left_are_kept(monkeypatch):
    case = Case(Rules("attnlrp"), 63, 63, 1, 1)
    g, query, key, value, *_ = case.tensors()
    key[:] = key[:, :, torch.arange(63) % 5]
    value[:] = value[:, :, torch.arange(63) % 5]
    trace = case.trace(g, query, key, value)
    rows = torch.arange(63, device=DEVICE)
    given = edges._prepared(trace, None, None)
    for small in (False, True):
        if small:
            monkeypatch.setattr(arguments, "config", lambda *_: Tiles(16, 16, 4, 1))
            monkeypatch.setattr(listed, "_SEGMENT", 32)
        matrix = dense(trace, rows)
        for k in (3, 13):
            found = kernels.strongest(given, rows, k)
            check_lists(matrix, *found, k)
            for row in range(63):
                mine = set(found[0][row].tolist())
                assert all(i < 5 or i - 5 in mine for i in mine if i <= row)
            for most in (64, 1):  # the latter: PyTorch's choice from tiles
                monkeypatch.setattr(kernels, "MOST", most)
                lists = ops.attention_edges(trace, rows, topk=k, impl="triton")
                if INTERPRETED:
                    assert torch.equal(lists.columns, found[0][found[1] != 0])
                    assert torch.equal(lists.weights, found[1][found[1] != 0])
                assert lists.counts.tolist() == [min(k, row + 1) for row in range(63)]


def test_strength_decides_whatever_its_size_and_sign(monkeypatch):
    """From the smallest to far beyond 2, where a candidate's highest bits are set; lists that are not full; both
    signs."""
    monkeypatch.setattr(arguments, "config", lambda *_: Tiles(16, 16, 4, 1))
    case = Case(Rules("cp"), 63, 63, 1, 1, causal=False)
    g, query, key, value, *_ = case.tensors()
    query.zero_()  # all weights are 1 / 63
    value *= torch.logspace(-20, 20, 63, device=DEVICE)[torch.randperm(63)].view(1, 1, -1, 1)
    trace, rows = case.trace(g, query, key, value), rows_of(0, 1, 40)
    matrix = dense(trace, rows)
    assert matrix.abs().max() > 1e15 and matrix.abs().min() < 1e-15
    for k in (1, 5, 13, 33):
        check_lists(matrix, *kernels.strongest(edges._prepared(trace, None, None), rows, k), k)


@pytest.mark.parametrize("rules", [Rules("attnlrp"), Rules("cp")], ids=["attnlrp", "cp"])
def test_cumulative_mass_is_that_of_a_sort(rules, monkeypatch):
    monkeypatch.setattr(edges, "_BUFFER", 40 * 111)
    case = Case(rules, window=70)
    trace = case.trace(*case.tensors()[:4])
    rows = torch.arange(111, device=DEVICE)
    matrix = torch.zeros(111, 111, device=DEVICE)
    for position, keys, entries in edges._fused_tiles(trace, edges._prepared(trace, None, None), rows):
        assert len(position) <= 40 and entries.numel() <= 40 * 111
        matrix[position, keys] = entries
    own = torch.linspace(-3, 3, 111, device=DEVICE)
    for with_own, share in ((None, 0.5), (own, 0.9), (own, 1.0)):
        found = ops.attention_edges(trace, rows, mass=share, own=with_own, impl="triton")
        whole = matrix if with_own is None else matrix + torch.diag(own)
        ordered = whole.abs().flatten().sort(descending=True).values.double()
        enough = int((ordered.cumsum(0) >= share * ordered.sum()).int().argmax())
        threshold = ordered[enough] if share < 1 else 0
        kept = matrix * ((whole.abs() >= threshold) & (whole != 0))
        assert torch.equal(found.counts, (kept != 0).sum(-1).cpu())
        assert torch.equal(found.weights, kept[kept != 0].cpu())
        assert torch.equal(found.columns, kept.nonzero()[:, 1].int().cpu())
        rest = (matrix - kept).double().cpu()
        truth = torch.stack([rest.clamp(min=0).sum(-1), rest.clamp(max=0).sum(-1)], -1)
        assert (found.dropped - truth).abs().max() <= 111 * torch.finfo(torch.float32).eps * rest.abs().sum(-1).max()


@pytest.mark.parametrize("shape", [(1, 1), (33, 63), (7, 1111)])
def test_histograms_are_exact_in_any_order(shape, draw):
    x = draw(*shape, dtype=torch.float32, layout="gaps")
    x *= torch.logspace(-45, 38, shape[1], device=DEVICE)  # down to numbers without a leading bit
    position = torch.zeros(shape[0], dtype=torch.int64)
    tiles = [(position, slice(0, shape[1]), x)]
    turned = [(*tiles[0][:2], x.flip(0, 1))]
    plain, found = (select._masses(tiles, None, impl) for impl in ("torch", "triton"))
    again = select._masses(turned, None, "triton")
    assert torch.equal(plain, found) and torch.equal(again, found)
    truth = torch.zeros(2**15, dtype=torch.float64)
    for one in x.abs().flatten().tolist():
        truth[torch.tensor(one).view(torch.int32) >> 16] += one
    assert (found - truth).abs().le(x.numel() * torch.finfo(torch.float64).eps * truth).all()
    assert torch.equal(found > 0, truth > 0)


@pytest.mark.parametrize("rules", [Rules("attnlrp"), Rules("cp", **BOTH)], ids=["attnlrp", "cp"])
def test_listed_queries_alone_are_read(rules, same, monkeypatch):
    """And of keys and values those that one of them reads: the others' tiles are left out."""
    monkeypatch.setattr(arguments, "config", lambda *_: Tiles(16, 16, 4, 1))
    case = Case(rules, 63, 111, window=30)
    g, query, key, value, *_ = case.tensors()
    rows = rows_of(17, 18, 30, 31, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47)  # up to position 95
    every = torch.arange(63, device=DEVICE)
    trace = case.trace(g, query, key, value)
    expected = dense(trace, every)[rows]
    lists = kernels.strongest(edges._prepared(trace, None, None), every, 7)
    idle = torch.ones(63, dtype=torch.bool).index_fill(0, rows.cpu(), False).to(DEVICE)
    trace.kept.lse[:, :, idle] = float("nan")
    for t in (g, query):
        t[:, :, idle] = float("nan")
    for t in (key, value):
        t[:, :, :32] = t[:, :, 96:] = float("nan")
    given = edges._prepared(trace, None, None)
    buffer = torch.empty(len(rows) * 64, device=DEVICE)
    same(kernels.tile(given, rows, slice(32, 96), buffer), expected[:, 32:96].contiguous(), 64 + 111)
    assert not expected[:, :32].any() and not expected[:, 96:].any()
    found = kernels.strongest(given, rows, 7)
    if INTERPRETED:
        assert all(torch.equal(one, other[rows]) for one, other in zip(found, lists, strict=True))
    assert found[1].isfinite().all() and found[1].all() and (found[2][:, 0] > 0).all()


def test_what_is_hidden_may_overflow():
    """The mask is applied to the sum: a weight of a hidden key may be infinite, and no neighbour sees it."""
    case = Case(Rules("attnlrp"), 63, 63)
    g, query, key, value, *_ = case.tensors()
    key[:, :, 40:] *= 1e4
    key[:, :, 50] = float("nan")
    trace, rows = case.trace(g, query, key.clone(), value), torch.arange(40, device=DEVICE)
    key[:, :, 40:] = 0
    clean = case.trace(g, query, key, value)
    assert torch.equal(dense(trace, rows), dense(clean, rows))
    found, expected = (kernels.strongest(edges._prepared(one, None, None), rows, 9) for one in (trace, clean))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_rows_without_relevance_have_no_edges():
    case = Case(Rules("attnlrp"), 33, 33)
    g, *rest, _, _ = case.tensors()
    g[:, :, 3:7] = 0
    trace = case.trace(g, *rest)
    found = ops.attention_edges(trace, rows_of(2, 4, 6, 7), topk=5, impl="triton")
    assert found.counts.tolist() == [3, 0, 0, 5] and not found.dropped[1:3].any()


def test_the_same_call_twice_gives_the_same_bits():
    case = Case(Rules("attnlrp", **BOTH), 63, 63, 4, 2, dtype=HALF, parts="value")
    tensors = case.tensors()
    rows = torch.arange(63, device=DEVICE)
    for choice in ({"topk": 4}, {"mass": 0.7}):
        one, other = (
            ops.attention_edges(case.trace(*tensors[:4]), rows, value_part=tensors[5], impl="triton", **choice)
            for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_strides_change_nothing(same):
    case = Case(Rules("attnlrp", attention_gamma=0.25), 33, 33, parts="key value")
    g, query, key, value, key_part, value_part = case.tensors()
    g = g[:, :1, :1].expand_as(g)  # strides of 0, as a sum's gradient has
    trace, rows = case.trace(g.contiguous(), query, key, value), torch.arange(33, device=DEVICE)
    expected = dense(trace, rows, key_part.contiguous(), value_part.contiguous())
    query, key, key_part = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (query, key, key_part))
    wide = torch.full((*trace.kept.out.shape[:-1], 128), float("nan"), device=DEVICE)
    gaps = wide[..., :64].copy_(trace.kept.out)
    spread = trace._replace(g=g, query=query, key=key, kept=trace.kept._replace(out=gaps))
    same(dense(spread, rows, key_part, value_part.float()), expected, 64 + 33)


def test_a_gradient_and_contributions_in_another_dtype(same):
    case = Case(Rules("attnlrp"), 33, 33, dtype=HALF, parts="key value")
    g, query, key, value, *parts = case.tensors()
    trace, rows = case.trace(g, query, key, value), torch.arange(33, device=DEVICE)
    wide = dense(trace._replace(g=g.float()), rows, *(t.float() for t in parts))
    same(wide, dense(trace, rows, *parts), 64 + 33)


def test_rows_beyond_2_to_the_31_elements(same):
    """Strides as of one head in a very long context: the memory between the rows is never touched."""
    if EXECUTED:
        pytest.skip("takes 5 GB, which the executor would copy")
    if ON_GPU and torch.cuda.mem_get_info()[0] < 10e9:
        pytest.skip("takes 5 GB, and the device has less than 10 free")
    case = Case(Rules(), 70, 70, 1, 1, dtype=HALF)
    g, query, key, value, *_ = case.tensors()
    trace, rows = case.trace(g, query, key, value), rows_of(0, 69)
    stride = 1 << 25
    far = torch.UntypedStorage(2 * (70 * stride + 64), device=DEVICE)
    spread = torch.tensor([], dtype=HALF, device=DEVICE).set_(far, 0, (1, 1, 70, 64), (1, 1, stride, 1))
    for name in ("query", "key"):
        spread.copy_(getattr(trace, name))
        same(dense(trace._replace(**{name: spread}), rows), dense(trace, rows), 64 + 70)


def test_what_no_kernel_serves_is_refused():
    case = Case(Rules(), 4, 4, dim=256)
    g, query, key, value, *_ = case.tensors()
    lse = torch.zeros(1, 2, 4, device=DEVICE)
    trace = Trace(g, query, key, value, Kept(g, lse, None), None, None, Reach(1.0, True, None, None), case.rules)
    for choice in ({"topk": 2}, {"mass": 0.5}):
        with pytest.raises(ValueError, match="head_dim 256 with elements of 4 bytes"):
            ops.attention_edges(trace, rows_of(1), impl="triton", **choice)

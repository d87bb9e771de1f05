"""ops.attention_edges against the definition, and the two selections against sorting the dense matrix."""

import itertools

import pytest
import torch

from lrp_fast import Rules, ops, reference
from lrp_fast.ops import attention_tiled, edges, select

STABILISERS = [(0.0, 0.0), (0.01, 0.0), (0.01, 0.3), (0.0, 0.3)]


def trace_of(rules, queries=11, keys=11, heads=4, kv_heads=2, dtype=torch.float64, dim=8, **flags):
    """A backward pass through random heads, and its tensors."""
    torch.manual_seed(0)
    query = torch.randn(1, queries, heads, dim, dtype=dtype).transpose(1, 2).requires_grad_()
    key = torch.randn(1, keys, kv_heads, dim, dtype=dtype).transpose(1, 2).requires_grad_()
    value = torch.randn(1, kv_heads, keys, dim, dtype=dtype).requires_grad_()
    traces, g = [], torch.randn(1, heads, queries, dim, dtype=dtype)
    out = ops.attention(query, key, value, rule=rules, scale=0.4, traces=traces, **flags)
    torch.autograd.grad(out, (query, key, value), g, allow_unused=True)
    return traces[0], (g, query.detach(), key.detach(), value.detach())


def dense(trace, rows, *parts):
    """(R, S) from the tiles."""
    matrix = torch.zeros(len(rows), trace.key.shape[2], dtype=trace.value.dtype)
    start = 0
    for _, keys, entries in edges.edge_tiles(trace, rows, *parts):
        matrix[start : start + len(entries), keys] = entries
        start += len(entries)
    return matrix


@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient"])
@pytest.mark.parametrize("epsilon, gamma", STABILISERS)
def test_edges_equal_the_definition_in_float64(rule, epsilon, gamma):
    rules = Rules(rule, attention_epsilon=epsilon, attention_gamma=gamma)
    some_sinks = torch.linspace(-1, 1, 4).double()
    for (causal, window), (softcap, sinks), (queries, kv_heads) in itertools.product(
        ((True, None), (True, 3), (False, None)), ((None, None), (5.0, some_sinks)), ((7, 2), (11, 4))
    ):
        flags = {"softcap": softcap, "sinks": sinks}
        trace, (g, query, key, value) = trace_of(
            rules, queries, kv_heads=kv_heads, causal=causal, window=window, **flags
        )
        mask = reference.visible(1, queries, 11, causal=causal, window=window)
        flags |= {"scale": 0.4, "rule": rule, "epsilon": epsilon, "gamma": gamma}
        for parts in ((key, value), (key.flip(2), value + 1)):
            truth = reference.attention_edges(g, query, key, value, mask, *parts, **flags)[0]
            given = () if parts[0] is key else parts
            found = dense(trace, torch.arange(queries), *given)
            assert (found - truth).abs().max() <= 1e-12 * truth.abs().max(), flags
            total = ops.crossing(trace, *given)
            assert (total - truth.sum(0)).abs().max() <= 1e-12 * truth.abs().max(), flags
            some = torch.tensor([0, 3, queries - 1])
            assert (dense(trace, some, *given) - truth[some]).abs().max() <= 1e-12 * truth.abs().max()


@pytest.mark.parametrize("rule", [Rules(), Rules("cp", attention_gamma=0.1)], ids=["attnlrp", "cp-gamma"])
def test_a_prompt_of_a_batch_has_the_edges_that_it_has_alone(rule):
    generator = torch.Generator().manual_seed(0)
    query, key, value, g = (torch.randn(3, 2, 9, 8, dtype=torch.float64, generator=generator) for _ in range(4))
    bounds = torch.tensor([[0, 9], [2, 9], [0, 5]])
    for start, end, row in ((*span, row) for row, span in enumerate(bounds.tolist())):
        g[row, :, :start], g[row, :, end:] = 0, 0

    def trace(of, **given):
        traces, leaves = [], [of(x).requires_grad_() for x in (query, key, value)]
        torch.autograd.grad(ops.attention(*leaves, rule=rule, window=4, traces=traces, **given), leaves[2], of(g))
        return traces[0]

    # Behind a prompt there may be anything, even without bounds: it is not read.
    for whole, rows in ((trace(torch.clone, bounds=bounds), range(3)), (trace(torch.clone), (0, 2))):
        for row in rows:
            start, end = bounds[row].tolist()
            alone = trace(lambda x, row=row, start=start, end=end: x[row : row + 1, :, start:end].clone())
            own = whole.of(row, start, end)
            every = torch.arange(end - start)
            truth = dense(alone, every)
            assert (dense(own, every) - truth).abs().max() <= 1e-12 * truth.abs().max()
            assert (ops.crossing(own) - ops.crossing(alone)).abs().max() <= 1e-12 * truth.abs().max()
    for call in (lambda: ops.crossing(whole), lambda: ops.attention_edges(whole, torch.arange(2), topk=1)):
        with pytest.raises(ValueError, match=r"edges are those of one prompt, and this trace is of 3: cut one out"):
            call()


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("chunk", [1, 4, 11])
def test_edges_within_chunks(rule, chunk):
    """Those of the definition, and as they are chosen from the dense matrix."""
    trace, (g, query, key, value) = trace_of(Rules(rule), chunk=chunk)
    mask = reference.visible(1, 11, 11, chunk=chunk)
    parts = {"key_part": key.flip(2), "value_part": value + 1}
    truth = reference.attention_edges(g, query, key, value, mask, *parts.values(), scale=0.4, rule=rule)[0]
    assert (ops.crossing(trace, **parts) - truth.sum(0)).abs().max() <= 1e-12 * truth.abs().max()
    own = torch.linspace(-1, 1, 11, dtype=torch.float64)
    for rows in (torch.arange(11), torch.tensor([0, 3, 4, 10])):
        for choice in ({"topk": 11}, {"topk": 2}, {"mass": 1.0}, {"mass": 0.7, "own": own}):
            found = ops.attention_edges(trace, rows, **parts, **choice)
            if "topk" in choice:
                expected = select.by_row([(rows, slice(0, 11), truth[rows])], choice["topk"])
            else:
                expected = select.by_mass(lambda of: [(of, slice(0, 11), truth[of].clone())], rows, choice["mass"],
                                          choice.get("own"))  # fmt: skip
            assert torch.equal(found.columns, expected.columns) and torch.equal(found.counts, expected.counts)
            assert (found.weights - expected.weights).abs().max() <= 1e-12 * truth.abs().max()
            assert (found.dropped - expected.dropped).abs().max() <= 1e-12 * truth.abs().max()


def tiles_of(matrix, rows_each):
    """Causal tiles of some rows of a dense matrix, as `edge_tiles` yields them."""

    def tiles(rows):
        for position in rows.split(rows_each) if len(rows) else ():
            end = int(position[-1]) + 1
            yield position, slice(0, end), matrix[position, :end]

    return tiles


def as_dense(selected, columns):
    matrix = torch.zeros(len(selected.counts), columns, dtype=selected.weights.dtype)
    rows = torch.repeat_interleave(torch.arange(len(selected.counts)), selected.counts)
    matrix[rows, selected.columns.long()] = selected.weights
    order = rows * columns + selected.columns
    assert (order.diff() > 0).all() and (selected.weights != 0).all()
    return matrix


def check_dropped(selected, kept, matrix):
    rest = (matrix - kept).double()
    truth = torch.stack([rest.clamp(min=0).sum(-1), rest.clamp(max=0).sum(-1)], -1)
    assert (selected.dropped - truth).abs().max() <= 1e-5 * matrix.abs().max() * len(matrix)


MATRICES = {
    "spread": lambda n, g: torch.randn(n, n, generator=g) * torch.exp(3 * torch.randn(n, n, generator=g)),
    "ties": lambda n, g: torch.randint(-3, 4, (n, n), generator=g) / 4,
    "equal": lambda n, g: torch.ones(n, n),
    "zero": lambda n, g: torch.zeros(n, n),
    "denormal": lambda n, g: torch.randint(-3, 4, (n, n), generator=g) * 2.0**-149,
    "tiny": lambda n, g: torch.randint(-(2**25), 2**25, (n, n), generator=g) * 2.0**-149,  # a quarter are denormals
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n, rows_each", [(1, 1), (7, 3), (63, 16), (111, 64)])
def test_top_k_is_that_of_a_sort(kind, dtype, n, rows_each):
    matrix = MATRICES[kind](n, torch.Generator().manual_seed(n)).tril().to(dtype)
    for k in (1, 3, 16, n):
        selected = select.by_row(tiles_of(matrix, rows_each)(torch.arange(n)), k)
        truth = torch.zeros_like(matrix)
        for row in range(n):
            best = sorted(range(n), key=lambda i: (-abs(matrix[row, i].item()), i))[:k]  # noqa: B023
            truth[row, best] = matrix[row, best]
        kept = as_dense(selected, n)
        assert torch.equal(kept, truth)
        check_dropped(selected, kept, matrix)


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n, rows_each", [(1, 1), (7, 3), (63, 16), (111, 64)])
@pytest.mark.parametrize("with_own", [False, True])
def test_cumulative_mass_is_that_of_a_sort(kind, dtype, n, rows_each, with_own):
    generator = torch.Generator().manual_seed(n)
    matrix = MATRICES[kind](n, generator).tril().to(dtype)
    own = torch.randint(-8, 9, (n,), generator=generator).to(dtype) if with_own else None
    whole = matrix + torch.diag(own) if with_own else matrix
    for share in (0.01, 0.3, 0.85, 0.999, 1.0):
        selected = select.by_mass(tiles_of(matrix, rows_each), torch.arange(n), share, own)
        ordered = whole.abs().flatten().sort(descending=True).values
        sums = ordered.double().cumsum(0)
        enough = int((sums >= share * sums[-1]).int().argmax())
        threshold = ordered[enough] if share < 1 else 0
        truth = matrix * ((whole.abs() >= threshold) & (whole != 0))
        kept = as_dense(selected, n)
        assert torch.equal(kept, truth), share
        check_dropped(selected, kept, matrix)


def test_all_of_the_mass_is_every_edge():
    matrix = torch.tensor([[1.0, 0.0, 0.0], [1e-20, -0.5, 0.0], [2.0, 1e-30, -2.0]], dtype=torch.float64)
    own = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)
    assert torch.equal(as_dense(select.by_mass(tiles_of(matrix, 2), torch.arange(3), 1.0, None), 3), matrix)
    matrix[2, 2], kept = 0, as_dense(select.by_mass(tiles_of(matrix, 2), torch.arange(3), 1.0, own), 3)
    assert torch.equal(kept, matrix)


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_held_changes_no_bit_and_is_computed_once(kind, dtype):
    """Tiles of 16 rows; the first three hold 16 * (16 + 32 + 48) entries."""
    matrix = MATRICES[kind](63, torch.Generator().manual_seed(0)).tril().to(dtype)
    own, tiles, rows, asked = torch.linspace(-2, 2, 63, dtype=dtype), tiles_of(matrix, 16), torch.arange(63), []

    def watched(some):
        for tile in tiles(some):
            asked.append(int(tile[0][0]))
            yield tile

    truth = select.by_mass(tiles, rows, 0.85, own)
    firsts = [0, 16, 32, 48]
    for room, held in ((0, 0), (16 * 16 - 1, 0), (16 * 16, 1), (16 * 96, 3), (16 * 96 + 15 * 63 - 1, 3), (10**6, 4)):
        asked.clear()
        found = select.by_mass(watched, rows, 0.85, own, room)
        assert asked == firsts + firsts[held:]
        assert all(torch.equal(one, other) for one, other in zip(found, truth, strict=True))


@pytest.mark.parametrize("rows", [torch.arange(111), torch.tensor([0, 1, 5, 17, 40, 41, 42, 99, 110])])
def test_edges_that_are_held_are_those_computed_twice(rows, monkeypatch):
    monkeypatch.setattr(attention_tiled, "_TILE", 4 * 111 * 5)  # five rows a tile
    trace, _ = trace_of(Rules(), 111, 111, dtype=torch.float32)
    found = []
    for held in (0, 3000, 1 << 24):
        monkeypatch.setattr(edges, "HELD", held)
        found.append(ops.attention_edges(trace, rows, mass=0.85, own=torch.ones(111)))
    for one, two, three in zip(*found, strict=True):
        assert torch.equal(one, two) and torch.equal(two, three)


def test_just_one_selection():
    trace, _ = trace_of(Rules())
    for given in ({}, {"topk": 3, "mass": 0.5}):
        with pytest.raises(ValueError, match="one of"):
            ops.attention_edges(trace, torch.arange(11), **given)


def test_tiles_stay_small(monkeypatch):
    """However long the context, a tile holds no more scores than the bound, one row at least."""
    monkeypatch.setattr(attention_tiled, "_TILE", 4 * 111 * 5)
    trace, _ = trace_of(Rules(), 111, 111)
    sizes = [entries.shape for _, _, entries in edges.edge_tiles(trace, torch.arange(111))]
    assert max(rows for rows, _ in sizes) == 5 and sum(rows for rows, _ in sizes) == 111


@pytest.mark.parametrize("flags", [{}, {"window": 7}, {"causal": False, "softcap": 5.0}])
def test_a_tile_is_the_same_alone_and_in_the_memory_of_others(flags, monkeypatch):
    """Also while the next ones come, and where its rows are looked up one by one."""
    monkeypatch.setattr(attention_tiled, "_MOST_ROWS", 5)
    trace, (_, _, key, value) = trace_of(Rules(), 23, 23, **flags)
    for parts in ((), (key.flip(2).requires_grad_(), value + 1)):
        for rows in (torch.arange(23), torch.arange(0, 23, 2)):
            together = list(edges.edge_tiles(trace, rows, *parts))
            for of_tile, (position, keys, entries) in zip(rows.split(5), together, strict=True):
                ((own_position, own_keys, alone),) = edges.edge_tiles(trace, of_tile, *parts)
                assert torch.equal(position, own_position) and keys == own_keys and torch.equal(entries, alone)
                for row, one in zip(of_tile, entries, strict=True):
                    ((_, reach, alone),) = edges.edge_tiles(trace, row[None], *parts)
                    gap = (one[reach.start - keys.start : reach.stop - keys.start] - alone[0]).abs().max()
                    assert gap <= 1e-12 * entries.abs().max()

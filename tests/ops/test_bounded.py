"""The bounded backward pass: what it leaves out is what it says, and the rest is the definition's."""

import itertools

import pytest
import torch

from lrp_fast import Rules, ops, reference
from lrp_fast.ops import attention_bounded, bounded

TILE = attention_bounded.TILE


@pytest.fixture
def whatever_it_saves(monkeypatch):
    """Leaves tiles out also where that costs more than it saves."""
    monkeypatch.setattr(attention_bounded, "worth", lambda *_: 1.0)


def make(queries, keys, dtype=torch.float64, heads=4, kv_heads=2, dim=8, batch=1, spread=3.0):
    """Attention that lies on few keys, and relevance that lies on few queries."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, queries), (kv_heads, keys), (kv_heads, keys), (heads, queries)]
    query, key, value, g = (torch.randn(batch, *shape, dim, generator=generator, dtype=dtype) for shape in shapes)
    return query * spread, key, value, g * torch.logspace(-3, 0, queries, dtype=dtype)[:, None]


def run(query, key, value, g, tolerance, **flags):
    leaves = [t.detach().requires_grad_() for t in (query, key, value)]
    dropped, traces = [], None if "bounds" in flags or len(query) > 1 else []
    out = ops.attention(*leaves, scale=0.4, tolerance=tolerance, dropped=dropped, traces=traces, **flags)
    grads = torch.autograd.grad(out, leaves, g, allow_unused=True)
    return grads, dropped[0], traces and traces[0]


def define(query, key, causal=True, window=None, softcap=None, sinks=None):
    mask = reference.visible(len(query), query.shape[2], key.shape[2], causal=causal, window=window)
    return mask, {"scale": 0.4, "softcap": softcap, "sinks": sinks}


def by_entry(tiles, query, key):
    """(1, H, T, S) of (H, tiles of queries, tiles of keys)."""
    whole = tiles.repeat_interleave(TILE, 1).repeat_interleave(TILE, 2)
    return whole[None, :, : query.shape[2], : key.shape[2]]


def by_tile(entries):
    """(H, tiles of queries, tiles of keys), the sums of (1, H, T, S)."""
    rows, columns = (-size % TILE for size in entries.shape[2:])
    padded = torch.nn.functional.pad(entries[0], (0, columns, 0, rows))
    return padded.unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE)).sum((2, 4))


FORMS = [
    {},
    {"window": 100},
    {"softcap": 2.0},
    {"causal": False},
    {"sinks": torch.linspace(-1, 3, 4, dtype=torch.float64)},
    {"window": 70, "softcap": 2.0, "causal": False},
]
RULES = [
    Rules("attnlrp"),
    Rules("cp"),
    Rules("gradient"),
    Rules("attnlrp", attention_epsilon=0.01, attention_gamma=0.3),
    Rules("cp", attention_gamma=0.3),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-3, 0.2])
@pytest.mark.parametrize("flags", [{}, {"window": 100}], ids=str)
def test_in_16_bits_it_says_no_less_than_it_left_out(flags, tolerance, dtype, whatever_it_saves):
    query, key, value, g = make(512, 512, dtype, dim=64)
    _, dropped, trace = run(query, key, value, g, tolerance, **flags)
    if trace.tiles is None:  # of so small a tolerance rounding leaves nothing
        assert tolerance < 2e-4 and not dropped.any()
        return
    mask, given = define(query, key, **flags)
    given = {name: one for name, one in given.items() if name in ("scale", "softcap", "sinks")}
    entries = reference.attention_mass(*(one.double() for one in (g, query, key, value)), mask, **given)
    lost = 1 - (entries * by_entry(trace.tiles[0], query, key)).sum() / entries.sum()
    assert lost.item() <= dropped.item() <= min(tolerance, lost.item() + 2**-13)


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: f"{rules.name} {rules.attention_gamma}")
@pytest.mark.parametrize("flags", FORMS, ids=str)
def test_is_the_definition_less_what_it_says_it_left_out(flags, rules, whatever_it_saves):
    for queries, keys in ((320, 320), (261, 300)):
        query, key, value, g = make(queries, keys)
        grads, dropped, trace = run(query, key, value, g, 0.4, rule=rules, **flags)
        assert 0.1 < dropped.item() <= 0.4, "the data leave nothing out"
        mask, given = define(query, key, **flags)
        given |= {"epsilon": rules.attention_epsilon, "gamma": rules.attention_gamma}
        entries = reference.attention_mass(g, query, key, value, mask, **given)
        lost = 1 - (entries * by_entry(trace.tiles[0], query, key)).sum() / entries.sum()
        assert dropped.item() == pytest.approx(lost.item(), abs=1e-12)

        kept = by_entry(trace.tiles[0], query, key)
        expected = reference.attention_backward(g, query, key, value, mask, rule=rules.name, kept=kept, **given)
        for one, other in zip(grads, expected, strict=True):
            assert one is None or (one - other).abs().max() <= 1e-10 * other.abs().max()


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: f"{rules.name} {rules.attention_gamma}")
@pytest.mark.parametrize("parts", [False, True])
def test_edges_are_those_of_the_tiles_that_stayed(rules, parts, whatever_it_saves):
    query, key, value, g = make(261, 300, dim=4, heads=2, kv_heads=1)
    flags = {"window": 200, "softcap": 2.0}
    grads, _, trace = run(query, key, value, g, 0.4, rule=rules, **flags)
    mask, given = define(query, key, **flags)
    given |= {"epsilon": rules.attention_epsilon, "gamma": rules.attention_gamma, "rule": rules.name}
    key_part, value_part = (0.5 * key + 1, 0.7 * value - 1) if parts else (key, value)
    kept = by_entry(trace.tiles[0], query, key)
    rows = torch.tensor([0, 5, 63, 64, 130, 131, 260])
    for row in rows.tolist():
        only = torch.zeros_like(g)
        only[:, :, row] = g[:, :, row]
        _, g_key, g_value = reference.attention_backward(only, query, key, value, mask, kept=kept, **given)
        expected = (g_key * key_part + g_value * value_part).sum((0, 1, 3))
        found = ops.attention_edges(
            trace, torch.tensor([row]), topk=300,
            key_part=key_part if parts else None, value_part=value_part if parts else None,
        )  # fmt: skip
        dense = torch.zeros(300, dtype=torch.float64).index_put((found.columns.long(),), found.weights)
        assert (dense - expected).abs().max() <= 1e-10 * expected.abs().max()
    # All rows: what they hand on sums to what the pass handed back (DESIGN's second identity).
    every = ops.attention_edges(trace, torch.arange(261), topk=300)
    sums = torch.zeros(300, dtype=torch.float64).index_add(0, every.columns.long(), every.weights)
    crossing = ops.crossing(trace)
    assert (sums - crossing).abs().max() <= 1e-10 * crossing.abs().max()
    # Rows by themselves are the rows among others.
    some = ops.attention_edges(trace, rows, topk=300)
    starts = every.counts.cumsum(0) - every.counts
    of_these = torch.cat([every.weights[starts[row] : starts[row] + every.counts[row]] for row in rows.tolist()])
    assert torch.equal(some.weights, of_these)


def test_no_tolerance_is_the_exact_pass_bit_for_bit(whatever_it_saves):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [t.to(dtype) for t in make(300, 300, batch=2)]
        leaves = [t.detach().requires_grad_() for t in tensors[:3]]
        exact = torch.autograd.grad(ops.attention(*leaves, scale=0.4), leaves, tensors[3])
        for tolerance in (0.0, 0):
            grads, dropped, _ = run(*tensors, tolerance)
            assert dropped.tolist() == [0.0, 0.0]
            assert all(map(torch.equal, grads, exact))


def test_each_prompt_of_a_batch_chooses_for_itself(whatever_it_saves):
    query, key, value, g = make(320, 320, batch=3)
    g[1] *= 1e-6  # beside the others' mass it would all be left out
    g[2, :, :200] = 0
    grads, dropped, _ = run(query, key, value, g, 0.4)
    for row in range(3):
        alone, share, _ = run(*(t[row : row + 1] for t in (query, key, value, g)), 0.4)
        assert dropped[row] == share[0]
        assert all(torch.equal(one[row : row + 1], other) for one, other in zip(grads, alone, strict=True))
    padded, shares, _ = run(query, key, value, g, 0.4, bounds=torch.tensor([[0, 320], [0, 290], [20, 320]]))
    for row, (start, end) in enumerate([(0, 320), (0, 290), (20, 320)]):
        alone, share, _ = run(*(t[row : row + 1, :, start:end] for t in (query, key, value, g)), 0.4)
        assert shares[row] == share[0]
        for one, other in zip(padded, alone, strict=True):
            assert torch.equal(one[row : row + 1, :, start:end], other)


def test_relevance_that_is_nothing_or_not_a_number(whatever_it_saves):
    query, key, value, g = make(320, 320)
    grads, dropped, _ = run(query, key, value, torch.zeros_like(g), 0.4)
    assert not any(one.any() for one in grads)
    assert dropped.item() == 0
    g[0, 1, 300, 2] = torch.nan
    grads, dropped, _ = run(query, key, value, g, 0.4)
    assert grads[0].isnan().any()
    assert dropped.item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounds_no_worse_than_the_dense_form(dtype, within_rounding, whatever_it_saves):
    query, key, value, g = (t.to(dtype) for t in make(320, 320, dim=64, spread=0.3125))  # scores as of the usual scale
    grads, _, trace = run(query, key, value, g, 0.4)
    mask, given = define(query, key)
    kept = by_entry(trace.tiles[0], query, key)
    plain = reference.attention_backward(g, query, key, value, mask, kept=kept, **given)
    exact = reference.attention_backward(*(t.double() for t in (g, query, key, value)), mask, kept=kept, **given)
    for one, own, truth in zip(grads, plain, exact, strict=True):
        within_rounding(one, own, truth, terms=320 + 64)


def test_choice():
    masses = torch.tensor([[0.0, 5.0, 1.0], [2.0, 1.0, 1.0]], dtype=torch.float64)
    for tolerance, kept, dropped in [
        (0.0, 5, 0.0), (0.05, 5, 0.0), (0.29, 5, 0.0), (0.31, 2, 0.3), (0.49, 2, 0.3), (0.51, 1, 0.5), (0.99, 1, 0.5)
    ]:  # fmt: skip
        chosen = bounded.choose(masses, tolerance)
        assert int(chosen.kept.sum()) == kept
        assert chosen.dropped == pytest.approx(dropped, abs=1e-15)
        assert chosen.dropped <= tolerance
    assert bounded.choose(masses * torch.nan, 0.3) is None
    assert not bounded.choose(masses * 0, 0.3).kept.any()


def test_a_sum_is_the_same_in_any_order_and_never_too_small():
    masses = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) ** 9
    for tolerance in (1e-4, 0.01, 0.3):
        one = bounded.choose(masses, tolerance)
        other = bounded.choose(masses.flip(0), tolerance)
        assert torch.equal(one.kept, other.kept.flip(0))
        assert one.dropped == other.dropped
        truth = masses[~one.kept].double().sum() / masses.double().sum()
        assert truth - 1e-12 <= one.dropped <= tolerance
        assert one.dropped == pytest.approx(truth.item(), abs=1e-12)


@pytest.mark.parametrize("wrong", [-0.1, 1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_no_share_is_refused(wrong):
    with pytest.raises(ValueError, match="tolerance must be at least 0 and below 1"):
        run(*make(8, 8), wrong)
    for kind in (True, "0.1", None):
        with pytest.raises(TypeError, match="tolerance must be a number"):
            run(*make(8, 8), kind)


def test_what_is_short_or_of_one_query_is_computed_whole(whatever_it_saves):
    for queries, keys in itertools.product((1, 64, 192), (192, 320)):
        query, key, value, g = make(queries, keys)
        _, dropped, trace = run(query, key, value, g, 0.4)
        assert dropped.item() == 0
        assert trace.tiles is None
    query, key, value, g = make(320, 320)
    g[:, :, :-1] = 0  # as above the last layer: other rows are skipped anyway
    _, dropped, trace = run(query, key, value, g, 0.4)
    assert dropped.item() == 0


@pytest.mark.parametrize("dtype, tolerance, visits", [(torch.bfloat16, 6e-5, 0), (torch.float64, 0.4, 1)], ids=str)
def test_what_will_not_pay_ends_before_its_tiles_are_visited(dtype, tolerance, visits, monkeypatch):
    """Where the rounding of 16 bits is above the tolerance already, and where too many are chosen after the first."""
    added, asked, add, choose = [], [], attention_bounded._Blocks.add, attention_bounded.choose

    def choosing(masses, share):  # at first too few, as if their masses had misled
        asked.append(share)
        return choose(masses, 0.99 if len(asked) == 1 else 0.0)

    monkeypatch.setattr(attention_bounded, "worth", lambda *_: 0.5)
    monkeypatch.setattr(attention_bounded, "choose", choosing)
    monkeypatch.setattr(attention_bounded._Blocks, "add", lambda *given: added.append(given) or add(*given))
    monkeypatch.setattr(attention_bounded.attention_native, "serves", lambda *_: False)
    tensors = make(512, 512, dtype)
    grads, dropped, trace = run(*tensors, tolerance)
    assert (len(added), dropped.item(), trace.tiles) == (visits, 0, None) and len(asked) == 2 * visits
    assert all(map(torch.equal, grads, run(*tensors, 0.0)[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_how_large_relevance_is_does_not_matter(dtype, whatever_it_saves):
    """Squares of what is below 1e-19 are 0 in float32."""
    query, key, value, g = (t.to(dtype) for t in make(320, 320))
    grads, dropped, _ = run(query, key, value, g, 0.4)
    small = 2.0 ** (-90 if dtype == torch.float32 else -600)
    for one, other in zip(run(query, key, value, g * small, 0.4)[0], grads, strict=True):
        assert (one - other * small).abs().max() <= 1e-5 * other.abs().max() * small
    assert run(query, key, value, g * small, 0.4)[1] == pytest.approx(dropped.item(), rel=1e-5)


def test_a_query_that_is_not_a_number_is_not_left_out(whatever_it_saves):
    query, key, value, g = make(320, 320)
    query[0, 1, 101, 3] = torch.nan  # none of those that are drawn
    grads, dropped, trace = run(query, key, value, g, 0.4)
    exact, _, _ = run(query, key, value, g, 0.0)
    assert trace.tiles is None
    assert dropped.item() == 0
    assert all(torch.equal(one.isnan(), other.isnan()) for one, other in zip(grads, exact, strict=True))


def test_no_tolerance_is_too_small_to_come_to_an_end(whatever_it_saves):
    """Of queries that read their neighbours alone, most tiles weigh less than any tolerance, and rounding more."""
    t, half = torch.arange(1024, dtype=torch.float64), torch.zeros(1, 2, 1024, 8, dtype=torch.float64)
    query, key = half.clone(), half.clone()
    query[..., 0], query[..., 1] = 0.4 * t, -0.2  # scores fall with the square of the distance
    key[..., 0], key[..., 1] = t, t * t
    generator = torch.Generator().manual_seed(0)
    value, g = (torch.randn(half.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    for tolerance in (1e-16, 1e-17, 1e-300):
        _, dropped, _ = run(query, key, value, g, tolerance)
        assert dropped.item() <= tolerance


def test_padding_bounds_no_prompt_that_is_computed_whole_alone(whatever_it_saves):
    query, key, value, g = make(320, 320)
    g[:, :, 192:] = 0
    grads, dropped, trace = run(query, key, value, g, 0.4)
    alone = run(*(t[:, :, :192] for t in (query, key, value, g)), 0.4)[0]
    assert trace.tiles is None
    assert dropped.item() == 0
    for one, other in zip(grads, alone, strict=True):
        assert (one[:, :, :192] - other).abs().max() <= 1e-12 * other.abs().max()


def test_in_company_a_prompt_is_as_long_as_it_is():
    """Whether to choose tiles is worth while hangs on the queries that carry relevance, not on the padding behind."""
    query, key, value, g = make(1100, 1100, torch.float32, heads=2, kv_heads=1)
    assert run(query, key, value, g, 0.4)[2].tiles is not None
    g[:, :, 1000:] = 0
    assert run(query, key, value, g, 0.4)[2].tiles is None


def test_tensors_are_made_where_those_of_the_caller_are(whatever_it_saves):
    """As on a CUDA device that the kernels do not serve: none is made on the default one."""
    query, key, value, g = make(320, 320)
    kept = ops.attention_forward(query, key, value, scale=0.4)
    reach = run(query, key, value, g, 0.4)[2].reach
    with torch.device("meta"):
        found = attention_bounded.backward(
            g, query, key, value, *kept[:2], reach, sinks=None, tolerance=0.4, scores=True, ratio=False
        )
    assert found is not None
    assert found.query.device.type == "cpu"


def test_where_it_is_not_worth_a_look_all_tiles_stay(monkeypatch):
    monkeypatch.setattr(attention_bounded, "worth", lambda *_: 0.0)
    monkeypatch.setattr(attention_bounded, "_guessed", None)
    query, key, value, g = make(320, 320)
    (found, dropped, _), (exact, *_) = (run(query, key, value, g, tolerance) for tolerance in (0.4, 0.0))
    assert all(map(torch.equal, found, exact))
    assert not dropped.any()

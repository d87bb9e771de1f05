"""The bounded backward pass: masses of tiles, and relevance gradients of those that are kept, by the definition."""

from dataclasses import replace

import pytest
import torch

from lrp_fast.kernels import attention as kernels
from lrp_fast.kernels import edges
from lrp_fast.kernels.attention import Tiles, arguments
from lrp_fast.kernels.edges import listed
from lrp_fast.reference import rounding
from lrp_fast.reference.attention import _weights
from lrp_fast.rules import Rules
from tests.kernels import test_edges
from tests.kernels.test_attention import Case, define, forward, visible
from tests.kernels.ways import BRAIN, DEVICE, DTYPES, EXECUTED, HALF, INTERPRETED, ON_GPU, SINGLE

# Kernels whose tiles are parts of what is kept or left out, in each of both directions; and whose tiles are just that.
MIXED = {"forward": Tiles(32, 32, 4, 2), "dkv": Tiles(16, 32, 4, 2), "dq": Tiles(32, 16, 4, 2),
         "masses": Tiles(16, 16, 4, 2), "edges": Tiles(32, 64, 4, 1)}  # fmt: skip
OTHER = {"forward": Tiles(32, 32, 4, 2), "dkv": Tiles(32, 16, 4, 2), "dq": Tiles(16, 64, 4, 2),
         "masses": Tiles(64, 32, 4, 2), "edges": Tiles(16, 16, 4, 1)}  # fmt: skip
ALIKE = dict.fromkeys(MIXED, Tiles(16, 16, 4, 2)) | {"edges": Tiles(16, 32, 4, 1)}
NAMES = {"mixed": MIXED, "other": OTHER, "alike": ALIKE, "shipped": None}
BOTH = {"attention_epsilon": 0.5, "attention_gamma": 0.25}
CASES = [
    (Case(Rules("attnlrp"), 111, 111, 2, 1), MIXED),
    (Case(Rules("attnlrp"), 63, 111, 4, 2, dtype=HALF), OTHER),
    (Case(Rules("cp"), 63, 111, 4, 2), MIXED),
    (Case(Rules("gradient"), 63, 111, 2, 1, dtype=HALF, window=40, softcap=5.0), ALIKE),
    (Case(Rules("gradient"), 47, 111, 2, 1, causal=False, sinks=True), MIXED),
    (Case(Rules("attnlrp", attention_epsilon=0.5), 63, 63, 2, 1, dim=80), ALIKE),
    (Case(Rules("attnlrp", **BOTH), 63, 63, 2, 1, dim=80, window=17), OTHER),
    (Case(Rules("cp", attention_gamma=0.25), 63, 63, 2, 2, dtype=HALF), ALIKE),
    (Case(Rules("attnlrp"), 111, 111, batch=2, bounds=((0, 80), (37, 111)), sinks=True), OTHER),
    (Case(Rules("attnlrp", **BOTH), 63, 63, batch=2, bounds=((3, 3), (20, 63)), softcap=5.0), MIXED),
    # The shipped tiles
    (Case(Rules("attnlrp"), 257, 257, 2, 1), None),
    (Case(Rules("attnlrp"), 129, 257, 1, 1, dtype=HALF), None),
]
if not INTERPRETED:
    CASES += [(replace(case, dtype=BRAIN), tiles) for case, tiles in CASES if case.dtype is HALF]
if EXECUTED:
    CASES = [(replace(case, dtype=DTYPES[i % 2]) if case.dtype is SINGLE else case, tiles)
             for i, (case, tiles) in enumerate(CASES)]  # fmt: skip
if ON_GPU:
    CASES += [
        *((Case(Rules("attnlrp"), 3000, 4096, 4, 2, dim=dim, dtype=BRAIN), None) for dim in (64, 80, 128, 256)),
        *((Case(Rules("cp"), 2049, 2049, 2, 1, dim=dim, dtype=BRAIN), None) for dim in (64, 128, 256)),
        *((Case(Rules("gradient"), 1500, 1500, 2, 1, dim=dim, softcap=30.0), None) for dim in (64, 128, 256)),
        *((Case(Rules("attnlrp", **BOTH), 1500, 1500, 2, 1, dim=dim, dtype=BRAIN, window=700), None)
          for dim in (64, 128, 256)),
        (Case(Rules("attnlrp"), 2048, 2048, 2, 1, batch=2, dtype=BRAIN, bounds=((0, 2000), (700, 2048))), None),
    ]  # fmt: skip


def named(x):
    if isinstance(x, Case | str):
        return str(x)
    return next(name for name, one in NAMES.items() if one is x)


@pytest.fixture
def use(monkeypatch):
    def replaced(tiles):
        if tiles is not None:
            monkeypatch.setattr(arguments, "config", lambda step, *_: tiles[step.split()[0]])

    return replaced


def unit(case):
    x = torch.empty(1, case.dim, dtype=case.dtype, device=DEVICE)
    return kernels.unit(x, case.rules.attention_gamma > 0, case.softcap is not None)


def some(case, share=0.4, seed=1):
    """Tiles of every head, chosen at random."""
    m, n = unit(case)
    shape = case.batch, case.heads, -(-case.queries // m), -(-case.keys // n)
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share).to(DEVICE)


def spread(kept, case):
    """(B, H, T, S) of (B, H, tiles, tiles)."""
    m, n = unit(case)
    return kept.repeat_interleave(m, 2).repeat_interleave(n, 3)[:, :, : case.queries, : case.keys]


def at_values(case, g, out, value, weights):
    """u and V so that the plain gradients of P V are those of the stabilised product: with gamma, of [V, |V|]."""
    epsilon, gamma = case.rules.attention_epsilon, case.rules.attention_gamma
    sigma = torch.where(out < 0, -1.0, 1.0).to(out.dtype)
    if not gamma:
        size = out.abs() + epsilon
        return g * out.abs() / torch.where(size == 0, 1.0, size) if epsilon else g, value
    size = (1 + gamma / 2) * out.abs() + gamma / 2 * (weights @ value.abs()) + epsilon
    s = g * out / torch.where(size == 0, 1.0, size)
    return torch.cat([s * sigma * (1 + gamma / 2), s * (gamma / 2)], -1), torch.cat([value, value.abs()], -1)


def defined(case, query, key, value, g, sinks, bounds, kept, dtype):
    """(dq, dk, dv) with P and dS 0 where not ``kept`` (B, H, T, S); masses, element by element; and |u| (B, H, T)."""
    query, key, value, g, sinks = (None if t is None else t.to(dtype) for t in (query, key, value, g, sinks))
    weights, d_s, u = weighed(case, query, key, value, g, sinks, kept)
    groups, size = case.heads // case.kv_heads, u.norm(dim=-1)
    d_v = (weights * kept).mT @ u
    if case.rules.attention_gamma:
        plus, same = d_v.chunk(2, -1)
        d_v = plus + value.repeat_interleave(groups, 1).sign() * same
    d_k, d_v = (x.unflatten(1, (-1, groups)).sum(2) for x in (d_s.mT @ query, d_v * case.rules.treatment.value))
    return (d_s @ key.repeat_interleave(groups, 1), d_k, d_v), size.unsqueeze(-1) * weights, size


def weighed(case, query, key, value, g, sinks, kept):
    """P, dS where ``kept``, with the rule's share and the scale, and u."""
    mask, scale, treatment = visible(case), case.flags["scale"], case.rules.treatment
    g = g.masked_fill(~mask.any(-1, keepdim=True), 0)  # a query that reads nothing has no mass, whatever its gradient
    weights, raw = _weights(query, key, mask, scale, case.softcap, sinks)
    wide_value = value.repeat_interleave(case.heads // case.kv_heads, 1)
    u, v = at_values(case, g, weights @ wide_value, wide_value, weights)
    d_p = u @ v.mT
    d_s = weights * (d_p - (weights * d_p).sum(-1, keepdim=True)) * kept
    if case.softcap is not None:
        tanh = torch.tanh(raw / case.softcap)
        ratio = torch.where(raw == 0, 1.0, tanh * case.softcap / torch.where(raw == 0, 1.0, raw))
        d_s = d_s * (ratio if treatment.ratio else 1 - tanh**2)
    return weights, d_s * (treatment.score * scale), u


def defined_edges(case, query, key, value, g, sinks, key_part, value_part, kept, dtype):
    """(T, S) of one prompt, with P and dS 0 where not ``kept``."""
    given = (query, key, value, g, sinks, key_part, value_part)
    query, key, value, g, sinks, *parts = (None if t is None else t.to(dtype) for t in given)
    weights, d_s, u = weighed(case, query, key, value, g, sinks, kept)
    key, value, key_part, value_part = (
        x.repeat_interleave(case.heads // case.kv_heads, 1) for x in (key, value, *parts)
    )
    if case.rules.attention_gamma:
        value_part = torch.cat([value_part, value.sign() * value_part], -1)
    through = case.rules.treatment.value * weights * kept * (u @ value_part.mT)
    return (through + d_s * (query @ key_part.mT)).sum(1)[0]


def forward_by_definition(case, query, key, value, sinks, bounds):
    """As `forward`, each number rounded once."""
    query, key, value, sinks = (None if t is None else t.double() for t in (query, key, value, sinks))
    weights, raw = _weights(query, key, visible(case), case.flags["scale"], case.softcap, sinks)
    value = value.repeat_interleave(case.heads // case.kv_heads, 1)
    out, size = (((weights @ v).to(case.dtype)) for v in (value, value.abs()))
    # P = exp(s - lse), at each row's largest weight
    scores = raw if case.softcap is None else case.softcap * torch.tanh(raw / case.softcap)
    largest, at = weights.max(-1, keepdim=True)
    lse = (scores.gather(-1, at) - largest.log()).squeeze(-1).float()
    return out, lse.masked_fill(~visible(case).any(-1), -torch.inf), size if case.rules.attention_gamma else None


def passed(case, query, key, value, g, sinks, bounds, kept):
    """What the kernels hand back."""
    return backward(case, g, query, key, value, forward(case, query, key, value, sinks, bounds), bounds, kept)


def backward(case, g, query, key, value, of_forward, bounds, kept):
    rules, treatment = case.rules, case.rules.treatment
    return kernels.backward(
        g, query, key, value, *of_forward, **case.flags, bounds=bounds, value_share=treatment.value,
        score_share=treatment.score, ratio=treatment.ratio, epsilon=rules.attention_epsilon,
        gamma=rules.attention_gamma, kept=kept,
    )  # fmt: skip


def masses(case, g, query, key, of_forward, bounds, **sampled):
    rules = case.rules
    return kernels.tile_masses(g, query, key, *of_forward, **case.flags, bounds=bounds,
                               epsilon=rules.attention_epsilon, gamma=rules.attention_gamma, **sampled)  # fmt: skip


def check(case, found, tensors, kept, within_rounding):
    """Judged as the whole backward pass is: the sums are of fewer terms."""
    own, *_ = defined(case, *tensors, spread(kept, case), case.dtype)
    truth, *_ = defined(case, *tensors, spread(kept, case), torch.float64)
    narrow = case.dtype != torch.float32
    slope, seen = slope_of(case, tensors), case.queries * case.heads // case.kv_heads
    for one, plain, true, terms in zip(found, own, truth, (case.keys, seen, seen), strict=True):
        if one is None:
            assert case.rules.name == "cp" and one is not found[2]
        else:
            within_rounding(one, plain, true, slope**2 * (4 if narrow else case.dim + terms))


def check_masses(case, found, tensors, within_rounding):
    # From 16 bits only what the stabilisers read is rounded to them.
    stabilised = case.rules.attention_epsilon or case.rules.attention_gamma
    own, truth = (defined(case, *tensors, True, dtype)[1]
                  for dtype in (case.dtype if stabilised else torch.float32, torch.float64))  # fmt: skip
    m, n = unit(case)
    terms = slope_of(case, tensors) ** 2 * (case.dim + m * n)
    within_rounding(found, summed(case, own).float(), summed(case, truth), terms)
    within_rounding(found.sum((2, 3)), own.float().sum((2, 3)), truth.sum((2, 3)), terms + found[0, 0].numel())


def slope_of(case, tensors):
    epsilon, gamma = case.rules.attention_epsilon, case.rules.attention_gamma
    largest = (tensors[2] if gamma else define(case, *tensors, torch.float64)[0]).abs().max().item()
    return rounding.slope_of_stabilisers(largest, epsilon, gamma)


@pytest.mark.parametrize("case, tiles", CASES[:10], ids=named)
def test_with_all_tiles_the_definition_is_the_reference(case, tiles):
    tensors = [None if t is None else t.nan_to_num() for t in case.tensors()]
    everything = torch.ones((), dtype=torch.bool, device=DEVICE)
    found, *_ = defined(case, *tensors, everything, torch.float64)
    _, truth = define(case, *tensors, torch.float64)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case, tiles", CASES, ids=named)
def test_kept_tiles_alone_are_summed(case, tiles, use, within_rounding):
    use(tiles)
    tensors, kept = case.tensors(), some(case)
    assert kept.any() and not kept.all()
    check(case, passed(case, *tensors, kept), tensors, kept, within_rounding)


@pytest.mark.parametrize("case, tiles", [CASES[0], CASES[3], CASES[6], CASES[8]], ids=named)
def test_all_tiles_and_none(case, tiles, use, same):
    use(tiles)
    query, key, value, g, sinks, bounds = case.tensors()
    of_forward = forward(case, query, key, value, sinks, bounds)
    call = lambda kept: backward(case, g, query, key, value, of_forward, bounds, kept)  # noqa: E731
    kept = some(case, share=2)
    for found, expected in zip(call(kept), call(None), strict=True):
        same(found, expected, case.dim + case.keys * case.heads)
    assert not any(grad.any() for grad in call(~kept))


@pytest.mark.parametrize("tiles", [MIXED, OTHER], ids=named)
@pytest.mark.parametrize("rules", [Rules(), Rules("cp", **BOTH)], ids=["attnlrp", "cp"])
def test_what_is_not_kept_is_never_read(rules, tiles, use):
    """Nor are tiles that are kept, but whose queries have no relevance."""
    use(tiles)
    case = Case(rules, 127, 127, 2, 1)
    query, key, value, g, sinks, bounds = case.tensors()
    m, n = unit(case)
    kept = some(case, share=2)
    kept[:, :, 1] = False
    kept[:, :, :, 1] = False
    g[:, :, 2 * m : 3 * m] = 0
    of_forward = forward(case, query, key, value, sinks, bounds)
    expected = backward(case, g, query, key, value, of_forward, bounds, kept)
    query, key, value, lse = (t.clone() for t in (query, key, value, of_forward[1]))
    for spoiled in (query, lse):
        spoiled[:, :, m : 3 * m] = float("nan")
    for spoiled in (key, value):
        spoiled[:, :, n : 2 * n] = float("nan")
    found = backward(case, g, query, key, value, (of_forward[0], lse, of_forward[2]), bounds, kept)
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or (torch.equal(one, other) and one.any())
    assert not found[2][:, :, n : 2 * n].any()
    assert rules.name == "cp" or not found[0][:, :, m : 3 * m].any()


def test_heads_need_not_agree(use, within_rounding):
    use(MIXED)
    case = Case(Rules(), 111, 111, 4, 2)
    tensors, kept = case.tensors(), some(case)
    kept[:, 1] = False
    kept[:, 3] = True
    check(case, passed(case, *tensors, kept), tensors, kept, within_rounding)


def test_the_same_call_twice_gives_the_same_bits(use):
    use(MIXED)
    case = Case(Rules(**BOTH), 63, 111, 4, 2, dtype=HALF)
    tensors, kept = case.tensors(), some(case)
    first, again = (passed(case, *tensors, kept) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("wrong", ["tiles", "dtype", "heads"])
def test_tiles_of_another_size_are_refused(wrong):
    case = Case(Rules(), 63, 63)
    kept = some(case, share=2)
    kept = {"tiles": kept[..., :-1], "dtype": kept.int(), "heads": kept[:, :1]}[wrong]
    with pytest.raises(ValueError, match=r"kept must be bool, \(1, 2, \d, \d\) here, see `unit`"):
        passed(case, *case.tensors(), kept)


# ---- Masses ---------------------------------------------------------------------------------------------------------


def summed(case, elements):
    """Of (B, H, T, S), by tiles."""
    m, n = unit(case)
    padded = torch.nn.functional.pad(elements, (0, -case.keys % n, 0, -case.queries % m))
    return padded.unflatten(3, (-1, n)).unflatten(2, (-1, m)).sum((3, 5))


@pytest.mark.parametrize("case, tiles", CASES, ids=named)
def test_masses(case, tiles, use, within_rounding):
    use(tiles)
    query, key, value, g, sinks, bounds = tensors = case.tensors()
    found = masses(case, g, query, key, forward(case, query, key, value, sinks, bounds), bounds)
    check_masses(case, found, tensors, within_rounding)
    if not case.sinks:  # which take some, too
        *_, own = defined(case, *tensors, True, case.dtype)
        *_, truth = defined(case, *tensors, True, torch.float64)
        terms = slope_of(case, tensors) ** 2 * (case.dim + case.queries * case.keys)
        within_rounding(found.sum((2, 3)), own.float().sum(-1), truth.sum(-1), terms)


@pytest.mark.parametrize("first, step", [(0, 2), (1, 3), (3, 1), (9, 1)])
def test_some_query_tiles_alone(first, step, use):
    use(MIXED)
    case = Case(Rules(**BOTH), 111, 111, 2, 1)
    query, key, value, g, sinks, bounds = case.tensors()
    of_forward = forward(case, query, key, value, sinks, bounds)
    everything = masses(case, g, query, key, of_forward, bounds)
    found = masses(case, g, query, key, of_forward, bounds, first=first, step=step)
    chosen = torch.zeros(everything.shape[2], dtype=torch.bool, device=DEVICE)
    chosen[first::step] = True
    assert torch.equal(found, everything * chosen[:, None]) and (chosen.any() or first == 9)


def test_queries_without_relevance_are_never_read(use):
    use(MIXED)
    case = Case(Rules(), 111, 111)
    query, key, value, g, sinks, bounds = case.tensors()
    g[:, :, 16:80] = 0
    out, lse, size = forward(case, query, key, value, sinks, bounds)
    expected = masses(case, g, query, key, (out, lse, size), bounds)
    query[:, :, 16:80] = lse[:, :, 16:80] = float("nan")
    found = masses(case, g, query, key, (out, lse, size), bounds)
    assert torch.equal(found, expected) and not found[:, :, 1].any() and found[:, :, 0].any()


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_neither_tiny_nor_huge_gradients_leave_the_range(scale, use, same):
    use(ALIKE)
    case = Case(Rules(attention_gamma=0.25), 33, 33, dtype=BRAIN if EXECUTED else SINGLE)
    query, key, value, g, sinks, bounds = case.tensors()
    of_forward = forward(case, query, key, value, sinks, bounds)
    found = masses(case, g * scale, query, key, of_forward, bounds)
    assert torch.equal(found, masses(case, g, query, key, of_forward, bounds) * scale) and found.any()


def test_what_is_not_a_number_has_no_mass_that_is_one(use):
    use(ALIKE)
    case = Case(Rules(), 33, 33)
    query, key, value, g, sinks, bounds = case.tensors()
    of_forward = forward(case, query, key, value, sinks, bounds)
    g = torch.zeros_like(g)
    g[0, 0, 20, 3] = float("nan")
    found = masses(case, g, query, key, of_forward, bounds)
    assert found[0, 0, 1, :2].isnan().all() and found.isnan().sum() == 2


# ---- Edges ----------------------------------------------------------------------------------------------------------

EDGES = [
    (Case(Rules("attnlrp"), 111, 111, 4, 2), MIXED, ""),
    (Case(Rules("attnlrp"), 63, 111, 2, 2, dtype=HALF), OTHER, "value"),
    (Case(Rules("cp"), 63, 111, 4, 2), OTHER, "key value"),
    (Case(Rules("gradient"), 63, 63, 2, 1, window=20, softcap=5.0), ALIKE, ""),
    (Case(Rules("attnlrp", **BOTH), 63, 63, 2, 1, causal=False, dim=80), MIXED, "key value"),
    (Case(Rules("attnlrp", **BOTH), 33, 63, 2, 2), OTHER, ""),
    (Case(Rules("attnlrp"), 129, 257, 2, 1), None, ""),
]
if EXECUTED:
    EDGES = [(replace(case, dtype=DTYPES[i % 2]), *rest) for i, (case, *rest) in enumerate(EDGES)]
if ON_GPU:
    EDGES += [
        *((Case(Rules("attnlrp"), 700, 1500, 4, 2, dim=dim, dtype=BRAIN), None, "") for dim in (64, 80, 128, 256)),
        *((Case(Rules("attnlrp", **BOTH), 500, 500, 4, 2, dim=dim, dtype=BRAIN), None, "key value")
          for dim in (64, 128, 256)),
    ]  # fmt: skip


def given_edges(case, tensors, parts, kept, of_forward=None):
    query, key, value, g, sinks, bounds = tensors
    rules, treatment = case.rules, case.rules.treatment
    out, lse, size = forward(case, query, key, value, sinks, bounds) if of_forward is None else of_forward
    return edges.prepare(
        g, query, key, value, out, lse, size, key_part=parts[0], value_part=parts[1], **case.flags,
        value_share=treatment.value, score_share=treatment.score, ratio=treatment.ratio,
        epsilon=rules.attention_epsilon, gamma=rules.attention_gamma, kept=kept,
    )  # fmt: skip


def whole(given, rows, keys):
    return edges.tile(given, rows, keys, torch.empty(len(rows) * (keys.stop - keys.start), device=DEVICE)).clone()


def parts_of(case, names):
    """What the input contributes to keys and values, None where that is keys and values."""
    parts = replace(case, queries=case.keys).tensors(seed=1)[1:3]
    return [part if name in names else None for name, part in zip(("key", "value"), parts, strict=True)]


@pytest.mark.parametrize("case, tiles, names", EDGES, ids=named)
def test_edges_of_kept_tiles_alone(case, tiles, names, use, within_rounding, monkeypatch):
    use(tiles)
    if tiles is not None:  # several segments a row, several launches
        monkeypatch.setattr(listed, "_SEGMENT", 48)
        monkeypatch.setattr(listed, "_LISTED", 2**9)
    tensors, parts, kept = case.tensors(), parts_of(case, names), some(case)
    kept[:, :, :, 0] = False  # a key tile that is not visited, before others that are
    kept[:, 0, :, -1] = True
    query, key, value, g, sinks, bounds = tensors
    of_forward = forward(case, query, key, value, sinks, bounds)
    found = check_edges(case, tensors, parts, kept, of_forward, within_rounding)
    if case.dtype != torch.float32:
        return
    # What all queries pass to a key is what the backward pass hands to it.
    grads = backward(case, g, query, key, value, of_forward, bounds, kept)[1:]
    pairs = [(grad, own if part is None else part) for grad, own, part in zip(grads, (key, value), parts, strict=True)]
    handed = torch.cat([grad.double() * part.double() for grad, part in pairs if grad is not None], -1)
    handed = handed.transpose(1, 2).flatten(2)[0]
    size = max(handed.abs().sum(-1).max(), found.abs().sum(0).max())
    terms = slope_of(case, tensors) ** 2 * (case.dim + case.queries * case.heads)
    assert (handed.sum(-1) - found.double().sum(0)).abs().max() <= terms**0.5 * torch.finfo(torch.float32).eps * size


def check_edges(case, tensors, parts, kept, of_forward, within_rounding, k=7):
    """Whole tiles, from any key on, and lists of ``k``; gives all edges."""
    query, key, value, g, sinks, _ = tensors
    given = given_edges(case, tensors, parts, kept, of_forward)
    every = torch.arange(case.queries, device=DEVICE)
    found = whole(given, every, slice(0, case.keys))
    of_input = [own if part is None else part for own, part in zip((key, value), parts, strict=True)]
    truth, plain = (
        defined_edges(case, query, key, value, g, sinks, *of_input, spread(kept, case), dtype)
        for dtype in (torch.float64, case.dtype)
    )
    terms = 4 if case.dtype != torch.float32 else 4 * case.dim + 2 * case.keys + case.heads
    within_rounding(found.to(case.dtype), plain, truth, slope_of(case, tensors) ** 2 * terms)
    assert not found[truth == 0].any() and found.any()
    rows = every[case.queries // 5 :: 2].contiguous()
    test_edges.check_lists(found[rows], *edges.strongest(given, rows, k), k)
    low = case.keys // 3 + 1
    alike(whole(given, rows, slice(low, case.keys - 2)), found[rows, low : case.keys - 2])
    return found


def alike(found, expected):
    """The same pairs in other tiles: summed in the same order, but by another program if compiled."""
    allowed = 0 if INTERPRETED else 64 * torch.finfo(torch.float32).eps * expected.abs().max().item()
    assert (found - expected).abs().max() <= allowed


@pytest.mark.parametrize("case, tiles, names", [EDGES[0], EDGES[2], EDGES[4]], ids=named)
def test_edges_of_all_tiles_and_of_none(case, tiles, names, use):
    use(tiles)
    tensors, parts, kept = case.tensors(), parts_of(case, names), some(case, share=2)
    rows = torch.arange(case.queries, device=DEVICE)
    everything, plain, nothing = (given_edges(case, tensors, parts, each) for each in (kept, None, ~kept))
    alike(whole(everything, rows, slice(0, case.keys)), whole(plain, rows, slice(0, case.keys)))
    lists = [edges.strongest(each, rows, 7) for each in (everything, plain, nothing)]
    if INTERPRETED:
        assert all(torch.equal(one, other) for one, other in zip(*lists[:2], strict=True))
    assert not whole(nothing, rows, slice(0, case.keys)).any() and not lists[2][1].any() and not lists[2][2].any()


@pytest.mark.parametrize("groups", [1, 2])
def test_edges_do_not_visit_what_is_not_kept(groups, use):
    """Key tiles that no head keeps, nor a head that keeps nothing of a tile."""
    use(OTHER)
    case = Case(Rules(), 111, 128, 2, 2 // groups)
    query, key, value, g, sinks, bounds = tensors = case.tensors()
    _, n = unit(case)
    kept = some(case, share=2)
    kept[:, :, :, 1] = False
    kept[:, 0, 2:] = False
    rows = torch.arange(111, device=DEVICE)
    of_forward = forward(case, query, key, value, sinks, bounds)
    given = given_edges(case, tensors, (None, None), kept, of_forward)
    expected = whole(given, rows, slice(0, 128)), *edges.strongest(given, rows, 5)
    for spoiled in (key, value):
        spoiled[:, :, n : 2 * n] = float("nan")
    for spoiled in (query, g):
        spoiled[:, 0, 64:] = float("nan")
    given = given_edges(case, tensors, (None, None), kept, of_forward)
    found = whole(given, rows, slice(0, 128)), *edges.strongest(given, rows, 5)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) and one.any()

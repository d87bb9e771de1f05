"""The attention kernels against the dense definition."""

import functools
import itertools
from dataclasses import dataclass, fields, replace

import pytest
import torch
import triton
import triton.language as tl

from lrp_fast import reference
from lrp_fast.kernels import attention as kernels
from lrp_fast.kernels.attention import Tiles, arguments, pieces, prepare
from lrp_fast.kernels.common import launch
from lrp_fast.reference import rounding
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
    batch: int = 1
    dtype: torch.dtype = torch.float32
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    bounds: tuple | None = None
    tiles: Tiles | None = None

    @property
    def flags(self):
        return {"scale": self.dim**-0.5, "causal": self.causal, "window": self.window, "softcap": self.softcap}

    def __str__(self):
        parts = [str(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        rules = self.rules
        parts[0] = f"{rules.name} e{rules.attention_epsilon} g{rules.attention_gamma}"
        return ", ".join(parts).replace("torch.", "")

    def tensors(self, seed=0):
        """query, key, value, g, sinks, bounds; rows of neighbours in memory, and NaN after every row."""
        generator = torch.Generator().manual_seed(seed)
        here = {"dtype": self.dtype, "device": DEVICE}

        def draw(heads, length):
            whole = torch.full((self.batch, length + 1, heads, self.dim + 16), float("nan"), **here)
            x = whole[:, :length, :, : self.dim].transpose(1, 2)
            return x.copy_(torch.randn(x.shape, generator=generator))

        sizes = ((self.heads, self.queries), (self.kv_heads, self.keys), (self.kv_heads, self.keys))
        query, key, value, g = (draw(*size) for size in (*sizes, (self.heads, self.queries)))
        sinks = torch.linspace(-1, 2, self.heads).to(**here) if self.sinks else None
        return query, key, value, g, sinks, None if self.bounds is None else torch.tensor(self.bounds, device=DEVICE)


def forward(case, query, key, value, sinks, bounds):
    given = {"sinks": sinks, "bounds": bounds, "absolute": case.rules.attention_gamma > 0}
    return kernels.forward(query, key, value, **case.flags, **given)


def run(case, query, key, value, g, sinks, bounds, forward=forward, spoil=None):
    """(out, lse), (dq, dk, dv) by the kernels; ``spoil`` changes query and lse in between."""
    rules, treatment = case.rules, case.rules.treatment
    out, lse, size = forward(case, query, key, value, sinks, bounds)
    if spoil is not None:
        query, lse = spoil(query, lse)
    grads = kernels.backward(
        g, query, key, value, out, lse, size, **case.flags, bounds=bounds, value_share=treatment.value,
        score_share=treatment.score, ratio=treatment.ratio, epsilon=rules.attention_epsilon,
        gamma=rules.attention_gamma,
    )  # fmt: skip
    return (out, lse), grads


def visible(case):
    bounds = None if case.bounds is None else torch.tensor(case.bounds)
    flags = {"causal": case.causal, "window": case.window, "bounds": bounds}
    return reference.visible(case.batch, case.queries, case.keys, **flags).to(DEVICE)


def define(case, query, key, value, g, sinks, bounds, dtype):
    query, key, value, g, sinks = (None if t is None else t.to(dtype) for t in (query, key, value, g, sinks))
    mask = visible(case)
    flags = {"scale": case.flags["scale"], "softcap": case.softcap, "sinks": sinks}
    out = reference.attention(query, key, value, mask, **flags)
    rules = case.rules
    grads = reference.attention_backward(
        g, query, key, value, mask, **flags, rule=rules.name, epsilon=rules.attention_epsilon,
        gamma=rules.attention_gamma,
    )  # fmt: skip
    return out, grads


SMALL = Tiles(32, 16, 4, 2)  # query tiles wider than key tiles, and the other way round
WIDE = Tiles(16, 64, 4, 2)
CASES = [
    # The shipped tiles: every rule, odd lengths, GQA and MQA.
    Case(Rules("attnlrp"), 257, 257, 2, 1),
    Case(Rules("cp"), 63, 111, 4, 2),
    Case(Rules("gradient"), 111, 257, 2, 2),
    Case(Rules("attnlrp"), 1, 257, 4, 2),
    Case(Rules("cp"), 1, 1, 2, 1),
    Case(Rules("attnlrp"), 257, 257, 2, 1, dtype=HALF),
    Case(Rules("cp"), 257, 257, 4, 2, dtype=HALF),
    Case(Rules("gradient"), 63, 257, 2, 1, dtype=HALF, window=40, softcap=5.0),
    # head_dim, with and without a wider tile than it
    Case(Rules("attnlrp"), 63, 63, 2, 2, dim=80, dtype=HALF),
    Case(Rules("cp", attention_epsilon=0.5), 63, 63, 2, 1, dim=96),
    Case(Rules("attnlrp", attention_gamma=0.25), 63, 63, 2, 1, dim=80),
    Case(Rules("gradient"), 111, 111, 2, 1, dim=128, dtype=HALF),
    Case(Rules("attnlrp", attention_epsilon=0.5, attention_gamma=0.25), 33, 63, 1, 1, dim=128, dtype=HALF),
    Case(Rules("attnlrp"), 63, 63, 1, 1, dim=256, dtype=HALF, softcap=30.0),
    Case(Rules("cp", attention_gamma=0.25), 33, 33, 1, 1, dim=256),
    # Masks, with open, border and closed tiles of either shape
    Case(Rules("attnlrp"), 111, 111, tiles=SMALL),
    Case(Rules("attnlrp"), 111, 111, tiles=WIDE),
    Case(Rules("attnlrp"), 63, 111, tiles=SMALL, window=50, sinks=True),
    Case(Rules("gradient"), 47, 111, 1, 1, tiles=SMALL, causal=False, window=30),
    Case(Rules("attnlrp"), 111, 111, tiles=SMALL, window=2),
    Case(Rules("attnlrp"), 111, 111, batch=2, bounds=((0, 80), (37, 111)), tiles=SMALL, sinks=True),
    Case(Rules("attnlrp", attention_gamma=0.25), 63, 63, batch=2, bounds=((0, 16), (48, 63)), tiles=WIDE, window=40),
    Case(Rules("cp"), 63, 63, batch=2, bounds=((1, 62), (20, 21)), causal=False, tiles=SMALL),
]
# Every value of a flag with every value of every other, 33 tokens being tiles of every kind. What the forward pass does
# not depend on comes last.
FLAGS = {
    "causal": (True, False), "window": (None, 17), "softcap": (None, 5.0), "sinks": (False, True),
    "bounds": (None, ((2, 31),)), "heads": (1, 2), "gamma": (0.0, 0.25), "epsilon": (0.0, 0.5),
    "rule": ("attnlrp", "cp", "gradient"),
}  # fmt: skip


def combined(places):
    """The case with value ``places[i]`` of flag i. No flag, and no pair of them, decides on the dtype."""
    chosen = {name: values[place] for (name, values), place in zip(FLAGS.items(), places, strict=True)}
    stabilisers = {f"attention_{name}": chosen.pop(name) for name in ("epsilon", "gamma")}
    rules = Rules(chosen.pop("rule"), **stabilisers)
    return Case(rules, 33, 33, dim=16, dtype=DTYPES[sum(places) % 2], tiles=SMALL, **chosen)


def covering(cases):
    """So few of the cases, chosen greedily, that any two values of two fields that meet in one meet in a chosen one."""
    pairs = {case: set(itertools.combinations(map(str, _values(case)), 2)) for case in cases}
    left, chosen = set().union(*pairs.values()), []
    while left:
        chosen.append(max(cases, key=lambda case: len(pairs[case] & left)))
        left -= pairs[chosen[-1]]
    return chosen


def _values(case):
    return [item for one in (case, case.rules) for item in vars(one).items() if item[0] != "rules"]


PRODUCT = [combined(places) for places in itertools.product(*(range(len(values)) for values in FLAGS.values()))]
if not INTERPRETED:
    CASES += [replace(case, dtype=BRAIN) for case in CASES if case.dtype is HALF]
if EXECUTED:
    CASES = [replace(case, dtype=DTYPES[i % 2]) if case.dtype is SINGLE else case for i, case in enumerate(CASES)]
if ON_GPU:
    CASES += [  # many tiles of every shipped shape
        *(Case(Rules("attnlrp"), 4096, 4096, 2, 1, dim=dim, dtype=BRAIN) for dim in (64, 80, 96, 128, 256)),
        *(Case(Rules("cp"), 4095, 4095, 2, 1, dim=dim, dtype=BRAIN) for dim in (64, 128, 256)),
        *(Case(Rules("gradient"), 2049, 2049, 2, 1, dim=dim, dtype=BRAIN, softcap=30.0) for dim in (64, 128, 256)),
        *(Case(Rules("attnlrp"), 1500, 1500, 2, 1, dim=dim) for dim in (64, 128, 256)),
        *(
            Case(Rules("attnlrp", attention_epsilon=0.5, attention_gamma=0.25), 2000, 2000, 2, 1, dim=dim, dtype=BRAIN)
            for dim in (64, 128, 256)
        ),
        Case(Rules("attnlrp"), 1024, 4096, 4, 2, dim=128, dtype=HALF, softcap=5.0),
        Case(Rules("attnlrp"), 4096, 4096, 2, 1, dim=128, dtype=BRAIN, window=1000, sinks=True),
        Case(Rules("cp"), 4096, 4096, 2, 2, dim=64, dtype=HALF, window=128),
        Case(Rules("attnlrp"), 2048, 2048, 2, 1, dim=64, batch=2, dtype=BRAIN, bounds=((0, 2000), (700, 2048))),
        Case(Rules("gradient"), 2048, 2048, dim=128, batch=2, dtype=BRAIN, bounds=((3, 3), (1, 2048)), window=300),
        Case(Rules("attnlrp"), 2048, 2048, 2, 1, dim=128, dtype=BRAIN, causal=False),
    ]


@functools.lru_cache(maxsize=2)
def forward_once(case):
    query, key, value, _, sinks, bounds = case.tensors()
    return forward(case, query, key, value, sinks, bounds)


@pytest.fixture
def without_overflow_checks(monkeypatch):
    """They are a third of the interpreter's time, and see numbers that no flag has to do with."""
    if INTERPRETED:
        builder = triton.runtime.interpreter.interpreter_builder
        monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))


COVERING = covering(PRODUCT)
EACH = [case if case in COVERING else pytest.param(case, marks=pytest.mark.again) for case in PRODUCT]


# Interpreted: the others have to be compiled, each for itself.
@pytest.mark.parametrize("case", EACH if INTERPRETED else COVERING, ids=str)
def test_every_combination_of_flags(case, within_rounding, monkeypatch, without_overflow_checks):
    of_no_rule = replace(case, rules=Rules(attention_gamma=case.rules.attention_gamma))
    compare(case, within_rounding, monkeypatch, forward=lambda *_: forward_once(of_no_rule))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rounds_no_worse_than_the_dense_form(case, within_rounding, monkeypatch):
    compare(case, within_rounding, monkeypatch)


def compare(case, within_rounding, monkeypatch, forward=forward):
    if case.tiles is not None:
        monkeypatch.setattr(arguments, "config", lambda *_: case.tiles)
    tensors = case.tensors()
    (out, _), grads = run(case, *tensors, forward=forward)
    plain, plain_grads = define(case, *tensors, case.dtype)
    truth, true_grads = define(case, *tensors, torch.float64)
    # Sums lie behind a number: of head_dim products in a score, over the keys in a weight's denominator, and over the
    # keys or the queries that meet it.
    # They are summed in float32: in 16 bits only the weights, their gradient, u and the result itself are rounded.
    narrow = case.dtype != torch.float32
    within_rounding(out, plain, truth, 4 if narrow else case.dim + case.keys)
    epsilon, gamma = case.rules.attention_epsilon, case.rules.attention_gamma
    largest = (tensors[2] if gamma else truth).abs().max().item()
    slope = rounding.slope_of_stabilisers(largest, epsilon, gamma)
    seen = case.queries * case.heads // case.kv_heads
    for name, found, own, true, terms in zip(
        ("query", "key", "value"), grads, plain_grads, true_grads, (0, seen, seen), strict=True
    ):
        if case.rules.name == "cp" and name != "value":
            assert found is None
            continue
        within_rounding(found, own, true, slope**2 * (4 if narrow else case.dim + case.keys + terms))


@pytest.mark.parametrize("softcap, sinks", [(None, False), (5.0, True)])
def test_lse_is_the_logarithm_of_the_denominator(softcap, sinks, within_rounding):
    case = Case(Rules(), 63, 111, 2, 1, softcap=softcap, sinks=sinks, window=40)
    query, key, value, g, sink, bounds = case.tensors()
    (_, lse), _ = run(case, query, key, value, g, sink, bounds)

    def plain(dtype):
        s = query.to(dtype) @ key.to(dtype).transpose(-1, -2) * case.flags["scale"]
        s = s if softcap is None else softcap * torch.tanh(s / softcap)
        s = s.masked_fill(~visible(case), -torch.inf)
        if sinks:
            s = torch.cat([s, sink.to(dtype).view(1, -1, 1, 1).expand(1, 2, 63, 1)], -1)
        return torch.logsumexp(s, -1)

    within_rounding(lse, plain(torch.float32), plain(torch.float64), 111)


@pytest.mark.parametrize("rules", [Rules(), Rules("cp", attention_gamma=0.25)], ids=["attnlrp", "cp"])
def test_a_sink_of_minus_infinity_is_none(rules, within_rounding, same, monkeypatch):
    monkeypatch.setattr(arguments, "config", lambda *_: SMALL)
    case = Case(rules, 63, 63, batch=2, window=17, bounds=((0, 40), (30, 63)))
    query, key, value, g, _, bounds = case.tensors()
    plain = run(case, query, key, value, g, None, bounds)
    sinks = torch.tensor([-torch.inf, 0.5], device=DEVICE)
    (out, lse), grads = run(case, query, key, value, g, sinks, bounds)
    same(out[:, 0], plain[0][0][:, 0], 63)
    for b, (start, end) in enumerate(case.bounds):
        same(lse[b, 0, start:end], plain[0][1][b, 0, start:end], 63)
        assert (lse[b, 0, :start] == -torch.inf).all() and (lse[b, 0, end:] == -torch.inf).all()
    own, own_grads = define(case, query, key, value, g, sinks, bounds, torch.float32)
    truth, true_grads = define(case, query, key, value, g, sinks, bounds, torch.float64)
    within_rounding(out, own, truth, 64 + 63)
    for found, own, true in zip(grads, own_grads, true_grads, strict=True):
        if found is not None:
            within_rounding(found, own, true, 64 + 2 * 63)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("rules", [Rules("attnlrp", attention_gamma=0.25), Rules("cp")])
def test_rows_that_read_nothing(rules, sinks):
    case = Case(rules, 63, 63, batch=2, bounds=((0, 0), (40, 63)), sinks=sinks)
    tensors = case.tensors()
    for t in tensors[:4]:  # what lies outside the bounds is not read
        t[0] = t[1, :, :40] = float("nan")
    (out, lse), grads = run(case, *tensors)
    assert not out[0].any() and not out[1, :, :40].any()
    assert (lse[0] == -torch.inf).all() and lse[1, :, 40:].isfinite().all()
    for grad in grads:
        if grad is not None:
            assert grad.isfinite().all() and not grad[0].any() and not grad[1, :, :40].any() and grad[1, :, 40:].any()


@pytest.mark.parametrize("sink", [None, -torch.inf])
def test_queries_before_the_first_key_read_nothing(sink):
    case = Case(Rules(), 63, 30)
    sinks = None if sink is None else torch.full((2,), sink, device=DEVICE)
    (out, lse), grads = run(case, *case.tensors()[:4], sinks, None)
    assert not out[:, :, :33].any() and out[:, :, 33:].all()
    assert (lse[:, :, :33] == -torch.inf).all()
    assert all(grad.isfinite().all() for grad in grads) and not grads[0][:, :, :33].any()


@pytest.mark.parametrize("rules", [Rules(), Rules("cp"), Rules(attention_epsilon=0.1, attention_gamma=0.25)],
                         ids=["attnlrp", "cp", "gamma"])  # fmt: skip
def test_tiles_without_relevance_are_never_read(rules, monkeypatch):
    monkeypatch.setattr(arguments, "config", lambda *_: Tiles(16, 32, 4, 2))
    case = Case(rules, 257, 257, 2, 1)
    query, key, value, g, sinks, bounds = case.tensors()
    rows = torch.zeros(257, dtype=torch.bool, device=DEVICE)
    rows[[35, 100, 101, 256]] = True
    g[:, :, ~rows] = 0
    g[:, 1, 35] = 0  # heads need not agree
    _, expected = run(case, query, key, value, g, sinks, bounds)

    def spoil(query, lse):
        query, lse = query.clone(), lse.clone()
        idle = ~torch.stack([rows, rows]).index_fill(1, torch.tensor([35], device=DEVICE), False)
        idle[0, 35] = False
        idle = ~torch.nn.functional.pad(~idle, (0, 15)).unflatten(1, (-1, 16)).any(-1).repeat_interleave(16, 1)[:, :257]
        assert idle.sum() > 400
        query[0, idle] = lse[0, idle] = float("nan")
        return query, lse

    _, found = run(case, query, key, value, g, sinks, bounds, spoil=spoil)
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or torch.equal(one, other)
    if rules.name != "cp":
        assert not found[0][:, :, ~rows].any() and found[0][:, :, rows].any()
    assert found[2].any()


def test_any_number_of_tiles_is_compacted(monkeypatch):
    case = Case(Rules(), 257, 257, tiles=Tiles(16, 32, 4, 2))
    monkeypatch.setattr(arguments, "config", lambda *_: case.tiles)
    query, key, value, g, sinks, bounds = case.tensors()
    g[:, :, 32:160] = 0
    _, expected = run(case, query, key, value, g, sinks, bounds)
    monkeypatch.setattr(prepare, "_COMPACT", 4)  # of 17 tiles
    _, found = run(case, query, key, value, g, sinks, bounds)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("by_query", [Tiles(16, 32, 4, 2), Tiles(128, 32, 4, 2)])
def test_tiles_of_queries_need_not_fit_together(by_query, monkeypatch):
    case = Case(Rules(), 111, 111, 2, 1)
    query, key, value, g, sinks, bounds = case.tensors()
    g[:, :, [*range(40), *range(50, 100)]] = 0
    monkeypatch.setattr(arguments, "config", lambda step, *_: by_query if step == "dq" else Tiles(32, 32, 4, 2))
    _, found = run(case, query, key, value, g, sinks, bounds)
    monkeypatch.setattr(arguments, "config", lambda *_: Tiles(32, 32, 4, 2))
    _, expected = run(case, query, key, value, g, sinks, bounds)
    assert expected[0][:, :, 100:].any() and not found[0][:, :, 50:96].any()
    for one, other in zip(found, expected, strict=True):
        # Sums of 111 terms of size 1 in float32, in another order.
        torch.testing.assert_close(one, other, rtol=0, atol=111 * torch.finfo(torch.float32).eps)


def test_what_was_kept_may_lie_with_gaps():
    case = Case(Rules("attnlrp", attention_gamma=0.1), 63, 63)
    query, key, value, g, sinks, bounds = case.tensors()
    out, lse, size = kernels.forward(query, key, value, **case.flags, sinks=sinks, bounds=bounds, absolute=True)
    wide = torch.full((*out.shape[:-1], 2 * out.shape[-1]), float("nan"), dtype=out.dtype, device=out.device)
    gaps = wide[..., : out.shape[-1]].copy_(out)
    given = {**case.flags, "bounds": bounds, "value_share": 0.5, "score_share": 0.25, "ratio": True, "gamma": 0.1}
    expected = kernels.backward(g, query, key, value, out, lse, size, **given)
    for one, other in zip(kernels.backward(g, query, key, value, gaps, lse, size, **given), expected, strict=True):
        assert torch.equal(one, other)


def test_no_relevance_at_all_gives_zeros():
    case = Case(Rules(), 63, 63)
    query, key, value, g, sinks, bounds = case.tensors()
    _, grads = run(case, query, key, value, torch.zeros_like(g), sinks, bounds)
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("rules", [Rules(), Rules("cp", attention_gamma=0.25)], ids=["attnlrp", "cp"])
def test_the_same_call_twice_gives_the_same_bits(rules):
    case = Case(rules, 111, 111, 4, 2, dtype=HALF, softcap=5.0)
    (out, lse), grads = run(case, *case.tensors())
    (again, lse_again), grads_again = run(case, *case.tensors())
    assert torch.equal(out, again) and torch.equal(lse, lse_again)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


def test_strides_change_nothing(same):
    case = Case(Rules(attention_gamma=0.25), 63, 63, 2, 1)
    query, key, value, g, _, _ = case.tensors()
    g = g[:, :1, :1].expand_as(g)  # strides of 0, as a sum's gradient has
    (out, lse), grads = run(case, *(t.contiguous() for t in (query, key, value, g)), None, None)
    query, key = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (query, key))  # columns 63 apart
    value = value.flip(2).contiguous()
    value = value.as_strided(value.shape, value.stride()).flip(2)
    (other, other_lse), other_grads = run(case, query, key, value, g, None, None)
    for found, expected in zip((other, other_lse, *other_grads), (out, lse, *grads), strict=True):
        same(found, expected, 64 + 63)


def test_a_gradient_in_another_dtype(same):
    case = Case(Rules(), 63, 63, dtype=HALF)
    query, key, value, g, _, _ = case.tensors()
    _, expected = run(case, query, key, value, g, None, None)
    _, found = run(case, query, key, value, g.float(), None, None)
    for one, other in zip(found, expected, strict=True):
        same(one, other, 64 + 63)


def test_rows_beyond_2_to_the_31_elements(same, monkeypatch):
    """Strides as of one head in a very long context, of all that is read and all that is written; they share a storage,
    row beside row, and the memory between the rows is never touched."""
    if EXECUTED:
        pytest.skip("takes 5 GB, which the executor would copy")
    if ON_GPU and torch.cuda.mem_get_info()[0] < 10e9:
        pytest.skip("takes 5 GB, and the device has less than 10 free")
    case = Case(Rules(), 70, 70, 1, 1, dtype=HALF)
    tensors = case.tensors()[:4]
    expected = run(case, *tensors, None, None)
    stride, columns, empty, empty_like = 1 << 25, itertools.count(0, 64), torch.empty, torch.empty_like
    storage = torch.UntypedStorage(2 * 70 * stride, device=DEVICE)

    def spread(values):
        x = torch.tensor([], dtype=HALF, device=DEVICE)
        return x.set_(storage, next(columns), (1, 1, 70, 64), (1, 1, stride, 1)).copy_(values)

    blank = torch.tensor(torch.nan)
    far = [spread(t) for t in tensors]
    monkeypatch.setattr(torch, "empty_like", lambda x: spread(blank) if x.shape == (1, 1, 70, 64) else empty_like(x))
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: (
        spread(blank).transpose(1, 2) if shape == ((1, 70, 1, 64),) else empty(*shape, **options)))  # fmt: skip
    (out, lse), grads = run(case, *far, None, None)
    assert all(t.stride(2) == stride for t in (out, *grads))
    for found, truth in zip((out, lse, *grads), (*expected[0], *expected[1]), strict=True):
        same(found, truth, 64 + 70)


@triton.jit
def cap_ratio_kernel(x, y, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(y + o, pieces.cap_ratio(tl.load(x + o)))


def test_cap_ratio_is_accurate_everywhere(device):
    x = torch.cat([torch.logspace(-30, 5, 1000), torch.linspace(0.01, 0.5, 1000), torch.zeros(48)])
    x[::2] *= -1
    found = torch.empty(len(x), dtype=torch.float32, device=device)
    launch(cap_ratio_kernel, 1, x.to(device), found, BLOCK=2048)
    wide = x.double()
    truth = torch.where(wide == 0, 1.0, torch.tanh(wide) / wide)
    # On a GPU the approximate power of two and quotient are good to 2 units in the last place each, and 1 - e near 0.3
    # makes 1.6 times its relative error of e's.
    units = 4 if INTERPRETED else 8
    assert ((found.cpu() - truth).abs() <= units * torch.finfo(torch.float32).eps * truth).all()


def test_what_no_kernel_serves_is_refused():
    for dim, dtype in ((512, torch.float32), (64, torch.float64)):
        x = torch.randn(1, 1, 4, dim, dtype=dtype)
        with pytest.raises(ValueError, match=f"head_dim {dim} with elements of {x.element_size()} bytes"):
            kernels.forward(x, x, x, scale=1.0, causal=True, window=None, softcap=None)

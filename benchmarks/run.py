"""What is no benchmark of a CPU (those are pytest-benchmark's, see conftest.py): one JSON with versions and commit.

python benchmarks/run.py families                   # tests, no times: what works in which family, see families.py
python benchmarks/run.py kernels [--seconds 210]    # with a CUDA device; `make gpu` runs the tests first
python benchmarks/run.py model [--seconds 210]      # with a CUDA device: whole models of up to 8 billion weights
python benchmarks/run.py profile [--tokens 65536]   # with a CUDA device: the same model's time by kernel
python benchmarks/run.py modelled [--rows 'forward, head_dim 128'] [--compare earlier.json]    # see modelled.py
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import families
import torch

from lrp_fast.files import write_atomically

HERE = Path(__file__).resolve().parent
PACKAGES = ("lrp-fast", "torch", "transformers", "triton", "numpy", "zennit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("families", "kernels", "model", "modelled", "profile"))
    parser.add_argument("--tokens", type=int, default=65536, help="profile: the context length (default 65536)")
    parser.add_argument("--seconds", type=float, default=200, help="on CUDA: no case starts later (default 200)")
    parser.add_argument("--tests", default="not run", help="on CUDA: how the tests came out, for the report")
    parser.add_argument("--dry-run", action="store_true", help="on CUDA: tiny sizes on the CPU; nothing is written")
    parser.add_argument("--commit", help="what is measured (default: what git says)")
    parser.add_argument("--counted", type=Path, nargs="+", help="families: files of pytest's --families; no test runs")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/WHAT.json)")
    parser.add_argument("--rows", default="*", help="modelled: of kernels/tiles.json, a pattern as of file names")
    parser.add_argument("--compare", type=Path, help="modelled: the JSON file of an earlier run, for before and after")
    options = parser.parse_args()

    if options.what == "modelled":
        return issue_model(options)
    if options.what in ("kernels", "model", "profile"):
        sys.exit(kernels(options) if options.what == "kernels" else whole_model(options))
    results = families_shown(options.counted)
    path = write(options, results)
    print(families.table(results))
    print(f"\nwrote {path}")


def kernels(options: argparse.Namespace) -> int:
    """Exit status: 1 where a result was wrong, 2 where there is nothing to measure on."""
    if options.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        print("a dry run needs Triton's interpreter: set TRITON_INTERPRET=1", file=sys.stderr)
        return 2
    if not (options.dry_run or torch.cuda.is_available()):
        print("the kernels run on a CUDA device, and torch finds none here (--dry-run does without)", file=sys.stderr)
        return 2
    import kernel_times

    def keep(results: dict) -> str | None:
        return None if options.dry_run else write(options, {"tests": options.tests, **gpu(), **results})

    results = kernel_times.measure(options.seconds, options.dry_run, keep)
    path = keep(results)
    print(kernel_times.table(results))
    print(f"\nwrote {path}" if path else "\na dry run: the times mean nothing, and nothing was written")
    return 1 if results["wrong"] else 0


def whole_model(options: argparse.Namespace) -> int:
    """Exit status: 1 where a result was wrong, 2 where there is nothing to measure on."""
    if not (options.dry_run or torch.cuda.is_available()):
        print("the model runs on a CUDA device, and torch finds none here (--dry-run does without)", file=sys.stderr)
        return 2
    import model_profile
    import model_times

    def keep(results: dict) -> str | None:
        return None if options.dry_run else write(options, {"tests": options.tests, **gpu(), **results})

    if options.what == "profile":
        results, tables = model_profile.measure(options.tokens, options.dry_run), model_profile.table
    else:
        results, tables = model_times.measure(options.seconds, options.dry_run, keep), model_times.table
    path = keep(results)
    print(tables(results))
    print(f"\nwrote {path}" if path else "\na dry run: the times mean nothing, and nothing was written")
    return 1 if results.get("wrong") else 0


def issue_model(options: argparse.Namespace) -> None:
    import modelled  # needs Triton

    results = modelled.measure(options.rows)
    print(modelled.table(results))
    if options.compare:
        print("\n" + modelled.compared(options.compare, results))
    if options.rows == "*" or options.out:  # a few rows do not replace all of them
        print(f"\nwrote {write(options, results)}")


def families_shown(counted: list[Path] | None) -> dict:
    if counted is None:
        return {"shown": families.measure()}
    device = gpu() if torch.cuda.is_available() else {}
    return {**device, "shown": families.added_up(json.loads(path.read_text()) for path in counted)}


def write(options: argparse.Namespace, results: object) -> str:
    report = {"benchmark": options.what, **provenance(options.commit), "results": results}
    out = options.out or HERE / "results" / f"{options.what}.json"
    write_atomically(out, (json.dumps(report, indent=1) + "\n").encode())
    return os.path.relpath(out)


@functools.cache
def gpu() -> dict:
    """The device and what drives it; the driver's version is None where nvidia-smi is not there to tell."""
    device = torch.cuda.get_device_properties(0)
    driver = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.partition("\n")[0].strip() or None
    return {
        "gpu": device.name,
        "compute_capability": [device.major, device.minor],
        "multiprocessors": device.multi_processor_count,
        "memory_bytes": device.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


@functools.cache
def provenance(commit: str | None = None) -> dict:
    """Where and with what this was measured. ``commit``: what to say where git knows nothing of this folder."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    git = ["git", "-C", HERE, "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    if not (described or commit):
        print(f"no commit goes with these figures: git knows none in {HERE}; name it with --commit", file=sys.stderr)
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "commit": commit or described or None,
        "python": platform.python_version(),
        "versions": versions,
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()

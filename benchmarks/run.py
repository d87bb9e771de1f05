"""The one benchmark runner: measures, prints a short table, writes one JSON with versions and commit.

    python benchmarks/run.py linear
    python benchmarks/run.py attribution [--tokens 512 2048] [--lxt-python lxt-env/bin/python]
    python benchmarks/run.py context [--tokens 1024 2048 4096 8192] [--lxt-python lxt-env/bin/python]
    python benchmarks/run.py edges [--tokens 2048]
    python benchmarks/run.py families                   # tests, no times: what works in which family, see families.py
    python benchmarks/run.py kernels [--seconds 210]    # with a CUDA device; `make gpu` runs the tests first
    python benchmarks/run.py model [--seconds 210]      # with a CUDA device: whole models of up to 8 billion weights
    python benchmarks/run.py profile [--tokens 65536]   # with a CUDA device: the same model's time by kernel
    python benchmarks/run.py modelled [--rows 'forward, head_dim 128'] [--compare earlier.json]    # see modelled.py

Ratios are taken within one run; absolute CPU seconds mean little elsewhere. peers/lxt_attribution.py says how the
environment of --lxt-python is made.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import context
import edges
import families
import linear
import torch

from lrp_fast.files import write_atomically

HERE = Path(__file__).resolve().parent
PACKAGES = ("lrp-fast", "torch", "transformers", "triton", "numpy", "zennit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*TABLES, "kernels", "model", "modelled", "profile"))
    parser.add_argument("--tokens", type=int, nargs="+", help="context lengths")
    parser.add_argument("--repeats", type=int, default=3, help="of attribution: timed calls a round")
    parser.add_argument("--rounds", type=int, default=2, help="of attribution: how often ours and LXT take turns")
    parser.add_argument("--model", help="model directory (default: the demo's SmolLM2-135M-Instruct)")
    parser.add_argument("--lxt-python", help="the Python of an environment with LXT")
    parser.add_argument("--seconds", type=float, default=200, help="on CUDA: no case starts later (default 200)")
    parser.add_argument("--tests", default="not run", help="on CUDA: how the tests came out, for the report")
    parser.add_argument("--dry-run", action="store_true", help="on CUDA: tiny sizes on the CPU; nothing is written")
    parser.add_argument("--commit", help="what is measured, where git does not say")
    parser.add_argument("--counted", type=Path, nargs="+", help="families: files of pytest's --families; no test runs")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/WHAT.json)")
    parser.add_argument("--rows", default="*", help="modelled: of kernels/tiles.json, a pattern as of file names")
    parser.add_argument("--compare", type=Path, help="modelled: the JSON file of an earlier run, for before and after")
    options = parser.parse_args()

    if options.what == "modelled":
        return issue_model(options)
    if options.what in ("kernels", "model", "profile"):
        sys.exit(kernels(options) if options.what == "kernels" else whole_model(options))
    if options.what == "linear":
        results = linear.measure()
    elif options.what == "attribution":
        results = attribution(options)
    elif options.what == "families":
        results = families_shown(options.counted)
    elif options.what == "edges":
        results = edges.measure(options.model or demo_model(), options.tokens or [2048], options.repeats)
    else:
        lengths = options.tokens or [1024, 2048, 4096, 8192]
        model = options.model or demo_model()
        results = context.measure(model, lengths, options.lxt_python, lambda found: write(options, found))
    path = write(options, results)
    print(TABLES[options.what](results))
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
        results, tables = model_profile.measure((options.tokens or [65536])[0], options.dry_run), model_profile.table
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
        "commit": described or commit,
        "python": platform.python_version(),
        "versions": versions,
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "threads": torch.get_num_threads(),
    }


def attribution(options: argparse.Namespace) -> list[dict]:
    """One row a context length: ours under each rule, and LXT at its best and with all logits."""
    model = options.model or demo_model()
    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    rows = []
    for length in options.tokens or [512, 2048]:
        ids = context.draw(length, vocabulary)
        ours = {"ours": [], "ours_cp": []}
        theirs = {"lxt_last_logit": [], "lxt_full_logits": []} if options.lxt_python else {}
        for _ in range(options.rounds):
            for name, runs in ours.items():
                rule = "cp" if name.endswith("cp") else "attnlrp"
                runs.append(run([sys.executable, HERE / "attribution.py", "--rule", rule], model, ids, options))
            for name, runs in theirs.items():
                mode = name.removeprefix("lxt_").replace("_", "-")
                script = HERE / "peers" / "lxt_attribution.py"
                runs.append(run([options.lxt_python, script, "--mode", mode], model, ids, options))
        row = {"n_tokens": length} | {name: merge(runs) for name, runs in (ours | theirs).items()}
        if theirs:
            for name in theirs:
                row[f"speedup_over_{name}"] = row[name]["attribution_median_s"] / row["ours"]["attribution_median_s"]
            row["relevance_gap_to_lxt"] = context.gap(row["ours"]["relevance"], row["lxt_last_logit"]["relevance"])
        for name in ours | theirs:
            del row[name]["relevance"]
        rows.append(row)
    return rows


def run(command: list, model: str, ids: list[int], options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "ids.json", Path(folder) / "out.json"
        path.write_text(json.dumps(ids))
        target = ["--target", "1000", "--contrast", "2000", "--repeats", str(options.repeats)]
        subprocess.run([*command, "--model", model, "--ids", path, *target, "--out", out], check=True)
        return json.loads(out.read_text())


def merge(runs: list[dict]) -> dict:
    """All rounds as one: times side by side, medians and ratios over all of them, the greatest of the peaks."""
    merged = dict(runs[0])
    for name in ("forward_s", "attribution_s"):
        merged[name] = [seconds for one in runs for seconds in one[name]]
        merged[name.replace("_s", "_median_s")] = statistics.median(merged[name])
    for name in ("forward_peak_mb", "attribution_peak_mb"):
        merged[name] = max(one[name] for one in runs)
    merged["ratio"] = merged["attribution_median_s"] / merged["forward_median_s"]
    merged["ratio_of_minima"] = min(merged["attribution_s"]) / min(merged["forward_s"])
    return merged


def demo_model() -> str:
    spec = importlib.util.spec_from_file_location("demo_smollm2", HERE.parent / "demo" / "smollm2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.model_directory())


def linear_table(results: dict) -> str:
    lines = [f"{'forward + backward, over plain':32} " + " ".join(f"{name:>18}" for name in results)]
    for case in next(iter(results.values()))["ratio_to_plain"]:
        ratios = [shape["ratio_to_plain"][case] for shape in results.values()]
        lines.append(f"{case:32} " + " ".join(f"{ratio:>17.2f}x" for ratio in ratios))
    return "\n".join(lines)


def attribution_table(rows: list[dict]) -> str:
    lines = [f"{'tokens':>7} {'':18} {'over its forward':>17} {'over ours':>10} {'peak above model':>17}"]
    for row in rows:
        for name in ("ours", "ours_cp", "lxt_last_logit", "lxt_full_logits"):
            if name in row:
                one = row[name]
                over = one["attribution_median_s"] / row["ours"]["attribution_median_s"]
                peak = f"{one['attribution_peak_mb'] / 1000:.2f} GB"
                lines.append(f"{row['n_tokens']:>7} {name:18} {one['ratio']:>16.2f}x {over:>9.2f}x {peak:>17}")
    return "\n".join(lines)


TABLES = {
    "linear": linear_table, "attribution": attribution_table, "context": context.table, "edges": edges.table,
    "families": families.table,
}  # fmt: skip

if __name__ == "__main__":
    main()

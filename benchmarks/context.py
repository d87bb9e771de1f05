"""Time and peak memory over the context length, on a CPU: ours, ours within a budget, LXT, LXT with checkpointing.

Every figure comes from a process of its own with a limit on its memory. What a contender cannot do within the limit is
recorded as failed, with the reason, and longer contexts are not tried; any other error ends the benchmark.
"""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
PEER = HERE / "peers" / "lxt_attribution.py"
TWICE = 2048  # tokens up to which a call is timed twice
LIMIT_BYTES = 16 * 10**9  # of a process, the model included
OUT_OF_MEMORY = re.compile(
    r"(?:can't|Cannot) allocate memory(?:: you tried to allocate \d+ bytes)?|MemoryError|std::bad_alloc|SIGKILL"
)
CONTENDERS = {
    "ours": "ours",
    "ours_budget": "ours, small budget",
    "lxt": "LXT",
    "lxt_checkpointing": "LXT + checkpointing",
}


def budget(n_tokens: int) -> int:
    """Bytes above the model for the small budget: 0.4 GB at 2,048 tokens, 0.8 GB at 8,192."""
    return int(0.8e9 / 3 + 0.2e9 / 3 * n_tokens / 1024)


def measure(model: str, lengths: list[int], lxt_python: str | None, keep: Callable[[dict], object]) -> dict:
    """One row a length, shortest first. Cases are told on stderr; after each row ``keep`` is given all so far."""
    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    found, failed = {"limit_bytes": LIMIT_BYTES, "rows": []}, set()
    for length in sorted(lengths):
        ids = draw(length, vocabulary)
        row = {"n_tokens": length, "budget_mb": budget(length) / 1e6}
        for name in CONTENDERS if lxt_python else [name for name in CONTENDERS if name.startswith("ours")]:
            if name in failed:
                continue
            script = [lxt_python, PEER] if name.startswith("lxt") else [sys.executable, HERE / "attribution.py"]
            forward = "lxt_forward" if name.startswith("lxt") else "forward"
            if forward not in row:
                row[forward] = call([*script, "--measure", "forward-alone"], model, ids)
            one = call([*script, "--measure", "attribution-alone", *extra(name, length)], model, ids)
            if "failed" in one:
                failed.add(name)
                if name.startswith("ours"):
                    raise RuntimeError(f"{name} at {length} tokens: {one['failed']}")
            else:
                one["ratio"] = statistics.median(one["seconds"]) / statistics.median(row[forward]["seconds"])
                one["relevance_gap_to_ours"] = gap(one["relevance"], row.get("ours", one)["relevance"])
            row[name] = one
            print(line(length, name, one), file=sys.stderr, flush=True)
        for name in CONTENDERS:
            row.get(name, {}).pop("relevance", None)
        found["rows"].append(row)
        keep(found)
    return found


def draw(length: int, vocabulary: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(100, vocabulary, (length,), generator=generator).tolist()  # the first are special tokens


def extra(name: str, length: int) -> list[str]:
    given = {"ours_budget": ["--host-budget", str(budget(length))], "lxt_checkpointing": ["--checkpointing"]}
    return given.get(name, [])


def call(command: list, model: str, ids: list[int]) -> dict:
    """The report of one measurement, or why it failed for want of memory."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "ids.json", Path(folder) / "out.json"
        path.write_text(json.dumps(ids))
        command = [*command, "--model", model, "--ids", path, "--target", "1000", "--contrast", "2000", "--out", out,
                   "--repeats", "2" if len(ids) <= TWICE else "1"]  # fmt: skip
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, preexec_fn=limit_memory)
        if done.returncode == 0:
            return json.loads(out.read_text())
    if why := OUT_OF_MEMORY.search(done.stderr):
        return {"failed": why[0]}
    if done.returncode == -9:
        return {"failed": "killed by the system"}
    raise RuntimeError(f"{command[1]} ended with exit status {done.returncode}:\n{done.stderr[-3000:]}")


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))


def gap(found: list[float], truth: list[float]) -> float:
    """Greatest difference over greatest relevance."""
    return max(abs(a - b) for a, b in zip(found, truth, strict=True)) / max(map(abs, truth))


def table(results: dict) -> str:
    lines = [f"{'tokens':>7} {'':20} {'over its forward':>17} {'seconds':>8} {'peak above model':>17}"]
    for row in results["rows"]:
        lines += [line(row["n_tokens"], name, row[name]) for name in CONTENDERS if name in row]
    return "\n".join(lines)


def line(n_tokens: int, name: str, one: dict) -> str:
    head = f"{n_tokens:>7} {CONTENDERS[name]:20} "
    if "failed" in one:
        return head + f"failed beyond {LIMIT_BYTES / 1e9:.0f} GB"
    seconds = f"{statistics.median(one['seconds']):.1f}"
    return head + f"{one['ratio']:>16.2f}x {seconds:>8} {one['peak_mb'] / 1000:>14.2f} GB"

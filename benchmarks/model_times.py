"""Whole models on a CUDA device at long contexts: the plain forward pass, ours without and with a graph, and LXT with
recompute, in turn.

Geometries of published models, random bfloat16 weights made on the device, random tokens. Shares of the ceiling are the
plan's operations over the time and over a large matrix product's rate, measured first. A model's lengths come in rising
order, every case is told as it ends, and the clock decides where the list ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_tables import CALLS as NAMES
from kernel_cases import Machine
from kernel_times import ceilings
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3Config

import lrp_fast

LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
QWEN = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": True,
}
TINY = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
# 12,374 tokens: the longest context of arXiv 2604.17761.
MODELS = {
    "Qwen3-4B": (Qwen3Config, QWEN, (12374,)),
    "Llama-3.1-8B": (LlamaConfig, LLAMA, (4096, 16384, 65536, 100000)),
}
GRAPH = lrp_fast.GraphSpec(topk=16)
TARGET, CONTRAST = 10, 20  # any two tokens: the weights are random
LEAN_BYTES = 40 * 10**9  # the model included
SPENT_SECONDS = 10  # a case that took so long is not called again

Call = Callable[[], tuple[torch.Tensor | None, lrp_fast.Plan | None]]


def measure(seconds: float, dry: bool, keep: Callable[[dict], object]) -> dict:
    """What there is to run on, a row a length, what the clock left out, and what went wrong.

    ``keep`` is given all of that anew after every case.
    """
    end = time.monotonic() + seconds
    machine = Machine(dry)
    found = {"ceilings": ceilings(machine), "models": {}, "rows": [], "left_out": [], "wrong": []}
    peer, found["lxt"] = lxt()
    for of, (config, geometry, lengths) in MODELS.items():
        model = random_model(machine, config(**(TINY if dry else geometry)))
        found["models"][of] = {name: getattr(model.config, name) for name in geometry}
        one_model(of, model, (16, 32) if dry else lengths, peer, machine, end, found, keep)
        del model  # before the next one is made
    return found


def one_model(
    of: str,
    model: PreTrainedModel,
    lengths: tuple[int, ...],
    peer,
    machine: Machine,
    end: float,
    found: dict,
    keep: Callable[[dict], object],
) -> None:
    before: dict[str, float] = {}  # seconds an operation of the forward pass at the last length
    for n in lengths:
        ids = torch.randint(model.config.vocab_size, (1, n), generator=machine.generator, device=machine.device)
        planned = lrp_fast.plan(model, n)
        row = {"model": of, "n_tokens": n, "forward_flops": planned.forward_flops}
        found["rows"].append(row)
        relevance: dict[str, torch.Tensor] = {}
        for name, call in contenders(model, ids, peer, planned).items():
            where = f"{NAMES[name]}, {of}, {n}"
            predicted = before.get(name, 0.0) * planned.forward_flops
            if time.monotonic() + predicted > end:
                found["left_out"].append(where)
                continue
            try:
                row[name], relevance[name] = case(call, end, machine.dry)
            except torch.OutOfMemoryError:
                row[name] = {"failed": "out of memory"}
            except Exception as error:  # one length that fails must not cost the others' figures
                found["wrong"].append(f"{where}: {type(error).__name__}: {error}"[:500])
            else:
                before[name] = max(row[name]["first_s"], *row[name]["seconds"]) / planned.forward_flops
                compare(row, name, relevance, found["ceilings"]["TFLOP/s"]["rate"])
                print(line(row, name), file=sys.stderr, flush=True)
            keep(found)


def random_model(machine: Machine, config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(machine.dtype)
    try:
        with torch.device(machine.device):
            model = AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(dtype)
    return model.eval().requires_grad_(False)


def lxt() -> tuple[object | None, str]:
    """The script of LXT's side, its patches switched off, and LXT's version; or None and why it does not serve."""
    path = Path(__file__).resolve().parent / "peers" / "lxt_attribution.py"
    spec = importlib.util.spec_from_file_location("lxt_attribution", path)
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    try:
        peer.switch = peer.install_patches()
    except ImportError as error:
        return None, f"not measured: {error}"
    peer.switch(False)
    return peer, importlib.metadata.version("lxt")


def contenders(model: PreTrainedModel, ids: torch.Tensor, peer, planned: lrp_fast.Plan) -> dict[str, Call]:
    """By name what is timed. Each call returns the tokens' relevance and the plan, where it has them.

    ``peer`` patches Llama alone.
    """

    def forward():
        with torch.no_grad():
            model(ids, use_cache=False, logits_to_keep=1)
        return None, None

    def ours(memory=None, graph=None):
        plan = lrp_fast.plan(model, ids.shape[1], memory=memory, graph=graph)
        options = {"target": TARGET, "contrast": CONTRAST, "memory": memory, "graph": graph}
        return lrp_fast.attribute(model, ids, **options).relevance, plan

    def lxt_checkpointing():
        peer.switch(True)
        peer.checkpoint(model)
        try:
            options = argparse.Namespace(target=TARGET, contrast=CONTRAST, mode="last-logit")
            return peer.attribute(model, ids, options).float().cpu(), None
        finally:
            peer.checkpoint(model, False)
            peer.switch(False)

    calls = {"forward": forward, "ours": ours, "ours_graph": lambda: ours(graph=GRAPH)}
    if planned.weights + planned.peak.get(str(ids.device), 0) > LEAN_BYTES:
        lean = lrp_fast.Memory(device_budget=LEAN_BYTES - planned.weights)
        calls["ours_lean"] = lambda: ours(lean)
    if peer is not None and model.config.model_type == "llama":
        calls["lxt_checkpointing"] = lxt_checkpointing
    return calls


def case(call: Call, end: float, dry: bool) -> tuple[dict, torch.Tensor | None]:
    """Seconds of the first call, which compiles and takes memory from the system, and of those after it; the peak.

    Of long calls there is one, since shorter contexts before it have compiled everything: ``seconds`` is then the
    first's.
    """
    first, peak, (relevance, planned) = one_call(call, dry)
    seconds: list[float] = []
    while len(seconds) < 3 and time.monotonic() + first < end and first + sum(seconds) < SPENT_SECONDS:
        again, again_peak, _ = one_call(call, dry)
        seconds.append(again)
        peak = max(peak, again_peak)
    report = {"first_s": first, "seconds": seconds or [first], "peak_mb": peak / 1e6}
    if planned is not None:
        flops = planned.forward_flops + planned.replay_flops + planned.backward_flops
        report |= {"flops": flops, "tiers": dict(Counter(planned.tiers)), "chunk_tokens": planned.chunk_tokens,
                   "planned_peak_mb": {device: size / 1e6 for device, size in planned.peak.items()}}  # fmt: skip
    return report, relevance


def one_call(call: Call, dry: bool) -> tuple[float, int, tuple]:
    """Seconds, bytes that PyTorch held on the device beyond what was there, and what the call returned."""
    if dry:
        start = time.perf_counter()
        result = call()
        return time.perf_counter() - start, 0, result
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before, result


def compare(row: dict, name: str, relevance: dict[str, torch.Tensor], ceiling: float) -> None:
    """Over the forward pass, over the ceiling (in 10^12 operations a second), and to our relevance."""
    one = row[name]
    median = statistics.median(one["seconds"])
    if "forward" in row:
        one["ratio"] = median / statistics.median(row["forward"]["seconds"])
    flops = row["forward_flops"] if name == "forward" else one.pop("flops", None)
    if flops is not None:
        one["share_of_ceiling"] = flops / median / 1e12 / ceiling
    if name == "ours_graph" and "ours" in relevance:
        one["over_ours"] = median / statistics.median(row["ours"]["seconds"])
    if name not in ("forward", "ours") and "ours" in relevance:
        gap = (relevance[name] - relevance["ours"]).norm() / relevance["ours"].norm()
        one["relevance_gap_to_ours"] = gap.item()


def table(results: dict) -> str:
    heads = f"{'seconds':>8} {'over its forward':>17} {'ceiling':>8} {'peak above model':>17}"
    lines = [f"{'':12} {'tokens':>7} {'':20} {heads}"]
    for row in results["rows"]:
        lines += [line(row, name) for name in NAMES if name in row]
    lines.append(f"LXT: {results['lxt']}")
    lines += [f"WRONG: {what}" for what in results["wrong"]]
    if results["left_out"]:
        lines.append(f"left out for want of time: {'; '.join(results['left_out'])}")
    return "\n".join(lines)


def line(row: dict, name: str) -> str:
    one = row[name]
    head = f"{row['model']:12} {row['n_tokens']:>7} {NAMES[name]:20} "
    if "failed" in one:
        return head + f"failed: {one['failed']}"
    share = f"{one['share_of_ceiling']:.0%}" if "share_of_ceiling" in one else ""
    over = f"{one['ratio']:.2f}x" if "ratio" in one else ""
    return head + f"{statistics.median(one['seconds']):>8.3g} {over:>17} {share:>8} {one['peak_mb'] / 1000:>14.2f} GB"

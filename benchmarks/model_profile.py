"""Where the time of one attribution goes: seconds by kernel, of Llama-3.1-8B's geometry with random weights.

The same model and call as in model_times.py, once under PyTorch's profiler. What no kernel accounts for is time in
which the device waits.
"""

from __future__ import annotations

import time

import torch
from kernel_cases import Machine
from model_times import CONTRAST, MODELS, TARGET, TINY, random_model
from torch.profiler import ProfilerActivity, profile

import lrp_fast

SHOWN = 20


def measure(n_tokens: int, dry: bool) -> dict:
    """Seconds of the whole call and of its kernels, those that take most first; the plain forward pass beside it."""
    machine = Machine(dry)
    config, geometry, _ = MODELS["Llama-3.1-8B"]
    model = random_model(machine, config(**(TINY if dry else geometry)))
    draw = {"generator": machine.generator, "device": machine.device}
    ids = torch.randint(model.config.vocab_size, (1, 32 if dry else n_tokens), **draw)

    @torch.no_grad()
    def forward(ids):
        model(ids, use_cache=False, logits_to_keep=1)

    def attribution(ids):
        lrp_fast.attribute(model, ids, target=TARGET, contrast=CONTRAST)

    found = {"n_tokens": ids.shape[1]}
    for call in (forward, attribution):
        call(ids[:, :1024])  # compiles
        found[call.__name__] = profiled(lambda call=call: call(ids), machine)
    return found


def profiled(call, machine: Machine) -> dict:
    """On a CPU, in a dry run, PyTorch's operations stand for kernels."""
    activity, of = (ProfilerActivity.CPU, "self_cpu_time_total") if machine.dry else (
        ProfilerActivity.CUDA,
        "self_device_time_total",
    )
    synchronize(machine)
    with profile(activities=[activity]) as recorded:
        start = time.perf_counter()
        call()
        synchronize(machine)
        seconds = time.perf_counter() - start
    kernels = [(one.key, getattr(one, of) / 1e6, one.count) for one in recorded.key_averages()]
    kernels = sorted((one for one in kernels if one[1] > 0), key=lambda one: -one[1])
    return {"seconds": seconds, "busy_s": sum(one[1] for one in kernels), "kernels": kernels[:SHOWN]}


def synchronize(machine: Machine) -> None:
    if not machine.dry:
        torch.cuda.synchronize()


def table(results: dict) -> str:
    lines = []
    for what in ("forward", "attribution"):
        one = results[what]
        lines.append(f"{what}, {results['n_tokens']} tokens: {one['seconds']:.3g} s, kernels {one['busy_s']:.3g} s")
        for name, seconds, count in one["kernels"]:
            lines.append(f"  {seconds:>9.3g} s {seconds / one['seconds']:>6.1%} {count:>6} x  {name[:80]}")
    return "\n".join(lines)

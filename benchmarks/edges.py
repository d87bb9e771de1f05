"""All edges of one transition against batch-packed backward passes, and attribution with a graph against it alone."""

from __future__ import annotations

import statistics
import time

import torch
from transformers import AutoModelForCausalLM

import lrp_fast
from lrp_fast import hf, ops

SPECS = {"alone": None, "topk_16": lrp_fast.GraphSpec(topk=16), "mass_0.85": lrp_fast.GraphSpec(mass=0.85)}


def measure(directory: str, tokens: list[int], repeats: int, transition_tokens: int = 512, batch: int = 16) -> dict:
    """Seconds and ratios of both comparisons, each in turn within this process, float32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return {
        "transition": measure_transition(model, transition_tokens, repeats, batch),
        "attribution": [measure_attribution(model, length, repeats) for length in tokens],
    }


def prompt(model, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(100, model.config.vocab_size, (1, length), generator=generator)  # the first are special


def measure_transition(model, length: int, repeats: int, batch: int) -> dict:
    """The middle layer under attnlrp: closed form (median) and batch packing (once), and the gap between the two."""
    layer = hf.decoder_layers(model)[model.config.num_hidden_layers // 2]
    calls, traces = [], []
    handle = layer.register_forward_pre_hook(lambda _, args, named: calls.append((args, named)), with_kwargs=True)
    with lrp_fast.patched(model):
        with torch.no_grad():
            model(prompt(model, length), use_cache=False, logits_to_keep=1)
        handle.remove()
        (h, *rest), named = calls[0]
        g = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
        leaf = h.detach().requires_grad_()
        with hf.tracing(layer, traces):
            whole = torch.autograd.grad(_hidden(layer(leaf, *rest, **named)), leaf, g)[0]

        seconds = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            own = ops.node_relevance(h, whole)[0] - ops.crossing(traces[0])
            found = ops.attention_edges(traces[0], torch.arange(length), topk=length)
            seconds.append(time.perf_counter() - start)

        start = time.perf_counter()
        rows = []
        for targets in torch.arange(length).split(batch):
            copies = h.detach().repeat(len(targets), 1, 1).requires_grad_()
            only = torch.zeros_like(copies)
            only[torch.arange(len(targets)), targets] = g[0, targets]
            passed = torch.autograd.grad(_hidden(layer(copies, *rest, **named)), copies, only)[0]
            rows.append(ops.node_relevance(h, passed))
        packed = time.perf_counter() - start
    truth, matrix = torch.cat(rows), torch.diag(own)
    matrix[torch.repeat_interleave(torch.arange(length), found.counts), found.columns.long()] += found.weights
    closed = statistics.median(seconds[1:])
    return {
        "n_tokens": length,
        "closed_form_s": closed,
        "batch_packing_s": packed,
        "batch": batch,
        "speedup": packed / closed,
        "gap": ((matrix - truth).abs().max() / truth.abs().max()).item(),
    }


def measure_attribution(model, length: int, repeats: int) -> dict:
    ids = prompt(model, length)
    seconds: dict[str, list[float]] = {name: [] for name in SPECS}
    for _ in range(1 + repeats):
        for name, spec in SPECS.items():
            start = time.perf_counter()
            lrp_fast.attribute(model, ids, target=1000, contrast=2000, graph=spec)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    ratios = {name: median / medians["alone"] for name, median in medians.items() if name != "alone"}
    return {"n_tokens": length, "median_s": medians, "ratio_to_alone": ratios}


def _hidden(output):
    return output[0] if isinstance(output, tuple) else output


def table(results: dict) -> str:
    one = results["transition"]
    lines = [
        f"all edges of one transition, {one['n_tokens']} tokens: {one['closed_form_s']:.3f} s, batch packing "
        f"{one['batch_packing_s']:.1f} s, {one['speedup']:.0f}x; gap {one['gap']:.1e}"
    ]
    for row in results["attribution"]:
        ratios = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratio_to_alone"].items())
        lines.append(f"{row['n_tokens']:>7} tokens, over attribution alone: {ratios}")
    return "\n".join(lines)

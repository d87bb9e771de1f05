"""Time and peak memory of `lrp_fast.attribute` on one prompt, against the model's own forward pass.

The counterpart of peers/lxt_attribution.py, with the same arguments and the same kinds of figures; run.py and
context.py call both. Every figure comes from a fresh process of this script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from memory import peak_above
from transformers import AutoModelForCausalLM

import lrp_fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--ids", required=True, help="file with a JSON list of token ids")
    parser.add_argument("--target", type=int, required=True, help="token id")
    parser.add_argument("--contrast", type=int, required=True, help="token id")
    parser.add_argument("--rule", default="attnlrp", choices=("attnlrp", "cp", "gradient"))
    parser.add_argument("--host-budget", type=int, help="bytes above the model (default: what the machine has free)")
    parser.add_argument("--repeats", type=int, default=3, help="timed repetitions after one that warms up (default 3)")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--measure", choices=sorted(MEASURES | ALONE), help="one measurement in this very process")
    options = parser.parse_args()
    report = run_all() if options.measure is None else (MEASURES | ALONE)[options.measure](options)
    Path(options.out).write_text(json.dumps(report, indent=1) + "\n")


def run_all() -> dict:
    report = {}
    for measure in MEASURES:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "report.json"
            # A later option overrides an earlier one.
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure", measure, "--out", out], check=True)
            report |= json.loads(out.read_text())
    return report


def measure_times(options: argparse.Namespace) -> dict:
    """The plain forward pass and the attribution in turn, so that both see the same machine."""
    model, ids = load(options)
    seconds: dict[str, list[float]] = {"forward_s": [], "attribution_s": []}
    for _ in range(1 + options.repeats):
        for name, fn in (("forward_s", forward), ("attribution_s", attribute)):
            start = time.perf_counter()
            result = fn(model, ids, options)
            seconds[name].append(time.perf_counter() - start)
    forward_s, attribution_s = (times[1:] for times in seconds.values())  # the first of each warmed up
    return {
        "n_tokens": ids.shape[1],
        "forward_s": forward_s,
        "attribution_s": attribution_s,
        "forward_median_s": statistics.median(forward_s),
        "attribution_median_s": statistics.median(attribution_s),
        "ratio": statistics.median(attribution_s) / statistics.median(forward_s),
        "ratio_of_minima": min(attribution_s) / min(forward_s),
        "value": result.value,
        "relevance": result.relevance.tolist(),
    }


def measure_forward_peak(options: argparse.Namespace) -> dict:
    return {"forward_peak_mb": alone(forward, options)[0]["peak_mb"]}


def measure_attribution_peak(options: argparse.Namespace) -> dict:
    return {"attribution_peak_mb": alone(attribute, options)[0]["peak_mb"]}


def measure_forward_alone(options: argparse.Namespace) -> dict:
    return alone(forward, options, options.repeats)[0]


def measure_attribution_alone(options: argparse.Namespace) -> dict:
    report, result = alone(attribute, options, options.repeats)
    return report | {"value": result.value, "relevance": result.relevance.tolist()}


MEASURES = {
    "times": measure_times,
    "forward-peak": measure_forward_peak,
    "attribution-peak": measure_attribution_peak,
}
# For long contexts: the call whose peak is read is timed as well, and nothing full-sized warms up.
ALONE = {"forward-alone": measure_forward_alone, "attribution-alone": measure_attribution_alone}


def load(options: argparse.Namespace):
    """The model in float32, as `from_pretrained` gives it, and the (1, N) ids."""
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    return model, torch.tensor([json.loads(Path(options.ids).read_text())])


def forward(model, ids: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """(V,) logits of the last position alone, computed without autograd."""
    with torch.no_grad():
        return model(ids, use_cache=False, logits_to_keep=1).logits[0, -1]


def attribute(model, ids: torch.Tensor, options: argparse.Namespace) -> lrp_fast.Attribution:
    memory = lrp_fast.Memory(host_budget=options.host_budget)
    return lrp_fast.attribute(
        model, ids, target=options.target, contrast=options.contrast, rule=options.rule, memory=memory
    )


def alone(fn, options: argparse.Namespace, times: int = 1) -> tuple[dict, object]:
    """Seconds of each call and the first one's peak above the loaded model, in 10^6 bytes; and what ``fn`` returned."""
    model, ids = load(options)
    fn(model, ids[:, :8], options)  # brings in lazily loaded code and every page of the memory-mapped weights
    seconds = []

    def timed():
        start = time.perf_counter()
        result = fn(model, ids, options)
        seconds.append(time.perf_counter() - start)
        return result

    result, peak = peak_above(timed)
    for _ in range(times - 1):
        timed()
    return {"seconds": seconds, "peak_mb": peak / 1e6}, result


if __name__ == "__main__":
    main()

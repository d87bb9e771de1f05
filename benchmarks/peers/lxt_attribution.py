r"""Time and peak memory of LXT's efficient AttnLRP on one prompt, for comparison with ours.

LXT 2.1 is written for an older transformers, so this script runs in an environment of its own and imports nothing of
ours but, by its path, the module that reads peak memory. To make the environment and run it:

    python3.11 -m venv lxt-env
    lxt-env/bin/pip install -c benchmarks/peers/lxt-constraints.txt torch transformers
    lxt-env/bin/pip install -c benchmarks/peers/lxt-constraints.txt --no-deps lxt
    lxt-env/bin/python benchmarks/peers/lxt_attribution.py \
        --model DIR --ids ids.json --target 5 --contrast 7 --out out.json

(`--no-deps`, because LXT asks for packages that its efficient rules on language models never import.)

Every figure comes from a fresh process of this script: one for the times, one for each of the two peaks. The plain
forward is the unpatched one without autograd; it and the attribution alternate, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path

import torch

# transformers before the stub of torchvision below: it asks at import whether the real one is installed.
from transformers import LlamaConfig, LlamaForCausalLM, pytorch_utils
from transformers.models.llama import modeling_llama

PACKAGES = ("lxt", "torch", "transformers")


def main() -> None:
    options = parse_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    report = run_all(options) if options.measure is None else (MEASURES | ALONE)[options.measure](options)
    Path(options.out).write_text(json.dumps(report, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="directory with a Llama as safetensors")
    parser.add_argument("--ids", required=True, help="file with a JSON list of token ids")
    parser.add_argument("--target", type=int, required=True, help="token id")
    parser.add_argument("--contrast", type=int, required=True, help="token id")
    parser.add_argument("--repeats", type=int, default=3, help="timed repetitions after one that warms up (default 3)")
    parser.add_argument(
        "--mode",
        choices=["full-logits", "last-logit"],
        default="last-logit",
        help="logits of every position, or of the last alone (default)",
    )
    parser.add_argument("--checkpointing", action="store_true", help="recompute every layer in the backward pass")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own choice)")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--measure", choices=sorted(MEASURES | ALONE), help="one measurement in this very process")
    return parser.parse_args()


def run_all(options: argparse.Namespace) -> dict:
    """Every measurement in its own process; their reports merged into one."""
    report = {
        "peer": "lxt.efficient",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "mode": options.mode,
        "checkpointing": options.checkpointing,
    }
    for measure in MEASURES:
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "report.json")
            # A later option overrides an earlier one.
            arguments = [*sys.argv[1:], "--measure", measure, "--out", out]
            subprocess.run([sys.executable, os.path.abspath(__file__), *arguments], check=True)
            report |= json.loads(Path(out).read_text())
    return report


def measure_times(options: argparse.Namespace) -> dict:
    """Plain forward and attribution in turn; and what they computed."""
    model, ids = load(options)
    switch = install_patches()
    forward_s, attribution_s = [], []
    for _ in range(1 + options.repeats):
        switch(False)
        logits, seconds = timed(lambda: forward(model, ids, options))
        forward_s.append(seconds)
        switch(True)
        relevance, seconds = timed(lambda: attribute(model, ids, options))
        attribution_s.append(seconds)
    target, contrast = logits[options.target].item(), logits[options.contrast].item()
    forward_s, attribution_s = forward_s[1:], attribution_s[1:]  # the first of each warmed up
    return {
        "n_tokens": ids.shape[1],
        "forward_s": forward_s,
        "attribution_s": attribution_s,
        "forward_median_s": statistics.median(forward_s),
        "attribution_median_s": statistics.median(attribution_s),
        "ratio": statistics.median(attribution_s) / statistics.median(forward_s),
        "ratio_of_minima": min(attribution_s) / min(forward_s),  # a busy machine disturbs this one less
        "logits": {"target": target, "contrast": contrast},
        "value": target - contrast,
        "relevance": relevance.tolist(),
    }


def measure_forward_peak(options: argparse.Namespace) -> dict:
    return {"forward_peak_mb": alone(forward, options)[0]["peak_mb"]}


def measure_attribution_peak(options: argparse.Namespace) -> dict:
    install_patches()(True)
    return {"attribution_peak_mb": alone(attribute, options)[0]["peak_mb"]}


def measure_forward_alone(options: argparse.Namespace) -> dict:
    return alone(forward, options, options.repeats)[0]


def measure_attribution_alone(options: argparse.Namespace) -> dict:
    install_patches()(True)
    report, relevance = alone(attribute, options, options.repeats)
    return report | {"relevance": relevance.tolist()}


MEASURES = {
    "times": measure_times,
    "forward-peak": measure_forward_peak,
    "attribution-peak": measure_attribution_peak,
}
# For long contexts: the call whose peak is read is timed as well, and nothing full-sized warms up.
ALONE = {"forward-alone": measure_forward_alone, "attribution-alone": measure_attribution_alone}


def load(options: argparse.Namespace) -> tuple[LlamaForCausalLM, torch.Tensor]:
    """The model in float32 with scaled_dot_product_attention and frozen weights, and the (1, N) ids."""
    written = json.loads((Path(options.model) / "config.json").read_text())
    if written["model_type"] != "llama":
        raise SystemExit(f"{options.model} holds a {written['model_type']}: this script patches Llama models only")
    config = LlamaConfig.from_pretrained(options.model)
    # transformers 5 writes rope_parameters; an older one reads rope_theta and rope_scaling, and falls back silently.
    rope = dict(written.get("rope_parameters") or {})
    if "rope_theta" in rope and "rope_theta" not in written:
        config.rope_theta = rope.pop("rope_theta")
        config.rope_scaling = rope if rope.get("rope_type", "default") != "default" else None
    model = LlamaForCausalLM.from_pretrained(
        options.model, config=config, torch_dtype=torch.float32, attn_implementation="sdpa"
    )
    model.eval().requires_grad_(False)
    if options.checkpointing:
        checkpoint(model)
    return model, torch.tensor([json.loads(Path(options.ids).read_text())])


def checkpoint(model: LlamaForCausalLM, on: bool = True) -> None:
    """Keep only the layers' inputs for the backward pass, or everything again.

    transformers recomputes in training mode alone; a Llama without dropout computes the same there.
    """
    if model.config.attention_dropout:
        raise ValueError("this model has dropout, which training mode would switch on")
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing_(en|dis)able. is deprecated")
    if on:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    model.train(on)


def forward(model, ids: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """(V,) logits of the last position, computed without autograd."""
    with torch.no_grad():
        return model(ids, use_cache=False, logits_to_keep=logits_to_keep(options)).logits[0, -1]


def attribute(model, ids: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """(N,) relevance of the tokens: forward, backward, embedding * gradient. The model must be patched."""
    embeddings = model.get_input_embeddings()(ids).requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=logits_to_keep(options)).logits[0, -1]
    (logits[options.target] - logits[options.contrast]).backward()
    return (embeddings * embeddings.grad).sum(-1)[0].detach()


def logits_to_keep(options: argparse.Namespace) -> int:
    return 1 if options.mode == "last-logit" else 0  # 0: all of them


def install_patches():
    """Have LXT patch transformers' Llama; returns ``switch(on)``, which puts its patches in force or back out."""
    if importlib.util.find_spec("torchvision") is None:
        # LXT imports this module to patch picture transformers; all it wants of it is torch.nn.
        vision_transformer = types.ModuleType("torchvision.models.vision_transformer")
        vision_transformer.nn = torch.nn
        models = types.ModuleType("torchvision.models")
        models.vision_transformer = vision_transformer
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        sys.modules["torchvision.models"] = models
        sys.modules["torchvision.models.vision_transformer"] = vision_transformer
    if not hasattr(pytorch_utils, "find_pruneable_heads_and_indices"):
        # transformers 5 has lost it; LXT imports it for pruning BERT.
        pytorch_utils.find_pruneable_heads_and_indices = None
    # Zennit is for picture transformers as well, and LXT says on every import that it misses it.
    warnings.filterwarnings("ignore", message="'zennit' library is not available")
    from lxt.efficient import monkey_patch

    places = [
        (modeling_llama.LlamaMLP, "forward"),
        (modeling_llama.LlamaRMSNorm, "forward"),
        (torch.nn.Dropout, "forward"),
        (modeling_llama, "eager_attention_forward"),
        (modeling_llama, "ALL_ATTENTION_FUNCTIONS"),
    ]
    plain = [getattr(owner, name) for owner, name in places]
    monkey_patch(modeling_llama)
    patched = [getattr(owner, name) for owner, name in places]
    if hasattr(plain[-1], "get_interface"):
        # LXT leaves a dict of its wrappers; transformers 5 asks it for more than a dict can.
        interface = type(plain[-1])()
        for name, wrapper in patched[-1].items():
            interface[name] = wrapper
        patched[-1] = interface

    def switch(on: bool) -> None:
        for (owner, name), value in zip(places, patched if on else plain, strict=True):
            setattr(owner, name, value)

    switch(True)
    if any(before is after for before, after in zip(plain, patched, strict=True)):
        switch(False)
        raise ImportError("LXT did not patch all of Llama: these versions do not belong together")
    return switch


def timed(fn):
    start = time.perf_counter()
    result = fn()
    return result, time.perf_counter() - start


def alone(fn, options: argparse.Namespace, times: int = 1) -> tuple[dict, torch.Tensor]:
    """Seconds of each call and the first one's peak above the loaded model, in 10^6 bytes; and what ``fn`` returned.

    The peak is None where memory.py is not at hand.
    """
    model, ids = load(options)
    fn(model, ids[:, :8], options)  # brings in lazily loaded code and every page of the memory-mapped weights
    (result, first), peak = peak_above(lambda: timed(lambda: fn(model, ids, options)))
    seconds = [first, *(timed(lambda: fn(model, ids, options))[1] for _ in range(times - 1))]
    return {"seconds": seconds, "peak_mb": peak and peak / 1e6}, result


def peak_above(fn):
    path = Path(__file__).resolve().parent.parent / "memory.py"
    if not path.is_file():
        return fn(), None
    spec = importlib.util.spec_from_file_location("lrp_fast_benchmark_memory", path)
    memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    return memory.peak_above(fn)


if __name__ == "__main__":
    main()

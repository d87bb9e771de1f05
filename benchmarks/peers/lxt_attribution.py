"""LXT's efficient AttnLRP at its best: scaled_dot_product_attention, frozen weights, logits of the last position alone.

LXT 2.1 is written for an older transformers and does not import beside transformers 5; `install_patches` fills in the
three things that it misses there, so that it runs on the very transformers that ours runs on. It patches classes, for
the whole process: a process of its own, by serve.py, or model_times.py, which switches it off again. (The head of
LXT's repository, f043441 of August 2026, mends the registry of attention in this way too; its rules are those of 2.1.)
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
import warnings

import torch

# transformers before the stub of torchvision below: it asks at import whether the real one is installed.
from transformers import AutoModelForCausalLM, pytorch_utils
from transformers.models.llama import modeling_llama


def load(directory: str) -> dict:
    """Calls by name, as serve.py runs them: the unpatched forward pass, attribution, and that of a batch."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    if model.config.model_type != "llama":
        raise ValueError(f"{directory} holds a {model.config.model_type}: this script patches Llama models only")
    model.eval().requires_grad_(False)
    switch = install_patches()

    def forward(ids, target, contrast):
        switch(False)
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1]
        return {"value": (logits[target] - logits[contrast]).item()}

    def attributed(ids, target, contrast, checkpointing=False):
        switch(True)
        if checkpointing:
            checkpoint(model)
        try:
            return {
                "relevance": attribute(model, torch.tensor([ids]), argparse.Namespace(target=target, contrast=contrast))
            }
        finally:
            if checkpointing:
                checkpoint(model, False)

    def batch(prompts, target, contrast):
        """Prompts of one length, in one pass."""
        switch(True)
        embeddings = model.get_input_embeddings()(torch.tensor(prompts)).requires_grad_()
        logits = model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[:, -1]
        (logits[:, target] - logits[:, contrast]).sum().backward()
        return [{"relevance": one} for one in (embeddings * embeddings.grad).sum(-1).detach()]

    def one_by_one(prompts, target, contrast):
        return [attributed(ids, target, contrast) for ids in prompts]

    return {"forward": forward, "attribute": attributed, "batch": batch, "one_by_one": one_by_one}


def checkpoint(model, on: bool = True) -> None:
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


def attribute(model, ids: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """(N,) relevance of the tokens: forward, backward, embedding * gradient. The model must be patched."""
    embeddings = model.get_input_embeddings()(ids).requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[0, -1]
    (logits[options.target] - logits[options.contrast]).backward()
    return (embeddings * embeddings.grad).sum(-1)[0].detach()


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

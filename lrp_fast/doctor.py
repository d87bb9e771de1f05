"""`examine`: which of a model's modules obey a rule, and whether a small copy of it does so to the last digit.
`operations`: whether a device computes what the rules say."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModel

from .attribution import attribute
from .between import between
from .graph import GraphSpec
from .hf import (
    Coverage,
    at_rest,
    coverage,
    decoder_layers,
    explained_class,
    gaps_to_definitions,
    give_language_model,
    has_closed_form,
    head_dims,
    head_of,
    is_masked_language_model,
    patched,
)
from .memory import Memory, plan
from .operations import FULL, SMALL, Held, cases, hold
from .ops import backend
from .rules import Rules

_COMPILERS = 12  # threads at most, each of which compiles a kernel; Python itself runs in one at a time


class Check(NamedTuple):
    """One identity on the small copy: how far it is missed, relative to the largest number, and how far it may be."""

    what: str
    gap: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.gap <= self.allowed  # not so for NaN


def examine(config) -> tuple[list[Coverage], list[Check]]:
    """What covers the modules of a model, from its config alone, and what `checks` finds where everything is covered.

    Raises:
        ValueError: if transformers has no causal language model of that config (which may name one with labels).
    """
    found = coverage(_on_meta(config))
    if any(one.rule is None for one in found):
        return found, []
    try:
        small = _small(config)
        with torch.no_grad():
            small(torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    except (AttributeError, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # Of a config that knows better, or derives sizes from others.
        why = " ".join(str(error).split())
        return found, [Check(f"not checked, as no small copy can be made: {why[:200]}", float("nan"), 0.0)]
    return found, _identities(small)


def head_dims_of(config) -> tuple[int, ...]:
    """Features of a head in a model's attentions, from its config alone; none where no rule covers them."""
    return head_dims(_on_meta(config))


def _on_meta(config):
    model_class = explained_class(config)
    if model_class is None:
        raise ValueError(f"transformers has no causal language model for a {type(config).__name__}: nothing to explain")
    with torch.device("meta"):
        return model_class._from_config(copy.deepcopy(config))


def checks(config) -> list[Check]:
    """Identities of the maths on a small random float64 copy of an architecture, on the CPU.

    The logits under `patched` are the model's own; the streamed pass gives the numbers of one plain backward pass, and
    edges in closed form, where there is one, those of a backward pass a row; edges out of a node add up to its
    relevance. What each kind of operation hands back is what its definition in `lrp_fast.reference` does
    (`gaps_to_definitions` says of which).
    """
    return _identities(_small(config))


@contextmanager
def _float64() -> Iterator[None]:
    """What a model's own code makes without saying of which dtype is of float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _identities(model, tokens: int = 19) -> list[Check]:
    head, words = head_of(model), model.config.get_text_config().vocab_size
    ids = torch.randint(3, words, (1, tokens), generator=torch.Generator().manual_seed(0))
    target, contrast = (5, 7) if head.size > 7 else (0, 1 if head.size > 1 else None)
    given = {"target": target, "contrast": contrast}
    if is_masked_language_model(model):
        given["position"] = tokens - 1

    first: list[torch.Tensor] = []  # layer 0: the embeddings, with learned positions where there are some

    def keep(module, args, named):
        hidden = args[0] if args else named["hidden_states"]
        first.append(hidden.detach().requires_grad_())
        return ((first[0], *args[1:]), named) if args else (args, named | {"hidden_states": first[0]})

    with torch.no_grad(), _float64():  # without which XGLM's own code stops
        plain = model(ids, use_cache=False).logits
    with patched(model):
        handle = decoder_layers(model)[0].register_forward_pre_hook(keep, with_kwargs=True)
        logits = model(ids, use_cache=False).logits
        handle.remove()
        last = logits.flatten(0, -2)[-1]  # what pools has no others
        (last[target] - (0 if contrast is None else last[contrast])).backward()
    direct = (first[0] * first[0].grad).sum(-1)[0].detach()

    spec = GraphSpec(topk=tokens) if has_closed_form(decoder_layers(model), Rules("attnlrp")) else None
    tight = Memory(host_budget=plan(model, tokens, graph=spec).least["cpu"])
    result = attribute(model, ids, graph=spec, memory=tight, **given)
    edges = []
    if spec is not None:
        sums = torch.stack([result.graph.dense(layer).sum(0) for layer in range(result.graph.num_layers)])
        rows = between(model, ids, 0, 1, range(tokens), **given)
        edges = [
            Check("edges in closed form are those of a backward pass a row", _gap(result.graph.dense(0), rows), 1e-7),
            Check("edges out of a node add up to its relevance", _gap(sums, result.layers[:-1]), 1e-9),
        ]
    return [
        # A model computes its norms and routers in float32 whatever its dtype, Cohere its rotations.
        Check("logits are the model's own", _gap(logits, plain), 1e-4),
        Check("streamed relevance is that of one backward pass", _gap(result.relevance, direct), 1e-9),
        *edges,
        *(
            Check(f"{operations} pass relevance as defined", gap, 1e-10)
            for operations, gap in gaps_to_definitions(model, ids).items()
        ),
    ]


def _gap(found: torch.Tensor, truth: torch.Tensor) -> float:
    return ((found - truth).abs().max() / truth.abs().max()).item()


def _small(config):
    """A random model of the architecture: two layers, of both kinds where there are two, and every part narrow.

    Of one that reads images or sounds as well, its own forward pass around a small language model; what text alone does
    not run is left out.
    """
    narrow = _narrow(config.get_text_config())
    made = explained_class(narrow)  # None of Qwen-VL's, whose head is the wrapper's own
    make = AutoModel.from_config if made is None else made._from_config
    # Where sdpa would leave a soft-cap out.
    alone = _filled(make(narrow, dtype=torch.float64, attn_implementation="eager"))
    if hasattr(alone, "set_experts_implementation"):
        alone.set_experts_implementation("eager")  # the default takes no float64
    if isinstance(alone, explained_class(config)):
        return alone
    model = _on_meta(config)
    model.config.text_config = alone.config
    for path, _ in list(at_rest(model)):
        left_out = nn.Identity()
        left_out.device, left_out.dtype = alone.device, alone.dtype  # which some ask of it
        model.set_submodule(path, left_out)
    if made is not None:
        give_language_model(model, alone)
    else:
        model.base_model.language_model = alone
        model.lm_head = _filled(nn.Linear(narrow.hidden_size, narrow.vocab_size, bias=False, dtype=torch.float64))
    return model.eval()


def _narrow(config):
    config = copy.deepcopy(config)
    queries = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or queries
    few = 1 if keys == 1 else 2
    heads = few * min(queries // keys, 4)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[0], next((kind for kind in kinds if kind != kinds[0]), kinds[0])]
    narrow = {
        "num_hidden_layers": 2, "hidden_size": 16 * heads, "num_attention_heads": heads, "num_key_value_heads": few,
        "num_kv_heads": few, "head_dim": 16, "intermediate_size": 48, "n_inner": 48, "ffn_hidden_size": 48,
        "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "num_local_experts": 4, "num_experts": 4,
        "num_experts_per_tok": 2, "vocab_size": 97, "max_position_embeddings": 64, "sliding_window": 7,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    for name, value in narrow.items():
        derived = isinstance(getattr(type(config), name, None), property)
        if not derived and getattr(config, name, None) is not None:
            setattr(config, name, value)
    if getattr(config, "rope_parameters", None):
        config.rope_parameters = _plain_rotation(config.rope_parameters)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _filled(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim != 2 else parameter.shape[1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + ("norm" in name))
    return model.eval()


def _plain_rotation(given: dict) -> dict:
    """Rotary positions without what stretches them, which has a list of its own for each head_dim."""
    if "rope_type" not in given:  # one a kind of layer
        return {kind: _plain_rotation(one) if isinstance(one, dict) else one for kind, one in given.items()}
    sections = {"mrope_section": [2, 3, 3]} if "mrope_section" in given else {}  # of the pairs of 16 features
    return {name: given[name] for name in ("rope_theta", "partial_rotary_factor") if name in given} | {
        "rope_type": "default",
        **sections,
    }


class Setting(NamedTuple):
    """Where operations run.

    Attributes:
        device: its name. capability: of a CUDA device, "9.0" say; otherwise "". dtype: of the inputs.
        torch, triton: versions; triton is "" where it is not installed.
        notes: what a reader has to know, each a sentence.
    """

    device: str
    capability: str
    dtype: str
    torch: str
    triton: str
    notes: tuple[str, ...]


def setting(device: torch.device | str, dtype: torch.dtype | None = None) -> Setting:
    """Of a device that can be used; see `operations`."""
    device = torch.device(device)
    dtype = _dtype(device, dtype)
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else ""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        why = backend.without_triton(device)
        notes = (why if why is not None else backend.found_on(device).told,)
    else:
        name, capability, notes = "CPU", "", ()
    return Setting(name, capability, str(dtype).removeprefix("torch."), torch.__version__, triton, notes)


def operations(
    device: torch.device | str = "cuda",
    dtype: torch.dtype | None = None,
    *,
    impl: str = "auto",
    dims: tuple[int, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Held]:
    """Every operation of `lrp_fast.ops`, as it is computed on ``device``, against its definition in float64.

    Attention, edges, linear maps, norms, activations, gated MLPs and node relevance, forward and backward, in the forms
    that kernels tell apart (see `lrp_fast.operations`). Each is called twice. It passes if it is no further from its
    definition, on the same inputs, than the definition computed in ``dtype`` is, but for what rounding explains; and if
    both calls gave the same bits.

    On CUDA, Triton compiles about a hundred kernels the first time, several at once: about half a minute in all.

    Args:
        device: "cuda", "cuda:1", "cpu".
        dtype: float32, float16 or bfloat16; by default bfloat16 on CUDA, float32 on a CPU.
        impl: who computes, as in `lrp_fast.ops`. "triton" on a CPU runs the kernels in Triton's interpreter, on small
            tensors, where TRITON_INTERPRET=1 was set before.
        dims: head_dims of attention, those of a model say; the first of them in every form.
        progress: ``progress(done, all)``, after each.

    Raises:
        ValueError: if these do not go together.
    """
    device = torch.device(device)
    dtype = _dtype(device, dtype)
    interpreted = impl == "triton" and device.type == "cpu"
    if interpreted and not backend.interprets():
        raise ValueError("Triton's kernels need a CUDA device; TRITON_INTERPRET=1 in the environment interprets them")
    if device.type == "cuda" and impl != "torch" and backend.interprets():
        raise ValueError("TRITON_INTERPRET is set, with which no kernel is compiled: unset it, or take --device cpu")
    if device.type == "cuda" and impl == "triton" and (why := backend.without_triton(device)) is not None:
        raise ValueError(f"impl='triton' is not to be had: {why}")
    if interpreted and dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter computes bfloat16 wrongly: take float32 or float16")
    size = SMALL if interpreted else FULL
    if dims:
        size = dataclasses.replace(size, head_dims=tuple(dims))
    # On CUDA nearly all of the time is compiling, which several threads do at once. The interpreter is for one.
    workers = min(_COMPILERS, os.cpu_count() or 1) if device.type == "cuda" else 1
    return list(_held(cases(size), (device, dtype, impl), workers, progress or (lambda done, count: None)))


def _held(listed, how, workers: int, progress) -> Iterator[Held]:
    """In their order."""
    if workers == 1:
        for done, case in enumerate(listed, start=1):
            yield hold(case, *how)
            progress(done, len(listed))
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting = [pool.submit(hold, case, *how) for case in listed]
            for done, _ in enumerate(as_completed(waiting), start=1):
                progress(done, len(listed))
        finally:  # interrupted, it ends with the cases that have begun
            pool.shutdown(wait=False, cancel_futures=True)
    yield from (one.result() for one in waiting)


def _dtype(device: torch.device, dtype: torch.dtype | None) -> torch.dtype:
    return dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)

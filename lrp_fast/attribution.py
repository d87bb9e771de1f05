"""`attribute`, what it returns, and how that is kept on disk."""

from __future__ import annotations

import json
import operator
import os
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from . import targets
from .files import write_atomically
from .graph import Graph, GraphSpec, transition
from .hf import check, device_of, vocabulary_size
from .memory import Memory, plan
from .rules import Rules, as_rules
from .stream import Passed, Progress, propagate
from .targets import Explained

_FORMAT = "lrp_fast.attribution/1"


@dataclass(frozen=True, eq=False)  # tensors have no one truth value to compare by
class Attribution:
    """Relevance of every hidden state for one model decision.

    Attributes:
        value: what was distributed: a logit, a logit difference, or a sum of them over positions.
        layers: (L + 1, N) relevance of node (layer, position); layer 0 is the embeddings, layer l the output of
            decoder layer l - 1. float32, float64 for a float64 model.
        input_ids: (N,) int64, the tokens that the model read, a common prefix of the target strings included.
        explained: what was explained, in words and ids.
        rules: the rule that propagated it.
        model: name of the model; of a directory given by its full path, the last part.
        tokens: N strings, as they read in the text (a leading space kept); None without a tokenizer.
        special: N flags, the tokenizer's special tokens; None without a tokenizer.
        graph: the sparse graph of the same pass, None unless it was asked for.
    """

    value: float
    layers: torch.Tensor
    input_ids: torch.Tensor
    explained: Explained
    rules: Rules
    model: str = ""
    tokens: list[str] | None = None
    special: list[bool] | None = None
    graph: Graph | None = None

    @property
    def relevance(self) -> torch.Tensor:
        """(N,) relevance of the input tokens, which is layer 0."""
        return self.layers[0]

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file, without the graph, which `Graph.save` keeps in a file of its own.

        It appears whole or not at all (written aside, then renamed).
        """
        about = {
            "format": _FORMAT,
            "value": self.value,
            "explained": asdict(self.explained),
            "rules": asdict(self.rules),
            "model": self.model,
            "tokens": self.tokens,
            "special": self.special,
        }
        tensors = {"layers": self.layers.contiguous(), "input_ids": self.input_ids.contiguous()}
        write_atomically(path, save(tensors, metadata={"lrp_fast": json.dumps(about)}))


def load(path: str | os.PathLike) -> Attribution:
    """Read what `Attribution.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no lrp_fast attribution.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no attribution at {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("lrp_fast", "{}"))
            if not isinstance(about, dict) or about.get("format") != _FORMAT:
                raise ValueError(f"{os.fspath(path)!r} is a safetensors file, but not one that Attribution.save wrote")
            return Attribution(
                value=about["value"],
                layers=file.get_tensor("layers"),
                input_ids=file.get_tensor("input_ids"),
                explained=Explained.from_dict(about["explained"]),
                rules=Rules(**about["rules"]),
                model=about["model"],
                tokens=about["tokens"],
                special=about["special"],
            )
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not a whole file that Attribution.save wrote: {error}") from error


def attribute(
    model,
    input_ids,
    target=None,
    contrast=None,
    position=-1,
    rule: str | Rules = "attnlrp",
    graph: GraphSpec | None = None,
    memory: Memory | None = None,
    tokenizer=None,
    progress: Progress | None = None,
) -> Attribution | list[Attribution]:
    """Distribute one decision of a language model over its input tokens and hidden states.

    Layer-wise relevance propagation with the AttnLRP rules (Achtibat et al., ICML 2024) from a contrast of logits, as
    in "Contrastive Attribution in the Wild" (arXiv 2604.17761). Relevance is ``x * g``, g the relevance gradient.

    Args:
        model: a ``*ForCausalLM`` of a supported family, in eval mode. It is left as it was.
        input_ids: (N,) or (1, N) token ids, or a string together with ``tokenizer``.
        target: token id, string, or None for the model's own first choice.
        contrast: what is subtracted: a token id or string, "mean" (the mean of all logits), ("top", k) (the mean of the
            k best tokens other than the target), or None for the plain logit. Strings of several tokens are compared at
            the first token where they diverge, behind their common prefix.
            A list of targets, of contrasts, or of both in pairs, explains each on the same context: the forward pass,
            and what a layer has to compute again, is then shared.
        position: the position whose next-token logits are meant, or a sequence of them, whose sum is explained.
        rule: "attnlrp", "cp", "gradient" or `lrp_fast.Rules`.
        graph: a `lrp_fast.GraphSpec`: the graph is built in the same pass and comes as ``result.graph``.
        memory: what the pass may take; None for what the machine has free. `lrp_fast.plan` says what comes of it.
        tokenizer: needed for strings; without it the result carries no token texts.
        progress: called as ``progress(phase, layers_done, layers)`` with phase "forward", then "backward".

    Returns:
        One result; for lists of targets or contrasts a list of them, in their order.

    Raises:
        ValueError, TypeError: one sentence that names the culprit and the mend, before any layer is run where possible.
        UnsupportedModuleError: if the model holds a module that no rule covers.
    """
    if graph is not None and not isinstance(graph, GraphSpec):
        raise TypeError(f"graph must be a lrp_fast.GraphSpec, not {type(graph).__name__}")
    rules = as_rules(rule)
    _check_model(model)
    ids = _read_ids(input_ids, tokenizer)
    pairs = _pairs(target, contrast)
    requests = [targets.read(*pair, tokenizer=tokenizer, vocab_size=vocabulary_size(model)) for pair in pairs]
    positions = _read_positions(position, len(ids))
    prefix = requests[0].prefix
    if any(request.prefix != prefix for request in requests):
        raise ValueError(
            "the targets and contrasts share different beginnings, which would become different prompts: explain them "
            "one by one"
        )
    if prefix:
        if positions != [len(ids) - 1]:
            raise ValueError(
                f"target {pairs[0][0]!r} and contrast {pairs[0][1]!r} begin alike, so they can only be compared behind "
                "the prompt: use position=-1, or strings that differ in their first token"
            )
        ids = torch.cat([ids, torch.tensor(prefix)])
        positions = [len(ids) - 1]
    _check_ids(ids, model)
    device = device_of(model.get_input_embeddings())
    planned = plan(model, len(ids), rule=rules, memory=memory, positions=len(positions), targets=len(requests))

    found: list[tuple[float, Explained]] = []

    def objective(logits: torch.Tensor) -> list[torch.Tensor]:
        scalars = []
        for request in requests:
            scalar, explained = targets.explain(request, logits, positions, tokenizer)
            found.append((scalar.item(), explained))
            scalars.append(scalar)
        return scalars

    if graph is not None:
        graph.check(len(planned.tiers))
    transitions: list[list] = [[] for _ in requests]

    def observe(passed: Passed) -> None:
        for layer, nodes in ((passed.layer + 1, passed.relevance_out), (passed.layer, passed.relevance_in)):
            if not nodes.isfinite().all():
                raise _not_finite(layer, model)
        transitions[passed.target].append(transition(graph, passed, found[passed.target][0]))

    relevance = propagate(
        model, ids[None].to(device), positions, objective, rules, planned, progress, observe if graph else None
    )
    texts = special = None
    if tokenizer is not None:
        texts = targets.token_texts(ids.tolist(), tokenizer)
        special_ids = targets.special_ids(tokenizer)
        special = [one in special_ids for one in ids.tolist()]
    name = getattr(model.config, "name_or_path", "")
    name = os.path.basename(name) if os.path.isabs(name) else name  # results get shared: no paths of this machine
    results = []
    for (value, explained), layers, parts in zip(found, relevance, transitions, strict=True):
        bad = (~torch.isfinite(layers)).any(-1).nonzero().flatten().tolist()
        if bad:
            raise _not_finite(bad[-1], model)
        result = Attribution(value, layers, ids, explained, rules, name, texts, special)
        results.append(result if graph is None else replace(result, graph=_graph(graph, result, parts[::-1])))
    return results if isinstance(target, list) or isinstance(contrast, list) else results[0]


def _not_finite(layer: int, model) -> ValueError:
    mend = "; load the model in float32 or bfloat16" if model.dtype == torch.float16 else ""
    return ValueError(f"relevance is not finite from layer {layer} down: {model.dtype} cannot hold it{mend}")


def _graph(spec: GraphSpec, result: Attribution, transitions: list) -> Graph:
    """The graph of the transitions, from the lowest up."""
    manifest = {
        "model": result.model,
        "rules": asdict(result.rules),
        "explained": asdict(result.explained),
        "value": result.value,
        "spec": asdict(spec),
        "versions": {name: version(name) for name in ("lrp_fast", "torch", "transformers")},
    }
    self_edges = torch.stack([own for _, _, own in transitions])
    edges = [(one, dropped) for one, dropped, _ in transitions]
    return Graph.from_transitions(result.layers, self_edges, edges, result.tokens, manifest)


def _pairs(target, contrast) -> list[tuple]:
    """Each target with its contrast."""
    if isinstance(contrast, list) and len(contrast) == 2 and contrast[0] == "top" and not isinstance(contrast[1], str):
        raise ValueError(f'contrast {contrast!r} is a list, which means several: write ("top", {contrast[1]!r})')
    several = [given for given in (target, contrast) if isinstance(given, list)]
    if any(not given for given in several):
        raise ValueError("a list of targets or contrasts must not be empty")
    count = max(map(len, several), default=1)
    if any(len(given) != count for given in several):
        raise ValueError(f"{len(target)} targets and {len(contrast)} contrasts do not pair: give as many of both")
    target, contrast = (given if isinstance(given, list) else [given] * count for given in (target, contrast))
    return list(zip(target, contrast, strict=True))


def _check_model(model) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a loaded transformers model, not {type(model).__name__}")
    name = type(model).__name__
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder model: lrp_fast explains decoder-only language models")
    if not any(base.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for base in type(model).__mro__):
        raise ValueError(f"{name} has no next-token logits to explain: load the model with AutoModelForCausalLM")
    if model.training:
        raise ValueError(f"{name} is in training mode: call model.eval() first")
    check(model)


def _read_ids(input_ids, tokenizer) -> torch.Tensor:
    if isinstance(input_ids, str):
        if tokenizer is None:
            raise ValueError("input_ids is a string: give tokenizer= with it, or token ids")
        input_ids = tokenizer.encode(input_ids)
    if hasattr(input_ids, "input_ids"):
        raise TypeError("input_ids is all that a tokenizer returned: pass its .input_ids")
    try:
        ids = torch.as_tensor(input_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"input_ids must be a LongTensor (N,) or (1, N), or a str: {error}") from error
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise ValueError(f"input_ids must be (N,) or (1, N), one prompt, not {tuple(ids.shape)}: call once a prompt")
    if len(ids) == 0:
        raise ValueError("input_ids is empty: give at least one token")
    if ids.dtype.is_floating_point or ids.dtype == torch.bool or ids.is_complex():
        raise TypeError(f"input_ids must hold whole numbers, not {ids.dtype}")
    return ids.detach().to("cpu", torch.int64)


def _check_ids(ids: torch.Tensor, model) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    wrong = ids[(ids < 0) | (ids >= rows)]
    if len(wrong):
        raise ValueError(f"input_ids holds token {int(wrong[0])}, outside the vocabulary, 0 to {rows - 1}")
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and len(ids) > longest:
        raise ValueError(f"the prompt has {len(ids)} tokens, more than the model's {longest} positions: shorten it")


def _read_positions(position, length: int) -> list[int]:
    message = f"position must be a whole number or a sequence of them, not {position!r}"
    if isinstance(position, bool | set | frozenset):
        raise TypeError(message)
    try:
        given = [operator.index(position)]
    except TypeError:
        try:
            given = [operator.index(one) for one in position]
        except TypeError as error:
            raise TypeError(message) from error
    if not given:
        raise ValueError("position is an empty sequence: name at least one position")
    for one in given:
        if not -length <= one < length:
            raise ValueError(f"position {one} is outside the prompt's {length} tokens")
    places = [one % length for one in given]
    if len(set(places)) < len(places):
        raise ValueError(f"position {position!r} names a position twice")
    return places

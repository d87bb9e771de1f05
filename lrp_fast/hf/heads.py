"""What a model puts out behind its body: logits of the next token, or of labels, and where it reads them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto as auto

from .directions import is_encoder
from .threads import here
from .walk import modules_of, without_adapters
from .weights import bias, is_offloaded, rows, shape

_TOGETHER = 32  # quantised rows may be kept in groups of so many
_OF_A_PROMPT = {*auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values(), "GenericForSequenceClassification"}
_OF_A_TOKEN = {*auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values(), "GenericForTokenClassification"}
_NAMES = ("score", "classifier")  # of the module that makes labels' logits
_FIRST, _MEANS = ("cls", "bos"), ("mean", "late")  # what ``classifier_pooling`` of ModernBERT's and EuroBERT's may be


class Head(NamedTuple):
    """What makes a model's logits.

    Attributes:
        module: what it puts out is the logits.
        size: logits of a position.
        labels: what they are of, a name each, where that is no vocabulary; None where it is.
        pools: whether a prompt has one row of logits, at a position that the model chooses (`pooled_position`).
    """

    module: nn.Module
    size: int
    labels: tuple[str, ...] | None = None
    pools: bool = False


def has_labels(model: nn.Module) -> bool:
    """Whether a model's logits are of labels: of a prompt (reward models and rerankers among them), or of a token."""
    return makes_labels(type(_core(model)))


def _core(model: nn.Module) -> nn.Module:
    """Without adapters, and as torch.compile was given it."""
    core = without_adapters(model)
    return core._modules.get("_orig_mod", core)


def makes_labels(cls: type) -> bool:
    """As `has_labels`, of a class."""
    return _is_one_of(cls, _OF_A_PROMPT) or _is_one_of(cls, _OF_A_TOKEN)


def head_of(model: nn.Module) -> Head:
    """Of a model that `check_language_model` has passed.

    Raises:
        ValueError: for labels whose logits come from nowhere that is known.
    """
    if not has_labels(model):
        module = model.get_output_embeddings()
        return Head(module, shape(module)[0])
    core = _core(model)
    module = next((getattr(core, name) for name in _NAMES if hasattr(core, name)), None)
    if module is None:
        raise ValueError(
            f"{type(core).__name__} makes the logits of its labels by none of {' and '.join(_NAMES)}, and lrp_fast "
            "knows no other name: differentiate what it puts out under lrp_fast.patched"
        )
    size = shape(module)[0] if hasattr(module, "weight") else core.config.num_labels
    named = core.config.id2label or {}
    labels = tuple(str(named.get(one, f"LABEL_{one}")) for one in range(size))
    return Head(module, size, labels, _is_one_of(type(core), _OF_A_PROMPT))


def _is_one_of(cls: type, names: set[str]) -> bool:
    return not names.isdisjoint(base.__name__ for base in cls.__mro__)


def pad_token(model: nn.Module) -> int | None:
    """The token that a model which pools takes for padding, wherever it stands; None where it knows of none."""
    return without_adapters(model).config.get_text_config().pad_token_id


def multi_label(model: nn.Module) -> bool:
    """Whether each of a model's labels is true or false by itself, as its config says."""
    return without_adapters(model).config.problem_type == "multi_label_classification"


def is_classifying_encoder(model: nn.Module) -> bool:
    """Whether a model has logits of a prompt, which it reads at the first token or at all, as encoders do."""
    return head_of(model).pools and is_encoder(without_adapters(model).config)


def reads_all_tokens(model: nn.Module) -> bool:
    """Whether a classifier takes a mean over all tokens: of their hidden states, or of logits that it makes of each."""
    return is_classifying_encoder(model) and _pooling(model) in _MEANS


def _pooling(model: nn.Module) -> str:
    core = _core(model)  # EuroBERT's keeps for itself what its config said when it was made
    return getattr(core, "classifier_pooling", getattr(core.config, "classifier_pooling", "cls"))


def pooled_position(model: nn.Module, ids: Tensor) -> int:
    """Where a model that pools reads the logits of (N,) ids: at the last token that is not its pad token, or at the
    last where it has none; at the first if all are, and of an encoder, where it stands for all that `reads_all_tokens`.
    `logits_at` holds it against what the model does."""
    if is_classifying_encoder(model):
        return 0
    pad = pad_token(model)
    if pad is None:
        return len(ids) - 1
    found = (ids != pad).nonzero()
    return int(found[-1]) if len(found) else 0


def logits_at(model: nn.Module, input_ids: Tensor, places: list[int], **beside) -> Tensor:
    """(P, V) logits at the places of (B, N) tokens alone: those of a long context would not fit. ``beside`` is for the
    model: the images of the one prompt.

    Raises:
        ValueError: for a model that reads one prompt's logits elsewhere than at the one place that is asked for.
    """
    head = head_of(model)
    if is_classifying_encoder(model):
        return _of_prompts(model, input_ids, places)
    if head.pools:
        return _before_pooling(model, input_ids, places, head, beside)
    if head.labels is None and len(input_ids) == 1 and keeps_logits(model):
        # A list: a tensor would have to lie where the last layer does.
        return model(input_ids=input_ids, use_cache=False, logits_to_keep=places, **beside).logits[0]
    with head_reads(head, places):
        return model(input_ids=input_ids, use_cache=False, **beside).logits[0]


def _before_pooling(model: nn.Module, input_ids: Tensor, places: list[int], head: Head, beside: dict) -> Tensor:
    thread, seen = here(), []

    def note(module, given, out) -> None:
        if here() is thread:
            seen.append(out)

    handle = head.module.register_forward_hook(note)
    try:
        own = model(input_ids=input_ids, use_cache=False, **beside).logits
    finally:
        handle.remove()
    name = type(_core(model)).__name__
    if seen[-1].shape[:-1] != input_ids.shape:
        raise ValueError(
            f"{name} pools what its head reads, which lrp_fast does not know: differentiate what it puts out under "
            "lrp_fast.patched"
        )
    found = seen[-1].flatten(0, 1)[places]
    if len(input_ids) == len(places) == 1 and not bool((found.isnan() | (found == own)).all()):
        raise ValueError(
            f"{name} does not read its logits at position {places[0]}, the last that is no padding, and lrp_fast knows "
            "no other: differentiate what it puts out under lrp_fast.patched"
        )
    return found


def _of_prompts(model: nn.Module, input_ids: Tensor, places: list[int]) -> Tensor:
    """Of an encoder's classifier, which stands on what its body puts out at the first token (a pooler, or layers of its
    head, between the two), or on a mean over all tokens, each of which then gets its share by plain gradients."""
    if (pooling := _pooling(model)) not in (*_FIRST, *_MEANS):
        raise ValueError(
            f"{type(_core(model)).__name__} pools its tokens in a way that lrp_fast does not know (classifier_pooling "
            f"in its config is {pooling!r}): differentiate what it puts out under lrp_fast.patched"
        )
    rows = [place // input_ids.shape[1] for place in places]
    return model(input_ids=input_ids, use_cache=False).logits[rows]


def keeps_logits(model: nn.Module) -> bool:
    """Whether a model knows what ``logits_to_keep`` means; some hand it on to their attention."""
    return "logits_to_keep" in inspect.signature(without_adapters(model).forward).parameters


@contextmanager
def head_reads(head: Head, places: list[int]) -> Iterator[None]:
    """Within the block, this thread's run of the model has logits (1, P, V), at these ``places`` of its B N hidden
    states alone: transformers' logits_to_keep means the same ones in every row."""
    thread = here()

    def choose(module, given: tuple[Tensor]):
        return (given[0].flatten(0, 1)[places][None],) if here() is thread else None

    handle = head.module.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def share_a_row(model: nn.Module, one: int, other: int) -> bool:
    """Whether the head is known to make the same logit of two tokens or labels, whatever it reads."""
    head = head_of(model).module
    if not hasattr(head, "weight") or any(map(is_offloaded, modules_of(head))):  # no one map; its weights are away
        return False
    added = bias(head)
    with torch.no_grad():
        return torch.equal(_row(head, one), _row(head, other)) and (added is None or bool(added[one] == added[other]))


def _row(head: nn.Module, token: int) -> torch.Tensor:
    start = token - token % _TOGETHER
    return rows(head)(start, min(start + _TOGETHER, shape(head)[0]))[token - start]

"""A case made into a `Scene`: its question read, and the model run on it once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import question
from ..ablation import ablate
from ..attribution import explain
from ..graph import GraphSpec
from ..hf import head_of, is_masked_language_model, reads_causally
from ..question import Question
from ..sources import divide
from ..study.cases import Case
from ..tokenizer import Tokenizer
from . import perturb
from .readings import FIELDS, check_question, reader, settled
from .scene import WHOLE, Scene
from .units import Span, units_of

GRAPH = GraphSpec(topk=16)

_UNMOVED = torch.tensor([1.0, 1.0, -1.0, 0.5])  # readings of a model that prefers the target, whatever is gone


def check_model(model: nn.Module) -> None:
    """As `question.check_model`, and ValueError for a model that writes no next token."""
    question.check_model(model)
    if head_of(model).labels is not None or is_masked_language_model(model) or not reads_causally(model):
        raise ValueError(f"evaluate asks causal language models, and {type(model).__name__} is none")


def ask(model, case: Case, tokenizer: Tokenizer | None) -> Question:
    """The case's question; its target is the model's own where none is named.

    Raises:
        ValueError, TypeError: one sentence, also of a case that is left out.
    """
    if case.left_out is not None:
        raise ValueError(case.left_out)
    asked = question.read(
        model, case.prompt, case.target, case.contrast, case.position, "gradient", tokenizer
    )
    question.refuse_images(asked, "evaluate")
    check_question(asked, model)
    return asked


def stage(
    model, case: Case, asked: Question, units: str | int, replacement: str | None, seed: int
) -> tuple[Scene, Question]:
    """The scene, and the question with its target settled."""
    given = perturb.Prompt(model, asked.ids, asked.tokenizer)
    whole = given.read(torch.ones(1, len(asked.ids), dtype=torch.bool), "zero", lambda logits: logits)[0]
    asked = settled(asked, whole)
    read = reader(asked.requests[0], whole)

    def softened(probability: Tensor, seeds: list[int]) -> Tensor:
        size = given.embedded.shape[1]

        def kept(row: int) -> Tensor:
            drawn = torch.rand(len(asked.ids), size, generator=torch.Generator().manual_seed(seeds[row]))
            return drawn < probability[row, :, None]

        return given.read_soft(kept, len(seeds), read)

    def cut(what, how: str) -> float:
        (request,) = asked.requests
        target = ("logprob", request.target) if request.logprob else request.target
        return ablate(model, asked.ids, what, how, target, request.contrast).change

    return _scene(
        case, asked, units, replacement, seed,
        run=lambda keep, stands_in: given.read(keep, stands_in, read),
        run_soft=softened,
        graph_by=lambda rules: explain(model, asked._replace(rules=rules), GRAPH, None, None, 0.0)[0],
        cut=cut,
        known={WHOLE: read(whole[None])[0]},
    ), asked  # fmt: skip


def rehearse(
    model, case: Case, asked: Question, units: str | int, replacement: str | None, seed: int
) -> tuple[Scene, list[int]]:
    """A scene that runs nothing, and the list of what its prompts would take: tokens, an entry a call.

    It answers as if the model never changed its mind, so that what stops early goes on to its end.
    """
    room, taken = perturb.room_of(model), []
    length, shared = len(asked.ids), False

    def run(keep: Tensor, stands_in: str) -> Tensor:
        nonlocal shared
        tokens = perturb.cost(keep, stands_in, room, 0 if shared else None)
        shared = shared or tokens < perturb.cost(keep, stands_in, room._replace(shares=False))
        taken.append(tokens)
        return _UNMOVED.expand(len(keep), FIELDS)

    def run_soft(probability: Tensor, seeds: list[int]) -> Tensor:
        taken.append(length * len(seeds))
        return _UNMOVED.expand(len(seeds), FIELDS)

    known = {WHOLE: _UNMOVED}
    return _scene(case, asked, units, replacement, seed, run=run, run_soft=run_soft, known=known), taken


def _scene(case: Case, asked: Question, units, replacement, seed: int, **runs) -> Scene:
    spans = units_of(units, len(asked.ids), _fixed(asked), asked.tokens)
    gold = _gold(case, asked, spans)
    return Scene(case.id, len(asked.ids), spans, replacement=replacement, gold=gold, seed=seed, **runs)


def _fixed(asked: Question) -> list[bool]:
    return asked.special or [False] * len(asked.ids)


def _gold(case: Case, asked: Question, spans: list[Span]) -> Tensor | None:
    given = case.fields.get("gold")
    if not given:
        return None
    groups = divide({"gold": given}, asked.prompt, asked.tokens, asked.tokenizer, len(asked.ids)).groups
    return torch.tensor([bool((groups[start:end] == 0).any()) for start, end in spans])

"""Why this answer and not that one: two answers behind one prompt, and the difference of their explanations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import question, targets
from .attribution import Attribution, explain
from .memory import Memory
from .ops import read_tolerance
from .rules import Rules
from .stream import Progress


@dataclass(frozen=True, eq=False)  # tensors have no one truth value to compare by
class Comparison:
    """Two answers to one prompt, each explained by itself, and what tells them apart on the tokens that they share.

    Attributes:
        value: the one answer's value less the other's.
        layers: (L + 1, S) relevance for the one answer less that for the other, of node (layer, position), for the S
            tokens that both passes read alike: the prompt, and what the answers begin with in common. float32, float64
            for a float64 model.
        answer, other: the two explanations, N tokens each of their own. What lies beyond the shared ones, there alone.
    """

    value: float
    layers: torch.Tensor
    answer: Attribution
    other: Attribution

    @property
    def relevance(self) -> torch.Tensor:
        """(S,) of the input tokens, which is layer 0."""
        return self.layers[0]

    @property
    def tokens(self) -> list[str] | None:
        """S strings; None without a tokenizer that has them."""
        texts = self.answer.tokens
        return None if texts is None else texts[: self.layers.shape[1]]


def compare_answers(
    model,
    input_ids,
    answer,
    other,
    rule: str | Rules = "attnlrp",
    memory: Memory | None = None,
    tokenizer=None,
    progress: Progress | None = None,
    tolerance: float = 0.0,
) -> Comparison:
    """Explain why a prompt is answered in one way and not in another, of answers of any lengths.

    Both stand behind the prompt in turn (teacher forcing), in a pass each, and the relevance for the second is
    subtracted from that for the first: with s(A) the sum of the logits of A's tokens, R_i = R_i(s(A)) - R_i(s(B)). What
    they share is the same in both passes, logits of a common beginning included, which cancel. Under "cp" without
    biases, and for logits, R summed over the shared tokens, and over the answers' own with their signs, is the value.

    The sums grow with an answer's length, so that a longer one has the larger logits to explain; log-probabilities make
    no longer one likelier.

    Args:
        answer, other: a string or token ids; ("logprob", answer) for log-probabilities, both or neither.
        model, input_ids, rule, memory, tokenizer, tolerance: as in `lrp_fast.attribute`.
        progress: as there, of one pass after the other.

    Raises:
        ValueError, TypeError: as `lrp_fast.attribute`; for two equal answers.
    """
    tolerance = read_tolerance(tolerance)
    if answer is None or other is None:
        raise ValueError("two answers are compared: give both, a string or token ids each")
    if targets.is_pair(answer, "logprob") != targets.is_pair(other, "logprob"):
        raise ValueError('one answer is ("logprob", ...) and the other is not: compare both by the same')
    asked = [question.read(model, input_ids, None, None, -1, rule, tokenizer, answer)]
    try:
        asked.append(question.read(model, input_ids, None, None, -1, rule, tokenizer, other))
    except (ValueError, TypeError) as error:
        raise type(error)(f"the other answer: {error}") from error
    if _ids(asked[0]) == _ids(asked[1]):
        raise ValueError(f"answer {answer!r} and other {other!r} are the same tokens: give two answers that differ")
    one, two = (explain(model, each, None, memory, progress, tolerance)[0] for each in asked)
    most = min(len(one.input_ids), len(two.input_ids))
    differs = (one.input_ids[:most] != two.input_ids[:most]).nonzero().flatten().tolist()
    shared = differs[0] if differs else most
    return Comparison(one.value - two.value, one.layers[:, :shared] - two.layers[:, :shared], one, two)


def _ids(asked: question.Question) -> list[int]:
    """The prompt with the whole answer."""
    (request,) = asked.requests
    return [*asked.ids.tolist(), request.each[-1].target]

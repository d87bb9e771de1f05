"""Relevance that arrives on generated tokens, such as a chain of thought, sent on to the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch

from . import question
from .attribution import Attribution, finished, not_finite
from .explained import Explained
from .graph.spec import whole
from .hf import device_of, has_labels, is_masked_language_model
from .memory import Memory, planned
from .ops import read_tolerance
from .question import Question
from .rules import Rules
from .stream import Progress, propagate
from .targets import check_finite

_LEAST = 1e-3  # of a position's largest |logit|: what is divided by less is what rounding and chance left of it
_NAMED = 8  # positions in one sentence


@dataclass(frozen=True, eq=False)  # tensors have no one truth value to compare by
class Hops:
    """One decision explained by what came before the generated tokens, in a first pass and H hops.

    Attributes:
        relevance: (N,) of the input tokens: what all passes brought to those that were not generated, and to the
            generated ones what is left there after the last.
        passes: (H + 1, N) relevance of the input tokens, a pass each; ``passes[0]`` is ``first.relevance``.
        values: (H + 1,) float64, what each pass explained: the decision's value, then what the pass before left on the
            generated tokens, signs counted.
        totals: (H + 1,) float64, what each pass brought to all tokens together, signs counted.
        left: (H + 1,) float64, the sum of |relevance| on the generated tokens after each pass.
        dropped: (H + 1, L) float64, the share of the attention's mass that each layer left out of the backward pass, a
            row a pass; all 0 where ``tolerance`` is. What a hop left out of the relevance that it was sent, nobody
            sends again.
        generated: their positions, ascending.
        bound: the share of the first pass's |relevance| that was allowed to stay on the generated tokens.
        first: the first pass, as `lrp_fast.attribute` has it.
    """

    relevance: torch.Tensor
    passes: torch.Tensor
    values: torch.Tensor
    totals: torch.Tensor
    left: torch.Tensor
    dropped: torch.Tensor
    generated: list[int]
    bound: float
    first: Attribution

    @property
    def settled(self) -> bool:
        """Whether ``bound`` was reached; where not, ``most`` ended the hops, and more would send on what is left."""
        return _is_settled(float(self.left[-1]), self.bound, self.passes[0])


def hops(
    model,
    input_ids,
    generated,
    target=None,
    contrast=None,
    position=-1,
    rule: str | Rules = "attnlrp",
    memory: Memory | None = None,
    tokenizer=None,
    progress: Progress | None = None,
    tolerance: float = 0.0,
    answer=None,
    bound: float = 0.01,
    most: int = 8,
) -> Hops:
    """Explain a decision by the prompt, through the tokens that the model had generated on the way to it.

    What a decision rests on is often the chain of thought before it, which the model wrote for reasons that lie in the
    prompt. So the relevance r_p of each generated token p is sent on, by explaining in turn why that token was written:
    with l_p the logit of token p at position p - 1, which predicted it, a hop explains

        s = sum_p w_p l_p,    w_p = r_p / l_p held constant,

    whose value is sum_p r_p, in one pass for all generated tokens, as a weighted sum of logits is one scalar. That is
    the sum of all the tokens' own explanations R(l_p), each scaled to r_p. What of it arrives on generated tokens,
    which lie further to the left, is sent on by the next hop, until little enough is left; after as many hops as there
    are generated tokens nothing is. (The question is FlashTrace's; the weights are made for signed relevance.)

    Conservation: under "cp", without biases and with epsilon = gamma = 0, R(l_p) sums to l_p, so that each pass brings
    to all tokens what it explains (``totals`` are ``values``), and ``relevance`` sums to the decision's value. Under
    "attnlrp" softmax absorbs relevance, under "gradient" nothing is conserved, and biases keep some under any rule:
    ``totals`` then differ from ``values``, and a hop may bring more than it was sent. The signs of r_p count: what a
    token that spoke against the decision was written for, speaks against it.

    A logit near 0 is refused (less than 1/1000 of the largest |logit| of its position), as w_p would then multiply
    contributions that cancel into anything. Log-probabilities would not mend it: theirs are 0 just where the
    model was certain, as it is of most of what it writes, and their relevance does not sum to them under any rule.
    Logits that are just large enough multiply such contributions up to a thousandfold: hops over them can bring far
    more than they were sent, and leave more and more on generated tokens. ``totals`` and ``left`` show it, and the
    mend is to leave these positions out.

    Args:
        generated: positions of the tokens that were generated, such as ``range(20, 300)``; from the end where
            negative. They count what is read of an ``answer``. Those that come after all that is explained receive
            nothing. Position 0 is none: nothing predicted it.
        answer, target, contrast, position, model, input_ids, rule, memory, tokenizer, tolerance: as in
            `lrp_fast.attribute`, for one decision.
        progress: as there, of one pass after another.
        bound: hops end when the sum of |relevance| on generated tokens is at most this share of all |relevance| of the
            first pass.
        most: hops at most; where they end them above the bound, ``settled`` is False.

    Raises:
        ValueError, TypeError: as `lrp_fast.attribute`; for positions that cannot have been generated, and, before
            anything is propagated, generated tokens whose logits are near 0.
    """
    tolerance = read_tolerance(tolerance)
    most = whole(most, "most must be a whole number")
    if most < 0:
        raise ValueError(f"most must be 0 or more hops, not {most}")
    if isinstance(bound, bool) or not isinstance(bound, Real):
        raise TypeError(f"bound must be a number, not {bound!r}")
    if not 0 <= bound < 1:
        raise ValueError(f"bound must be a share, at least 0 and below 1, not {bound!r}")
    if has_labels(model) or is_masked_language_model(model):
        what = "labels" if has_labels(model) else "masked tokens"
        raise ValueError(
            f"{type(model).__name__} gives the logits of {what}, and generates no tokens for hops to go over: take "
            "lrp_fast.attribute"
        )
    asked = question.read(model, input_ids, target, contrast, position, rule, tokenizer, answer)
    if asked.several:
        raise TypeError("hops explains one decision: call it once for each target and contrast")
    generated = sorted(question.read_positions(generated, len(asked.ids), "generated"))
    if generated[0] == 0:
        raise ValueError("generated names position 0, which no token before it predicted: leave it out")

    reached = [place for place in generated if place <= max(asked.positions)]
    first = _first(model, asked, reached, memory, progress, tolerance)
    passes = [first.relevance]
    values = [first.value]
    left = [_absolute(first.relevance[generated])]
    dropped = [first.dropped]
    while len(passes) <= most and not _is_settled(left[-1], bound, first.relevance):
        sending = [place for place in reached if passes[-1][place] != 0]
        received = passes[-1][sending].double()
        relevance, shares = _hop(model, asked, sending, received, memory, progress, tolerance)
        passes.append(relevance)
        dropped.append(shares)
        values.append(float(received.sum()))
        left.append(_absolute(passes[-1][generated]))

    found = torch.stack(passes)
    kept = found.to(torch.float64, copy=True)
    kept[:-1, generated] = 0.0
    return Hops(
        relevance=kept.sum(0).to(found.dtype),
        passes=found,
        values=torch.tensor(values, dtype=torch.float64),
        totals=found.double().sum(1),
        left=torch.tensor(left, dtype=torch.float64),
        dropped=torch.stack(dropped),
        generated=generated,
        bound=float(bound),
        first=first,
    )


def _is_settled(left: float, bound: float, first: torch.Tensor) -> bool:
    return left <= bound * _absolute(first)


def _first(model, asked: Question, reached: list[int], memory, progress, tolerance: float) -> Attribution:
    """The decision's own explanation; refuses what no hop could divide by while no layer has propagated anything."""
    found: list[tuple[float, Explained]] = []
    count = len(asked.positions)

    def objective(logits: torch.Tensor) -> list[torch.Tensor]:
        check_finite(logits)
        scalars = asked.objective(found)(logits[:count])
        known = logits[count:].detach()
        own = known.gather(1, asked.ids[reached].to(known.device)[:, None]).squeeze(1).abs()
        near = (own <= _LEAST * known.abs().amax(1)).tolist()
        if any(near):
            raise _near_0([place for place, one in zip(reached, near, strict=True) if one])
        return scalars

    places = [*asked.positions, *(place - 1 for place in reached)]
    layers, dropped = _passed(model, asked, places, objective, memory, progress, tolerance)
    return finished(model, asked, *found[0], layers, dropped, tolerance, None, [])


def _near_0(places: list[int]) -> ValueError:
    if len(places) == 1:
        return ValueError(
            f"the generated token at position {places[0]} has a logit near 0, over which no relevance can be divided: "
            f"leave position {places[0]} out of generated"
        )
    named = ", ".join(map(str, places[:_NAMED]))
    named += f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return ValueError(
        f"{len(places)} generated tokens, at positions {named}, have logits near 0, over which no relevance can be "
        "divided: leave them out of generated"
    )


def _hop(model, asked: Question, sending: list[int], received, memory, progress, tolerance: float):
    """(N,) relevance of the input tokens for the tokens at ``sending``, in shares of what they ``received``; and (L,)
    float64, what each layer left out of the attention's mass."""

    def objective(logits: torch.Tensor) -> list[torch.Tensor]:
        own = logits.gather(1, asked.ids[sending].to(logits.device)[:, None]).squeeze(1)
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        weights = received.to(own.device) / own.detach().double()
        return [(weights.to(own.dtype) * own).sum()]

    places = [place - 1 for place in sending]
    layers, dropped = _passed(model, asked, places, objective, memory, progress, tolerance)
    bad = (~layers.isfinite()).any(-1).nonzero().flatten().tolist()
    if bad:
        raise not_finite(bad[-1], model)
    return layers[0], dropped


def _passed(model, asked: Question, places: list[int], objective, memory, progress, tolerance: float):
    plan = planned(model, len(asked.ids), asked.rules, memory, positions=len(places), tolerance=tolerance)
    ids = asked.ids[None].to(device_of(model.get_input_embeddings()))
    ((layers, dropped),) = propagate(model, ids, places, objective, asked.rules, plan, progress, images=asked.images)
    return layers, dropped


def _absolute(relevance: torch.Tensor) -> float:
    return float(relevance.double().abs().sum())

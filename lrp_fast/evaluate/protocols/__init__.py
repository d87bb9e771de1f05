"""How faithful scores are to what the model does: one file a protocol, with its exact definition and its paper.

A protocol's ``run`` takes a method's (N,) scores, signed, higher where a token speaks for the target over the
contrast, and a `lrp_fast.evaluate.Scene`, and gives measures (floats) and curves (lists of floats) by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from . import (
    agreement,
    contextcite,
    disrupt_recover,
    flip,
    graph_cuts,
    mas,
    morf_lerf,
    naopc,
    recovery,
    soft,
)


class Protocol(NamedTuple):
    """What measures scores.

    Attributes:
        run: called with (N,) scores and a scene; a dict of floats and of lists of floats.
        better: of measures whether "higher" or "lower" ones are better, the one to judge by first; others describe.
        prompts: of a protocol whose prompts `lrp_fast.evaluate.plan` cannot count by running it without a model: how
            many it runs, whole ones, of a case.
    """

    run: Callable
    better: Mapping[str, str]
    prompts: int | None = None


PROTOCOLS: dict[str, Protocol] = {
    "flip": Protocol(flip.flip, flip.BETTER),
    "morf_lerf": Protocol(morf_lerf.morf_lerf, morf_lerf.BETTER),
    "naopc": Protocol(naopc.naopc, naopc.BETTER),
    "mas": Protocol(mas.mas, mas.BETTER),
    "disrupt_recover": Protocol(disrupt_recover.disrupt_recover, disrupt_recover.BETTER),
    "recovery": Protocol(recovery.recovery, recovery.BETTER),
    "agreement": Protocol(agreement.agreement, agreement.BETTER),
    "contextcite": Protocol(contextcite.contextcite, contextcite.BETTER),
    "soft": Protocol(soft.soft, soft.BETTER),
    "graph_cuts": Protocol(graph_cuts.graph_cuts, graph_cuts.BETTER, graph_cuts.PROMPTS),
}

__all__ = ["PROTOCOLS", "Protocol"]

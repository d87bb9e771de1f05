"""Hops as plain data, and as plain text for a terminal."""

from __future__ import annotations

import numpy as np

from ..files import without_infinity
from ..hops import Hops
from . import record
from .table import headline, strongest_tokens


def as_json(found: Hops) -> dict:
    """The record of the first pass, and what all passes brought.

    A token's ``relevance`` is that of all passes, ``first`` that of the first one alone. ``passes`` says of each what
    it explained, what it brought to all tokens, the |relevance| that it left on generated ones, and what each layer
    left out of its backward pass. ``settled`` is whether that |relevance| came down to ``bound`` of the first pass's.
    """
    told = record.as_json(found.first)
    generated = set(found.generated)
    for token, relevance in zip(told["tokens"], found.relevance.tolist(), strict=True):
        first, token["relevance"] = token["relevance"], relevance
        token |= {"first": first, "generated": token["position"] in generated}
    passes = [one | {"dropped": shares} for one, shares in zip(_passes(found), found.dropped.tolist(), strict=True)]
    ended = {"bound": found.bound, "settled": found.settled}
    return told | {"generated": found.generated, "passes": passes} | ended


def table(found: Hops, top: int = 10) -> str:
    """What was explained, a row a pass, why they ended, and the ``top`` tokens that were not generated.

    Of bounded passes a row also says what share of the attention's mass was left out. Ends without a newline.
    """
    num_nodes, num_tokens = found.first.layers.shape
    own = np.ones(num_tokens, bool)
    own[found.generated] = False
    lines = [*headline(found.first, num_nodes - 1, num_tokens), ""]
    bounded = found.first.tolerance > 0
    lines.append("pass      explained      brought         left" + "  left out  at most" * bounded)
    rows = zip(map(dict.values, _passes(found)), found.dropped, strict=True)
    for hop, ((explained, brought, left), shares) in enumerate(rows):
        name = f"hop {hop}" if hop else "first"
        row = f"{name:6}  {explained:+#11.4g}  {brought:+#11.4g}  {left:#11.4g}"
        lines.append(row + (f"  {100 * shares.mean():6.2g} %  {100 * shares.max():5.2g} %" if bounded else ""))
    lines += ["", "brought: the relevance of all tokens together; left: |relevance| on the generated ones"]
    if bounded:
        lines.append("left out: of the attention's mass, the layers' mean, and at most in one of them")
    lines += [_ended(found), ""]
    return "\n".join([*lines, *strongest_tokens(found.first, found.relevance.double().numpy(), top, own)])


def _ended(found: Hops) -> str:
    hops, total = len(found.values) - 1, float(found.passes[0].double().abs().sum())
    share = float(found.left[-1]) / total if total else 0.0
    said = f"after {hops} hop{'' if hops == 1 else 's'}, {share:.2g} of the first pass's |relevance| is left: "
    if found.settled:
        return said + f"the bound, {found.bound:g}, is reached"
    return said + f"the bound, {found.bound:g}, is not reached, and more hops (--most) would send it on"


def _passes(found: Hops) -> list[dict]:
    columns = (found.values.tolist(), found.totals.tolist(), found.left.tolist())
    names = ("explained", "brought", "left")
    return [without_infinity(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]

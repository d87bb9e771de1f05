"""An attribution as plain text for a terminal. Control characters of a token, note or name are always escaped."""

from __future__ import annotations

import unicodedata

import numpy as np

from .._native import topk_magnitude
from ..attribution import Attribution
from ..explained import Explained, Term, Token
from ..sources import Sources
from .record import bounded_words, candidate_words, contrast_words, finite, rule_words, value_words

_BAR = 10  # signs in the longest bar
_TOKEN = 28  # columns of a token, quotes included
_TERMS = 12  # terms printed one by one


def table(result: Attribution, top: int = 10) -> str:
    """What was explained, and the ``top`` input tokens, and sources, of greatest |relevance|. Ends without a newline.

    Special tokens are listed apart and left out of the shares: attention sinks among them would dwarf the text. To a
    source they belong like others.

    Raises:
        ValueError: if ``top`` is negative, or a relevance is NaN or infinite.
    """
    if top < 0:
        raise ValueError(f"top must be >= 0, not {top}")
    relevance = finite(result.layers)[0].double().numpy()  # (N,)
    num_nodes, num_tokens = result.layers.shape
    lines = [*headline(result, num_nodes - 1, num_tokens), "", *strongest_tokens(result, relevance, top)]
    if result.sources is not None:
        lines += ["", *_sources(result.sources, top)]
    return "\n".join(lines)


def strongest_tokens(result: Attribution, relevance: np.ndarray, top: int, of: np.ndarray | None = None) -> list[str]:
    """Rows of the ``top`` input tokens by ``relevance`` (N,) float64, special ones apart; (N,) bool: of these alone."""
    special = np.zeros(len(relevance), bool) if result.special is None else np.array(result.special, bool)
    mine = np.ones(len(relevance), bool) if of is None else of
    ordinary, special = mine & ~special, mine & special
    total = float(np.abs(relevance[ordinary]).sum())
    lines = _rows(result, relevance, _strongest(relevance, np.flatnonzero(ordinary), top), total)
    whose = f"the {ordinary.sum()} tokens that are not special" if special.any() else _count(int(mine.sum()), "token")
    lines += ["", f"share: of the summed |relevance| of {whose}, {total:#.4g}"]
    if special.any():
        lines += ["", f"special tokens, {int(special.sum())} in all, together {relevance[special].sum():+#.4g}:"]
        lines += _rows(result, relevance, _strongest(relevance, np.flatnonzero(special), min(top, 3)), None)
    return lines


def best_table(explained: Explained, whose: str = "") -> str:
    """The best next tokens, or labels, at the last of the explained positions, of which model in words. Ends without a
    newline."""
    last, words = explained.terms[-1], candidate_words(explained)
    heading = f"rank  {_pad(explained.of, _TOKEN)}       id     logit"
    lines = [f"best {words.several}{whose} {words.at} position {last.position}", "", heading]
    target = None if explained.kind == "function" else last.target
    for token in explained.best:
        role = "target" if _same(token, target) else "contrast" if _same(token, last.contrast) else ""
        row = f"{token.rank + 1:4d}  {_pad(_name(token), _TOKEN)}  {token.id:7d}  {token.logit:8.3f}  {role}"
        lines.append(row.rstrip())
    return "\n".join(lines)


def headline(told, layers: int, tokens: int) -> list[str]:
    """What was explained, of which model, by which rule, by an `Attribution` or a graph's `About`."""
    about = [_printable(told.model), f"rule {rule_words(told.rules)}", size(layers, tokens)]
    lines = [*question(told.explained, told.value), ", ".join(part for part in about if part)]
    if bounded := bounded_words(told):
        lines.append(bounded)
    return lines + note(told.explained)


def note(explained: Explained) -> list[str]:
    return [f"note: {_printable(explained.note)}"] if explained.note else []


def question(explained: Explained, value: float) -> list[str]:
    """What was asked, and what it comes to."""
    terms = explained.terms
    what, several = value_words(explained)
    words = candidate_words(explained)
    if explained.kind == "function":
        where = f"{words.at} " + ", ".join(str(term.position) for term in terms[:_TERMS])
        where += f" and {len(terms) - _TERMS} more positions" if len(terms) > _TERMS else ""
        lines = [f"Why this value of a {what} {where}?", f"value {value:+#.4g}"]
    elif len(terms) == 1:
        lines = [f"Why {_against(explained, terms[0])} {words.at} position {terms[0].position}?"]
        lines.append(f"{what} {_sum(value, terms[0])}")
    else:
        lines = [f"Why these {len(terms)} {words.several}? The sum of their {several} is {value:+#.4g}:"]
        for term in terms[:_TERMS]:
            own = term.target.logit - (term.contrast_logit or 0.0)
            lines.append(f"  {words.at} {term.position}: {_against(explained, term)}  {_sum(own, term)}")
        if len(terms) > _TERMS:
            lines.append(f"  and {len(terms) - _TERMS} more")
    return lines


def size(layers: int, tokens: int) -> str:
    return f"{_count(tokens, 'token')}, {_count(layers, 'layer')}"


def _against(explained: Explained, term: Term) -> str:
    """``' Paris' rather than ' London'``, or the target alone for a plain logit."""
    contrast = _name(term.contrast) if term.contrast else contrast_words(explained)
    return f"{_name(term.target)} rather than {contrast}" if contrast else _name(term.target)


def _sum(value: float, term: Term) -> str:
    """``+2.37 = 18.2 - 15.83 (rank 1 against rank 4)``; of a log-probability the log of the sum is subtracted."""
    if term.contrast_logit is None:
        return f"{value:+#.4g} (rank {term.target.rank + 1})"
    minus = f"{term.contrast_logit:#.4g}" if term.contrast_logit >= 0 else f"({term.contrast_logit:#.4g})"
    rank = f"rank {term.target.rank + 1}" + (f" against rank {term.contrast.rank + 1}" if term.contrast else "")
    return f"{value:+#.4g} = {term.target.logit:#.4g} - {minus} ({rank})"


def _strongest(relevance: np.ndarray, positions: np.ndarray, k: int) -> list[int]:
    """The ``k`` of ``positions`` with the greatest |relevance|, ties by lower position."""
    values = relevance[positions]
    values = values / (np.abs(values).max(initial=0.0) or 1.0)  # a float64 relevance may lie beyond float32's range
    return positions[topk_magnitude(values.astype(np.float32), min(k, len(values)))].tolist()


def _rows(result: Attribution, relevance: np.ndarray, positions: list[int], total: float | None) -> list[str]:
    """A heading and a row per position; without a share where ``total`` is None, and without a heading then."""
    peak = max((abs(relevance[i]) for i in positions), default=0.0)
    lines = [] if total is None else [f"rank  position  {_pad('token', _TOKEN)}    relevance     share"]
    for rank, i in enumerate(positions, start=1):
        text = repr(result.tokens[i]) if result.tokens else f"#{int(result.input_ids[i])}"
        value = relevance[i] + 0.0  # no -0
        share = "" if total is None else f"{100 * (abs(value) / total):5.2f} %" if total > 0 else "-"
        bar = ("+" if value > 0 else "-") * round(_BAR * (abs(value) / peak)) if peak > 0 else ""
        lines.append(f"{rank:4d}  {i:8d}  {_pad(text, _TOKEN)}  {value:+#11.4g}  {share:>8}  {bar}".rstrip())
    return lines


def _sources(sources: Sources, top: int) -> list[str]:
    found = sources.top(top)
    peak = max((abs(relevance) for _, relevance, _ in found), default=0.0)
    lines = [f"rank  {'tokens':>8}  {_pad('source', _TOKEN)}    relevance  |relevance|"]
    for rank, (name, value, size) in enumerate(found, start=1):
        text, value = _pad(_printable(name), _TOKEN), value + 0.0  # no -0
        bar = ("+" if value > 0 else "-") * round(_BAR * (abs(value) / peak)) if 0 < peak < np.inf else ""
        count = len(sources.positions(name))
        lines.append(f"{rank:4d}  {count:8d}  {text}  {value:+#11.4g}  {size:#11.4g}  {bar}".rstrip())
    return [*lines, "", f"sums over the tokens of {_count(len(sources.names), 'source')}, special ones included"]


def _name(token: Token) -> str:
    """The token quoted and escaped, its id where there is no text."""
    return f"#{token.id}" if token.text is None else repr(token.text)


def _same(token: Token, other: Token | None) -> bool:
    return other is not None and token.id == other.id


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _printable(text: str) -> str:
    """``text`` with controls, line ends, bidirectional overrides and the like escaped, as `repr` does it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _pad(text: str, width: int) -> str:
    """``text`` filled or cut to ``width`` terminal columns."""
    text = cut(text, width)
    return text + " " * (width - sum(map(_columns, text)))


def cut(text: str, width: int) -> str:
    """``text``, or its beginning and three dots, in at most ``width`` terminal columns."""
    if sum(map(_columns, text)) <= width:
        return text
    kept = 0
    while sum(map(_columns, text[: kept + 1])) <= width - 3:
        kept += 1
    return text[:kept] + "..."


def _columns(char: str) -> int:
    """Terminal columns of one character: wide ones take two, combining ones none."""
    return 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1

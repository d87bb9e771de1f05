"""What a notebook shows of an attribution and of a graph: static fragments of HTML, bounded in size.

No script, no style sheet, no other host. Text keeps the notebook's own colour, on grounds that let it through, so that
it is read in the light and in the dark.
"""

from __future__ import annotations

from html import escape

import numpy as np

from ..attribution import Attribution
from ..graph import Graph
from ..graph.export import dropped
from . import graph as graph_report
from .record import finite
from .table import headline

_TOKENS = 1000  # shown at most
_AROUND = 8  # tokens shown on either side of a strong one
_TOKEN = 40  # characters of a token
_LINE = 500  # characters of any other line
_PATHS = 5
_WORK = 200_000_000  # edges and nodes that counts and paths of a graph may look at, a fraction of a second

_POSITIVE, _NEGATIVE, _OPAQUE = "#cf5316", "#2a71b5", 0xA6  # the strongest token's ground
_BOX = "font:13px/1.5 system-ui,sans-serif;max-width:60em;overflow-wrap:anywhere"
_MONO = "font-family:ui-monospace,Menlo,Consolas,monospace"
_SOFT = "opacity:.7;font-size:12px"


def attribution(result: Attribution) -> str:
    """What was explained, and the prompt's tokens coloured by signed relevance.

    Special tokens are grey, and left out of the scale. Of more than 1,000 tokens those around the strongest are shown.

    Raises:
        ValueError: if a relevance is NaN or infinite.
    """
    relevance = finite(result.layers)[0].double().numpy()
    num_tokens = len(relevance)
    special = np.zeros(num_tokens, bool) if result.special is None else np.array(result.special, bool)
    magnitude = np.where(special, 0.0, np.abs(relevance))
    peak = float(magnitude.max())
    explained = {term.position for term in result.explained.terms}
    shown = _shown(magnitude, sorted(explained))

    spans, before = [], -1
    for i in np.flatnonzero(shown).tolist():
        if i > before + 1:
            spans.append(_left_out(i - before - 1))
        text = str(int(result.input_ids[i])) if result.tokens is None else _visible(result.tokens[i])
        spans.append(_token(i, text, relevance[i], peak, special[i], i in explained))
        before = i
    if before < num_tokens - 1:
        spans.append(_left_out(num_tokens - 1 - before))

    head = headline(result, len(result.layers) - 1, num_tokens)
    between = " " if result.tokens is None else ""
    scroll = f"{_MONO};white-space:pre-wrap;max-height:30em;overflow:auto;margin:.5em 0;padding:.3em 0"
    return _box(
        [*_head(head), f'<div style="{scroll}">{between.join(spans)}</div>', _legend(magnitude, shown, special)]
    )


def graph(graph: Graph) -> str:
    """What was explained, counts, what was dropped, and the best paths, these two where they are cheap."""
    positive, negative = dropped(graph)
    rows = {"edges stored": f"{len(graph.columns):,}"}
    paths = []
    cheap = graph.num_layers * (len(graph.columns) + graph.nodes.numel()) <= _WORK
    if cheap:
        counts = graph_report.counts(graph)
        rows = {
            "nodes with edges": f"{counts['nodes']:,}",
            "edges": f"{counts['edges']:,}, of them between tokens {counts['crossing']:,}",
            "sum of |weight|": f"{counts['mass']:#.4g}",
        }
        try:
            paths = graph.paths(_PATHS)
        except ValueError:  # no node of the last layer holds relevance
            paths = []
    rows["dropped"] = f"{positive:+#.4g} and {negative:+#.4g}"
    cell = "text-align:left;padding:0 1.2em 0 0;border:0;background:none;vertical-align:top"
    table = "".join(
        f'<tr style="background:none"><td style="{cell};opacity:.7;white-space:nowrap">{name}</td>'
        f'<td style="{cell}">{escape(value)}</td></tr>'
        for name, value in rows.items()
    )
    found = [*_head(graph_report.head(graph)), f'<table style="border:0;margin:.5em 0;font-size:13px">{table}</table>']
    if not cheap:
        words = "The graph is too large for its paths to be looked for here: prune it, or ask for graph.paths."
        return _box([*found, f'<div style="{_SOFT}">{words}</div>'])
    if not paths:
        return _box([*found, f'<div style="{_SOFT}">No path leads from an input token to what is explained.</div>'])
    found.append(f'<div style="{_SOFT}">Best paths: share, then position, token and layers, from the input up</div>')
    for path in paths:
        line = escape(_cut(f"{100 * path.share:4.1f} %  {graph_report.steps(graph, path)}", _LINE))
        found.append(f'<div style="{_MONO};white-space:pre-wrap;padding-left:7ch;text-indent:-7ch">{line}</div>')
    return _box(found)


def _box(parts: list[str]) -> str:
    return f'<div style="{_BOX}">{"".join(parts)}</div>'


def _head(lines: list[str]) -> list[str]:
    """The question in bold, the answer below, then softly the model, the rule and the note."""
    styles = ["font-size:15px;font-weight:600", *[""] * (len(lines) - 1)]
    return [
        f'<div style="{style}">{escape(_cut(line, _LINE))}</div>' for style, line in zip(styles, lines, strict=True)
    ]


def _shown(magnitude: np.ndarray, explained: list[int]) -> np.ndarray:
    """(N,) bool: all tokens, or the explained ones and the strongest, with their neighbours, 1,000 at most."""
    shown = np.zeros(len(magnitude), bool)
    if len(magnitude) <= _TOKENS:
        return ~shown
    strongest = np.argsort(-magnitude, kind="stable")[:_TOKENS]
    room = _TOKENS
    for i in [*explained[-10:], *strongest.tolist()]:
        around = slice(max(i - _AROUND, 0), i + _AROUND + 1)
        more = int((~shown[around]).sum())
        if more > room:
            break
        shown[around] = True
        room -= more
    return shown


def _token(i: int, text: str, relevance: float, peak: float, special: bool, explained: bool) -> str:
    opaque = 0 if special or peak == 0 else round(_OPAQUE * (abs(relevance) / peak))
    styles = []
    if special:
        styles.append("background:#8883;opacity:.65")
    elif opaque:
        styles.append(f"background:{_POSITIVE if relevance > 0 else _NEGATIVE}{opaque:02x}")
    if explained:
        styles.append("text-decoration:underline 2px;text-underline-offset:4px")
    style = f' style="{";".join(styles)}"' if styles else ""
    about = ", special, outside the scale" if special else ", explained here" if explained else ""
    return f'<span title="position {i}: {relevance + 0.0:+#.4g}{about}"{style}>{escape(text)}</span>'


def _left_out(count: int) -> str:
    return f'<span style="{_SOFT}"> [{count:,} token{"s" * (count > 1)} left out] </span>'


def _legend(magnitude: np.ndarray, shown: np.ndarray, special: np.ndarray) -> str:
    peak = float(magnitude.max())
    ends = f"{_NEGATIVE}{_OPAQUE:02x},transparent,{_POSITIVE}{_OPAQUE:02x}"
    ramp = f"display:inline-block;width:7em;height:.8em;margin:0 .5em;background:linear-gradient(90deg,{ends})"
    nothing = f"no token {'that is not special ' * bool(special.any())}holds relevance"
    words = [f'{-peak:#.3g}<span style="{ramp}"></span>{peak:+#.3g}' if peak else nothing]
    if special.any():
        words.append(f"{int(special.sum()):,} special, grey and outside the scale")
    if not shown.all():
        parts = magnitude / peak if peak else magnitude  # whose sum is finite
        share = f", with {100 * parts[~shown].sum() / parts.sum():.1f} % of the summed |relevance|" if peak else ""
        words.append(f"{int(shown.sum()):,} of {len(shown):,} tokens shown{share} left out")
    return f'<div style="{_SOFT}">{" · ".join(words)}</div>'


def _visible(text: str) -> str:
    """A token with a sign for each character that could not be seen or would reorder what stands around it."""
    cut = _cut(text, _TOKEN)
    if not cut:
        return "\u2205"
    joins = len(cut) > 1
    return "".join(char if char.isprintable() or (joins and char in "\u200c\u200d") else _sign(char) for char in cut)


def _sign(char: str) -> str:
    return {"\n": "\u21b5\n", "\t": "\u21e5\t"}.get(char, f"U+{ord(char):04X}")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\u2026"

"""One attribution as one page: no server, no other file, no other host."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import torch

from ..attribution import Attribution
from ..files import write_atomically
from .record import finite, page_head

Pair = tuple[str, str]

MOST_BYTES = 64 << 20  # of a page of several explanations: a browser has to hold it


def write_html(result: Attribution | list[Attribution], path: str | os.PathLike) -> None:
    """Write ``result`` as a self-contained page to ``path``: whole or not at all. Of several, as an answer ``by_token``
    gives them, the reader chooses one on the page.

    Raises:
        ValueError: if a relevance is NaN or infinite; for an empty list, and for several that take more than 64 MiB.
    """
    if isinstance(result, Attribution):
        return write_atomically(path, case_page(result))
    if not result:
        raise ValueError("there is nothing to show: the list of results is empty")
    size = sum(len(embedded(one.layers[:1].numpy(), "<f4")) * len(one.layers) for one in result)
    if size > MOST_BYTES:
        raise ValueError(
            f"a page of these {len(result)} explanations takes {size >> 20} MiB, more than the {MOST_BYTES >> 20} that "
            "one may: write fewer of them"
        )
    write_page("page", {"choices": [_page_data(one) for one in result]}, path)


def case_page(result: Attribution, links: Sequence[Pair] = (), facts: Sequence[Pair] = ()) -> bytes:
    """The page of one that stands among others: with ``links``, (text, address beside this page), to where else the
    reader may go, and with (name, text) of further ``facts`` in its head."""
    return as_page("page", _page_data(result) | {"links": links, "facts": facts})


def write_page(name: str, data: dict, path: str | os.PathLike) -> None:
    """Write `as_page`, whole or not at all."""
    write_atomically(path, as_page(name, data))


def as_page(name: str, data: dict) -> bytes:
    """The page of ``name``.html, .css and .js, with what they share, around ``data``. Pictures in it are in ``data``
    too, at "figures"."""
    parts = templates(name)
    # The policy names the only style and the only script that may act, by hash, and forbids every request. Should a
    # token ever find a way out of the data block, the browser would still neither run nor fetch what it brought.
    parts["policy"] = f"default-src 'none'; style-src {_hash(parts['css'])}; script-src {_hash(parts['js'])}"
    if "figures" in data:
        parts["policy"] += "; img-src data:"
    parts["data"] = _embeddable(data)
    # In one pass, so that a token that reads {{js}} stays a token.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], parts.pop("html"))
    return page.encode("utf-8")


@functools.cache
def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def templates(name: str) -> dict[str, str]:
    """What a page is made of, but for its data: the "html", "css" and "js" of ``name``, with what pages share."""
    parts = {kind: _source(f"common.{kind}") + _source(f"{name}.{kind}") for kind in ("css", "js")}
    return parts | {"html": _source(f"{name}.html")}


def _page_data(result: Attribution) -> dict:
    """What page.js reads. The (L + 1, N) relevances are little-endian float32 in base64: 5.3 bytes each, exact."""
    layers = finite(finite(result.layers).to(torch.float32)).contiguous()
    return page_head(result) | {
        "ids": result.input_ids.tolist(),
        "tokens": result.tokens,
        "special": [i for i, flag in enumerate(result.special or []) if flag],
        "num_layers": layers.shape[0] - 1,
        "layers": embedded(layers.numpy(), "<f4"),
        "sources": result.sources and result.sources.names,
        "source_of": result.sources and embedded(result.sources.groups.numpy(), "<i4"),
    }


def embedded(values: np.ndarray, dtype: str) -> str:
    """An array as base64; ``dtype`` with its byte order, which the page's script takes to be little-endian."""
    return base64.b64encode(values.astype(dtype).tobytes()).decode("ascii")


def _embeddable(data: dict) -> str:
    """JSON in ASCII without < > &: it cannot end its script element, nor hold a lone surrogate or U+2028."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

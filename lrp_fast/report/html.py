"""One attribution as one page: no server, no other file, no other host."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from importlib.resources import files

import numpy as np
import torch

from ..attribution import Attribution
from ..files import write_atomically
from .record import finite, page_head


def write_html(result: Attribution, path: str | os.PathLike) -> None:
    """Write ``result`` as a self-contained page to ``path``: whole or not at all.

    Raises:
        ValueError: if a relevance is NaN or infinite.
    """
    write_page("page", _page_data(result), path)


def write_page(name: str, data: dict, path: str | os.PathLike) -> None:
    """Write the page of ``name``.html, .css and .js, with what they share, around ``data``."""
    parts = {kind: _source(f"common.{kind}") + _source(f"{name}.{kind}") for kind in ("css", "js")}
    # The policy names the only style and the only script that may act, by hash, and forbids every request. Should a
    # token ever find a way out of the data block, the browser would still neither run nor fetch what it brought.
    parts["policy"] = f"default-src 'none'; style-src {_hash(parts['css'])}; script-src {_hash(parts['js'])}"
    parts["data"] = _embeddable(data)
    # In one pass, so that a token that reads {{js}} stays a token.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _source(f"{name}.html"))
    write_atomically(path, page.encode("utf-8"))


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _page_data(result: Attribution) -> dict:
    """What page.js reads. The (L + 1, N) relevances are little-endian float32 in base64: 5.3 bytes each, exact."""
    layers = finite(finite(result.layers).to(torch.float32)).contiguous()
    return page_head(result) | {
        "ids": result.input_ids.tolist(),
        "tokens": result.tokens,
        "special": [i for i, flag in enumerate(result.special or []) if flag],
        "num_layers": layers.shape[0] - 1,
        "layers": embedded(layers.numpy(), "<f4"),
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

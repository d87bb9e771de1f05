"""Made-up attributions: reports show numbers, they do not care where those come from."""

import html
import re
import shutil
import subprocess
from dataclasses import asdict

import pytest
import torch

from lrp_fast.attribution import Attribution
from lrp_fast.explained import Explained, Term, Token
from lrp_fast.graph import Edges, Graph
from lrp_fast.rules import Rules

# What a tokenizer, or a text that wants to harm, may hand over.
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "-->",
    "{{js}}",
    "&lt;b&gt;",
    "\"'`\\",
    "\u2028",
    "\u2029",
    "\x00",
    "\x1b[31mred\x07",
    "\x9b2J",
    "\u202edetrevo",
    "\u2066",
    "\ud800",
    "\ufffe",
    "\r\n",
    "\t",
    "",
    " ",
    "🙂",
    "日本語",
    "مرحبا",
]


@pytest.fixture
def hostile():
    return list(HOSTILE)


@pytest.fixture
def candidates():
    """Ten next tokens, best first."""
    texts = [" Paris", " London", " the", " Lyon", " a", " located", " Rome", "\n", " ", "."]
    return [Token(1000 + rank, text, 18.25 - rank, rank) for rank, text in enumerate(texts)]


@pytest.fixture
def attribution(candidates):
    """``attribution(tokens, relevance=None, kind="difference", positions=(-1,), special=None, num_layers=3, ...)``."""

    def build(
        tokens, relevance=None, kind="difference", positions=(-1,), special=None, num_layers=3, note="", model="a/model"
    ):
        num_tokens = tokens if isinstance(tokens, int) else len(tokens)
        layers = torch.randn(num_layers + 1, num_tokens, generator=torch.Generator().manual_seed(0))
        if relevance is not None:
            layers[0] = torch.tensor(relevance)
        target, runner_up, contrast = candidates[0], candidates[1], None
        contrast_logit = {"difference": candidates[3].logit, "mean": -1.5, "top": 13.75, "logprob": 18.5}.get(kind)
        if kind == "difference":
            contrast = candidates[3]
        terms = [Term(position % num_tokens, target, contrast, contrast_logit, runner_up) for position in positions]
        return Attribution(
            value=len(terms) * (target.logit - (contrast_logit or 0.0)),
            layers=layers,
            input_ids=torch.arange(num_tokens) + 7,
            explained=Explained(kind, terms, candidates, note, others=2 if kind == "top" else None),
            rules=Rules("attnlrp", epsilon=1e-6),
            model=model,
            tokens=None if isinstance(tokens, int) else tokens,
            special=special,
        )

    return build


@pytest.fixture
def body_of(tmp_path):
    """``body_of(page, link="")``: a page's body after its script has run, its own data and script taken out."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium")

    def load(page, link=""):
        done = subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri() + link],
            capture_output=True, encoding="utf-8", errors="replace", timeout=120, check=True,
        )  # fmt: skip
        assert "CONSOLE" not in done.stderr, done.stderr  # an exception, or something that the policy forbade
        body = re.sub(r"<(script|style)\b.*?</\1>", "", done.stdout, flags=re.S)
        assert not re.search(r"NaN|undefined|Infinity|\[object", body)
        return body

    return load


@pytest.fixture
def text():
    """``text(body, name)``: of the element with this id, which must hold no element of its own kind."""

    def find(body, name):
        tag, content = re.search(rf'<(\w+)[^>]* id="{name}"[^>]*>(.*)', body, re.S).groups()
        return html.unescape(re.sub("<[^>]*>", "", content.split(f"</{tag}>")[0]))

    return find


@pytest.fixture
def graph_of(attribution):
    """``graph_of(edges, tokens, num_layers=3, **more)``: the graph of an attribution, with (layer, source, target,
    weight) for edges, those from a position to itself as self edges. ``more`` goes to ``attribution``."""

    def build(edges, tokens, num_layers=3, dropped=(0.0, 0.0), **more):
        result = attribution(tokens, num_layers=num_layers, **more)
        num_tokens = len(result.input_ids)
        explained = [term.position for term in result.explained.terms]
        result.layers[-1, [i for i in range(num_tokens) if i not in explained]] = 0
        own, transitions = torch.zeros(num_layers, num_tokens), []
        for layer in range(num_layers):
            dense = torch.zeros(num_tokens, num_tokens)
            for at, source, target, weight in edges:
                if at == layer and source == target:
                    own[layer, source] = weight
                elif at == layer:
                    dense[target, source] = weight
            found = Edges(
                torch.arange(num_tokens).int(),
                torch.cat([torch.zeros(1, dtype=torch.int64), (dense != 0).sum(1).cumsum(0)]),
                dense.nonzero()[:, 1].int(),
                dense[dense != 0],
            )
            lost = torch.zeros(num_tokens, 2)
            lost[0] = torch.tensor(dropped) / num_layers
            transitions.append((found, lost))
        manifest = {"explained": asdict(result.explained), "rules": asdict(result.rules)}
        manifest |= {"value": result.value, "model": result.model}
        return Graph.from_transitions(result.layers, own, transitions, result.tokens, manifest)

    return build

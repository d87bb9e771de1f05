"""Made-up attributions: reports show numbers, they do not care where those come from."""

import pytest
import torch

from lrp_fast.attribution import Attribution
from lrp_fast.rules import Rules
from lrp_fast.targets import Explained, Term, Token

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
        contrast_logit = {"logit": None, "difference": candidates[3].logit, "mean": -1.5, "top": 13.75}[kind]
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

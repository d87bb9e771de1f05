"""Other packages on short prompts, each with the method that it has, explaining the logit of one token.

Two threads, 6 minutes. AttnLRP and gradient x input are held against ours in float64. Integrated gradients and
FlashTrace's flow are other methods, which nothing here defines: Captum's and inseq's integrated gradients are held
against each other, and the flow counts unchecked. Zennit has rules for single maps, see bench_linear.py; batch packing
is in bench_graph.py.
"""

import prompts
import pytest
import turns
from bench_attribution import BOUND
from turns import Reference

TURNS = {128: 3, 512: 2}
STEPS = 8  # of integrated gradients
# name: peer, call, what is given beside the prompt, what it is held against
CASES = {
    "forward": ("ours", "forward", {}, None),
    "ours": ("ours", "attribute", {}, "float64"),
    "ours, gradient": ("ours", "attribute", {"rule": "gradient"}, "gradient, float64"),
    "gradient x input": ("ours", "gradient", {}, "gradient, float64"),
    "Captum, gradient x input": ("captum", "input_x_gradient", {}, "gradient, float64"),
    "inseq, gradient x input": ("inseq", "input_x_gradient", {}, "gradient, float64"),
    "Captum, integrated gradients": (
        "captum", "integrated_gradients", {"steps": STEPS}, "inseq, integrated gradients"),
    "inseq, integrated gradients": (
        "inseq", "integrated_gradients", {"steps": STEPS}, "Captum, integrated gradients"),
    "FlashTrace, its flow": ("flashtrace", "flow", {}, None),
    "FlashTrace, AttnLRP": ("flashtrace", "attnlrp", {}, "float64"),
    "autoLRP, AttnLRP": ("autolrp", "attnlrp", {}, "float64"),
    "autoLRP, CP-LRP": ("autolrp", "cp", {}, "cp, float64"),
}  # fmt: skip


def pytest_generate_tests(metafunc):
    lengths = {64: 2} if metafunc.config.getoption("--tiny") else TURNS
    given = [
        pytest.param(tokens, turn, case, id=f"{tokens}-{case}-turn{turn}")
        for tokens, number in lengths.items()
        for turn in range(number)
        for case in CASES
        if turn == 0 or "integrated" not in case  # they take a pass for each step
    ]
    metafunc.parametrize(("tokens", "turn", "case"), given)


def test_peers(request, contender, tokenizer, tokens, turn, case):
    group = f"peers, {tokens} tokens"
    peer, call, given, held = CASES[case]
    # Some of them take text: it has to give the same tokens again.
    ids = prompts.reread(tokenizer, prompts.needle(tokenizer, tokens)["ids"])
    asked = {"ids": ids, "target": prompts.answers(tokenizer)["target"]} | given
    if held and held.endswith("float64"):
        rule = held.removesuffix("float64").removesuffix(", ") or "attnlrp"
        named = {"ids": ids, "target": asked["target"], "rule": rule}
        request.config.stash[turns.KEY].reference(group, held, "ours", "attribute", named, dtype="float64")
    contender(group, case, peer, call, asked, against=held and Reference(held, BOUND), tokens=len(ids))

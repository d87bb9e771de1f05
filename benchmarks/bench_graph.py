"""Attribution with a graph against attribution alone, and all edges of one transition against backward passes of 16
targets at a time. Two threads, 3 minutes."""

import prompts
import pytest
import torch
from bench_attribution import BOUND
from transformers import AutoModelForCausalLM
from turns import KEY, Reference

import lrp_fast
from lrp_fast import hf, ops

SPECS = {"alone": None, "topk 16": {"topk": 16}, "mass 0.85": {"mass": 0.85}}
TOKENS, TRANSITION = 2048, 512
BATCH = 16


def pytest_generate_tests(metafunc):
    tiny = metafunc.config.getoption("--tiny")
    if metafunc.function is test_graph:
        cases, number = SPECS, 2 if tiny else 3
    else:  # batch packing takes half a minute
        cases, number = ("closed form", "batch packing"), 2
    given = [pytest.param(turn, case, id=f"{case}-turn{turn}") for turn in range(number) for case in cases]
    metafunc.parametrize(("turn", "case"), given)


def test_graph(request, contender, tokenizer, turn, case):
    """The graph changes no relevance."""
    tokens = 64 if request.config.getoption("--tiny") else TOKENS
    asked = prompts.needle(tokenizer, tokens)
    held = None if case == "alone" else Reference("alone", BOUND)
    given = asked | {"graph": SPECS[case]}
    contender(f"graph, {tokens} tokens", case, "ours", "attribute", given, against=held)


@pytest.fixture(scope="module")
def layer(request, tokenizer):
    """The middle layer under attnlrp as called with the prompt, its input, and a relevance gradient at its output."""
    tokens = 64 if request.config.getoption("--tiny") else TRANSITION
    model = AutoModelForCausalLM.from_pretrained(
        request.config.stash[KEY].directory("smollm2"), dtype=torch.float32
    ).eval()
    layer = hf.decoder_layers(model)[model.config.num_hidden_layers // 2]
    calls = []
    handle = layer.register_forward_pre_hook(lambda _, args, named: calls.append((args, named)), with_kwargs=True)
    with lrp_fast.patched(model), torch.no_grad():
        model(torch.tensor([prompts.needle(tokenizer, tokens)["ids"]]), use_cache=False, logits_to_keep=1)
        handle.remove()
    (h, *rest), named = calls[0]

    def run(leaf):
        output = layer(leaf, *rest, **named)
        return output[0] if isinstance(output, tuple) else output

    return model, layer, run, h.detach(), torch.randn(h.shape, generator=torch.Generator().manual_seed(0))


def test_transition(timed, layer, turn, case):
    """(n, n) relevance that each of the layer's inputs hands to each of its outputs."""
    model, module, run, h, g = layer
    n = h.shape[1]
    traces, leaf = [], h.detach().requires_grad_()
    with lrp_fast.patched(model):
        with hf.attending(module, traces):
            whole = torch.autograd.grad(run(leaf), leaf, g)[0]

        ((trace,),) = traces

        def closed_form():
            own = ops.node_relevance(h, whole)[0] - ops.crossing(trace)
            return own, ops.attention_edges(trace, torch.arange(n), topk=n)

        def batch_packing():
            rows = []
            for targets in torch.arange(n).split(BATCH):
                copies = h.repeat(len(targets), 1, 1).requires_grad_()
                only = torch.zeros_like(copies)
                only[torch.arange(len(targets)), targets] = g[0, targets]
                passed = torch.autograd.grad(run(copies), copies, only)[0]
                rows.append(ops.node_relevance(h, passed))
            return torch.cat(rows)

        def matrix(result):
            if case == "batch packing":
                return result.flatten().tolist()
            own, found = result
            dense = torch.diag(own)
            dense[torch.repeat_interleave(torch.arange(n), found.counts), found.columns.long()] += found.weights
            return dense.flatten().tolist()

        other = {"closed form": "batch packing", "batch packing": "closed form"}[case]
        call, warm_ups = (closed_form, 2) if case == "closed form" else (batch_packing, 0)
        timed(f"transition, {n} tokens", case, call, against=Reference(other, BOUND), numbers=matrix, warm_ups=warm_ups,
              batch=BATCH)  # fmt: skip

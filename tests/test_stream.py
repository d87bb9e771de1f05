"""The streamed pass: the same numbers whatever waits where, less rounding in 16 bits, and nothing left behind."""

import copy
import importlib
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

import lrp_fast
from lrp_fast import Memory, Rules, attribute, patched
from lrp_fast.memory import Plan
from lrp_fast.stream import propagate

RULES = ["attnlrp", "cp", "gradient", Rules("attnlrp", 0.01, 0.1, 0.01, 0.1)]
FEW_RULES = ["attnlrp", Rules("cp", 0.01, 0.1, 0.01, 0.1)]


def run(model, ids, tiers, rows, rule="attnlrp", progress=None):
    """Node relevance of two targets at two positions, with the tiers given by hand."""
    working = {"cpu": 1 << 30}  # enough to have the heap tidied
    plan = Plan(ids.shape[1], tuple(tiers), rows, {}, working, {}, {}, 0, 0, 0, 0)
    rule = Rules(rule) if isinstance(rule, str) else rule
    found = propagate(model, ids, [22, 5], lambda z: [z[0, 3] - z[1, 4], z[0, 7]], rule, plan, progress)
    return [nodes for nodes, _ in found]


@pytest.mark.shows("streaming")
def test_every_tier_gives_the_numbers_of_a_graph_that_stays(family, rule, tiny, ids):
    model = tiny(family, torch.float64)
    truth = run(model, ids, ["graph"] * 3, 23, rule)
    placed = ((["file", "host", "graph"], 5), (["host"] * 3, 23), (["file"] * 3, 22), (["device"] * 3, 1))
    for tiers, rows in placed if rule in RULES else placed[:1]:
        for found, expected in zip(run(model, ids, tiers, rows, rule), truth, strict=True):
            assert found.dtype == torch.float64 and found.shape == (4, 23)
            assert (found - expected).abs().max() <= 1e-12 * expected.abs().max(), (tiers, rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe", "gpt_oss"])
def test_several_prompts_are_the_single_ones(family, tiny, ids):
    """In every tier; an MLP's parts of 5 tokens lie across the prompts, and behind the shorter one is anything."""
    model = tiny(family, torch.float64)
    batch = torch.cat([ids, ids.flip(1)])
    alone = [run(model, ids, ["graph"] * 3, 23)[1], propagated(model, ids.flip(1)[:, :17], [16], ["graph"] * 3, 17)[0]]
    for tiers, rows in ((["graph"] * 3, 46), (["file", "host", "graph"], 5), (["host"] * 3, 46)):
        found = propagated(model, batch, [22, 23 + 16], tiers, rows, lengths=[23, 17])
        for one, truth in zip(found, alone, strict=True):
            assert one.shape == truth.shape and (one - truth).abs().max() <= 1e-12 * truth.abs().max(), (tiers, rows)


def propagated(model, ids, positions, tiers, rows, **given):
    """Node relevance of the logits of token 7 at these positions of one or several prompts."""
    plan = Plan(ids.shape[1], tuple(tiers), rows, {}, {"cpu": 1}, {}, {}, 0, 0, 0, 0)
    return [nodes for nodes, _ in propagate(model, ids, positions, lambda z: [z[:, 7].sum()], Rules(), plan, **given)]


@pytest.mark.shows("streaming")
def test_a_small_budget_changes_nothing_but_rounding(family, tiny, ids):
    model = tiny(family)
    tight = Memory(host_budget=lrp_fast.plan(model, 23).least["cpu"])
    small = attribute(model, ids, target=3, contrast=5, memory=tight)
    large = attribute(model, ids, target=3, contrast=5)
    assert set(lrp_fast.plan(model, 23).tiers) == {"graph"}
    assert "graph" not in lrp_fast.plan(model, 23, memory=tight).tiers
    assert small.value == large.value
    assert (small.layers - large.layers).abs().max() <= 1e-5 * large.layers.abs().max()


@pytest.mark.parametrize("tier", ["host", "file"])
def test_float16_loses_nothing_of_small_gradients(tier, tiny, ids):
    """Targets of 2**-20 times the size have 2**-20 times the relevance, to about as many digits, and edges that fit.

    48 of them, because the error of one is a matter of luck: with other roundings it may be twice as large.
    """
    model = tiny("llama", torch.float16)
    twin = copy.deepcopy(model).double()
    plan = Plan(23, (tier,) * 3, 23, {}, {"cpu": 1}, {}, {}, 0, 0, 0, 0)

    def differences(logits):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return [logits[0, i] - logits[0, i + 1] for i in range(0, 96, 2)]

    def run_at(size, model=model):
        crossed = []

        def observe(passed):
            through = lrp_fast.ops.layer_crossing(passed.mixings)
            crossed.append(through / passed.raised / size)

        def objective(logits):
            return [size * difference for difference in differences(logits)]

        found = propagate(model, ids, [22], objective, Rules(), plan, None, observe)
        return torch.stack([nodes for nodes, _ in found]) / size, torch.stack(crossed)

    # Until the first layer raises them, gradients are rounded twice, as they leave the head and the norm. Times 2**8,
    # they are off there by up to 2**-25 where they are subnormal; its square in the mean is a third of that.
    states = []
    with patched(twin), twin.model.norm.register_forward_hook(lambda _, given, out: states.extend((*given, out))):
        parts = differences(twin(ids).logits[:, 22])
    entering = [torch.stack([torch.autograd.grad(part, x, retain_graph=True)[0] for part in parts]) for x in states]
    relative = sum(1 / (3 * g[:, 0, 22].square().mean()) for g in entering).sqrt()

    truth, _ = run_at(1, twin)
    nodes, crossed = run_at(1)
    own = (nodes - truth).norm()
    for size in (2.0**-20, 2.0**7):
        found, through = run_at(size)
        subnormal = 2**-25 / (2**8 * size) * relative * truth.norm()
        assert (found - truth).norm() <= own + subnormal
        assert (through - crossed).norm() <= own + subnormal


def test_float16_loses_nothing_of_a_small_gradient_beside_a_large_one(tiny, ids):
    """Each prompt's gradients are raised by what they need: the neighbour's size, a power of two, costs not a bit."""
    model = tiny("llama", torch.float16)
    truth_of = copy.deepcopy(model).double()
    plan = Plan(23, ("host",) * 3, 46, {}, {"cpu": 1}, {}, {}, 0, 0, 0, 0)
    pairs = range(0, 96, 4)

    def objective(logits):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        quiet, loud = logits
        return [2.0**-10 * (quiet[i] - quiet[i + 1]) + loud_by * (loud[i] - loud[i + 1]) for i in pairs]

    def quiet(model):
        found = propagate(model, torch.cat([ids, ids]), [22, 45], objective, Rules(), plan)
        return torch.stack([nodes for nodes, _ in found[::2]]) * 2.0**10

    loud_by = 2.0**-10
    truth, beside_its_like = quiet(truth_of), quiet(model)
    loud_by = 2.0**4
    beside_a_loud_one = quiet(model)
    assert torch.equal(beside_a_loud_one, beside_its_like)
    assert (beside_its_like - truth).norm() <= 0.02 * truth.norm()


def test_sixteen_bits_keep_a_float32_residual_stream(tiny):
    """Streamed, a bfloat16 model's relevance is nearer to the truth than through its own 16-bit gradients.

    The layers add little to what passes them by, so that rounding this, layer by layer, is the larger error.
    """
    model = tiny("llama", torch.bfloat16, num_hidden_layers=16)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data /= 64
        layer.mlp.down_proj.weight.data /= 64
    truth = copy.deepcopy(model).float()
    streamed = direct = 0.0
    for seed in range(4):
        ids = torch.randint(0, 97, (1, 23), generator=torch.Generator().manual_seed(seed))
        expected = attribute(truth, ids, target=3, contrast=5, position=range(23)).relevance
        found = attribute(model, ids, target=3, contrast=5, position=range(23))
        assert found.layers.dtype == torch.float32
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        with patched(model):
            logits = model(inputs_embeds=x).logits[0].float()
            value = (logits[:, 3] - logits[:, 5]).sum()
            value.backward()
        assert found.value == value.item()
        streamed += (found.relevance - expected).norm() / expected.norm()
        direct += ((x.detach().float() * x.grad.float()).sum(-1)[0] - expected).norm() / expected.norm()
    assert streamed < 0.5 * direct, (streamed, direct)


@pytest.mark.parametrize("rows", [23, 5])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"])
def test_a_replayed_token_keeps_its_experts_in_16_bits(family, rows, tiny, ids, monkeypatch):
    """Experts in pairs between which rounding decides: a float32 residual stream would choose others of some pairs."""
    setting = "num_local_experts" if family in ("mixtral", "gpt_oss") else "num_experts"
    model, generator = tiny(family, torch.bfloat16, **{setting: 64}), torch.Generator().manual_seed(0)
    for router in (module for module in model.modules() if hasattr(module, "top_k") and hasattr(module, "weight")):
        with torch.no_grad():
            router.weight[32:] = router.weight[:32] * (1 + 2**-8 * torch.randn(32, 64, generator=generator).sign())
            if hasattr(router, "bias"):
                router.bias[32:] = router.bias[:32]
    calls, mixed = {}, lrp_fast.hf.experts._mixed

    def noting(experts, x, chosen, *rest):
        calls.setdefault(experts, []).append(chosen)
        return mixed(experts, x, chosen, *rest)

    monkeypatch.setattr(lrp_fast.hf.experts, "_mixed", noting)
    run(model, ids, ["host"] * 3, rows)
    parts = -(-23 // rows)
    for first, again in ((chosen[:parts], chosen[parts:]) for chosen in calls.values()):
        assert again
        for chosen in again:
            assert any(chosen.shape == one.shape and torch.equal(chosen, one) for one in first)


def test_several_targets_are_the_single_ones(tiny, ids):
    model = tiny("llama", torch.float64)
    together = attribute(model, ids, target=[3, 4, None], contrast=[5, None, "mean"], position=[3, 22])
    assert isinstance(together, list) and len(together) == 3
    for result, (target, contrast) in zip(together, [(3, 5), (4, None), (None, "mean")], strict=True):
        single = attribute(model, ids, target=target, contrast=contrast, position=[3, 22])
        assert result.value == single.value and result.explained == single.explained
        assert (result.layers - single.layers).abs().max() <= 1e-12 * single.layers.abs().max()
    one = attribute(model, ids, target=[3], contrast=5)
    assert [type(result).__name__ for result in one] == ["Attribution"]
    shared = attribute(model, ids, target=3, contrast=[5, 6])
    assert [result.explained.terms[0].contrast.id for result in shared] == [5, 6]


def test_a_shared_context_runs_forward_once(tiny, ids):
    model, calls = tiny("llama"), []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    attribute(model, ids, target=[3, 4, 5])
    handle.remove()
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("target", "contrast", "message"),
    [([], None, "must not be empty"), ([1, 2], [3], "do not pair"), (None, [], "must not be empty")],
)
def test_lists_that_do_not_fit_are_refused(target, contrast, message, tiny, ids):
    with pytest.raises(ValueError, match=message):
        attribute(tiny("llama"), ids, target=target, contrast=contrast)


HOOKS = {
    "mlp output": lambda model: model.model.layers[1].mlp.register_forward_hook(lambda m, a, o: o * (o > 0)),
    "layer output": lambda model: model.model.layers[1].register_forward_hook(
        lambda m, a, o: torch.where(o > 0, o, torch.zeros_like(o))
    ),
    "steering": lambda model: model.model.layers[1].register_forward_pre_hook(lambda m, a: (a[0] + 1.0, *a[1:])),
    "scaled input": lambda model: model.model.layers[1].register_forward_pre_hook(
        lambda m, a: (a[0] * torch.linspace(0.5, 1, a[0].shape[1], dtype=a[0].dtype)[:, None], *a[1:])
    ),
    "one token": lambda model: model.model.layers[1].mlp.gate_proj.register_forward_hook(
        lambda m, a, o: torch.cat([o[:, :6], o[:, 6:] * 2], 1)
    ),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_others_count_once_and_whole(hook, tiny, ids):
    model = tiny("llama", torch.float64)
    plain = run(model, ids, ["graph"] * 3, 23)[1]
    HOOKS[hook](model)
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with patched(model):
        model(inputs_embeds=x).logits[0, 22, 7].backward()
    truth = (x.detach() * x.grad).sum(-1)[0]
    assert (plain[0] - truth).abs().max() > 1e-3 * truth.abs().max(), "the hook does nothing here"
    for tier in ("graph", "file"):
        found = run(model, ids, [tier] * 3, 4)[1]
        assert (found[0] - truth).abs().max() <= 1e-12 * truth.abs().max(), tier


class Stop(BaseException):
    """As KeyboardInterrupt, but the test runner does not take it for its own."""


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("tier", ["graph", "host", "file"])
def test_an_interruption_leaves_the_model_as_it_was(phase, tier, tiny, ids):
    model = tiny("llama")

    def state():
        return [(sorted(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]

    def stop(now, done, layers):
        if (now, done) == (phase, 2):
            raise Stop

    before, expected = state(), run(model, ids, [tier] * 3, 7)
    with pytest.raises(Stop):
        run(model, ids, [tier] * 3, 7, progress=stop)
    assert state() == before
    assert all(map(torch.equal, run(model, ids, [tier] * 3, 7), expected))


def test_a_call_from_within_is_refused(tiny, ids):
    model = tiny("llama")
    with pytest.raises(RuntimeError, match="called again, or out of turn, while the model was explained"):
        run(model, ids, ["host"] * 3, 7, progress=lambda *_: model(ids))


def test_an_error_within_a_layer_leaves_the_model_as_it_was(tiny, ids):
    model = tiny("llama")
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    before = [sorted(m.__dict__) for m in model.modules()]
    with pytest.raises(ZeroDivisionError):
        run(model, ids, ["host"] * 3, 7)
    assert torch.is_grad_enabled() and [sorted(m.__dict__) for m in model.modules()] == before
    handle.remove()


def test_nobody_waits_for_a_layer_before_the_next_has_been_told(tiny, ids, monkeypatch):
    """On CUDA a wait at every layer leaves the device without work. No more than one layer is ahead, though."""
    order = []

    class Sent:
        def __init__(self, x):
            self.x, self.number = x, len([one for one in order if one.startswith("sent")])
            order.append(f"sent {self.number}")

        def arrived(self):
            order.append(f"arrived {self.number}")
            return self.x

    expected = attribute(tiny("llama"), ids, target=3, contrast=5).layers
    monkeypatch.setattr(importlib.import_module("lrp_fast.stream"), "send", Sent)
    assert torch.equal(attribute(tiny("llama"), ids, target=3, contrast=5).layers, expected)
    assert order[:7] == ["sent 0", "sent 1", "arrived 0", "sent 2", "arrived 1", "sent 3", "arrived 2"]
    assert order[7:] == [f"arrived {layer}" for layer in range(4)]


def test_progress_tells_every_layer_of_both_phases(tiny, ids):
    for tier in ("graph", "file"):
        told = []
        run(tiny("llama"), ids, [tier] * 3, 7, progress=lambda *now, told=told: told.append(now))
        assert told == [("forward", i, 3) for i in (1, 2, 3)] + [("backward", i, 3) for i in (0, 1, 2, 3)]


KILLED = """
    import signal, sys, torch, transformers, lrp_fast
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background, it is ignored
    config = transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=97,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    def wait(phase, done, layers):
        if (phase, done) == ("backward", 1):
            print("ready", flush=True)
            sys.stdin.readline()
    budget = lrp_fast.plan(model, 500).least["cpu"]
    memory = lrp_fast.Memory(host_budget=budget, offload_dir=sys.argv[1])
    lrp_fast.attribute(model, torch.arange(500) % 97, memory=memory, progress=wait)
    print("done", flush=True)
"""


@pytest.mark.parametrize("how", ["kill", "interrupt", "finish"])
def test_files_go_however_the_process_ends(how, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, text=True, **pipes)
    assert process.stdout.readline() == "ready\n"
    held = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{process.pid}/fd")]
    assert any(str(tmp_path) in path for path in held), "nothing was offloaded: the test shows nothing"
    if how == "finish":
        assert process.communicate("\n", timeout=60)[0] == "done\n"
    else:
        process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode != 0 or how == "finish"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_hundred_thousand_tokens(capfd):
    """Two narrow layers at N = 100,000: peak memory above the model within 3 x the stored layer inputs + 0.5 GB."""
    code = """
        import sys; sys.path.insert(0, "benchmarks")
        import torch, transformers, lrp_fast
        from memory import peak_above
        config = transformers.LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1, head_dim=16,
            intermediate_size=512, vocab_size=97, max_position_embeddings=100_000,
        )
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
        ids = torch.randint(0, 97, (100_000,), generator=torch.Generator().manual_seed(1))
        small = lrp_fast.Memory(host_budget=lrp_fast.plan(model, 4096).least["cpu"])
        assert "graph" not in lrp_fast.plan(model, 4096, memory=small).tiers
        one, two = (lrp_fast.attribute(model, ids[:4096], memory=memory) for memory in (None, small))
        assert (one.layers - two.layers).abs().max() <= 1e-5 * one.layers.abs().max()
        memory = lrp_fast.Memory(host_budget=lrp_fast.plan(model, 100_000).least["cpu"])
        assert "graph" not in lrp_fast.plan(model, 100_000, memory=memory).tiers
        result, peak = peak_above(lambda: lrp_fast.attribute(model, ids, memory=memory))
        inputs = 2 * 100_000 * 32 * 4
        assert peak <= 3 * inputs + 500_000_000 < lrp_fast.plan(model, 100_000).peak["cpu"], peak  # that of the graphs
        assert torch.isfinite(result.layers).all() and result.layers.abs().sum() > 0
        print(peak)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)

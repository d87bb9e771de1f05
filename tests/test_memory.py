"""Plans and budgets: what they promise is what is then allocated."""

import sys
import weakref
from collections import Counter

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lrp_fast
import lrp_fast.store
from lrp_fast import GraphSpec, Memory, Rules, attribute, plan, question
from lrp_fast.ops import attention_bounded
from lrp_fast.packing import explain_together
from lrp_fast.store import Heap


class Allocated(TorchDispatchMode):
    """Bytes of the storages that are alive, without the model's; ``peak`` is the most there was."""

    def __init__(self, model):
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
        self.alive, self.peak = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.device.type != "meta":
                storage = x.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata, None)
                    self.peak = max(self.peak, self.alive.total())
        return out


def model(**config):
    settings = {
        "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
        "intermediate_size": 700, "vocab_size": 97, "max_position_embeddings": 4096,
    } | config  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()


SHAPES = {
    "llama": {},
    "wide mlp": {"intermediate_size": 2000},
    "all heads": {"num_key_value_heads": 8},
    "one key head": {"num_key_value_heads": 1, "head_dim": 64},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("tier", ["graph", "host", "file"])
def test_what_is_allocated_is_what_was_planned(shape, rule, tier, monkeypatch):
    """Within 15 %, the heap's own loss aside (benchmarks/bench_attribution.py measures the process as a whole)."""
    monkeypatch.setattr(lrp_fast.store, "_BLOCK", 0)
    monkeypatch.setattr(lrp_fast.reckoning, "_heap_loss", lambda size, context: 1.0)
    subject, tokens = model(**SHAPES[shape]), 1024
    ids = torch.randint(0, 97, (tokens,), generator=torch.Generator().manual_seed(0))
    least = plan(subject, tokens, rule=rule).least["cpu"]
    stored = tokens * 4 * (256 + subject.config.num_attention_heads * (subject.config.head_dim + 1))
    memory = Memory(host_budget={"graph": None, "host": least + 6 * stored, "file": least}[tier])
    planned = plan(subject, tokens, rule=rule, memory=memory)
    assert set(planned.tiers) == {tier}
    with Allocated(subject) as allocated:
        attribute(subject, ids, target=3, contrast=5, rule=rule, memory=memory)
    # cp's score tiles weigh more beside so few features than in any real model.
    assert allocated.peak == pytest.approx(planned.peak["cpu"], rel=0.15 if rule == "attnlrp" else 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bounded_pass_takes_what_was_planned(dtype, monkeypatch):
    monkeypatch.setattr(lrp_fast.store, "_BLOCK", 0)
    monkeypatch.setattr(lrp_fast.reckoning, "_heap_loss", lambda size, context: 1.0)
    monkeypatch.setattr(attention_bounded, "worth", lambda *_: 1.0)  # whatever it saves
    subject, given = model().to(dtype), {"tolerance": 0.3}
    ids = torch.randint(0, 97, (1024,), generator=torch.Generator().manual_seed(0))
    memory = Memory(host_budget=plan(subject, 1024, **given).least["cpu"])
    planned = plan(subject, 1024, memory=memory, **given)
    with Allocated(subject) as allocated:
        result = attribute(subject, ids, target=3, contrast=5, memory=memory, **given)
    assert result.dropped[:-1].min() > 0  # of the last layer few rows carry relevance
    assert allocated.peak == pytest.approx(planned.peak["cpu"], rel=0.2)


@pytest.mark.parametrize("spec", [None, GraphSpec(topk=40)], ids=["alone", "with a graph"])
@pytest.mark.parametrize("tier", ["graph", "host", "file"])
def test_prompts_in_one_pass_take_what_was_planned(tier, spec, monkeypatch):
    monkeypatch.setattr(lrp_fast.store, "_BLOCK", 0)
    monkeypatch.setattr(lrp_fast.reckoning, "_heap_loss", lambda size, context: 1.0)
    subject, prompts, tokens = model(), 4, 256
    ids = torch.randint(0, 97, (prompts, tokens), generator=torch.Generator().manual_seed(0))
    given = {"positions": prompts, "prompts": prompts, "graph": spec}
    least = plan(subject, tokens, **given).least["cpu"]
    stored = prompts * tokens * 4 * (256 + 8 * (32 + 1))
    memory = Memory(host_budget={"graph": None, "host": least + 6 * stored, "file": least}[tier])
    planned = plan(subject, tokens, memory=memory, **given)
    assert set(planned.tiers) == {tier}
    questions = [question.read(subject, one, 3, 5, -1, "attnlrp", None) for one in ids]
    with Allocated(subject) as allocated:
        explain_together(subject, questions, spec, planned, None, 0.0)
    assert allocated.peak == pytest.approx(planned.peak["cpu"], rel=0.2)


def test_the_operations_of_prompts_in_one_pass_are_theirs():
    alone, together = (plan(model(), 300, prompts=count, positions=count) for count in (1, 5))
    for name in ("forward_flops", "replay_flops", "backward_flops"):
        assert getattr(together, name) == 5 * getattr(alone, name)


def falcon():
    settings = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_kv_heads": 2}
    config = transformers.FalconConfig(**settings, new_decoder_architecture=True, vocab_size=97)
    return transformers.FalconForCausalLM(config).eval()


@pytest.mark.parametrize("build", [lambda: model(attention_bias=True), falcon], ids=["biases", "falcon"])
@pytest.mark.parametrize("rule", ["attnlrp", "cp", "gradient", Rules("cp", epsilon=0.1)])
def test_a_graph_of_layers_that_run_up_to_their_attention_again(build, rule, monkeypatch):
    """See `hf.contributions`. Of plain gradients the plan counts a quarter more than an MLP takes."""
    monkeypatch.setattr(lrp_fast.store, "_BLOCK", 0)
    monkeypatch.setattr(lrp_fast.reckoning, "_heap_loss", lambda size, context: 1.0)
    subject, given = build(), {"rule": rule, "graph": GraphSpec(topk=40)}
    memory = Memory(host_budget=plan(subject, 1024, **given).least["cpu"])
    planned = plan(subject, 1024, memory=memory, **given)
    with Allocated(subject) as allocated:
        attribute(subject, torch.arange(1024) % 97, target=3, contrast=5, memory=memory, **given)
    assert allocated.peak == pytest.approx(planned.peak["cpu"], rel=0.26 if rule == "gradient" else 0.2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("tier", ["graph", "file"])
def test_a_graph_takes_what_was_planned(shape, rule, tier, monkeypatch):
    monkeypatch.setattr(lrp_fast.store, "_BLOCK", 0)
    monkeypatch.setattr(lrp_fast.reckoning, "_heap_loss", lambda size, context: 1.0)
    subject, spec = model(**SHAPES[shape]), GraphSpec(topk=40)
    ids = torch.randint(0, 97, (1024,), generator=torch.Generator().manual_seed(0))
    least = plan(subject, 1024, rule=rule, graph=spec).least["cpu"]
    memory = Memory(host_budget={"graph": None, "file": least}[tier])
    planned = plan(subject, 1024, rule=rule, memory=memory, graph=spec)
    assert set(planned.tiers) == {tier}
    with Allocated(subject) as allocated:
        attribute(subject, ids, target=3, contrast=5, rule=rule, memory=memory, graph=spec)
    assert allocated.peak == pytest.approx(planned.peak["cpu"], rel=0.2)


@pytest.mark.parametrize("room", ["for all", "for a part"])
def test_edges_that_wait_for_their_share_of_the_mass_were_planned(room, monkeypatch):
    """Where all of them have room, three tenths of what is there at that time; few are chosen."""
    monkeypatch.setattr(lrp_fast.store, "_BLOCK", 0)
    monkeypatch.setattr(lrp_fast.reckoning, "_heap_loss", lambda size, context: 1.0)
    if room == "for a part":
        for module in (lrp_fast.reckoning, lrp_fast.ops.edges):
            monkeypatch.setattr(module, "HELD", 1 << 20)
    subject, spec = model(num_hidden_layers=2), GraphSpec(mass=0.001)
    ids = torch.randint(0, 97, (4096,), generator=torch.Generator().manual_seed(0))
    memory = Memory(host_budget=plan(subject, 4096, graph=spec).least["cpu"])
    planned = plan(subject, 4096, memory=memory, graph=spec)
    assert set(planned.tiers) == {"file"}
    with Allocated(subject) as allocated:
        attribute(subject, ids, target=3, contrast=5, memory=memory, graph=spec)
    assert allocated.peak == pytest.approx(planned.peak["cpu"], rel=0.15)


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "IntxWeightOnlyConfig"])
@pytest.mark.parametrize("tokens", [64, 1024])
@pytest.mark.parametrize("tier", ["graph", "file"])
def test_dequantised_matrices_count(name, tokens, tier, monkeypatch):
    quantization = pytest.importorskip("torchao.quantization")
    monkeypatch.setattr(lrp_fast.store, "_BLOCK", 0)
    monkeypatch.setattr(lrp_fast.reckoning, "_heap_loss", lambda size, context: 1.0)
    subject, ids = model(intermediate_size=2000), torch.arange(tokens) % 97
    config = getattr(quantization, name)(**({"set_inductor_config": False} if name.startswith("Int8") else {}))
    layers = {f"model.layers.{i}.mlp.{part}_proj" for i in range(6) for part in ("gate", "up", "down")}
    quantization.quantize_(subject, config, filter_fn=lambda _, path: path in layers)
    memory = Memory(host_budget={"graph": None, "file": plan(subject, tokens).least["cpu"]}[tier])
    planned = plan(subject, tokens, memory=memory)
    assert set(planned.tiers) == {tier}
    with Allocated(subject) as allocated:
        attribute(subject, ids, target=3, contrast=5, memory=memory)
    assert allocated.peak == pytest.approx(planned.peak["cpu"], rel=0.25)


def test_edges_that_no_budget_holds_are_refused():
    memory = Memory(host_budget=10**6)
    with pytest.raises(ValueError, match=r"1.00 MB on cpu cannot hold the graph's edges, \d+.\d\d MB: take"):
        attribute(model(), torch.arange(1000) % 97, graph=GraphSpec(topk=100), memory=memory)
    with pytest.raises(ValueError, match="no transition 9"):
        plan(model(), 10, graph=GraphSpec(topk=1, layers=[9]))


@pytest.mark.parametrize(
    "rule", ["gradient", "gim", Rules(epsilon=0.1), Rules(gamma=0.1), Rules("cp", attention_gamma=0.1)]
)
def test_other_rules_take_no_more_than_planned(rule, monkeypatch):
    monkeypatch.setattr(lrp_fast.store, "_BLOCK", 0)
    monkeypatch.setattr(lrp_fast.reckoning, "_heap_loss", lambda size, context: 1.0)
    subject, ids = model(), torch.arange(1024) % 97
    for budget in (None, plan(subject, 1024, rule=rule).least["cpu"]):
        memory = Memory(host_budget=budget)
        with Allocated(subject) as allocated:
            attribute(subject, ids, target=3, contrast=5, rule=rule, memory=memory)
        assert allocated.peak <= 1.05 * plan(subject, 1024, rule=rule, memory=memory).peak["cpu"]


def test_a_budget_below_one_layer_is_refused_and_says_what_is_needed():
    subject = model()
    with pytest.raises(ValueError, match=r"1.00 kB on cpu cannot hold one layer of 4000 tokens: at least \d+.\d\d MB"):
        attribute(subject, torch.arange(4000) % 97, memory=Memory(host_budget=1000))


def test_what_is_needed_last_goes_furthest():
    subject = model()
    least = plan(subject, 1000).least["cpu"]
    for share in (1.5, 2, 3, 4):
        planned = plan(subject, 1000, memory=Memory(host_budget=int(share * least)))
        order = {"file": 0, "host": 1, "graph": 2}
        places = [order[tier] for tier in planned.tiers]
        assert places == sorted(places)
        assert planned.peak["cpu"] <= share * least


def on_meta(dtype="bfloat16", **config):
    settings = {
        "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "intermediate_size": 28672, "vocab_size": 128256, "max_position_embeddings": 131072,
    }  # fmt: skip
    with torch.device("meta"):
        config = transformers.LlamaConfig(**settings | config)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


@pytest.mark.parametrize(
    "dtype, kv_heads, device, bytes_a_feature",
    [("bfloat16", 8, "cuda", 8), ("bfloat16", 64, "cuda", 4), ("float16", 8, "cuda", 8)]
    + [("float32", 8, "cuda", 0), ("bfloat16", 8, "cpu", 0)],
)
def test_what_flash_attention_takes_on_the_way_back_is_planned(dtype, kv_heads, device, bytes_a_feature):
    """Where the rule is a scaled gradient: with a stabiliser, the kernels go back, and take nothing of the kind."""
    model = on_meta(dtype, num_hidden_layers=2, num_key_value_heads=kv_heads)
    stabilised, memory = Rules(attention_epsilon=0.1), Memory(device_budget=60 * 10**9, host_budget=60 * 10**9)
    own, without = (
        plan(model, 50_000, rule=rule, memory=memory, device=device).least[device] for rule in ("attnlrp", stabilised)
    )
    assert own - without == pytest.approx(50_000 * 8192 * bytes_a_feature, rel=1e-6)


def test_a_model_without_weights_is_planned_by_its_config_alone():
    """Llama-3.1-70B at 100,000 tokens, its work counted by hand."""
    planned = plan(on_meta(), 100_000, memory=Memory(device_budget=60 * 10**9))
    assert planned.weights == pytest.approx(141.1e9, rel=0.01)
    assert set(planned.tiers) == {"device", "host"} and planned.tiers[-1] == "device"
    assert planned.peak["cuda"] <= 60 * 10**9 and planned.peak["cpu"] == planned.stored["host"]
    layer = 100_000 * (2 * 8192 + 2 * 8192 + 4 * 64)  # input, attention output, lse
    assert sum(planned.stored.values()) == 80 * layer
    linear, attention = 2 * 100_000 * 80 * (2 * 8192 * 9216 + 3 * 8192 * 28672), 2 * 100_000**2 * 8192 * 80
    assert planned.forward_flops == pytest.approx(linear + attention, rel=1e-3)
    assert planned.backward_flops == pytest.approx(79 / 80 * (linear + 2.5 * attention), rel=0.01)
    assert planned.replay_flops == pytest.approx(linear - 2 * 100_000 * 80 * 8192 * 28672, rel=1e-3)
    for line in ("waits on the device", "waits in host memory", "PFLOP", "at work"):
        assert line in str(planned)


def test_sixteen_bits_are_always_replayed_and_float32_is_not():
    assert set(plan(on_meta(num_hidden_layers=2), 100).tiers) == {"device"}
    assert set(plan(on_meta("float32", num_hidden_layers=2), 100).tiers) == {"graph"}
    assert set(plan(on_meta("float32", num_hidden_layers=2), 100, device="cpu").tiers) == {"graph"}


def test_more_in_files_than_the_disk_holds_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(lrp_fast.memory.shutil, "disk_usage", lambda folder: type("usage", (), {"free": 1000}))
    memory = Memory(host_budget=plan(model(), 1000).least["cpu"], offload_dir=tmp_path)
    with pytest.raises(ValueError, match="have to wait in files, more than is free in"):
        plan(model(), 1000, memory=memory)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"host_budget": 0}, ValueError, "host_budget must be positive"),
        ({"device_budget": -1}, ValueError, "device_budget must be positive"),
        ({"host_budget": 0.5}, TypeError, "whole number of bytes"),
        ({"host_budget": True}, TypeError, "whole number of bytes"),
        ({"host_budget": "1GB"}, TypeError, "whole number of bytes"),
        ({"host_budget": float("nan")}, TypeError, "whole number of bytes"),
        ({"device_budget": float("inf")}, TypeError, "whole number of bytes"),
        ({"device_budget": [1]}, TypeError, "whole number of bytes"),
        ({"offload_dir": "/nowhere/at/all"}, ValueError, "is no folder"),
    ],
)
def test_bad_budgets_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        Memory(**given)


def test_bad_plans_are_refused():
    with pytest.raises(ValueError, match="n_tokens must be at least 1"):
        plan(model(), 0)
    with pytest.raises(ValueError, match="device must be"):
        plan(model(), 10, device="tpu")
    with pytest.raises(ValueError, match="prompts must be at least 1, not 0"):
        plan(model(), 10, prompts=0)
    with pytest.raises(TypeError, match="targets must be a whole number, not 1.5"):
        plan(model(), 10, targets=1.5)
    with pytest.raises(ValueError, match="LlamaModel has no next-token logits"):
        plan(model().model, 10)
    with pytest.raises(TypeError, match="memory must be a lrp_fast.Memory"):
        plan(model(), 10, memory=10**9)
    with pytest.raises(TypeError, match="memory must be a lrp_fast.Memory"):
        attribute(model(), torch.arange(5), memory=10**9)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's counters")
def test_free_heap_is_given_back_where_room_ends_and_nowhere_else(monkeypatch):
    trimmed, held = [], 10
    monkeypatch.setattr(lrp_fast.store, "_anonymous", lambda: held << 20)
    monkeypatch.setattr(lrp_fast.store, "_free_heap", lambda library: 4 << 20)
    for room, ends in ((100, 10 - 4 + 100 - 32), (None, None), (1, 10 - 32)):
        held = 10
        heap = Heap(None if room is None else room << 20, 32 << 20)
        heap._trim = heap._trim and trimmed.append
        for held in (ends or 10**6, (ends or 10**6) + 1):
            trimmed.clear()
            heap.tidy()
            assert bool(trimmed) == (ends is not None and held > ends)
    assert Heap(1, 1 << 20)._trim is None  # a short prompt's layers are not worth a look


def test_the_room_is_the_budget_or_what_is_free(monkeypatch):
    monkeypatch.setattr(lrp_fast.memory, "_free_host_memory", lambda: 10**10)
    assert plan(model(), 100).host_room == 8 * 10**9
    assert plan(model(), 100, memory=Memory(host_budget=10**8)).host_room == 10**8
    assert plan(on_meta(num_hidden_layers=2), 100).host_room is None

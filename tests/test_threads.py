"""One model in several threads: whatever comes back is what one thread alone gets, and the rest is a sentence."""

import copy
import os
import random
import threading
import time

import pytest
import torch

from lrp_fast import Memory, attribute, patched, plan

SECONDS = float(os.environ.get("LRP_FAST_STRESS_SECONDS", 2))  # of the stress test, for each of its models
OTHER = "another thread has this model within lrp_fast.patched|is patched already by another thread"


class Steps:
    """Threads that take turns: ``at(name)`` waits for ``go(name)``, for 20 seconds at most."""

    def __init__(self):
        self.events = {}
        self.lock = threading.Lock()

    def _event(self, name):
        with self.lock:
            return self.events.setdefault(name, threading.Event())

    def go(self, name):
        self._event(name).set()

    def at(self, name):
        assert self._event(name).wait(20), f"nobody came to {name}"


def run(function):
    """In a thread of its own; a function that joins it and returns what came of it, or raises."""
    found = []

    def call():
        try:
            found.append((function(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=call)
    thread.start()

    def join():
        thread.join(60)
        value, error = found[0]
        if error is not None:
            raise error
        return value

    return join


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def small(model, ids, dtype):
    return None if dtype == "graph" else Memory(host_budget=plan(model, ids.shape[1]).least["cpu"])


@pytest.fixture
def pair():
    return torch.randint(0, 97, (2, 1, 24), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "falcon"])
@pytest.mark.parametrize("tier", ["graph", "replayed"])
def test_a_forward_pass_beside_a_pass_is_the_models_own(tier, family, tiny, pair):
    """Begun before the pass and ended within it, and begun and ended within, at each of its steps; soft-caps, windows,
    experts."""
    model, (a, b) = tiny(family), pair
    memory = small(model, a, tier)
    truth, other = attribute(model, a, target=5, contrast=7, memory=memory).layers, logits(model, b)
    steps, main = Steps(), threading.current_thread()
    middle = [module for module in model.modules() if type(module).__name__.endswith("Attention")][1]

    def wait(*_):
        if threading.current_thread() is not main:
            steps.go("b is within")
            steps.at("a is within")

    hook = middle.register_forward_pre_hook(wait)
    join = run(lambda: logits(model, b))
    steps.at("b is within")
    seen = []

    def progress(phase, done, layers):
        steps.go("a is within")
        seen.append(run(lambda: logits(model, b))())
        if (phase, done) == ("forward", 2):
            seen.append(join())

    found = attribute(model, a, target=5, contrast=7, memory=memory, progress=progress).layers
    hook.remove()
    assert torch.equal(found, truth)
    assert len(seen) == 8 and all(torch.equal(one, other) for one in seen)


def test_a_forward_pass_beside_a_replayed_layer_is_the_models_own(tiny, pair):
    """Where the layer's MLP puts out NaN that nobody is to read."""
    model, (a, b) = tiny("llama", torch.bfloat16), pair
    truth, other = attribute(model, a).layers, logits(model, b)
    main, seen, backward = threading.current_thread(), [], []

    def beside(*_):
        if backward and threading.current_thread() is main:
            seen.append(run(lambda: logits(model, b))())

    hook = model.model.layers[1].self_attn.q_proj.register_forward_hook(beside)
    found = attribute(model, a, progress=lambda phase, *_: backward.append(1) if phase == "backward" else None).layers
    hook.remove()
    assert len(seen) == 1 and torch.equal(seen[0], other) and torch.equal(found, truth)


def test_gradients_beside_a_pass_are_the_models_own(tiny, pair):
    """Also where the model itself runs lrp_fast's attention."""
    model, (a, b) = tiny("llama", attn_implementation="lrp_fast"), pair

    def gradient():
        x = model.get_input_embeddings()(b).detach().requires_grad_()
        model(inputs_embeds=x).logits[0, -1, 3].backward()
        return x.grad

    truth, seen = gradient(), []
    attribute(model, a, progress=lambda *_: seen.append(run(gradient)()))
    assert len(seen) == 7 and all(torch.equal(one, truth) for one in seen)


def test_a_pass_waits_for_another_pass(tiny, pair):
    model, (a, b) = tiny("llama"), pair
    truths, order = [attribute(model, one).layers for one in pair], []
    joins = []

    def progress(phase, done, layers):
        if not joins:
            joins.append(run(lambda: attribute(model, b, progress=lambda *_: order.append("b")).layers))
            time.sleep(0.2)
        order.append("a")

    found = attribute(model, a, progress=progress).layers
    assert torch.equal(found, truths[0]) and torch.equal(joins[0](), truths[1])
    assert order == ["a"] * 7 + ["b"] * 7


def test_a_patched_block_refuses_other_threads(tiny, pair):
    """Theirs would be plain gradients, where whoever patched the model means relevance."""
    model, (a, b) = tiny("llama"), pair
    with patched(model):
        for call in (lambda: model(b), lambda: attribute(model, b), lambda: patched(model).__enter__()):
            with pytest.raises(RuntimeError, match=OTHER):
                run(call)()
        assert torch.equal(logits(model, a), logits(model, a))
    assert torch.equal(run(lambda: logits(model, b))(), logits(model, b))


def test_two_models_do_not_wait_for_each_other(tiny, pair):
    first, second = tiny("llama"), tiny("llama", seed=1)
    truth, seen = attribute(second, pair[1]).layers, []
    attribute(first, pair[0], progress=lambda *_: seen.append(run(lambda: attribute(second, pair[1]).layers)()))
    assert len(seen) == 7 and all(torch.equal(one, truth) for one in seen)


def test_the_config_of_a_pass_is_seen_by_its_thread_alone(tiny, pair):
    model, seen = tiny("gemma2"), []
    own = model.config

    def look():
        config = model.config
        return config._attn_implementation, config.final_logit_softcapping, config.to_dict(), config == own

    attribute(model, pair[0], progress=lambda *_: seen.append((run(look)(), model.config._attn_implementation)))
    assert all(other == look() and ours == "lrp_fast" for other, ours in seen)
    assert model.config is own


@pytest.mark.parametrize("tier", ["graph", "replayed"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_stress(family, tier, tiny, pair):
    """Random calls from four threads. What is refused is refused because of a patched block, by that sentence."""
    model = tiny(family, torch.float32)
    memory = small(model, pair[0], tier)

    def explained(ids):
        return attribute(model, ids, target=5, contrast=7, memory=memory).layers

    def relevance(ids):
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        with patched(model):
            model(inputs_embeds=x, use_cache=False).logits[0, -1, 5].backward()
        return x.grad

    def generated(ids):
        return model.generate(ids, max_new_tokens=3, do_sample=False, attention_mask=torch.ones_like(ids))

    calls = [explained, lambda ids: logits(model, ids), generated, relevance]
    truths = [[call(ids) for ids in pair] for call in calls]
    wrong, counts = [], [[0, 0] for _ in calls]
    start = time.monotonic()

    def goes_on():  # on a busy machine a call may meet patched blocks again and again
        return time.monotonic() < start + SECONDS or (
            not wrong and not all(returned for returned, _ in counts) and time.monotonic() < start + SECONDS + 120
        )

    def work(seed):
        choose = random.Random(seed)
        while goes_on():
            which, row = choose.choices(range(4), (4, 4, 1, 1))[0], choose.randrange(2)
            try:
                found = calls[which](pair[row])
            except RuntimeError as error:
                counts[which][1] += 1
                if not any(part in str(error) for part in OTHER.split("|")):
                    wrong.append(error)
                continue
            except BaseException as error:
                wrong.append(error)
                return
            counts[which][0] += 1
            if not torch.equal(found, truths[which][row]):
                wrong.append(f"call {which} of row {row}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("returned, refused:", counts)
    assert not wrong, wrong[:3]
    assert all(returned for returned, _ in counts), counts


def test_a_model_is_not_copied_while_it_is_patched(tiny, pair):
    """The copy would run the original's modules."""
    model = tiny("llama")
    with patched(model), pytest.raises(RuntimeError, match="cannot be copied, or saved whole, while"):
        copy.deepcopy(model)
    refused = []

    def progress(*_):
        with pytest.raises(RuntimeError, match="cannot be copied"):
            run(lambda: copy.deepcopy(model))()
        refused.append(1)

    attribute(model, pair[0], progress=progress)
    assert len(refused) == 7
    assert torch.equal(logits(copy.deepcopy(model), pair[1]), logits(model, pair[1]))


def test_a_config_that_another_thread_keeps_is_the_models_own(tiny, pair):
    model, kept = tiny("gemma2"), []
    attribute(model, pair[0], progress=lambda *_: kept.append(run(lambda: type(model)(model.config).eval())()))
    other = kept[0]
    other.load_state_dict(model.state_dict())
    assert other.config.final_logit_softcapping == 4.0 and other.config._attn_implementation == "eager"
    assert torch.equal(logits(other, pair[1]), logits(model, pair[1]))


def test_a_compiled_model_runs_beside_a_pass(tiny, pair):
    model, (a, b) = tiny("llama"), pair
    truth, other, seen = attribute(model, a).layers, logits(model, b), []
    model.compile(backend="eager")
    found = attribute(model, a, progress=lambda *_: seen.append(run(lambda: logits(model, b))())).layers
    assert torch.equal(found, truth) and len(seen) == 7
    assert all(torch.equal(one, other) for one in seen)


def test_passes_of_replayed_layers_do_not_see_each_others_hooks(tiny, pair):
    model = tiny("llama")
    memory = small(model, pair[0], "replayed")
    truths = [attribute(model, one, memory=memory).layers for one in pair]

    def several(row):
        return [attribute(model, pair[row], memory=memory).layers for _ in range(5)]

    joins = [(row, run(lambda row=row: several(row))) for row in (0, 1, 0)]
    for row, join in joins:
        assert all(torch.equal(found, truths[row]) for found in join())


class Again(torch.autograd.Function):
    """Goes back through a graph of its own from within a backward pass; autograd does the deepest in other threads."""

    @staticmethod
    def forward(ctx, x, depth, at_the_bottom):
        ctx.depth, ctx.at_the_bottom = depth, at_the_bottom
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if ctx.depth == 0:
            ctx.at_the_bottom()
        else:
            with torch.enable_grad():
                leaf = g.detach().requires_grad_()
                Again.apply(leaf, ctx.depth - 1, ctx.at_the_bottom).backward(torch.ones(()))
        return g, None, None


def test_threads_of_autograd_belong_to_whoever_went_back(tiny, pair):
    """As on CUDA, where a backward pass that computes a part anew does so in such a thread."""
    model, seen = tiny("llama"), []

    def at_the_bottom():
        seen.append((threading.get_ident(), logits(model, pair[0])))

    with patched(model):
        Again.apply(torch.ones((), requires_grad=True), 99, at_the_bottom).backward()
    ((thread, found),) = seen
    assert thread != threading.get_ident(), "it was this thread: the test shows nothing"
    assert torch.equal(found, logits(model, pair[0]))


def test_a_backward_pass_of_another_thread_is_its_own(tiny, pair):
    """In whichever of autograd's threads it computes something anew."""
    model, seen = tiny("llama"), []

    def gradient():
        x = model.get_input_embeddings()(pair[1]).detach().requires_grad_()
        model(inputs_embeds=x).logits[0, -1, 3].backward()
        return x.grad

    def beside():
        found = []
        Again.apply(torch.ones((), requires_grad=True), 99, lambda: found.append(within_backward(gradient))).backward()
        return found[0]

    truth = gradient()
    attribute(model, pair[0], progress=lambda *_: seen.append(run(beside)()))
    assert len(seen) == 7 and all(torch.equal(one, truth) for one in seen)


def within_backward(gradient):
    with torch.enable_grad():
        return gradient()

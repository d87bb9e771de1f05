"""Prompts with images: their embeddings are nodes like any token's, and what makes them is left out."""

import copy

import pytest
import torch
import transformers
from transformers.models import gemma3

import lrp_fast
from lrp_fast import GraphSpec, Memory, attribute, doctor, patched
from lrp_fast.hf import check, decoder_layers
from lrp_fast.hf.families import at_rest
from lrp_fast.hf.images import TAKEN, check_images
from lrp_fast.hf.wrappers import WRAPPERS
from lrp_fast.images import places
from tests import decoders, pictures
from tests.oracles.functional import explained
from tests.pictures import IMAGE

ALL = GraphSpec(topk=10**6)
BOTH_WAYS = ("gemma3", "gemma4")  # within an image
ADDING = ("qwen3_vl",)  # features of images to hidden states, further up
APART = (*BOTH_WAYS, *ADDING, "idefics3", "llama4", "llava", "mistral3", "qwen2_5_vl")  # the others are of their kinds
RULES = ["attnlrp", "cp", "gradient"]


def gap(found, truth):
    return ((found - truth).abs().max() / truth.abs().max()).item()


def least(model, length, **given):
    return Memory(host_budget=lrp_fast.plan(model, length, **given).least["cpu"])


def beside(prompt):
    return {name: one for name, one in prompt.items() if name not in ("input_ids", "attention_mask")}


def detached(home, prompt, rule, with_edges=True, **more):
    """`explained` of the same model, whose parts beside the language model make again what they make as they are."""
    model, made = pictures.build(home, **more), {}
    check(model)
    parts = [part for _, part in at_rest(model)]

    def keep(part, args, out):
        made.setdefault(part, []).append(copy.copy(out))  # into which Qwen's writes

    handles = [part.register_forward_hook(keep) for part in parts]
    with torch.no_grad():
        model(**prompt)
    for handle in handles:
        handle.remove()
    assert made.keys() <= {*parts}
    parts = [*made]
    for part in parts:
        part.forward = lambda *args, of=part, **named: made[of].pop(0)
    for one in made[parts[0]] if home in ADDING else []:  # what is added further up is its tokens' too
        one["deepstack_features"] = [leaf.requires_grad_() for leaf in one.get("deepstack_features") or ()]
    leaves = made[parts[0]][0]["deepstack_features"] if home in ADDING else []
    looked_up = [(leaf, prompt["input_ids"] == IMAGE) for leaf in leaves]
    asked = (prompt["input_ids"], 3, 5, rule, with_edges)
    of_images = {"looked_up": looked_up, "with_images": home not in ADDING}
    return explained(model, decoder_layers(model), *asked, **of_images, **beside(prompt))


def test_all_that_are_taken_are_tried():
    assert {*pictures.CONFIGS} == TAKEN


@decoders.TABLE
@pytest.mark.parametrize(
    ("home", "rule"), [(home, rule) for home in pictures.CONFIGS for rule in (RULES if home in APART else RULES[:1])]
)
def test_nodes_and_edges_are_those_of_detached_rules(home, rule):
    if decoders.RELEASE < (5, 23) and len(pictures.SHAPES.get(home, (0, "four"))[1]) == 2:
        pytest.skip("Qwen's own code mixes dtypes there, which the oracle does not")
    model, prompt = pictures.build(home), pictures.prompt(home)
    value, nodes, edges = detached(home, prompt, rule, home not in ADDING)
    allowed = 1e-5 if home == "llama4" else 1e-11  # whose own rotations are in float32
    graph = None if home in ADDING else ALL
    found = attribute(model, prompt, 3, 5, rule=rule, graph=graph)
    assert abs(found.value - value) <= max(allowed, 1e-12) * max(abs(value), 1)
    assert gap(found.layers, nodes) <= allowed
    for layer, matrix in enumerate(edges):
        assert gap(found.graph.dense(layer), matrix) <= 10 * allowed
    images = prompt["input_ids"][0] == IMAGE
    assert home in ADDING or found.graph.causal == (home not in BOTH_WAYS)
    assert found.relevance[images].abs().min() > 0
    streamed = attribute(model, prompt, 3, 5, rule=rule, memory=least(model, len(found.relevance), rule=rule))
    assert gap(streamed.layers, found.layers) <= max(allowed / 10, 1e-12)


@decoders.TABLE
@pytest.mark.parametrize("rule", RULES)
def test_embeddings_for_each_layer_are_made_of_an_images_too(rule):
    """Of Gemma 4's smaller models, which read an image causally."""
    told, prompt = {"text_config": pictures.GEMMA4_SIDED}, pictures.prompt("gemma4")
    value, nodes, _ = detached("gemma4", prompt, rule, False, **told)
    model = pictures.build("gemma4", **told)
    with torch.no_grad():
        own = model(**prompt).logits[0, -1]
    for memory in (None, least(model, nodes.shape[1], rule=rule)):
        found = attribute(model, prompt, 3, 5, rule=rule, memory=memory)
        assert abs(found.value - value) <= 1e-11 and gap(found.layers, nodes) <= 1e-11
    assert found.value == pytest.approx((own[3] - own[5]).item(), abs=1e-4)
    assert rule != "cp" or found.relevance.sum().item() == pytest.approx(found.value, rel=1e-10)
    with pytest.raises(ValueError, match="leave the graph out"):
        attribute(model, prompt, 3, 5, graph=ALL)
    with pytest.raises(ValueError, match="^pixel_values came with the prompt, and no image_position_ids, by which"):
        attribute(model, {name: one for name, one in prompt.items() if name != "image_position_ids"})


@pytest.mark.parametrize("home", APART)
def test_the_model_sees_what_it_sees_unpatched(home):
    """The logits with images, the same images once more, text alone, and what the model keeps of images."""
    if home == "llama4" and decoders.RELEASE > (5, 23):
        pytest.skip("it asks its language model for what that does not return")
    model, prompt = pictures.build(home), pictures.prompt(home)
    with torch.no_grad():
        text = model(input_ids=prompt["input_ids"][:, :4]).logits[0, -1]
        own = model(**prompt).logits[0, -1]
    kept = [(path, dict(part.__dict__)) for path, part in model.named_modules()]
    found = attribute(model, transformers.BatchFeature(prompt), 3, 5)
    assert found.value == pytest.approx(float(own[3] - own[5]), abs=1e-4)  # whose norms are in float32
    after = [(path, dict(part.__dict__)) for path, part in model.named_modules()]
    assert all(
        one.keys() == two.keys() and all(one[name] is two[name] for name in one)
        for (_, one), (_, two) in zip(kept, after, strict=True)
    )
    assert torch.equal(attribute(model, prompt, 3, 5).layers, found.layers)
    alone = attribute(model, prompt["input_ids"][:, :4], 3, 5)
    assert alone.value == pytest.approx(float(text[3] - text[5]), abs=1e-4) and "image" not in alone.explained.note
    other = prompt | {"pixel_values": prompt["pixel_values"] ** 3}
    assert abs(attribute(model, other, 3, 5).value - found.value) > 1e-2
    parts = ", ".join(path for path, _ in at_rest(model))
    assert f"where their relevance ends: what makes these ({parts}) is left out." in found.explained.note


def shown(home="llava"):
    return pictures.build(home), pictures.prompt(home)


@decoders.TABLE
def test_tokens_of_an_image_read_each_other_in_both_directions_and_no_others(monkeypatch):
    model, prompt = shown("gemma3")
    found = attribute(model, prompt, 3, 5, graph=ALL, rule="cp")
    ids = prompt["input_ids"][0]
    of_image = torch.where(ids == IMAGE, torch.cumsum((ids != IMAGE).int(), 0), -1 - torch.arange(len(ids)))
    back = torch.stack([found.graph.dense(layer).triu(1) != 0 for layer in range(3)])
    assert back[:2].any((1, 2)).all() and not (back & (of_image[:, None] != of_image)).any()
    assert attribute(model, prompt, answer=[5, 6, 7]).layers.isfinite().all()
    types = prompt["token_type_ids"]
    with pytest.raises(ValueError, match="^pixel_values came with the prompt, and no token_type_ids, by which Gemma3F"):
        attribute(model, {name: one for name, one in prompt.items() if name != "token_type_ids"})
    with pytest.raises(ValueError, match="^token_type_ids came with the prompt, and are not 1 at the tokens"):
        attribute(model, prompt | {"token_type_ids": types.flip(1)})
    with pytest.raises(ValueError, match="^token_type_ids came with the prompt, and are not 1 at the tokens"):
        attribute(model, prompt | {"token_type_ids": 2 * types})  # which it reads causally, as text
    with pytest.raises(ValueError, match="^token_type_ids came with the prompt, which Gemma3ForConditionalGenerat"):
        attribute(model, {"input_ids": prompt["input_ids"], "token_type_ids": types})
    padded = {name: torch.nn.functional.pad(prompt[name], (2, 0)) for name in ("input_ids", "attention_mask")}
    padded["token_type_ids"] = torch.nn.functional.pad(types, (2, 0))
    assert torch.equal(attribute(model, prompt | padded, 3, 5, rule="cp").layers, found.layers)
    bounded = attribute(model, prompt, 3, 5, rule="cp", tolerance=0.2)
    monkeypatch.setattr(gemma3.modeling_gemma3, "create_masks_for_vision_model", places)
    with pytest.raises(ValueError, match="^Gemma3ForConditionalGeneration reads the tokens of an image in both dire"):
        attribute(model, prompt)
    assert gap(bounded.layers, found.layers) <= 1e-12 and not bounded.dropped.any()


@decoders.TABLE
@pytest.mark.parametrize("rule", RULES)
def test_a_classifier_reads_images_as_its_language_model_does(rule):
    (model, prompt), classifier = shown("gemma3"), pictures.build("gemma3", of="ForSequenceClassification")
    classifier.model.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        classifier.score.weight.copy_(model.lm_head.weight[3:5])
        own = classifier(**prompt).logits[0]
    found, truth = attribute(classifier, prompt, 0, 1, rule=rule), attribute(model, prompt, 3, 4, rule=rule)
    assert found.value == pytest.approx((own[0] - own[1]).item(), abs=1e-4)  # whose norms are in float32
    assert found.explained.of == "label" and gap(found.layers, truth.layers) <= 1e-11
    tight = least(classifier, len(found.relevance), rule=rule)
    assert gap(attribute(classifier, prompt, 0, 1, rule=rule, memory=tight).layers, truth.layers) <= 1e-11


def test_an_answer_several_targets_hops_and_observers():
    model, prompt = shown("qwen2_5_vl")
    ids = prompt["input_ids"]
    types = torch.cat([prompt["mm_token_type_ids"], torch.zeros(1, 2, dtype=torch.int32)], 1)
    longer = prompt | {"input_ids": torch.cat([ids, torch.tensor([[5, 6]])], 1), "mm_token_type_ids": types}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    n = ids.shape[1]
    truth = attribute(model, longer, (5, 6, 7), position=range(n - 1, n + 2))
    found = attribute(model, prompt, answer=[5, 6, 7], observe=[lambda seen: seen.hidden.clone()])
    assert gap(found.layers, truth.layers) <= 1e-12 and found.value == pytest.approx(truth.value, rel=1e-12)
    assert found.prompt_tokens == n and found.observed[0][0].shape[-2] == n + 2
    _, second = attribute(model, prompt, [3, 4], 5)
    assert gap(second.layers, attribute(model, prompt, 4, 5).layers) <= 1e-12
    rows = lrp_fast.between(model, prompt, 0, 3, [n - 1], target=3, contrast=5)
    assert gap(rows[0], attribute(model, prompt, 3, 5).relevance) <= 1e-12
    sent = lrp_fast.hops(model, prompt, [n], target=None, answer=[5, 6, 7], bound=0)
    assert len(sent.passes) > 1 and gap(sent.passes[0], truth.relevance) <= 1e-12
    compared = lrp_fast.compare_answers(model, prompt, [5, 6], [7, 6])
    assert compared.value == pytest.approx(compared.answer.value - compared.other.value)
    assert lrp_fast.compare_answers(model, {"input_ids": ids}, [5, 6], [7, 6]).value != compared.value


def test_other_dtypes_and_padding_of_the_processor():
    model, prompt = shown()
    truth = attribute(model, prompt, 3, 5)
    narrow = prompt | {"pixel_values": prompt["pixel_values"].float()}
    assert gap(attribute(model, narrow, 3, 5).layers, truth.layers) <= 1e-5
    padded = {name: torch.nn.functional.pad(prompt[name], (2, 0)) for name in ("input_ids", "attention_mask")}
    assert torch.equal(attribute(model, prompt | padded, 3, 5).layers, truth.layers)
    listed = {name: one.tolist() for name, one in narrow.items()}
    assert torch.equal(attribute(model, listed, 3, 5).layers, attribute(model, narrow, 3, 5).layers)
    with torch.inference_mode():
        assert torch.equal(attribute(model, {k: one.clone() for k, one in prompt.items()}, 3, 5).layers, truth.layers)
    wide, half = attribute(model.float(), prompt, 3, 5), attribute(model.bfloat16(), prompt, 3, 5)
    assert gap(wide.layers.double(), truth.layers) <= 1e-4 and half.layers.isfinite().all()


def test_what_is_refused(tiny, ids):
    model, prompt = shown("qwen3_vl")
    with pytest.raises(ValueError, match="^Qwen3VLForConditionalGeneration adds features .*: leave the graph out$"):
        attribute(model, prompt, graph=ALL)
    assert attribute(model, prompt["input_ids"], graph=ALL).graph is not None
    model, prompt = shown()
    with pytest.raises(ValueError, match="^pixel_values came with the prompt, and LlamaForCausalLM reads text alone"):
        attribute(tiny("llama"), prompt)
    with pytest.raises(ValueError, match="^pixel_values came with the prompt, and none of its tokens is 90, where Ll"):
        attribute(model, prompt | {"input_ids": ids % 90, "attention_mask": torch.ones_like(ids)})
    fewer = {"input_ids": prompt["input_ids"][:, 7:], "attention_mask": prompt["attention_mask"][:, 7:]}
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        attribute(model, prompt | fewer)
    with pytest.raises(ValueError, match="^image_grid_thw came with the prompt, and LlavaForCond.* leave it out"):
        attribute(model, prompt | {"image_grid_thw": [[1, 2, 2]]})
    assert attribute(model, prompt | {"mm_token_type_ids": (prompt["input_ids"] == 90).int()}).layers.isfinite().all()
    broken = prompt["pixel_values"].clone()
    broken[1, 0, 3] = torch.nan
    with pytest.raises(ValueError, match="^pixel_values holds NaN or infinities: give the images as the processor"):
        attribute(model, prompt | {"pixel_values": broken})
    with torch.no_grad():
        model.model.vision_tower.post_layernorm.weight[0] = torch.inf
    with pytest.raises(ValueError, match="^'vision_tower' makes NaN or infinities of the images: look at its weights$"):
        attribute(model, prompt)
    with pytest.raises(TypeError, match="^row 0: pixel_values came with the prompt, and attribute_batch takes tex"):
        lrp_fast.attribute_batch(model, [prompt])
    with pytest.raises(TypeError, match="^pixel_values came with the prompt, and ablate takes text alone"):
        lrp_fast.ablate(model, prompt, {"tokens": [0]}, target=3)
    with pytest.raises(TypeError, match="^replacement: pixel_values came with the prompt, and ablate takes text"):
        lrp_fast.ablate(model, prompt["input_ids"], {"tokens": [0]}, prompt, target=3)
    with pytest.raises(ValueError, match="'vision_tower' of LlavaModel is no part that reads text"), patched(model):
        model(**prompt)


@decoders.RECENT
@pytest.mark.parametrize("home", ["qwen2_5_vl", "qwen3_vl"])
def test_what_tells_the_places_of_images_comes_with_them(home):
    model, prompt = shown(home)
    types = prompt.pop("mm_token_type_ids")
    with pytest.raises(ValueError, match="^pixel_values came with the prompt, and no mm_token_type_ids, by which Qwen"):
        attribute(model, prompt)
    with pytest.raises(ValueError, match="^mm_token_type_ids came with the prompt, and are not 1 at the tokens"):
        attribute(model, prompt | {"mm_token_type_ids": 0 * types})
    assert attribute(model, prompt | {"mm_token_type_ids": types}).value
    with pytest.raises(ValueError, match="^pixel_values came with the prompt, and no image_grid_thw, by which Qwen"):
        attribute(model, {k: one for k, one in prompt.items() if k != "image_grid_thw"} | {"mm_token_type_ids": types})


@pytest.mark.parametrize("home", pictures.REFUSED)
def test_families_that_are_not_taken(home):
    cls, words = getattr(transformers, f"{WRAPPERS[home]}ForConditionalGeneration", None), pictures.REFUSED[home]
    if cls is None:
        pytest.skip("this transformers does not have it")
    with torch.device("meta"):  # of weights that nobody reads
        model = cls(cls.config_class())
    with pytest.raises(ValueError, match=f"^{cls.__name__} {words}.* leave pixel_values out, and give text alone$"):
        check_images(model, {"pixel_values": torch.zeros(1)}, torch.tensor([1]))


@decoders.RECENT  # before, its positions are taken for those of packed prompts, and refused
def test_what_is_added_further_up_is_counted_once():
    model, prompt = shown("qwen3_vl")
    found = attribute(model, prompt, 3, 5, rule="cp")
    assert found.relevance.sum().item() == pytest.approx(found.value, rel=1e-10)  # it has no biases
    assert abs(found.layers[1].sum().item() - found.value) > 1e-3
    assert "is counted with its tokens at the input, and at no layer in between" in found.explained.note
    places, n = [3, found.relevance.shape[0] - 1], found.relevance.shape[0]
    for target, source in ((3, 0), (2, 0), (2, 1)):
        rows = lrp_fast.between(model, prompt, source, target, range(n), target=3, contrast=5, rule="cp")
        whole = lrp_fast.between(model, prompt, source, target, places, target=3, contrast=5, rule="cp")
        assert gap(whole, rows[places]) <= 1e-12
        if source == 0:  # all that a node holds has come from the tokens
            assert gap(rows.sum(1), found.layers[target]) <= 1e-10


def test_a_source_an_image():
    model, prompt = shown()
    found = attribute(model, prompt, 3, 5, sources="images").sources
    assert found.names == ["image 0", "image 1", "(rest)"]
    assert [found.positions(f"image {i}") for i in (0, 1)] == [[*range(5, 9)], [*range(16, 20)]]
    with pytest.raises(ValueError, match="^sources \"images\" are those of a prompt with images"):
        attribute(model, prompt["input_ids"], 3, 5, sources="images")
    with pytest.raises(ValueError, match="^sources \"images\" are not told.* no model has said which tokens"):
        attribute(model, prompt, 3, 5).by_source("images", prompt)
    model, prompt = shown("llama4")
    with pytest.raises(ValueError, match="^sources \"images\" are not told: the images stand in tiles"):
        attribute(model, prompt, 3, 5, sources="images")
    a, b, c = IMAGE, 7, 8  # of images whose rows are parted, or that stand side by side
    for given, n, truth in (
        ([a, a, b, a, a, c, 9, a, a, c], 2, [(0, 5), (7, 9)]),
        ([a, a, b, a, a, c, 9, a, a, c], 3, [(0, 2), (3, 5), (7, 9)]),
        ([b, a, a, a, a], 2, None),
        ([b, a, a, a, a], 1, [(1, 5)]),
    ):
        pixels, sizes = {"pixel_values": torch.zeros(n, 3, 2, 2)}, {"image_sizes": torch.zeros(n, 2)}
        assert places(pixels, torch.tensor(given), IMAGE) == truth
        assert places({"pixel_values": torch.zeros(9)} | sizes, torch.tensor(given), IMAGE) == truth


@decoders.RECENT
@pytest.mark.parametrize("home", ["qwen2_5_vl", "qwen3_vl"])
def test_the_doctor_examines_one_whose_head_is_its_own(home):
    config = pictures.build(home).config
    config.text_config.hidden_size, config.text_config.head_dim = 128, 32
    config.text_config.rope_parameters["mrope_section"] = [4, 6, 6]  # of other heads than those of the small copy
    found, checks = doctor.examine(config)
    assert all(one.rule for one in found)
    assert len(checks) >= 7 and all(check.passed for check in checks), checks

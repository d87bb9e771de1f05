"""Every encoder of transformers: against rules that are applied by detaching to the model as it is, or refused."""

from contextlib import nullcontext

import pytest
import torch
import transformers

import lrp_fast
from lrp_fast import GraphSpec, Memory, attribute, attribute_batch
from lrp_fast.hf import check, check_language_model, decoder_layers, logits_at, reads_causally
from lrp_fast.observers import LogitLens
from lrp_fast.ops import attention_bounded
from tests import decoders, encoders
from tests.oracles.functional import explained
from tests.oracles.wide import wide

pytestmark = decoders.TABLE
ALL = GraphSpec(topk=10**6)
IDS = torch.randint(5, 97, (1, 11), generator=torch.Generator().manual_seed(1))
PLACE = 4
RULES = ["attnlrp", "cp", "gradient"]
CASES = [
    pytest.param(one, rule, marks=[] if place == number % 3 else [pytest.mark.again])
    for number, one in enumerate(encoders.COVERED)
    for place, rule in enumerate(RULES)
]


def _alike(model, plain, rule, allowed, place, target=3, contrast=5, **given):
    check(plain)
    value, nodes, edges = explained(plain, decoder_layers(plain), IDS, target, contrast, rule, True, place)
    found = attribute(model, IDS, target, contrast, rule=rule, graph=ALL, **given)
    assert abs(found.value - value) <= allowed * max(abs(value), 1)
    assert (found.layers - nodes).abs().max() <= allowed * nodes.abs().max()
    for layer, matrix in enumerate(edges):
        assert (found.graph.dense(layer) - matrix).abs().max() <= 10 * allowed * matrix.abs().max()
    assert any(matrix.triu(1).any() and matrix.tril(-1).any() for matrix in edges) and not found.graph.causal
    return found


@pytest.mark.parametrize(("model_type", "rule"), CASES)
def test_nodes_and_edges_are_those_of_detached_rules(model_type, rule):
    model, plain = (encoders.build(model_type) for _ in range(2))
    allowed = 1e-12 if rule == "gradient" else 1e-11
    with wide(model, plain) if model_type in encoders.IN_FLOAT32 else nullcontext():
        found = _alike(model, plain, rule, allowed, PLACE, position=PLACE)
    assert found.explained.of == "masked token" and found.explained.terms[0].position == PLACE
    sums = torch.stack([found.graph.dense(layer).sum(0) for layer in range(found.graph.num_layers)])
    assert (sums - found.layers[:-1]).abs().max() <= 1e-12 * max(1, found.layers.abs().max())


@pytest.mark.parametrize(
    "name",
    ["BertForSequenceClassification", "RobertaForSequenceClassification", "DistilBertForSequenceClassification",
     "ElectraForSequenceClassification", "XLMRobertaForSequenceClassification", "RoFormerForSequenceClassification",
     "BertForTokenClassification", "ModernBertForTokenClassification"],
)  # fmt: skip
def test_classifiers_are_explained_by_their_labels(name):
    cls = getattr(transformers, name)
    told = encoders.PARTICULAR.get(cls.config_class.model_type, {}) | {"num_labels": 3}
    model, plain = (decoders.built(cls, told) for _ in range(2))
    of_tokens = "Token" in name
    allowed = 1e-5 if "Modern" in name else 1e-11
    given = {"position": PLACE} if of_tokens else {}
    found = _alike(model, plain, "attnlrp", allowed, PLACE if of_tokens else -1, 1, 2, **given)
    assert found.explained.of == "label" and found.explained.terms[0].position == (PLACE if of_tokens else 0)


POOLING = {
    "ModernBertForSequenceClassification": ("cls", "mean"),
    "EuroBertForSequenceClassification": ("bos", "mean", "late"),
}


def _pooling(name, pooling, **more):
    cls = getattr(transformers, name)
    told = encoders.PARTICULAR.get(cls.config_class.model_type, {}) | {"num_labels": 3, "classifier_pooling": pooling}
    return decoders.built(cls, told | more)


@pytest.mark.parametrize(("name", "pooling"), [(name, one) for name, ways in POOLING.items() for one in ways])
@pytest.mark.parametrize("rule", RULES)
def test_what_pools_all_tokens_gives_each_its_share(name, pooling, rule):
    model, plain = (_pooling(name, pooling) for _ in range(2))
    found = _alike(model, plain, rule, 1e-5 if "Modern" in name else 1e-11, -1, 1, 2)
    assert found.explained.of == "label" and found.explained.terms[0].position == 0
    all_of_them = pooling in ("mean", "late")
    assert found.layers[-1].count_nonzero() == (IDS.shape[1] if all_of_them else 1)
    assert ("position 0 stands for all" in found.explained.note) == all_of_them
    model = _pooling(name, pooling).float()  # norms of EuroBERT's own are in that
    own = model(IDS).logits
    with lrp_fast.patched(model, rule=rule):
        assert torch.equal(model(IDS).logits, own) and torch.equal(logits_at(model, IDS, [0]), own)


@pytest.mark.parametrize(("name", "pooling"), [("ModernBertForSequenceClassification", "mean"),
                                               ("EuroBertForSequenceClassification", "late")])  # fmt: skip
def test_streaming_company_and_cuts_of_what_pools_all_tokens(name, pooling):
    model = _pooling(name, pooling, pad_token_id=0)
    found = attribute(model, IDS, 1, 2, graph=ALL)
    tight = Memory(host_budget=lrp_fast.plan(model, IDS.shape[1]).least["cpu"])
    assert (attribute(model, IDS, 1, 2, memory=tight).layers - found.layers).abs().max() <= 1e-11
    rows = [IDS[0], IDS[0, :7], IDS[0].flip(0)]
    for one, row in zip(attribute_batch(model, rows, target=1, contrast=2), rows, strict=True):
        assert (one.layers - attribute(model, row, 1, 2).layers).abs().max() <= 1e-11
    with torch.no_grad():
        zeroed = model.get_input_embeddings()(IDS).index_fill(1, torch.tensor([4]), 0)
        own = model(inputs_embeds=zeroed).logits[0]
    cut = lrp_fast.ablate(model, IDS, {"tokens": [4]}, target=1, contrast=2)
    assert cut.value == pytest.approx((own[1] - own[2]).item(), rel=1e-5)
    links = found.graph.to_attribution_graph("a")["links"]
    of_target = [one["weight"] for one in links if one["target"].startswith(f"{found.graph.num_layers + 1}_1_")]
    assert len(of_target) == IDS.shape[1]
    assert sum(of_target) == pytest.approx(found.explained.terms[0].target.logit)
    with pytest.raises(ValueError, match="^LogitLens reads hidden states one by one, and .* classifies by a mean over"):
        attribute(model, IDS, 1, 2, observe=[LogitLens()])
    with pytest.raises(ValueError, match="which it reads at all positions, and position is 3: leave it out"):
        attribute(model, IDS, 1, 2, position=3)


def test_how_a_classifier_pools_is_what_it_does_whatever_its_config_says_by_now():
    model = _pooling("EuroBertForSequenceClassification", "mean")
    model.config.classifier_pooling = "bos"
    found = attribute(model, IDS, 1, 2)
    assert found.layers[-1].count_nonzero() == IDS.shape[1] and "position 0 stands for all" in found.explained.note


def test_what_pools_in_another_way_is_refused():
    model = _pooling("ModernBertForSequenceClassification", "mean")
    model.config.__dict__["classifier_pooling"] = "max"
    with pytest.raises(ValueError, match="^ModernBertForSequ.* in a way that lrp_fast does not know .* is 'max'."):
        attribute(model, IDS)


def test_layers_that_share_weights_are_those_with_the_same_weights():
    shared, apart = (encoders.build("albert", num_hidden_groups=count) for count in (1, 3))
    layers = apart.albert.encoder.albert_layer_groups
    own = shared.state_dict()
    apart.load_state_dict({
        name: own.get(name.replace(f"groups.{i}.", "groups.0."), value)
        for name, value in apart.state_dict().items()
        for i in [next((i for i in range(len(layers)) if f"groups.{i}." in name), 0)]
    })  # fmt: skip
    found = [attribute(one, IDS, 3, 5, position=PLACE, graph=ALL) for one in (shared, apart)]
    assert (found[0].layers - found[1].layers).abs().max() <= 1e-12
    assert all((found[0].graph.dense(i) - found[1].graph.dense(i)).abs().max() <= 1e-12 for i in range(3))


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_without_biases_cp_conserves(model_type):
    model = encoders.build(model_type)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(not name.endswith("bias"))
    if model_type == "bert":  # a decoder's bias is told by another name
        model.cls.predictions.bias.data.zero_()
    found = attribute(model, IDS, 3, 5, position=PLACE, rule="cp", graph=ALL)
    allowed = 1e-5 if model_type in encoders.IN_FLOAT32 else 1e-11
    assert (found.layers.sum(1) - found.value).abs().max() <= allowed * max(1, abs(found.value))
    for layer in range(found.graph.num_layers):
        matrix = found.graph.dense(layer)
        assert (matrix.sum(1) - found.layers[layer + 1]).abs().max() <= allowed * max(1, matrix.abs().max())


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_biases_take_relevance_away_from_the_last_node(model_type):
    """Its relevance is the value less what the head's biases add."""
    model = encoders.build(model_type)
    found = attribute(model, IDS, 3, 5, position=PLACE)
    assert abs(found.layers[-1, PLACE] - found.value) > 1e-3
    assert found.layers[-1].count_nonzero() == 1


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "distilbert"])
def test_streaming_bounding_and_company_change_nothing(model_type):
    model = encoders.build(model_type)
    assert not reads_causally(model)
    found = attribute(model, IDS, 3, 5, position=PLACE)
    tight = Memory(host_budget=lrp_fast.plan(model, IDS.shape[1]).least["cpu"])
    assert (attribute(model, IDS, 3, 5, position=PLACE, memory=tight).layers - found.layers).abs().max() <= 1e-11
    rows = [IDS[0], IDS[0, :7], IDS[0, :7].flip(0), IDS[0].flip(0)]
    for one, row in zip(attribute_batch(model, rows, target=3, contrast=5, position=PLACE), rows, strict=True):
        assert (one.layers - attribute(model, row, 3, 5, position=PLACE).layers).abs().max() <= 1e-11


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_bounded_edges_reach_both_ways(model_type, monkeypatch):
    monkeypatch.setattr(attention_bounded, "worth", lambda *_: 1.0)  # whatever it saves
    ids = torch.randint(5, 97, (1, 300), generator=torch.Generator().manual_seed(2))
    windows = {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 70}
    told = windows if model_type == "modernbert" else {}  # whose last layer would leave few queries to the others
    model = encoders.build(model_type, max_position_embeddings=320, **told)
    given = {"target": 3, "contrast": 5, "position": 150, "graph": ALL}
    whole, less = (attribute(model, ids, **given, tolerance=tolerance) for tolerance in (0.0, 0.2))
    assert (less.dropped[:2] > 0).all() and less.dropped.max() <= 0.2 and (less.layers[-1] == whole.layers[-1]).all()
    assert 0 < (less.layers - whole.layers).abs().max() <= whole.layers.abs().max()
    found = [less.graph.dense(layer) for layer in range(3)]
    assert any(one.triu(1).any() for one in found) and any(one.tril(-1).any() for one in found)
    for one, nodes in zip(found, less.layers, strict=False):
        assert (one.sum(0) - nodes).abs().max() <= 1e-10 * nodes.abs().max()


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_padding_is_not_read(model_type):
    """On either side, in a model that is called with a mask; a window is as wide as transformers makes it."""
    model = encoders.build(model_type)
    ids = torch.cat([IDS, IDS.flip(1)])
    mask = torch.ones_like(ids)
    mask[0, 8:] = mask[1, :2] = 0
    with torch.no_grad():
        plain = model(ids, attention_mask=mask).logits
        with lrp_fast.patched(model):
            found = model(ids, attention_mask=mask).logits
    assert (found - plain)[mask.bool()].abs().max() <= 1e-4 * plain.abs().max()


def test_a_window_in_both_directions_hides_on_both_sides():
    graph = attribute(encoders.build("modernbert"), IDS, 3, 5, position=PLACE, graph=ALL).graph
    away = torch.arange(11)[:, None] - torch.arange(11)
    assert graph.dense(0)[away.abs() > 3].any()  # of all keys
    assert not graph.dense(1)[away.abs() > 3].any() and graph.dense(1)[away == -3].any()


@pytest.mark.parametrize("model_type", encoders.REFUSED)
def test_an_encoder_without_a_rule_is_refused(model_type):
    model, (_, words) = encoders.blank(model_type), encoders.REFUSED[model_type]
    with pytest.raises((ValueError, lrp_fast.UnsupportedModuleError), match=words):
        check_language_model(model)
        check(model)


def test_none_is_left_out():
    assert {*encoders.COVERED, *encoders.REFUSED, *encoders.NOT_TRIED} == {*encoders.ALL}


def test_a_decoders_head_on_an_encoder_is_refused():
    model = decoders.build("bert", is_decoder=False)
    why = "BertLMHeadModel reads tokens in both directions .*load it with transformers.AutoModelForMaskedLM.from_pretr"
    with pytest.raises(ValueError, match=why):
        attribute(model, IDS)

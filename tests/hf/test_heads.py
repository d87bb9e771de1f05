"""Labels in the place of a vocabulary: every head that is spelt out, and some of those that share their code."""

import pytest
import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from lrp_fast import GraphSpec, attribute
from lrp_fast.hf import check, decoder_layers, head_of, heads, logits_at, pooled_position
from tests import decoders
from tests.oracles.functional import explained

pytestmark = decoders.TABLE
IDS = torch.randint(3, 97, (1, 11), generator=torch.Generator().manual_seed(1))
RULES = ["attnlrp", "cp", "gradient"]
SPELT_OUT = ("biogpt", "bloom", "ctrl", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt")
SHARED = ("llama", "gemma2", "gemma3", "mixtral", "jetmoe", "axk2")  # the last two could not be audited
CASES = [
    (one, table[one])
    for one in (*SPELT_OUT, *SHARED)
    for table in (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
    if one in table
]


@pytest.mark.parametrize(("number", "model_type", "name"), [(i, *case) for i, case in enumerate(CASES)])
def test_nodes_and_edges_are_those_of_detached_rules(number, model_type, name):
    rule = RULES[number % 3]
    model, plain = (decoders.build(model_type, name=name, num_labels=7) for _ in range(2))
    check(plain)
    value, nodes, edges = explained(plain, decoder_layers(plain), IDS, 3, 5, rule)
    found = attribute(model, IDS, 3, 5, rule=rule, graph=GraphSpec(topk=10**6))
    assert found.explained.of == "label" and abs(found.value - value) <= 1e-12 * max(abs(value), 1)
    assert (found.layers - nodes).abs().max() <= 1e-11 * nodes.abs().max()
    for layer, matrix in enumerate(edges):
        assert (found.graph.dense(layer) - matrix).abs().max() <= 1e-10 * matrix.abs().max()


PAD = 9
PROMPTS = {
    "no padding": [5, 6, 7, 8],
    "at the end": [5, 6, 7, PAD, PAD],
    "at the beginning": [PAD, PAD, 5, 6],
    "within": [5, PAD, 6, 7],
    "everywhere": [PAD, PAD, PAD],
}


@pytest.mark.parametrize("ids", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("pad", [PAD, None])
@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "GPT2ForSequenceClassification"])
def test_where_a_prompt_is_read_is_where_transformers_reads_it(name, pad, ids):
    model_type = "gpt2" if name.startswith("GPT2") else "llama"
    model = decoders.build(model_type, name=name, num_labels=3, pad_token_id=pad)
    ids = torch.tensor(ids)
    every = []
    handle = model.score.register_forward_hook(lambda module, given, out: every.append(out[0]))
    own = model(ids[None]).logits[0]
    handle.remove()
    place = pooled_position(model, ids)
    assert torch.equal(every[0][place], own)
    assert torch.equal(logits_at(model, ids[None], [place]), own[None])
    assert attribute(model, ids, 1).explained.terms[0].position == place


def test_a_model_that_reads_elsewhere_is_refused(monkeypatch):
    model = decoders.build("llama", name="LlamaForSequenceClassification", num_labels=3)
    monkeypatch.setattr(heads, "pad_token", lambda model: int(IDS[0, -1]))
    assert pooled_position(model, IDS[0]) == 9
    with pytest.raises(ValueError, match="^LlamaForSequenceClassification does not read its logits at position 9, the"):
        logits_at(model, IDS, [9])


def test_a_head_under_another_name_is_refused():
    model = decoders.build("llama", name="LlamaForSequenceClassification", num_labels=3)
    del model.score
    with pytest.raises(ValueError, match="makes the logits of its labels by none of score and classifier"):
        head_of(model)


def test_labels_have_the_config_s_names_as_far_as_it_has_some():
    model = decoders.build("llama", name="LlamaForTokenClassification", id2label={0: "A", 1: "B"})
    assert head_of(model)[1:] == (2, ("A", "B"), False)
    model.score = nn.Linear(64, 3).double()
    assert head_of(model)[1:] == (3, ("A", "B", "LABEL_2"), False)
    assert attribute(model, IDS, "LABEL_2").value == pytest.approx(model(IDS).logits[0, -1, 2].item(), rel=1e-5)


def test_what_pools_before_its_head_is_refused():
    model = decoders.build("bert", name="BertForSequenceClassification", num_labels=3)
    assert isinstance(model, transformers.BertForSequenceClassification)
    with pytest.raises(ValueError, match="^BertForSequenceClassification pools what its head reads, which lrp_fast"):
        attribute(model, IDS)


def test_a_compiled_classifier_is_explained_as_it_is_written():
    model = decoders.build("llama", name="LlamaForSequenceClassification", num_labels=3)
    found = attribute(model, IDS, 1, 2)
    assert torch.equal(attribute(torch.compile(model), IDS, 1, 2).layers, found.layers)

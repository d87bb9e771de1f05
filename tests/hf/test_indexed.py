"""Attentions of keys that an indexer chooses. Their rules: test_decoders.py, with fewer keys than the prompt has."""

import pytest
import torch

import lrp_fast
import lrp_fast.hf.indexed
import lrp_fast.store
from lrp_fast import attribute
from lrp_fast.hf.definitions import gaps_to_definitions
from tests import decoders
from tests.test_memory import Allocated

pytestmark = decoders.RECENT
INDEXED = ["axk2", "deepseek_v32", "dots3_note", "glm_moe_dsa", "hy_v4", "minimax_m3_vl_text"]
IDS = torch.randint(3, 97, (1, 17), generator=torch.Generator().manual_seed(2))
# Of fewer heads, scores are often 0, and which of equal ones are chosen hangs on how many there are.
MANY_HEADS = {one: {"index_n_heads": 16} for one in INDEXED[:-1]} | {"minimax_m3_vl_text": {}}
ALL = {one: {"index_topk": 16} for one in INDEXED[:-1]} | {"minimax_m3_vl_text": {"index_block_size": 8}}


def padded(tokens: int) -> torch.Tensor:
    mask = torch.ones(2, tokens, dtype=torch.int64)
    mask[1, :4] = 0
    return mask


@pytest.mark.parametrize("settings", [MANY_HEADS, ALL], ids=["some", "all"])
@pytest.mark.parametrize("model_type", INDEXED)
def test_logits_are_those_of_the_model_padded_or_not(model_type, settings):
    """In float32, in which transformers' code is the other of two ways to round: as near as that is to float64."""
    model, ids = decoders.build(model_type, torch.float32, **settings[model_type]), IDS[:, :14].expand(2, -1)
    precise = decoders.build(model_type, **settings[model_type])
    by_blocks = settings is MANY_HEADS and model_type == "minimax_m3_vl_text"
    for mask in (None,) if by_blocks else (None, padded(14)):
        with torch.no_grad():
            own = model(ids, attention_mask=mask, use_cache=False).logits
            with lrp_fast.patched(model):
                found = model(ids, attention_mask=mask, use_cache=False).logits
            with lrp_fast.patched(precise):
                truth = precise(ids, attention_mask=mask, use_cache=False).logits
        real = torch.ones(2, 14).bool() if mask is None else mask.bool()
        off = (own - truth)[real].abs().max()
        assert off <= 1e-4 * own.abs().max()  # another choice of keys would be off by more
        assert (found - own)[real].abs().max() <= 2 * off + 1e-6 * own.abs().max()


@pytest.mark.parametrize("rule", ["attnlrp", "cp"])
@pytest.mark.parametrize("model_type", INDEXED)
def test_prompts_together_are_explained_as_each_by_itself(model_type, rule):
    model = decoders.build(model_type, **MANY_HEADS[model_type])
    prompts = [IDS[0, :9], IDS[0, 3:], IDS[0, :4]]
    together = lrp_fast.attribute_batch(model, prompts, target=3, contrast=5, rule=rule)
    for prompt, found in zip(prompts, together, strict=True):
        alone = attribute(model, prompt, 3, 5, rule=rule).layers
        assert (found.layers - alone).abs().max() <= 1e-10 * alone.abs().max()


@pytest.mark.parametrize("model_type", INDEXED)
def test_which_of_equal_keys_are_chosen_hangs_on_no_other_prompt(model_type):
    """Of few heads, scores are often 0."""
    model = decoders.build(model_type)
    prompts = [IDS[0, :13], IDS[0, :5], IDS[0, 4:13]]
    for prompt, found in zip(prompts, lrp_fast.attribute_batch(model, prompts, target=3, contrast=5), strict=True):
        alone = attribute(model, prompt, 3, 5).layers
        assert (found.layers - alone).abs().max() <= 1e-10 * alone.abs().max()


@pytest.mark.parametrize("model_type", INDEXED)
def test_an_indexer_that_runs_some_queries_at_a_time_chooses_the_same(model_type, monkeypatch):
    model = decoders.build(model_type, **MANY_HEADS[model_type])
    whole = attribute(model, IDS, 3, 5).layers
    monkeypatch.setattr(lrp_fast.hf.indexed, "SCORES", 16 * 17 * 3)
    assert (attribute(model, IDS, 3, 5).layers - whole).abs().max() <= 1e-10 * whole.abs().max()


@pytest.mark.parametrize("model_type", INDEXED)
def test_where_all_keys_are_chosen_no_indexer_runs(model_type):
    model = decoders.build(model_type, **ALL[model_type])
    for module in model.modules():
        if type(module).__name__.endswith("Indexer"):
            for part in module.parameters():
                part.data.fill_(torch.nan)
    assert attribute(model, IDS[:, :16], 3, 5).layers.isfinite().all()


@pytest.mark.parametrize("model_type", INDEXED)
def test_a_cache_is_refused(model_type):
    model = decoders.build(model_type)
    with lrp_fast.patched(model), pytest.raises(ValueError, match="pass use_cache=False"):
        model(IDS[:, :9])


def test_padding_is_refused_where_blocks_are_chosen():
    model = decoders.build("minimax_m3_vl_text")
    with lrp_fast.patched(model), pytest.raises(ValueError, match="run each prompt by itself"):
        model(IDS[:, :9].expand(2, -1), attention_mask=padded(9), use_cache=False)


def test_positions_that_are_not_places_are_refused_where_blocks_are_chosen():
    model = decoders.build("minimax_m3_vl_text")
    with lrp_fast.patched(model), pytest.raises(ValueError, match="position_ids that are not the tokens' places"):
        model(IDS[:, :9], position_ids=torch.arange(9)[None] + 1, use_cache=False)


def test_choices_for_more_groups_than_there_are_heads_of_keys_are_refused():
    model = decoders.build("minimax_m3_vl_text", index_n_heads=4)
    with pytest.raises(ValueError, match="chooses for 4 groups of heads"):
        attribute(model, IDS, 3, 5)


@pytest.mark.parametrize("model_type", INDEXED)
def test_choices_are_in_the_plan(model_type, monkeypatch):
    """What waits, and an indexer's scores: no more is allocated than was planned, where the prompt is long enough."""
    monkeypatch.setattr(lrp_fast.store, "_BLOCK", 0)
    monkeypatch.setattr(lrp_fast.reckoning, "_heap_loss", lambda size, context: 1.0)
    dense = {} if model_type == "minimax_m3_vl_text" else {"index_topk": 64}
    model, tokens = decoders.build(model_type, torch.float32, **MANY_HEADS[model_type] | dense), 120
    ids = torch.randint(3, 97, (1, tokens), generator=torch.Generator().manual_seed(2))
    memory = lrp_fast.Memory(host_budget=lrp_fast.plan(model, tokens).least["cpu"])
    planned = lrp_fast.plan(model, tokens, memory=memory).peak["cpu"]
    with Allocated(model) as allocated:
        attribute(model, ids, 3, 5, memory=memory)
    assert allocated.peak <= 1.2 * planned


@pytest.mark.parametrize("model_type", INDEXED)
def test_each_operation_is_that_of_its_definition(model_type):
    gaps = gaps_to_definitions(decoders.build(model_type), IDS)
    assert {"attentions", "linear maps", "norms", "experts"} <= set(gaps)
    assert max(gaps.values()) <= 1e-10

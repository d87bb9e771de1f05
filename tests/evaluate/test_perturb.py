"""Perturbed prompts, in batches and behind shared prefixes, against one call a prompt."""

import pytest
import torch

from lrp_fast import attribute
from lrp_fast.evaluate import REPLACEMENTS, perturb
from lrp_fast.hf import carries_keys
from lrp_fast.tokenizer import read as read_tokenizer

SHARING = ["llama", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "olmo3", "falcon", "qwen3_moe", "gpt_oss"]


def everything(logits):
    return logits


def some_rows(length, count=9):
    """What is kept: all, nothing, all but the first, all but the last; and so many drawn."""
    rows = torch.rand(count, length, generator=torch.Generator().manual_seed(3)) < 0.6
    ends = torch.ones(4, length, dtype=torch.bool)
    ends[1], ends[2, 0], ends[3, -1] = False, False, False
    return torch.cat([ends, rows, ~torch.eye(length, dtype=torch.bool)])


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_is_what_one_call_a_prompt_says(model, tokenizer, prompt, alone, replacement):
    keep = some_rows(len(prompt))
    found = perturb.Prompt(model, prompt, read_tokenizer(tokenizer)).read(keep, replacement, everything)
    expected = torch.stack([alone(prompt, row, replacement) for row in keep])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("replacement", ["zero", "left out"])
@pytest.mark.parametrize("rows", [1, 3])
def test_batches_of_any_size_say_the_same(model, prompt, monkeypatch, replacement, rows):
    keep = some_rows(len(prompt))
    whole = perturb.Prompt(model, prompt).read(keep, replacement, everything)
    monkeypatch.setattr(perturb, "_LOGITS", rows * 13)
    assert perturb.room_of(model).rows == rows
    small = perturb.Prompt(model, prompt).read(keep, replacement, everything)
    torch.testing.assert_close(small, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", SHARING)
def test_a_shared_prefix_changes_no_more_than_rounding(tiny, ids, monkeypatch, family):
    """Prompts of 23 tokens, more than the windows of 7 that some families have."""
    exact = family not in ("qwen3_moe", "gpt_oss")  # transformers' experts run in no float64
    # Gemma 2's eager attention takes its softmax in float32, which sums rows padded to other widths otherwise.
    within = {"gemma2": 1e-5}.get(family, 1e-9 if exact else 1e-4)
    model = tiny(family, torch.float64 if exact else torch.float32)
    keep = some_rows(ids.shape[1])
    assert carries_keys(model)
    for replacement in ("zero", "left out"):
        monkeypatch.setitem(perturb._TOKENS, "cpu", 40)
        given = perturb.Prompt(model, ids[0])
        shared = given.read(keep, replacement, everything)
        assert given._prefix is not None
        given = perturb.Prompt(model, ids[0])
        given.room = given.room._replace(shares=False)
        plain = given.read(keep, replacement, everything)
        assert given._prefix is None
        torch.testing.assert_close(shared, plain, rtol=0, atol=within)


def test_cost_is_what_goes_through_the_model(model, prompt, monkeypatch):
    monkeypatch.setitem(perturb._TOKENS, "cpu", 30)
    seen = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, named: seen.append(named["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    try:
        for replacement in ("zero", "left out"):
            for keep in (some_rows(len(prompt)), ~torch.eye(len(prompt), dtype=torch.bool)[-3:]):
                given = perturb.Prompt(model, prompt)
                seen.clear()
                given.read(keep, replacement, everything)
                assert sum(seen) == perturb.cost(keep, replacement, given.room)
    finally:
        handle.remove()


def test_late_changes_cost_less_than_whole_prompts(model):
    room = perturb.room_of(model)
    keep = ~torch.eye(1000, dtype=torch.bool)
    assert perturb.cost(keep, "zero", room) < 0.55 * 1000 * 1000
    assert perturb.cost(keep, "zero", room._replace(shares=False)) == 1000 * 1000


def test_every_row_is_in_one_batch_within_the_room():
    generator = torch.Generator().manual_seed(0)
    firsts = torch.randint(0, 50, (200,), generator=generator).tolist()
    lengths = [max(1, first, 50 - first // 3) for first in firsts]
    room = perturb.Room(tokens=120, rows=7, shares=True, pads=False)
    found = perturb.batches(firsts, lengths, room, prefix=50)
    assert sorted(row for one in found for row in one.rows) == list(range(200))
    for one in found:
        own = [lengths[row] for row in one.rows]
        assert len(set(own)) == 1 and one.longest == own[0]
        assert len(one.rows) == 1 or (len(one.rows) <= 7 and one.tokens <= 120)
        assert all(one.shared <= firsts[row] and one.shared < lengths[row] for row in one.rows)


def test_a_models_hooks_and_mode_are_left_alone(model, prompt):
    before = attribute(model, prompt, 9, 10)
    perturb.Prompt(model, prompt).read(some_rows(len(prompt)), "left out", everything)
    assert not model.training and not model.get_output_embeddings()._forward_pre_hooks
    assert torch.equal(attribute(model, prompt, 9, 10).layers, before.layers)


def test_what_has_no_stand_in_is_refused(model, prompt):
    keep = some_rows(len(prompt))
    with pytest.raises(ValueError, match="no mask token"):
        perturb.Prompt(model, prompt).read(keep, "mask", everything)
    with pytest.raises(ValueError, match="must be one of 'pad', 'mask'"):
        perturb.Prompt(model, prompt).read(keep, "drop", everything)


def test_without_a_pad_token_the_end_of_sequence_stands_in(tiny, prompt):
    model = tiny("llama", torch.float64, vocab_size=13, pad_token_id=None, eos_token_id=3)
    keep = some_rows(len(prompt))[4:6]
    found = perturb.Prompt(model, prompt).read(keep, "pad", everything)
    with torch.no_grad():
        expected = model(input_ids=torch.where(keep, prompt, 3)).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)

"""attribute_batch(): each row is what it is alone, whatever the padding."""

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

import lrp_fast
from lrp_fast import GraphSpec, attribute, attribute_batch

PROMPTS = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]


def padded(side):
    """(3, 6) ids whose padding is a token like any other, and their mask."""
    ids, mask = torch.full((3, 6), 3), torch.zeros(3, 6, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        where = slice(6 - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, where], mask[row, where] = torch.tensor(prompt), 1
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_a_row_of_a_batch_is_what_it_is_alone(side, tiny):
    model = tiny("gemma2")
    given = (PROMPTS, None) if side == "none" else padded(side)
    asked = {"target": [11, 12, 13], "contrast": 5, "position": [-1, 0, (1, 2)]}
    found = attribute_batch(model, *given, **asked, rule="cp", graph=GraphSpec(topk=2))
    for row, (one, prompt) in enumerate(zip(found, PROMPTS, strict=True)):
        place = asked["position"][row]
        truth = attribute(model, prompt, asked["target"][row], 5, place, rule="cp", graph=GraphSpec(topk=2))
        assert torch.equal(one.layers, truth.layers) and one.value == truth.value
        assert one.input_ids.tolist() == prompt
        assert torch.equal(one.graph.dense(1), truth.graph.dense(1))


def test_a_padded_patched_forward_agrees(tiny):
    """The same batch in one forward and backward pass: each row's relevance is that of `attribute_batch`."""
    model = tiny("llama", torch.float64)
    ids, mask = padded("right")
    last = mask.sum(-1) - 1
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    with lrp_fast.patched(model):
        model(inputs_embeds=x, attention_mask=mask).logits[range(3), last, 5].sum().backward()
    relevance = (x * x.grad).sum(-1).detach()
    for row, one in enumerate(attribute_batch(model, ids, mask, target=5)):
        truth = relevance[row, : last[row] + 1]
        assert (one.relevance - truth).abs().max() <= 1e-12 * truth.abs().max()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"input_ids": "text"}, TypeError, "input_ids is one string: attribute_batch takes a sequence"),
        ({"input_ids": torch.ones(2, 3, dtype=int)}, ValueError, "give its attention_mask with it"),
        ({"input_ids": BatchEncoding({"input_ids": torch.ones(2, 3, dtype=int)})}, ValueError, "give its attention_m"),
        ({"input_ids": {"ids": [[1]]}}, TypeError, "it is a dict without 'input_ids'"),
        ({"input_ids": {"input_ids": [[1]], "pixel_values": 0}}, TypeError, "'pixel_values' is not what a tokenizer"),
        ({"input_ids": [[1]], "pixel_values": 0}, TypeError, "'pixel_values' is not what a tokenizer makes of a text"),
        ({"input_ids": {"input_ids": [[1]], "attention_mask": [[1]]}, "attention_mask": [[1]]}, TypeError, "twice"),
        ({"input_ids": [{"role": "user", "content": "a"}]}, TypeError, r"one chat: .* \[chat\] for one"),
        ({"input_ids": [1, 2]}, ValueError, r"row 0: input_ids must be .* not a number: write \[1\]"),
        ({"input_ids": np.ones((2, 3), int)}, ValueError, "give its attention_mask with it"),
        ({"input_ids": None}, TypeError, "must be a sequence of prompts, not NoneType"),
        ({"input_ids": [[1]], "attention_mask": [[None]]}, ValueError, "row 0: attention_mask .* or be left out"),
        ({"input_ids": [[True, 2]], "attention_mask": [[1, 1]]}, TypeError, "row 0: input_ids must hold whole numbers"),
        ({"input_ids": [[1, 2]], "attention_mask": [[-1e9, 0.0]]}, ValueError, "1 for tokens and 0 for padding"),
        ({"input_ids": np.array(["a", "b"])}, ValueError, "row 0: input_ids is a string: give tokenizer="),
        ({"input_ids": []}, ValueError, "an empty batch"),
        ({"input_ids": torch.ones(0, 3), "attention_mask": torch.ones(0, 3)}, ValueError, "an empty batch"),
        ({"input_ids": [[1], [2, 3]], "attention_mask": [[1], [1]]}, ValueError, "or leave the mask out"),
        ({"input_ids": [[1], [2, 3, 4]], "attention_mask": [[1], [1, 0, 1]]}, ValueError, "row 1: attention_mask has"),
        ({"input_ids": [[1], [2, 3]], "attention_mask": [[1], [0, 0]]}, ValueError, "row 1: attention_mask has no"),
        ({"input_ids": [[1], [2]], "attention_mask": [[1, 1]]}, ValueError, r"not \(2, 1\) and \(1, 2\)"),
        ({"input_ids": [[1, 2], [2, 1]], "attention_mask": [[1, 1], [0, 0]]}, ValueError, "row 1: .* no real token"),
        ({"input_ids": [[1], [2, 97]]}, ValueError, "row 1: input_ids holds token 97"),
        ({"input_ids": [[1], []]}, ValueError, "row 1: input_ids is empty"),
        ({"input_ids": [[1], [2]], "target": [3]}, ValueError, "target is a list of 1 for 2 prompts"),
        ({"input_ids": [[1], [2]], "target": torch.tensor([3])}, ValueError, "target is a list of 1 for 2 prompts"),
        ({"input_ids": [[1], [2]], "target": torch.tensor([3.0, 4.0])}, TypeError, "target must be a token id or"),
        ({"input_ids": [[1], [2]], "target": [3, [4, 5]]}, TypeError, "row 1 has several targets"),
        ({"input_ids": [[1, 2], [2]], "position": 1}, ValueError, "row 1: position 1 is outside"),
    ],
)
def test_a_bad_row_is_named_before_any_layer_runs(arguments, error, message, tiny):
    model = tiny("llama")
    model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(error, match=message):
        attribute_batch(model, **arguments)
    with pytest.raises(ValueError, match="^LlamaForCausalLM is in training mode"):
        attribute_batch(model.train(), **arguments)
    model.eval()

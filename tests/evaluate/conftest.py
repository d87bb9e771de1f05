"""A linear model's scene, and the tiny model's answers by calls that are written out."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lrp_fast.evaluate import Scene
from lrp_fast.evaluate.readings import FIELDS

WORDS = ["<s>", "[UNK]", "[PAD]", "[MASK]", "the", "capital", "of", "australia", "is", "sydney", "canberra", "not", "."]
TARGET, CONTRAST = 9, 10


@pytest.fixture(scope="session")
def model(tiny):
    return tiny("llama", torch.float64, vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0, pad_token_id=2)


@pytest.fixture(scope="session")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"
    )


@pytest.fixture(scope="session")
def prompt(model):
    """(12,) ids, none of them special, of which the model prefers TARGET to CONTRAST."""
    generator = torch.Generator().manual_seed(0)
    while True:
        found = torch.randint(4, len(WORDS), (12,), generator=generator)
        with torch.no_grad():
            logits = model(input_ids=found[None]).logits[0, -1]
        if logits[TARGET] > logits[CONTRAST]:
            return found


@pytest.fixture(scope="session")
def linear():
    """``linear(weights, bias=0, as_probability=False)``: a scene whose preference, decision and log-probability are
    ``bias`` plus the weights of the units that are kept, one token each, or whose probability is; the distance is the
    share of the sum of weights that is gone. ``scene.asked`` counts the prompts."""

    def build(weights, bias=0.0, as_probability=False, **named):
        weights = torch.as_tensor(weights, dtype=torch.float64)
        asked = []

        def run(keep, replacement):
            asked.append(len(keep))
            value = bias + keep.double() @ weights
            far = 1 - (keep.double() @ weights) / weights.sum()
            return torch.stack([value, value, value.log() if as_probability else value, far], -1)

        def run_soft(probability, seeds):
            return run(probability, "zero")

        spans = [(i, i + 1) for i in range(len(weights))]
        scene = Scene("linear", len(weights), spans, run, run_soft, **named)
        scene.asked = asked
        assert FIELDS == 4
        return scene

    return build


@pytest.fixture(scope="session")
def alone(model):
    """``alone(ids, keep, replacement)``: (V,) last logits of one perturbed prompt, by a call of its own."""

    @torch.no_grad()
    def ask(ids, keep, replacement):
        keep = torch.as_tensor(keep, dtype=torch.bool)
        embedded = model.get_input_embeddings()(ids).clone()
        if replacement == "left out":
            left = ids[keep] if keep.any() else torch.tensor([2])
            return model(input_ids=left[None]).logits[0, -1]
        if replacement in ("pad", "mask"):
            return model(input_ids=torch.where(keep, ids, 2 if replacement == "pad" else 3)[None]).logits[0, -1]
        embedded[~keep] = 0.0 if replacement == "zero" else embedded.mean(0)
        return model(inputs_embeds=embedded[None]).logits[0, -1]

    return ask

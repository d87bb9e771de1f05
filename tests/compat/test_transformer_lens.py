"""`lrp_fast.ops` under the hooks of the real TransformerLens, as demo/with_transformer_lens.py has it."""

import importlib.util
import json

import pytest
import torch

import lrp_fast

if importlib.util.find_spec("transformer_lens") is None:
    pytest.skip("TransformerLens is not installed", allow_module_level=True)

RULES = [{"name": "attnlrp"}, {"name": "cp"}, {"name": "attnlrp", "attention_epsilon": 0.1, "attention_gamma": 0.1}]

SCRIPT = """
import json, sys
import torch
from lrp_fast import Rules
from with_transformer_lens import TransformerBridge, propagating, relevance

rules, ids, folder, other = map(json.loads, sys.argv[1:])
boot = lambda folder: TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float64)
bridge = boot(folder).requires_grad_(False)
ids = torch.tensor(ids)
plain = bridge(ids)[0, -1].tolist()
found = [relevance(bridge, ids, 3, 5, Rules(**rule)).tolist() for rule in rules]
with bridge.hooks(fwd_hooks=propagating(bridge)):
    logits = bridge(ids)[0, -1].tolist()
try:
    relevance(boot(other), ids, 3, 5)
except ValueError as error:
    print(json.dumps([found, plain, logits, str(error)]))
"""


def test_relevance_is_that_of_attribute(saved, ids, elsewhere):
    (model, folder), (_, other) = saved("llama"), saved("mistral")
    found, plain, logits, refusal = elsewhere(SCRIPT, *map(json.dumps, (RULES, ids.tolist(), str(folder), str(other))))
    for layers, rule in zip(found, RULES, strict=True):
        truth = lrp_fast.attribute(model, ids, target=3, contrast=5, rule=lrp_fast.Rules(**rule)).layers
        assert (torch.tensor(layers, dtype=torch.float64) - truth).abs().max() <= 1e-12 * truth.abs().max()
    plain, logits = torch.tensor(plain), torch.tensor(logits)
    # TransformerLens takes softmax in float32.
    assert (plain - logits).abs().max() <= 1e-5 * plain.abs().max()
    assert refusal == "the operations replaced here are those of Llama, not of mistral"


@pytest.mark.slow
def test_the_demo_gives_what_the_readme_says(agrees):
    agrees("with_transformer_lens.py")

"""`lrp_fast.ops` in a trace of the real nnsight, as demo/with_nnsight.py has it."""

import importlib.util
import json

import pytest
import torch

import lrp_fast

if importlib.util.find_spec("nnsight") is None:
    pytest.skip("nnsight is not installed", allow_module_level=True)

RULES = [{"name": "attnlrp"}, {"name": "cp"}, {"name": "attnlrp", "attention_epsilon": 0.1, "attention_gamma": 0.1}]

SCRIPT = """
import json, sys
import torch
import lrp_fast
from transformers import AutoModelForCausalLM
from with_nnsight import NNsight, relevance

rules, ids, folder, other = map(json.loads, sys.argv[1:])
load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).requires_grad_(False)
model = load(folder)
lens, ids, refusals = NNsight(model), torch.tensor(ids), []
found = [relevance(lens, ids, 3, 5, lrp_fast.Rules(**rule)).tolist() for rule in rules]
for call in (lambda: relevance(NNsight(load(other)), ids, 3, 5), lambda: lrp_fast.attribute(model, ids)):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        refusals.append(str(error))
print(json.dumps([found, refusals]))
"""


@pytest.mark.slow
def test_relevance_is_that_of_attribute(saved, ids, elsewhere):
    (model, folder), (_, other) = saved("llama"), saved("mistral")
    found, refusals = elsewhere(SCRIPT, *map(json.dumps, (RULES, ids.tolist(), str(folder), str(other))))
    for layers, rule in zip(found, RULES, strict=True):
        truth = lrp_fast.attribute(model, ids, target=3, contrast=5, rule=lrp_fast.Rules(**rule)).layers
        assert (torch.tensor(layers, dtype=torch.float64) - truth).abs().max() <= 1e-12 * truth.abs().max()
    assert refusals[0] == "the operations replaced here are those of Llama, not of mistral"
    assert refusals[1].startswith("something else overrides the forward of ")


@pytest.mark.slow
def test_the_demo_gives_what_the_readme_says(agrees):
    agrees("with_nnsight.py")

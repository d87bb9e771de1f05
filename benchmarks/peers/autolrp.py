"""autoLRP with its recipes for AttnLRP and CP-LRP, on the embeddings of an untouched model."""

from __future__ import annotations

import functools

import autolrp
import torch
from transformers import AutoModelForCausalLM


def load(directory: str) -> dict:
    # it wants to see the weights in the graph of autograd, and softmax as an operation of its own
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()

    def explained(recipe, ids, target):
        embeddings = autolrp.tensor(model.get_input_embeddings()(torch.tensor([ids])).detach())
        logit = model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[0, -1, target]
        logit.lrp(config=recipe)
        # it hands down a relevance of 1, whatever the logit is
        relevance = embeddings.relevance.as_subclass(torch.Tensor).sum(-1)[0] * logit.item()
        return {"relevance": relevance}

    return {
        "attnlrp": functools.partial(explained, autolrp.LRPConfig.attnlrp()),
        "cp": functools.partial(explained, autolrp.LRPConfig.cplrp()),
    }

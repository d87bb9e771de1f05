"""`lrp_fast`, the model's own forward pass, and plain gradient x input through that model, as serve.py runs them."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

import lrp_fast


def load(directory: str, dtype: str = "float32") -> dict:
    """Calls by name; each takes a prompt's token ids and the ids of target and contrast."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval().requires_grad_(False)

    def forward(ids, target, contrast=None):
        """(V,) logits of the last position alone, without autograd."""
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1]
        return {"value": explained(logits, target, contrast).item()}

    def attribute(ids, target, contrast=None, rule="attnlrp", host_budget=None, graph=None, **others):
        """``target``: an id, or several, which share a forward pass. ``others``: of `lrp_fast.attribute`, as given."""
        if host_budget is not None:
            others["memory"] = lrp_fast.Memory(host_budget=host_budget)
        if graph is not None:
            others["graph"] = lrp_fast.GraphSpec(**graph)
        result = lrp_fast.attribute(model, torch.tensor([ids]), target=target, contrast=contrast, rule=rule, **others)
        return [told(one) for one in result] if isinstance(result, list) else told(result)

    def batch(prompts, target, contrast, **others):
        return [
            told(one) for one in lrp_fast.attribute_batch(model, prompts, target=target, contrast=contrast, **others)
        ]

    def one_by_one(prompts, target, contrast):
        return [attribute(ids, target, contrast) for ids in prompts]

    def in_session(prompts, target, contrast):
        with lrp_fast.session(model):
            return one_by_one(prompts, target, contrast)

    def each_forward(prompts, target, contrast):
        for ids in prompts:
            forward(ids, target, contrast)
        return {}

    def forwards(prompts, target, contrast):
        """The model's own forward pass over all of them at once: they are of one length."""
        with torch.no_grad():
            model(torch.tensor(prompts), use_cache=False, logits_to_keep=1)
        return {}

    def gradient(ids, target, contrast=None):
        """Plain autograd through the model as it is."""
        embeddings = model.get_input_embeddings()(torch.tensor([ids])).requires_grad_()
        logits = model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[0, -1]
        explained(logits, target, contrast).backward()
        return {"relevance": (embeddings * embeddings.grad).sum(-1)[0].detach()}

    def each_gradient(prompts, target, contrast):
        return [gradient(ids, target, contrast) for ids in prompts]

    return {
        "forward": forward, "attribute": attribute, "batch": batch, "one_by_one": one_by_one, "forwards": forwards,
        "in_session": in_session, "each_forward": each_forward, "gradient": gradient, "each_gradient": each_gradient,
    }  # fmt: skip


def explained(logits, target: int, contrast: int | None):
    return logits[target] - (0 if contrast is None else logits[contrast])


def told(result: lrp_fast.Attribution) -> dict:
    found = {"value": result.value, "relevance": result.relevance}
    dropped = getattr(result, "dropped", None)
    return found if dropped is None else found | {"dropped": dropped}

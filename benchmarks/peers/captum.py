"""Captum's gradient methods on the embeddings, as its documentation has them for language models."""

from __future__ import annotations

import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from transformers import AutoModelForCausalLM


def load(directory: str) -> dict:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().requires_grad_(False)
    embedding = model.get_input_embeddings()

    def logits(ids):
        return model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]

    def input_x_gradient(ids, target):
        # Captum differentiates by the layer's output, which has no gradient of its own where the weights have none
        embedding.requires_grad_(True)
        found = LayerGradientXActivation(logits, embedding).attribute(torch.tensor([ids]), target=target)
        return {"relevance": found.sum(-1)[0].detach()}

    def integrated_gradients(ids, target, steps):
        embedding.requires_grad_(True)
        method = LayerIntegratedGradients(logits, embedding)
        baseline = torch.zeros(1, len(ids), dtype=torch.long)
        found = method.attribute(torch.tensor([ids]), baseline, target=target, n_steps=steps, internal_batch_size=1)
        return {"relevance": found.sum(-1)[0].detach()}

    return {"input_x_gradient": input_x_gradient, "integrated_gradients": integrated_gradients}

"""inseq's gradient methods, of one further token's logit."""

from __future__ import annotations

import inseq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(directory: str) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    wrapped = {}

    def attributed(method: str, ids, target, **given):
        if method not in wrapped:  # inseq's wrappers know one method each
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
            wrapped[method] = inseq.load_model(model, method, tokenizer=tokenizer)
        text = tokenizer.decode(ids)
        found = wrapped[method].attribute(
            text, text + tokenizer.decode([target]), attributed_fn="logit", show_progress=False, **given
        )
        return {"relevance": found.sequence_attributions[0].target_attributions[: len(ids), 0].sum(-1)}

    def input_x_gradient(ids, target):
        return attributed("input_x_gradient", ids, target)

    def integrated_gradients(ids, target, steps):
        return attributed("integrated_gradients", ids, target, n_steps=steps, internal_batch_size=1)

    return {"input_x_gradient": input_x_gradient, "integrated_gradients": integrated_gradients}

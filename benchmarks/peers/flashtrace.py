"""FlashTrace: its own method, the unsigned flow of one token's attributes ("ifr-span"), and its AttnLRP."""

from __future__ import annotations

import contextlib

import flashtrace.attribution
import torch
from flashtrace.baselines.attnlrp import LLMLRPAttribution, lrp_context
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama


def load(directory: str) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.eos_token = None  # it explains the target's tokens and an EOS behind them: without one, the target alone
    # its own method wants the weights of attention
    eager = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa").eval()

    def flow(ids, target):
        prompt, answer = tokenizer.decode(ids), tokenizer.decode([target])
        traced = flashtrace.FlashTrace(eager, tokenizer).trace(prompt=prompt, target=answer, hops=0, method="ifr-span")
        return {"relevance": traced.scores}

    def attnlrp(ids, target):
        prompt, answer = tokenizer.decode(ids), tokenizer.decode([target])
        found = LLMLRPAttribution(model, tokenizer).calculate_attnlrp(prompt, answer)
        return {"relevance": found.attribution_matrix[0, : len(ids)]}

    flashtrace.attribution.lrp_context = context
    return {"flow": flow, "attnlrp": attnlrp}


@contextlib.contextmanager
def context(model, model_type):
    """FlashTrace's patches. They leave a dict, which transformers 5 asks for more than a dict can, as LXT's do."""
    plain = modeling_llama.ALL_ATTENTION_FUNCTIONS
    try:
        with lrp_context(model, model_type):
            interface = type(plain)()
            for name, wrapper in modeling_llama.ALL_ATTENTION_FUNCTIONS.items():
                interface[name] = wrapper
            modeling_llama.ALL_ATTENTION_FUNCTIONS = interface
            yield
    finally:
        modeling_llama.ALL_ATTENTION_FUNCTIONS = plain

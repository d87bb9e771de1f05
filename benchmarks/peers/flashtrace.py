"""FlashTrace: its own method, the unsigned flow of one token's attributes ("ifr-span"), and its AttnLRP."""

from __future__ import annotations

import torch
from flashtrace import FlashTrace
from flashtrace.baselines.attnlrp import LLMLRPAttribution
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(directory: str) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.eos_token = None  # it explains the target's tokens and an EOS behind them: without one, the target alone
    # its own method wants the weights of attention
    eager = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa").eval()

    def flow(ids, target):
        prompt, answer = tokenizer.decode(ids), tokenizer.decode([target])
        traced = FlashTrace(eager, tokenizer).trace(prompt=prompt, target=answer, hops=0, method="ifr-span")
        return {"relevance": traced.scores}

    def attnlrp(ids, target):
        prompt, answer = tokenizer.decode(ids), tokenizer.decode([target])
        found = LLMLRPAttribution(model, tokenizer).calculate_attnlrp(prompt, answer)
        return {"relevance": found.attribution_matrix[0, : len(ids)]}

    return {"flow": flow, "attnlrp": attnlrp}

"""The demo's decision (see run.py) explained within nnsight: its trace hands the operations to `lrp_fast.ops`.

nnsight runs a transformers model as it is, and lets a trace replace what goes into a module and comes out of it. Here
`lrp_fast.ops` computes what has a propagation rule in a Llama: norms, attention, act(gate) x up. Any value of the trace
times its gradient is then relevance. Prints the tokens with the most, and how far they are from what
`lrp_fast.attribute` says of the same model: asked first, because a model that nnsight has wrapped stays so, and
`lrp_fast.patched` refuses it. It needs `pip install nnsight`.
"""

import torch
from nnsight import NNsight
from transformers import AutoModelForCausalLM, AutoTokenizer

import lrp_fast
from lrp_fast import ops


def norm(envoy, rule):
    envoy.output = ops.rms_norm(envoy.input, envoy.weight, envoy.variance_epsilon, rule=rule)


def relevance(lens, ids, target, contrast, rule="attnlrp"):
    """(L + 1, N), as ``lrp_fast.attribute(model, ids, target, contrast).layers`` for token ids (1, N)."""
    if lens.config.model_type != "llama":
        raise ValueError(f"the operations replaced here are those of Llama, not of {lens.config.model_type}")
    with lens.trace(ids):
        states = [lens.model.embed_tokens.output.requires_grad_()]
        for layer in lens.model.layers:  # in the order in which the model runs
            norm(layer.input_layernorm, rule)
            attention = layer.self_attn.source.attention_interface_1
            (_, query, key, value, *_), named = attention.inputs
            mixed = ops.attention(query, key, value, scale=named["scaling"], rule=rule)
            attention.output = mixed.transpose(1, 2), None
            norm(layer.post_attention_layernorm, rule)
            gate, up, kind = layer.mlp.gate_proj.output, layer.mlp.up_proj.output, lens.config.hidden_act
            layer.mlp.down_proj.input = ops.gated_mlp(gate, up, kind, rule=rule)
            states.append(layer.output)
        norm(lens.model.norm, rule)
        logits = lens.lm_head.output[0, -1]
        with (logits[target] - logits[contrast]).backward():
            found = [(state * state.grad).sum(-1)[0] for state in reversed(states)]
        layers = torch.stack(found[::-1]).detach().save()
    return layers


if __name__ == "__main__":
    from run import PROMPT
    from smollm2 import model_directory

    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    model = AutoModelForCausalLM.from_pretrained(model_directory(), dtype=torch.float32).requires_grad_(False)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    (target,), (contrast,) = map(tokenizer.encode, (" blue", " red"))
    truth = lrp_fast.attribute(model, ids, target, contrast).relevance
    found = relevance(NNsight(model), ids, target, contrast)[0]
    for i in found.abs().argsort(descending=True)[:5].tolist():
        print(f"{found[i]:+9.4f}  {i:2} {tokenizer.decode(ids[0, i])!r}")
    gap = (found - truth).abs().max() / truth.abs().max()
    print(f"largest difference from lrp_fast.attribute, over the largest relevance: {gap:.0e}")

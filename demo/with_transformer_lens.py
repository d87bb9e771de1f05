"""The demo's decision (see run.py) explained within TransformerLens: its hooks hand the operations to `lrp_fast.ops`.

TransformerLens 4 runs transformers models with hooks at every step. Around what has a propagation rule in a Llama
(norms, attention, act(gate) x up) hooks note what goes in, and replace what comes out by what `lrp_fast.ops` makes of
it: the same numbers. At any hook, a value times its gradient is then relevance. Prints the tokens with the most, and
how far they are from what `lrp_fast.attribute` says of the same model. It needs `pip install transformer-lens`.
"""

import torch
from transformer_lens import TransformerBridge
from transformers import AutoModelForCausalLM

import lrp_fast
from lrp_fast import ops


def propagating(bridge, rule="attnlrp"):
    """Forward hooks under which the backward pass of ``bridge`` propagates relevance."""
    config = bridge.original_model.config
    if config.model_type != "llama":
        raise ValueError(f"the operations replaced here are those of Llama, not of {config.model_type}")
    hooks = []

    def replace(operation, result, *inputs):
        """At the hook ``result``, ``operation(*inputs)``, these being what passed the hooks of their names."""
        seen = {}
        hooks.extend((name, lambda x, hook: seen.update({hook.name: x})) for name in inputs)
        hooks.append((result, lambda x, hook: operation(*(seen.pop(name) for name in inputs))))

    def norm(path, module):
        weight, eps = module.weight, module.original_component.variance_epsilon
        replace(lambda x: ops.rms_norm(x, weight, eps, rule=rule), f"{path}.hook_out", f"{path}.hook_in")

    def attention(*tensors):  # (B, N, heads, head_dim)
        return ops.attention(*(x.transpose(1, 2) for x in tensors), rule=rule).transpose(1, 2)

    def gated_mlp(gate, up):
        return ops.gated_mlp(gate, up, config.hidden_act, rule=rule)

    for i, block in enumerate(bridge.blocks):
        attn, mlp = f"blocks.{i}.attn", f"blocks.{i}.mlp"
        norm(f"blocks.{i}.ln1", block.ln1)
        norm(f"blocks.{i}.ln2", block.ln2)
        replace(attention, f"{attn}.o.hook_in", f"{attn}.hook_rot_q", f"{attn}.hook_rot_k", f"{attn}.v.hook_out")
        replace(gated_mlp, f"{mlp}.out.hook_in", f"{mlp}.gate.hook_out", f"{mlp}.in.hook_out")
    norm("ln_final", bridge.ln_final)
    return hooks


def relevance(bridge, ids, target, contrast, rule="attnlrp"):
    """(L + 1, N), as ``lrp_fast.attribute(model, ids, target, contrast).layers`` for token ids (1, N)."""
    last = len(bridge.blocks) - 1
    names = [*(f"blocks.{i}.hook_in" for i in range(last + 1)), f"blocks.{last}.hook_out"]
    states = []

    def keep(x, hook):
        x.requires_grad_().retain_grad()
        states.append(x)

    with bridge.hooks(fwd_hooks=[*propagating(bridge, rule), *((name, keep) for name in names)]):
        logits = bridge(ids)[0, -1]
        (logits[target] - logits[contrast]).backward()
    return torch.stack([(x * x.grad).sum(-1)[0] for x in states]).detach()


if __name__ == "__main__":
    from run import PROMPT
    from smollm2 import model_directory

    bridge = TransformerBridge.boot_transformers(str(model_directory()), device="cpu").requires_grad_(False)
    ids = bridge.to_tokens(PROMPT, prepend_bos=False)
    target, contrast = map(bridge.to_single_token, (" blue", " red"))
    found = relevance(bridge, ids, target, contrast)[0]
    for i in found.abs().argsort(descending=True)[:5].tolist():
        print(f"{found[i]:+9.4f}  {i:2} {bridge.to_string(ids[0, i])!r}")
    model = AutoModelForCausalLM.from_pretrained(model_directory(), dtype=torch.float32)  # the bridge's own has changed
    truth = lrp_fast.attribute(model, ids, target, contrast).relevance
    gap = (found - truth).abs().max() / truth.abs().max()
    print(f"largest difference from lrp_fast.attribute, over the largest relevance: {gap:.0e}")

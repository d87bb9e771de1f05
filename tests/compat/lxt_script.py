"""A script as LXT's users write them, its import line alone to be chosen; runs where LXT runs.

    python lxt_script.py CASE.json WEIGHTS.safetensors OUT.json

runs it with LXT. CASE.json says family (of transformers), class, config, rule, ids, target, contrast and whether to
checkpoint.
"""

import importlib
import json
import sys
import types
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import pytorch_utils


def let_lxt_import():
    """It imports, for models of pictures, what may be missing here, and says on every import that it misses Zennit."""
    try:
        import torchvision.models.vision_transformer  # noqa: F401
    except ImportError:
        vision_transformer = types.ModuleType("torchvision.models.vision_transformer")
        vision_transformer.nn = torch.nn
        models = types.ModuleType("torchvision.models")
        models.vision_transformer = vision_transformer
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        sys.modules["torchvision.models"] = models
        sys.modules["torchvision.models.vision_transformer"] = vision_transformer
    if not hasattr(pytorch_utils, "find_pruneable_heads_and_indices"):
        pytorch_utils.find_pruneable_heads_and_indices = None
    warnings.filterwarnings("ignore", message="'zennit' library is not available")


def run(package, case, weights):
    """(logits, relevance) with ``monkey_patch`` from ``package``, which stays in force."""
    family = case["family"]
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    if package == "lxt.efficient":
        let_lxt_import()
        maps = f"lxt.efficient.models.{family}"
    else:
        maps = package
    monkey_patch = importlib.import_module(package).monkey_patch
    patch_map = getattr(importlib.import_module(maps), case["rule"])

    interface = type(modeling.ALL_ATTENTION_FUNCTIONS)
    monkey_patch(modeling, patch_map)
    if not isinstance(modeling.ALL_ATTENTION_FUNCTIONS, interface) and hasattr(interface, "get_interface"):
        # LXT leaves a dict of its wrappers; newer releases of transformers ask for more than a dict can.
        wrappers, modeling.ALL_ATTENTION_FUNCTIONS = modeling.ALL_ATTENTION_FUNCTIONS, interface()
        for name, wrapper in wrappers.items():
            modeling.ALL_ATTENTION_FUNCTIONS[name] = wrapper

    model_class = getattr(modeling, case["class"])
    model = model_class(model_class.config_class(**case["config"], attn_implementation="eager")).eval()
    model.load_state_dict(load_file(weights))
    for parameter in model.parameters():
        parameter.requires_grad = False
    if case["checkpointing"]:
        model.train()
        model.gradient_checkpointing_enable()

    x = model.get_input_embeddings()(torch.tensor(case["ids"])).requires_grad_()
    logits = model(inputs_embeds=x, use_cache=False).logits[0, -1]
    (logits[case["target"]] - logits[case["contrast"]]).backward()
    return logits.detach(), (x * x.grad).sum(-1)[0].detach()


if __name__ == "__main__":
    case, weights, out = sys.argv[1:]
    found = run("lxt.efficient", json.loads(Path(case).read_text()), weights)
    Path(out).write_text(json.dumps([tensor.tolist() for tensor in found]))

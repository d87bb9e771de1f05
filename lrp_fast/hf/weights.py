"""The matrix of a linear map, however its module keeps it: a tensor of floats, quantised, or with LoRA adapters.

bitsandbytes, torchao and peft are known by the names of their classes: none of them is imported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..ops import Rows
from .walk import modules_of

ADAPTED = (
    "peft.tuners.lora.layer.Linear",
    "peft.tuners.lora.bnb.Linear8bitLt",
    "peft.tuners.lora.bnb.Linear4bit",
    "peft.tuners.lora.torchao.TorchaoLoraLinear",
)
_ADAPTABLE = (
    "transformers.models.falcon.modeling_falcon.FalconLinear",
    "torch.nn.modules.linear.Linear",
    "transformers.pytorch_utils.Conv1D",
    "bitsandbytes.nn.modules.Linear8bitLt",
    "bitsandbytes.nn.modules.Linear4bit",
)
# Of peft's other kinds of adapters: what peft does not merge, and those that add to the prompt instead of the model.
_UNMERGEABLE = (
    *("AdaptionPromptModel", "LilyModel", "PolyModel", "ShadowModel", "XLoraModel"),
    *("ALoraLinearVariant", "ArrowLinearVariant", "QALoraLinearVariant"),
)
_PROMPTS = ("cartridge", "cpt", "multitask_prompt_tuning", "p_tuning", "prefix_tuning", "prompt_tuning")
_AROUND = (  # plain LoRA's
    *("peft.tuners.lora.model.LoraModel", "peft.tuners.mixed.model.MixedModel"),
    *("peft.tuners.lora.layer.Embedding", "peft.utils.other.ModulesToSaveWrapper"),
)
_BASE = {"peft_model": "model.get_base_model()", "mixed_model": "model.base_model.model"}
_QUANTISED_LORA = ("aqlm", "awq", "eetq", "gptq", "hqq", "inc", "te")
_INT8 = "bitsandbytes.nn.modules.Int8Params"
_4_BITS = "bitsandbytes.nn.modules.Params4bit"
_METHODS = ("bitsandbytes", "torchao")  # as a quantization_config calls them
_INSTEAD = "in float32 or bfloat16, or quantised by bitsandbytes or by torchao's Int8, Intx or Float8 configs"
_TORCHAO = (
    "torchao.quantization.Int8Tensor",
    "torchao.quantization.IntxUnpackedToInt8Tensor",
    "torchao.quantization.Float8Tensor",
)
_PER_TENSOR = "torchao.quantization.granularity.PerTensor"


def qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_plain(module: nn.Module) -> bool:
    """Whether the module's weight is its matrix, in floats."""
    return not _is_adapted(module) and _is_floats(module.weight)


def matrix(module: nn.Module) -> Tensor:
    """(out, in), of a module that `is_plain`: GPT-2 keeps it the other way round."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def shape(module: nn.Module) -> tuple[int, int]:
    """(out, in)"""
    if is_plain(module):
        return tuple(matrix(module).shape)
    return module.out_features, module.in_features


def own_dtype(module: nn.Module) -> torch.dtype | None:
    """What the module computes in; None where that is what its input comes in."""
    if _is_adapted(module):
        return own_dtype(module.base_layer)
    weight = getattr(module, "weight", None)  # which not every norm has
    return None if weight is None or _kind(weight) in (_INT8, _4_BITS) else weight.dtype


def bias(module: nn.Module) -> Tensor | None:
    """(out,), that of the adapters included."""
    if not _is_adapted(module):
        return module.bias
    total = bias(module.base_layer)
    for name in _active(module):
        if module.lora_B[name].bias is not None:
            more = module.scaling[name] * module.lora_B[name].bias.detach()
            total = more if total is None else total.detach() + more
    return total


def rows(module: nn.Module) -> Rows:
    """Of the matrix as it is now. The tensors that it is made of are held on to, whatever becomes of the module."""
    if _is_adapted(module):
        return _with_adapters(module)
    weight, kind = module.weight.detach(), _kind(module.weight)
    if kind == _INT8:
        return _int8(weight, module.weight.SCB if module.state.SCB is None else module.state.SCB)
    if kind == _4_BITS:
        return _four_bits(module.weight.data, module.weight.quant_state)
    if kind in _TORCHAO:
        return lambda start, stop: weight[start:stop].dequantize()
    whole = matrix(module).detach()
    return lambda start, stop: whole[start:stop]


def unreadable(module: nn.Module) -> str | None:
    """Why the module's matrix cannot be had, as the end of a sentence that names the module; None where it can."""
    if _is_adapted(module):
        for name in _active(module):
            if name in module.lora_variant:
                variant = type(module.lora_variant[name]).__name__
                kind = f"{name!r} of a kind that is not plain LoRA ({variant})"
                return f"has the adapter {kind}: {_without(variant, module)}"
        if qualified_name(type(module.base_layer)) not in (*ADAPTED, *_ADAPTABLE):
            kind = type(module.base_layer).__name__
            return f"has adapters on a {kind}, which lrp_fast cannot read: {_without(kind, module)}"
        if any(map(is_offloaded, modules_of(module))):
            return (
                "has adapters, and weights that accelerate loads only while each of its parts runs: merge the adapters "
                "(merge_and_unload) before the weights are offloaded, or keep these layers on a device"
            )
        return unreadable(module.base_layer)
    weight = module.weight
    if _is_floats(weight):
        return None
    kind = _kind(weight)
    # Not its dtype: 4 bits are kept as any one (bnb_4bit_quant_storage).
    if (kind == _INT8 and weight.dtype.is_floating_point) or (kind == _4_BITS and weight.quant_state is None):
        return "is not quantised yet: call model.to(device) first, or load the model with a quantization_config"
    if kind == _4_BITS and weight.quant_state.shape[1] % weight.quant_state.blocksize:
        width, block = weight.quant_state.shape[1], weight.quant_state.blocksize
        return (
            f"reads {width} features, in 4-bit blocks of {block} that end within a row, which bitsandbytes gets wrong "
            "on a CPU (elsewhere it was not tried): leave the module out (llm_int8_skip_modules)"
        )
    if kind in _TORCHAO and getattr(weight, "act_pre_scale", None) is not None:
        return "scales its input before it is quantised: quantise the model without SmoothQuant or AWQ"
    return None if kind in (_INT8, _4_BITS, *_TORCHAO) else not_floats(weight)


def unreadable_adapter(module: nn.Module) -> str | None:
    """As `unreadable`, of the modules of peft that are not those of plain LoRA; None for modules of anybody else."""
    origin = type(module).__module__.split(".")
    if origin[0] != "peft":
        return None
    name, kind = type(module).__name__, origin[2] if origin[1] == "tuners" else ""
    if origin[1] in ("peft_model", "mixed_model"):
        return next(filter(None, map(_unreadable_part, module.children())), None) or (
            f"holds plain LoRA in a class of peft that has no rule of lrp_fast: pass {_BASE[origin[1]]}, which keeps "
            "its adapters"
        )
    if kind in _PROMPTS:
        return (
            "adds trained vectors that are no tokens of the prompt, which lrp_fast has no rule for: pass "
            "model.get_base_model() to explain the model without them"
        )
    if kind == "lora" and origin[3] in _QUANTISED_LORA:
        base = type(module.base_layer).__name__
        return f"has adapters on a {base}, which lrp_fast cannot read: load the model {_INSTEAD}"
    return f"has adapters that are not plain LoRA, and no rule of lrp_fast: {_without(name, module)}"


def _unreadable_part(model: nn.Module) -> str | None:
    """As `unreadable_adapter`, of the first part of a model with adapters that has a reason of its own."""
    for part in modules_of(model):
        if qualified_name(type(part)) not in _AROUND:
            why = unreadable(part) if _is_adapted(part) else unreadable_adapter(part)
            if why is not None:
                return why
    return None


def is_adapter(module: nn.Module) -> bool:
    """Whether the module is peft's, and no model that it adapts."""
    return type(module).__module__.startswith("peft.") and not type(module).__name__.endswith("Model")


def _without(kind: str, module: nn.Module) -> str:
    """What to do about adapters of a kind that has no rule."""
    if kind in _UNMERGEABLE:
        return "as peft cannot merge them into the weights, load the model without them"
    if any(map(_adds_the_only_bias, modules_of(module))):
        return "as peft cannot merge a bias into a layer that has none, load the model without them"
    return "merge them first (merge_and_unload of the peft.PeftModel)"


def _adds_the_only_bias(module: nn.Module) -> bool:
    base = getattr(module, "base_layer", None)
    adds = hasattr(module, "beft_bias") or any(getattr(module, "lora_bias", {}).values())
    return adds and getattr(base, "bias", None) is None


def not_floats(weight: Tensor) -> str | None:
    """As `unreadable`, of weights that are never quantised."""
    if _is_floats(weight):
        return None
    return (
        f"keeps its weights as a {type(weight).__name__} of {weight.dtype}, which lrp_fast cannot read: load the model "
        + _INSTEAD
    )


def unreadable_format(config) -> str | None:
    """Why a checkpoint with the quantization_config of ``config`` cannot be read; None where it can, or has none."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    given = given if isinstance(given, dict) else given.to_dict()
    by_bits = given.get("load_in_8bit") or given.get("load_in_4bit")  # older ones do not name bitsandbytes
    method = given.get("quant_method") or ("bitsandbytes" if by_bits else "a method without a name")
    if method in _METHODS or given.get("dequantize"):
        return None
    return (
        f"the checkpoint is quantised by {getattr(method, 'value', method)}, which lrp_fast cannot read: load one "
        f"{_INSTEAD}; or this one in floats, where transformers' config of that method takes dequantize=True"
    )


def mixes_tokens(module: nn.Module) -> bool:
    """Whether what the module makes of one token may depend on which others come with it: they are rounded together."""
    if _is_adapted(module):
        return mixes_tokens(module.base_layer)
    if _kind(module.weight) == _INT8:  # what is an outlier in one token is spared the rounding in all
        return module.state.threshold > 0
    rounding = getattr(module.weight, "act_quant_kwargs", None)  # torchao's, of the input
    return rounding is not None and qualified_name(type(rounding.granularity)) == _PER_TENSOR


def copies(module: nn.Module) -> int:
    """How many matrices of at least 32 bits an element are there at once while a matrix that is not plain is made."""
    if _is_adapted(module):
        return 1 if is_plain(module.base_layer) else copies(module.base_layer) + 1
    return 5 if _kind(module.weight) in _TORCHAO else 1  # as measured


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate loads the module's own weights whenever it runs, and takes them away behind it."""
    return bool(_offloading(module))


def loaded_as_it_runs(model: nn.Module) -> set[nn.Module]:
    """The modules whose weights accelerate loads, be it with those of a module that holds them."""
    found: set[nn.Module] = set()
    for module in filter(is_offloaded, modules_of(model)):
        whole = any(getattr(hook, "place_submodules", False) for hook in _offloading(module))
        found.update(modules_of(module) if whole else [module])
    return found


def _offloading(module: nn.Module) -> list:
    """accelerate's hooks on the module that bring its weights. Several hooks are in one that has them as `hooks`."""
    hook = module.__dict__.get("_hf_hook")
    return [one for one in getattr(hook, "hooks", (hook,)) if getattr(one, "offload", False)]


def device_of(module: nn.Module) -> torch.device:
    """Where the module computes: accelerate keeps offloaded weights elsewhere in between."""
    for part in modules_of(module):
        device = getattr(part.__dict__.get("_hf_hook"), "execution_device", None)
        if device is not None:
            return torch.device(device if not isinstance(device, int) else f"cuda:{device}")
    return next(module.parameters()).device


def nbytes(tensor: Tensor) -> int:
    """Of memory, scales of what is quantised included."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(nbytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    state = getattr(tensor, "quant_state", None)
    scales = [] if state is None else [state.absmax] + ([state.state2.absmax] if state.nested else [])
    return tensor.numel() * tensor.element_size() + sum(map(nbytes, scales))


def _is_adapted(module: nn.Module) -> bool:
    cls = type(module)
    return cls.__module__.startswith("peft.") and qualified_name(cls) in ADAPTED


def _kind(weight: Tensor) -> str:
    return qualified_name(type(weight))


def _is_floats(weight: Tensor) -> bool:
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.element_size() > 1


def _active(module: nn.Module) -> list[str]:
    """The adapters whose part is not in the base layer's weights, and counts."""
    if module.disable_adapters or module.merged:
        return []
    return [name for name in module.active_adapters if name in module.lora_A]


def _with_adapters(module: nn.Module) -> Rows:
    base = rows(module.base_layer)
    parts = [
        (module.lora_B[name].weight.detach(), module.lora_A[name].weight.detach(), module.scaling[name])
        for name in _active(module)
    ]

    def adapted(start, stop):
        total = base(start, stop)
        for up, down, scaling in parts:
            wide = torch.promote_types(total.dtype, down.dtype)
            total = torch.addmm(total.to(wide), up[start:stop].to(wide), down.to(wide), alpha=scaling)
        return total

    return adapted


def _int8(integers: Tensor, largest: Tensor) -> Rows:
    """bitsandbytes' 8 bits: of each row 127 stands for its largest magnitude."""
    return lambda start, stop: integers[start:stop].float().mul_(largest[start:stop].float().unsqueeze(1) / 127)


def _four_bits(packed: Tensor, state) -> Rows:
    """bitsandbytes' 4 bits: blocks of a row, each with its largest magnitude."""
    if getattr(state, "packing_format_for_cpu", False):
        return _four_bits_for_cpu(packed, state)
    (out, width), blocks = state.shape, state.shape[1] // state.blocksize
    codes = packed.reshape(-1).view(torch.uint8).view(out, width // 2)

    def dequantised(start, stop):
        first, last = start * blocks, stop * blocks
        scales = state.absmax[first:last]
        if state.nested:  # quantised in turn, in blocks of their own
            block_of = torch.arange(first, last, device=scales.device) // state.state2.blocksize
            scales = state.state2.code[scales.int()] * state.state2.absmax[block_of] + state.offset
        return _decoded(codes[start:stop], scales, state, (stop - start, width))

    return dequantised


_ROWS_TOGETHER = 32  # of which bitsandbytes' layout for CPUs with AVX512-BF16 interleaves the codes


def _four_bits_for_cpu(packed: Tensor, state) -> Rows:
    """The same, laid out for a CPU's matrix units: bytes that hold a code of row r and one of row r + 16."""
    width, n = state.shape[1], _ROWS_TOGETHER
    groups = packed.reshape(-1, width // 2, n // 2, 2)

    def dequantised(start, stop):
        first, last = start // n, -(stop // -n)
        even, odd = groups[first:last].unbind(-1)
        codes = torch.cat([(even & 15) << 4 | odd & 15, even & 240 | odd >> 4], -1)  # (groups, width / 2, rows)
        scales = state.absmax[:, first * n : last * n].T.reshape(-1)
        part = _decoded(codes.transpose(1, 2).reshape(-1), scales, state, ((last - first) * n, width))
        return part[start - first * n : stop - first * n]

    return dequantised


def _decoded(codes: Tensor, scales: Tensor, state, size: tuple[int, ...]) -> Tensor:
    decode = torch.ops.bitsandbytes.dequantize_4bit
    return decode(codes, scales.float().contiguous(), state.blocksize, state.quant_type, size, torch.float32)

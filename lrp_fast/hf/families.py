"""Which module class is handled how: one table, keyed by qualified class name, so that no model file is imported."""

from __future__ import annotations

from torch import nn

from . import handlers
from .handlers import Handler


def qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _llama_like(family: str, prefix: str) -> dict[str, Handler]:
    """Pre-norm blocks with RMSNorm, rotary positions and a gated MLP, as transformers writes them."""
    home = f"transformers.models.{family}.modeling_{family}.{prefix}"
    return {
        f"{home}ForCausalLM": handlers.leave,
        f"{home}Model": handlers.leave,
        f"{home}DecoderLayer": handlers.pre_norm_decoder_layer,
        f"{home}Attention": handlers.attention,
        f"{home}MLP": handlers.gated_mlp,
        f"{home}RMSNorm": handlers.rms_norm,
        f"{home}RotaryEmbedding": handlers.leave,
    }


_TABLE: dict[str, Handler] = {
    "torch.nn.modules.container.ModuleList": handlers.leave,
    "torch.nn.modules.sparse.Embedding": handlers.leave,
    "torch.nn.modules.linear.Identity": handlers.leave,
    "torch.nn.modules.linear.Linear": handlers.linear,
    "torch.nn.modules.activation.SiLU": handlers.activation("silu"),
    "torch.nn.modules.activation.ReLU": handlers.activation("relu"),
    "transformers.activations.SiLUActivation": handlers.activation("silu"),
    "transformers.activations.GELUActivation": handlers.activation("gelu"),
    "transformers.activations.GELUTanh": handlers.activation("gelu_tanh"),
    "transformers.activations.ReLUSquaredActivation": handlers.activation("relu2"),
}
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
for _prefix in FAMILIES:
    _TABLE |= _llama_like(_prefix.lower(), _prefix)


def handler_of(module: nn.Module) -> Handler | None:
    """The handler of exactly this class (a subclass may compute something else), or None."""
    return _TABLE.get(qualified_name(type(module)))


def register(cls: type[nn.Module], handler: Handler) -> None:
    """Teach lrp_fast a module class. ``lrp_fast.hf.handlers`` holds ready handlers and says what one returns.

    Raises:
        TypeError: if ``cls`` is no module class or ``handler`` cannot be called.
        ValueError: if the class has a handler already.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"register takes a torch.nn.Module class, not {cls!r}")
    if not callable(handler):
        raise TypeError(f"the handler of {cls.__name__} must be callable: (module, rules) -> dict of attributes")
    if qualified_name(cls) in _TABLE:
        raise ValueError(f"{qualified_name(cls)} has a handler already")
    _TABLE[qualified_name(cls)] = handler


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers in the order in which the hidden states pass them."""
    marks = (handlers.decoder_layer, handlers.pre_norm_decoder_layer)
    return [module for module in model.modules() if handler_of(module) in marks]

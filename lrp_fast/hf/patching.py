"""Patching of one model instance, for the length of a ``with`` block."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..ops import read_tolerance
from ..rules import Rules, as_rules
from . import attention, handlers
from .coverage import check
from .families import MLPS, handled
from .layers import check_places
from .overlay import forward_name, is_compiled, laid, replaced, uncompiled
from .owner import AT_WORK, Session, owned, session_of
from .replay import attending
from .walk import modules_of

_REFUSAL = (
    "another thread has this model within lrp_fast.patched, where its gradients are not its own: call the model from "
    "that thread, or after its block"
)


@contextmanager
def patched(
    model: nn.Module, rule: str | Rules = "attnlrp", tolerance: float = 0.0, dropped: list[Tensor] | None = None
) -> Iterator[nn.Module]:
    """Within the block, ``model``'s backward pass propagates relevance; its logits stay what they were.

    Only instance attributes of ``model``'s own modules change, and they are taken back on exit, also after an
    exception: neither another model, of the same class or the same config object, nor a global is touched, unless
    models share modules. The weights
    of linear maps and norms get no gradients inside.

        with lrp_fast.patched(model, rule="attnlrp"):
            model(inputs_embeds=x).logits[0, -1, k].backward()      # x * x.grad is LRP relevance

    On a CPU the logits keep their bits where the model runs transformers' default attention (sdpa) on unpadded float32
    or 16-bit inputs and no sliding window hides a key. Those of a mixture of experts, a Falcon, an attention with
    ALiBi, with chosen keys or with numbers of each key's own, and of layers that carry a state are equal but for
    rounding. A float64 model's norms and routers, which transformers computes in float32, are kept in float64. What
    torch.compile made of the model or of its parts is passed over: the code as written runs.

    The block belongs to the thread that entered it: in any other the model refuses to run until the block is left, but
    in autograd's own, where on CUDA a checkpointed part runs again. An `attribute` of the same model in another thread
    is waited for.

    Args:
        model: a transformers model of a supported family.
        rule: a name or `lrp_fast.Rules`.
        tolerance: as in `lrp_fast.attribute`: above 0, backward passes are bounded, each row of a batch by itself.
        dropped: a list, to which every backward pass through an attention then appends the share of the mass that it
            left out: (B,) float64, the last layer first.

    Raises:
        UnsupportedModuleError: for a module that no rule covers.
        TypeError, ValueError: for a tolerance that is no number from 0 up to, but not including, 1.
        RuntimeError: under torch.autocast, if ``model`` is patched already, in this thread or in another, or if a
            forward is overridden already.
    """
    rules, tolerance = as_rules(rule), read_tolerance(tolerance)
    check(model)
    told = tolerance or dropped is not None
    bounded = attending(model, None, tolerance, dropped, _REFUSAL) if told else nullcontext()
    with owned(model, passing=False), overlaid(model, rules, _REFUSAL), bounded:
        yield model


@contextmanager
def passing(model: nn.Module, rules: Rules) -> Iterator[None]:
    """As `patched`, of a model that has been checked, for a pass that ends by itself: other threads run the model as if
    it were not patched, and those that want it patched wait. Within a session, the model is as it should be.

    Raises:
        RuntimeError: within a session of other rules, or within a pass of the same.
    """
    session = session_of(model)
    if session is None:
        with owned(model, passing=True), overlaid(model, rules) as configs:
            _read_by_name(configs)
            yield
        return
    if session.rules != rules:
        raise RuntimeError(
            f"the model is within lrp_fast.session, by {session.rules}, and this asks for {rules}: give the session's "
            "rule, or ask after its block"
        )
    if session.passing:
        raise RuntimeError(f"the model {AT_WORK}")
    session.passing = True
    try:
        yield
    finally:
        session.passing = False


@contextmanager
def in_session(model: nn.Module, rules: Rules) -> Iterator[None]:
    """`lrp_fast.session`, of a model that has been checked."""
    with (
        owned(model, passing=False, session=Session(model, rules)),
        overlaid(model, rules, _REFUSAL.replace("patched", "session")) as configs,
    ):
        _read_by_name(configs)
        yield


def _read_by_name(configs: list) -> None:
    """So is what models return."""
    for config in configs:
        config.return_dict = True


@contextmanager
def overlaid(model: nn.Module, rules: Rules, refusal: str | None = None) -> Iterator[list]:
    """What `patched` lays over a model that is this thread's, and has been checked; its configs, as the block sees
    them."""
    check_places(model)
    if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
        raise RuntimeError("lrp_fast does not run under torch.autocast: load the model in the dtype that you want")
    configs: dict[int, object] = {}
    overlays = [one for module in modules_of(model) for one in _as_written(module)]
    for path, module, handler in handled(model):
        overlay = _overlay(path, module, handler, rules, configs)
        overlays += [(module, name, value) for name, value in overlay.items()]
    with laid(overlays, refusal):
        yield list(configs.values())


def _as_written(module: nn.Module) -> Iterator[tuple[nn.Module, str, object]]:
    """What has to be laid over any module, whatever it computes, for its own code to run, and to be differentiated."""
    if module.__dict__.get("_compiled_call_impl") is not None:
        yield module, "_compiled_call_impl", module._call_impl
    forward = module.__dict__.get("forward")
    if forward is not None and is_compiled(forward):
        yield module, "forward", uncompiled(forward)
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None or "inv_freq" in name:
            continue  # dynamic rotations replace theirs as they run; no gradient meets it
        if tensor.is_inference() and type(tensor) in (Tensor, nn.Parameter):  # autograd would not keep it
            yield module, name, _ordinary(tensor)


def _ordinary(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that was not made under torch.inference_mode."""
    with torch.inference_mode(False):
        seen = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return seen.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def _overlay(
    path: str, module: nn.Module, handler: handlers.Handler, rules: Rules, configs: dict[int, object]
) -> dict[str, object]:
    """The attributes to lay over ``module``: its handler's, and a config that names our attention.

    A config object may be shared with another model, so each gets one copy here, shared as the original is.
    """
    overlay = dict(handler(module, rules))
    if ("forward" in overlay or handler in handlers.ATTENTIONS or handler in MLPS) and replaced(module):
        where = path or type(module).__name__
        raise RuntimeError(f"something else overrides the forward of {where!r}: undo that first")
    if "forward" in overlay:
        overlay[forward_name(module)] = overlay.pop("forward")
    config = module.__dict__.get("config")
    if config is not None:
        if id(config) not in configs:
            configs[id(config)] = copy.deepcopy(config)
            configs[id(config)]._attn_implementation = attention.NAME
        overlay["config"] = configs[id(config)]
    return overlay

"""A rule for the code of a class as it is written, function by function.

For classes that do more than modules with rules of their own say, and have been read: see `forms`. Within `by_rule`,
the functions of PyTorch that their code calls obey the rules where plain gradients are not the rule. Everything else
passes plain gradients: sums and views, softmax and sigmoid (a softmax over its logit and 0), what normalises weights,
and a choice passes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import ops
from ..rules import Rules
from .overlay import laid
from .walk import own_weights


@contextmanager
def by_rule(module: nn.Module, rules: Rules, gates: dict[Callable, tuple[int, ...]] | None = None) -> Iterator[None]:
    """Within the block, what is called of PyTorch obeys the rules; the module's own weights are constants. ``gates``
    says of functions which parts of what they return are gates of products.

    The module's `Choices`, where `replay` lays some over it, note what it chooses, or make the same choices again.
    """
    weights = [(name, getattr(module, name)) for name, _ in own_weights(module)]  # of which `patching` may lay another
    constants = [(module, name, weight.detach()) for name, weight in weights if weight.requires_grad]
    with laid(constants), _Functions(rules, module.__dict__.get("lrp_fast_choices"), gates or {}):
        yield


class Choices:
    """What the top-k choices of a module were, (N, k) int16 over all of them side by side: noted, or made again."""

    def __init__(self, given: Tensor | None = None) -> None:
        self.given, self._noted = given, []

    def __getitem__(self, tokens: slice) -> Choices:
        return Choices(self.given[tokens])

    def noted(self) -> Tensor:
        """Of all tokens, which came some at a time."""
        return torch.cat([torch.cat(of_some, 1) for of_some in self._noted])

    def begin(self) -> None:
        """The next tokens come."""
        self._place = 0
        self._noted.append([])

    def choose(self, own: Callable, x: Tensor, k: int, dim: int = -1, *rest, **named) -> tuple[Tensor, Tensor]:
        if dim not in (-1, x.ndim - 1):
            raise ValueError(f"a choice along dimension {dim} of {tuple(x.shape)}: lrp_fast makes them along the last")
        if self.given is None:
            found = own(x, k, dim, *rest, **named)
            self._noted[-1].append(found[1].reshape(len(x), -1).to(torch.int16))
            return found
        width = x.shape[1:-1].numel() * k
        chosen = self.given[:, self._place : self._place + width].view(*x.shape[:-1], k).to(torch.long)
        self._place += width
        return x.gather(-1, chosen), chosen


class _Functions(TorchFunctionMode):
    def __init__(self, rules: Rules, choices: Choices | None, parts: dict[Callable, tuple[int, ...]]) -> None:
        super().__init__()
        self.rules, self.choices, self.parts = rules, choices, parts
        self.gates: list[Tensor] = []
        if choices is not None:
            choices.begin()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.parts:
            out = func(*args, **(kwargs or {}))
            self.gates += [out[part] for part in self.parts[func]]
            return out
        treatment = _TREATED.get(func)
        if treatment is not None:
            return treatment(self, func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _product(mode: _Functions, own: Callable, a, b, **named):
    """A product of two that are both explained; the one that a sigmoid or softmax made is the gate."""
    if not (_explained(a) and _explained(b)) or named:
        out = own(a, b, **named)
        if _is_share(mode, a) or _is_share(mode, b):  # a multiple of it
            mode.gates.append(out)
        return out
    shares = mode.rules.treatment
    of_a, of_b = (_is_gate(mode, one) for one in (a, b))
    if of_a == of_b and shares.gate != shares.up:
        raise ValueError("a product of which lrp_fast cannot tell the gate: explain it with attnlrp")
    gate, up = (b, a) if of_b else (a, b)
    if _tangent(gate) is None:
        return ops.product(gate, up, rule=mode.rules)
    (gate, of_gate), (up, of_up) = map(forward_ad.unpack_dual, (gate, up))
    return forward_ad.make_dual(gate * up, shares.gate * of_gate * up + shares.up * gate * of_up)


def _is_gate(mode: _Functions, x: Tensor) -> bool:
    """Whether a sigmoid, softmax or activation made it."""
    return _is_share(mode, x) or type(x.grad_fn).__name__ in _OF_ACTIVATIONS


def _is_share(mode: _Functions, x: object) -> bool:
    return any(x is gate for gate in mode.gates)


def _explained(one: object) -> bool:
    """Whether relevance goes back through it or, in `contributions`, contributions forth."""
    if not isinstance(one, Tensor):
        return False
    return (one.requires_grad and torch.is_grad_enabled()) or _tangent(one) is not None


def _tangent(x: Tensor) -> Tensor | None:
    return forward_ad.unpack_dual(x).tangent


def _gate(mode: _Functions, own: Callable, x, *rest, **named):
    if x.dtype == torch.float64:
        named.pop("dtype", None)
    out = own(x, *rest, **named)
    mode.gates.append(out)
    return out


def _same_gate(mode: _Functions, own: Callable, x, *rest, **named):
    out = _cast(mode, own, x, *rest, **named) if own in _CASTS else own(x, *rest, **named)
    if isinstance(x, Tensor) and _is_gate(mode, x):
        mode.gates.append(out)
    return out


def _sum(mode: _Functions, own: Callable, a, b, *rest, **named):
    """Of a gate and a constant, still a gate."""
    out = own(a, b, *rest, **named)
    if _explained(a) != _explained(b) and (_is_share(mode, a) or _is_share(mode, b)):
        mode.gates.append(out)
    return out


def _cast(mode: _Functions, own: Callable, x, *rest, **named):
    """float64 stays: a model of that dtype is one whose numbers are to be exact."""
    out = own(x, *rest, **named)
    return x if x.dtype == torch.float64 and out.dtype == torch.float32 else out


def _linear(mode: _Functions, own: Callable, input, weight, bias=None):
    rules = mode.rules
    weight, bias = (one if one is None else one.to(input.dtype) for one in (weight, bias))
    stabilisers = {"epsilon": rules.epsilon, "gamma": rules.gamma}
    if (part := _tangent(input)) is not None:
        x = forward_ad.unpack_dual(input).primal
        return forward_ad.make_dual(*ops.linear_jvp(x, part, weight, bias, **stabilisers))
    return ops.linear(input, weight, bias, **stabilisers)


def _topk(mode: _Functions, own: Callable, input, k, *rest, **named):
    if mode.choices is None:
        return own(input, k, *rest, **named)
    return mode.choices.choose(own, input, k, *rest, **named)


def activated(x: Tensor, kind: str, rules: Rules) -> Tensor:
    """As `ops.activation`, of a dual number as well."""
    if (tangent := _tangent(x)) is None:
        return ops.activation(x, kind, rule=rules)
    return forward_ad.make_dual(*ops.activation_jvp(forward_ad.unpack_dual(x).primal, tangent, kind, rule=rules))


def _largest(mode: _Functions, own: Callable, x, *rest, **named):
    """Of each row, where a router chooses one expert by it."""
    if mode.choices is None or rest or named != {"dim": -1, "keepdim": True}:
        return own(x, *rest, **named)
    return mode.choices.choose(lambda x, k, dim: own(x, **named), x, 1)


def _activation(kind: str) -> Callable:
    def treated(mode: _Functions, own: Callable, x, *rest, **named):
        out = activated(x, kind, mode.rules)
        if _tangent(x) is not None:  # of which autograd says nothing
            mode.gates.append(out)
        return out

    return treated


_OF_GELU = {"none": _activation("gelu"), "tanh": _activation("gelu_tanh")}


def _gelu(mode: _Functions, own: Callable, x, approximate="none"):
    return _OF_GELU[approximate](mode, own, x)


def _pointwise(mode: _Functions, own: Callable, x, *rest, **named):
    """A function of one number (clamping, a cap), and so the identity rule; none here has another limit at 0 than 1."""
    if not (_explained(x) and mode.rules.treatment.ratio):
        return own(x, *rest, **named)
    with torch.no_grad():
        z = x.detach().clone()
        y = own(z.clone(), *rest, **named)
        ratio = torch.where(z == 0, 1, y / z)
    if (tangent := _tangent(x)) is not None:
        return forward_ad.make_dual(y, tangent * ratio)
    return ops.identity(x, y, ratio)


def _scale(mode: _Functions, own: Callable, x, *rest, **named):
    """What a norm divides by: the root of a mean square."""
    out = own(x, *rest, **named)
    return out.detach() if mode.rules.treatment.frozen_norm else out


def _power(mode: _Functions, own: Callable, x, exponent, *rest, **named):
    given = (mode, own, x, exponent, *rest)
    return _scale(*given, **named) if exponent == -0.5 else own(*given[2:], **named)


def _layer_norm(mode: _Functions, own: Callable, input, normalized_shape, weight=None, bias=None, eps=1e-5):
    centred = input - input.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = centred * (rstd.detach() if mode.rules.treatment.frozen_norm else rstd)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm(mode: _Functions, own: Callable, input, normalized_shape, weight=None, eps=None):
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = (wide * (rstd.detach() if mode.rules.treatment.frozen_norm else rstd)).to(input.dtype)
    return y if weight is None else y * weight


def _clamp_(mode: _Functions, own: Callable, x, *rest, **named):
    if not _explained(x):
        return own(x, *rest, **named)
    return x.copy_(_pointwise(mode, torch.clamp, x.clone(), *rest, **named))


_PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
_GATES = (torch.sigmoid, Tensor.sigmoid, F.sigmoid, F.softplus, torch.softmax, Tensor.softmax, F.softmax)
_OF_ACTIVATIONS = ("_ActivationBackward", "_IdentityBackward")
_CASTS = (Tensor.float, Tensor.to, Tensor.type)
_VIEWS = (
    Tensor.reshape, Tensor.view, Tensor.unsqueeze, Tensor.squeeze, Tensor.flatten, Tensor.expand, Tensor.transpose,
    torch.unsqueeze, torch.reshape, Tensor.__getitem__, Tensor.gather, Tensor.contiguous, Tensor.type_as,
)  # fmt: skip
_TREATED = {
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_GATES, _gate),
    **dict.fromkeys((*_CASTS, *_VIEWS), _same_gate),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _sum),
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    **dict.fromkeys((torch.rsqrt, Tensor.rsqrt), _scale),
    **dict.fromkeys((torch.pow, Tensor.pow), _power),
    **dict.fromkeys((torch.topk, Tensor.topk), _topk),
    Tensor.max: _largest,
    **dict.fromkeys((torch.clamp, Tensor.clamp, torch.tanh, Tensor.tanh, F.tanh), _pointwise),
    **dict.fromkeys((Tensor.clamp_,), _clamp_),
    F.silu: _activation("silu"),
    F.relu: _activation("relu"),
    F.gelu: _gelu,
}

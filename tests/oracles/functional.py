"""AttnLRP, CP-LRP and gradient x input by detaching, on a model that nothing was laid over.

Every function of PyTorch that the model's own code calls is replaced, under the rule, by one of the same value whose
plain gradient is the rule's: for a product of two explained tensors each factor is a half of itself and a half of its
value; what divides by a root mean square is its value; a function of one number is z times the value of f(z)/z. It
knows no class and no handler, and of the package the definitions of what carries a matrix alone. Attention has to be
eager, for its products to be seen.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lrp_fast import reference

PRODUCTS = {
    torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.matmul, Tensor.matmul,
    Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.einsum, torch.baddbmm, Tensor.baddbmm,
}  # fmt: skip
ELEMENTWISE = {torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
SCALES = {torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt, torch.linalg.vector_norm, Tensor.norm, torch.norm}
SIGMOIDS = {torch.sigmoid, Tensor.sigmoid, F.sigmoid}
SQUASHES = {*SIGMOIDS, F.softplus, torch.softmax, Tensor.softmax, F.softmax}
POINTWISE = {
    F.silu, F.gelu, F.relu, torch.relu, Tensor.relu, torch.tanh, Tensor.tanh, F.tanh, torch.clamp, Tensor.clamp,
    torch.square, Tensor.square,
}  # fmt: skip
TANHS = {torch.tanh, Tensor.tanh, F.tanh}
CLAMPS = {torch.clamp, Tensor.clamp}
SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
CASTS = {Tensor.float, Tensor.to, Tensor.type, Tensor.double}
ALIKE = {
    Tensor.reshape, Tensor.view, Tensor.unsqueeze, Tensor.squeeze, Tensor.transpose, Tensor.expand, Tensor.flatten,
    Tensor.__getitem__, Tensor.gather, Tensor.contiguous, F.dropout, Tensor.permute, torch.index_select,
    Tensor.float, Tensor.to, Tensor.type, Tensor.type_as, Tensor.div, Tensor.__truediv__, torch.div, torch.gather,
}  # fmt: skip


def _explained(one) -> bool:
    return isinstance(one, Tensor) and one.requires_grad and torch.is_grad_enabled()


class Detached(TorchFunctionMode):
    """Within it, backward passes of what the model computes are those of ``rule``."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule
        self.gates: list[Tensor] = []
        self.coefficients: list[Tensor] = []  # of a tanh, which a linear map makes multiples of
        self.multiples: list[Tensor] = []  # which are these
        self.sources: list[tuple[Tensor, Tensor]] = []  # of multiples and sigmoids, what they are of

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        args = (*args, *(kwargs.pop(name) for name in ("batch1", "batch2") if name in kwargs))  # of a baddbmm
        x = args[0] if args else None
        if isinstance(x, Tensor) and x.dtype == torch.float64 and "dtype" in kwargs and func in SQUASHES:
            kwargs.pop("dtype")
        if func is torch.full and isinstance(args[-1], float):  # XGLM's least number, of a float64 model, is no float32
            kwargs.setdefault("dtype", torch.float64)
        if func in CASTS and isinstance(x, Tensor) and x.dtype == torch.float64 and torch.is_grad_enabled():
            out = func(*args, **kwargs)
            out = x if out.dtype in (torch.float32, torch.bfloat16, torch.float16) else out
        elif self.rule == "gradient":
            return func(*args, **kwargs)
        else:
            out = self.treat(func, args, kwargs)
        if func in SQUASHES or (func in ALIKE and self.is_gate(x)):
            self.gates.append(out)
            if func in SIGMOIDS:
                self.sources.append((out, self.source(x)))
        elif func is Tensor.chunk and args[1:] == (3,) and kwargs == {"dim": -2}:  # of a short convolution
            self.gates += out[:2]
        elif self.is_still_gate(func, args):
            self.gates.append(out)
        elif func in TANHS:
            self.coefficients.append(out)
        if func in SUMS and isinstance(args[1], float) and args[1] == 1 and any(x is one for one in self.multiples):
            out.beyond_one = True  # 1 + c times x is x, and a product
        elif func is F.linear and any(x is one for one in self.coefficients):
            self.multiples.append(out)
        elif func in ALIKE and getattr(x, "beyond_one", False):
            out.beyond_one = True
        elif func in (torch.topk, Tensor.topk) and self.is_gate(x):
            self.gates.append(out[0])
        return out

    def source(self, one):
        return next((source for made, source in self.sources if made is one), one)

    def is_gate(self, one) -> bool:
        return any(one is gate for gate in self.gates)

    def is_still_gate(self, func, args) -> bool:
        """Of a gate and a constant, of gates side by side, or a map of a tanh's."""
        if func is F.linear:
            return any(args[0] is one for one in self.coefficients)
        if func in SUMS:
            return self.is_gate(args[0]) and not _explained(args[1])
        return func in (torch.cat, torch.concat) and all(map(self.is_gate, args[0]))

    def treat(self, func, args, kwargs):
        if func in PRODUCTS:
            places = [place for place, one in enumerate(args) if _explained(one)]
            if len(places) == 2:
                return self.product(func, args, kwargs, places)
            out = func(*args, **kwargs)
            if places and self.is_gate(args[places[0]]):
                self.gates.append(out)
            elif places and func in ELEMENTWISE:
                self.sources.append((out, self.source(args[places[0]])))
            return out
        elif func in SCALES and kwargs.get("p") != 1:  # that one is a sum, by which weights are divided
            return func(*args, **kwargs).detach()
        elif func in (Tensor.pow, torch.pow, Tensor.__pow__):
            root = _explained(args[0]) and (args[1] < 0 or args[1] == 0.5)
            return func(*args, **kwargs).detach() if root else func(*args, **kwargs)
        elif func in POINTWISE and _explained(args[0]):
            out = self.identity(lambda z: func(z, *args[1:], **kwargs), args[0])
            out.activated = func not in CLAMPS  # what is clamped is no gate for that
            return out
        elif func is F.layer_norm:
            return self.layer_norm(*args, **kwargs)
        elif func is F.rms_norm:
            x, _, weight, eps = (*args, *kwargs.values())
            out = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps).detach()
            return out if weight is None else out * weight
        elif func is Tensor.clamp_ and _explained(args[0]):
            z = args[0].clone()
            return args[0].copy_(self.identity(lambda z: z.clamp(*args[1:], **kwargs), z))
        return func(*args, **kwargs)

    def product(self, func, args, kwargs, places):
        one, two = places
        args = list(args)
        for z, gate in ((args[one], args[two]), (args[two], args[one])):
            if func in ELEMENTWISE and self.is_gate(gate) and self.source(gate) is z:  # of one number alone: a swish
                out = z * gate.detach()
                out.activated = True
                return out
        if self.rule == "attnlrp":
            whole = [args[a] for a, b in ((one, two), (two, one)) if getattr(args[b], "beyond_one", False)]
            for place in places:
                args[place] = _part(args[place], 0.5)
            return func(*args, **kwargs) + sum(0.5 * (x - x.detach()) for x in whole)
        else:
            of_one, of_two = self.is_gate(args[one]), self.is_gate(args[two])
            if of_one != of_two:
                place = one if of_one else two
                args[place] = args[place].detach()
            else:  # of two that no softmax made, one comes of the activation of a gated MLP; or it is a score
                score = func not in ELEMENTWISE
                marked = [place for place in places if getattr(args[place], "activated", False)]
                for place in places if score else marked:
                    args[place] = args[place].detach()
        return func(*args, **kwargs)

    def identity(self, f, z):
        y = f(z.detach())
        ratio = torch.where(z == 0, 0.5, y / torch.where(z == 0, 1, z)).detach()
        out = z * ratio
        out.activated = True
        return out

    def layer_norm(self, x, shape, weight=None, bias=None, eps=1e-5):
        centred = x - x.mean(-1, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps).detach()
        y = y if weight is None else y * weight
        return y if bias is None else y + bias


def _part(x: Tensor, share: float) -> Tensor:
    return share * x + (1 - share) * x.detach()


@contextmanager
def carried(model, mode: Detached):
    """transformers' scans by their rules: what a token chooses of a state is a constant, and the delta rule's factors
    get their shares. Their own code, or the definition, runs in between without any."""
    own, rule = {}, mode.rule
    constant = (lambda x: x) if rule == "gradient" else Tensor.detach

    def plainly(function, *args, **named):
        mode.rule = "gradient"
        try:
            return inspect.unwrap(function)(*args, **named)
        finally:
            mode.rule = rule

    def selective(x, dt, A, B, C, D=None, z=None, **named):
        function = own["mamba_selective_scan"]
        y = plainly(function, x, constant(dt), A, constant(B), constant(C), D=D, z=None, **named)
        return y * F.silu(z)

    def chunked(x, dt, A, B, C, *rest, **named):
        return plainly(own["mamba2_chunk_scan"], x, constant(dt), A, constant(B), constant(C), *rest, **named)

    def delta(query, key, value, *, g, beta, use_qk_l2norm_in_kernel=False, **_):
        if use_qk_l2norm_in_kernel:
            query, key = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (query, key))
        query, key = (x.repeat_interleave(value.shape[2] // key.shape[2], 2) for x in (query, key))
        part, of_value = {"attnlrp": (0.25, 0.5), "cp": (0, 1), "gradient": (1, 1)}[rule]
        given = [_part(x, part) for x in (query * query.shape[-1] ** -0.5, key)]
        given += [_part(value, of_value), _part(g, part), _part(beta, part)]
        return plainly(reference.gated_delta_rule, *given), None

    class Root:  # of what a recurrence keeps
        @staticmethod
        def apply(x):
            return own["SqrtBoundDerivative"].apply(x) if rule == "gradient" else torch.sqrt(x.detach())

    def mean(time_decay, time_first, key, value, **named):
        part, of_value = {"attnlrp": (0.5, 0.5), "cp": (0, 1), "gradient": (1, 1)}[rule]
        given = _part(key, part), _part(value, of_value)
        return plainly(own["rwkv_linear_attention"], time_decay, time_first, *given, **named)

    def recurrent(module, hidden_states, recurrent_gate, **named):
        return plainly(type(module)._rnn_scan, module, hidden_states, constant(recurrent_gate), **named)

    def memory(module, query, key, value, igate, fgate, **named):
        if rule == "gradient":
            return type(module).forward(module, query, key, value, igate, fgate, **named)
        part, of_value = {"attnlrp": (0.25, 0.5), "cp": (0, 1)}[rule]
        query, key, igate, fgate = (_part(one, part) for one in (query, key, igate, fgate))
        given = query, key, _part(value, of_value), igate, fgate
        return plainly(reference.mlstm, *given, eps=module.config.eps, frozen=True), None

    for module in model.modules():
        if hasattr(module, "_rnn_scan"):
            module._rnn_scan = partial(recurrent, module)
        if hasattr(module, "_inference_fn"):
            module.forward = partial(memory, module)

    scans = {"mamba_selective_scan": selective, "mamba2_chunk_scan": chunked}
    scans |= {"SqrtBoundDerivative": Root, "rwkv_linear_attention": mean}
    scans |= dict.fromkeys(("torch_chunk_gated_delta_rule", "chunk_kimi_delta_attention"), delta)
    homes = {sys.modules[type(module).__module__] for module in model.modules()}
    found = [(home, name) for home in homes for name in scans if hasattr(home, name)]
    try:
        for home, name in found:
            own[name] = getattr(home, name)
            setattr(home, name, scans[name])
        yield
    finally:
        for home, name in found:
            setattr(home, name, own[name])


def explained(
    model, layers: list, ids: Tensor, target: int, contrast: int, rule: str, with_edges=True, position: int = -1,
    looked_up=(), with_images=False, **beside,
) -> tuple[float, Tensor, list[Tensor]]:
    """The logit difference of a position, the last by default, or of a whole prompt, (L + 1, N) node relevance, and
    (N, N) edges a decoder layer: a backward pass a target row, through the layer alone. ``looked_up`` are leaves,
    (M, D), with (1, N) masks of the tokens that they are of, ``beside`` what the model is given with the ids;
    ``with_images``, embeddings of images are put among those of tokens. The model is changed for good."""  # fmt: skip
    model.set_attn_implementation("eager")
    model.config._attn_implementation = "eager"  # Falcon's class says that it cannot be told
    model.config._experts_implementation = "eager"
    model.requires_grad_(False)
    of_tokens, looked_up = looked_up, []
    mode, calls, outputs = Detached(rule), {}, {}
    pointwise = [module for module in model.modules() if rule != "gradient" and _is_pointwise(type(module))]
    for module in pointwise:
        module.forward = partial(mode.identity, module.forward)

    def enter(module, args, named):
        calls.setdefault(module, (args, named))

    def leave(module, args, output):
        outputs.setdefault(module, output[0] if isinstance(output, tuple | list) else output)

    handles = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(leave) for layer in layers]

    def look_up(module, args, output):
        # Gemma 4 looks up other tokens in the places of an image's.
        if module is of_ids:
            read.append(args[0])
        if args and isinstance(args[0], Tensor) and any(torch.equal(args[0], one) for one in (ids, *read)):
            looked_up.append(output.requires_grad_().clone())  # CTRL scales it in place
            if with_images and module is of_ids:  # and this becomes the first node
                return looked_up.pop()
            return looked_up[-1]
        return output

    of_ids, read = model.get_input_embeddings(), []
    tables = {of_ids, *(one for one in model.modules() if isinstance(one, nn.Embedding))}
    handles += [table.register_forward_hook(look_up) for table in tables]
    with carried(model, mode), mode:
        logits = model(input_ids=ids, use_cache=False, **beside).logits.flatten(0, -2)[position]
    for handle in handles:
        handle.remove()
    value = logits[target] - logits[contrast]
    inputs = [_hidden(*calls[layer]) for layer in layers]
    nodes = [*inputs, outputs[layers[-1]]]
    # Whatever else is looked up for a token, and does not go through its first node, is relevance of that node's too.
    own = with_images or any(one is inputs[0] for one in looked_up)
    leading = inputs[0].ndim == 4 and len(inputs[0]) > 1  # streams made of it: what is looked up is the first node
    others = [one for one in looked_up if leading or (own and one is not inputs[0])]
    leaves = [leaf for leaf, _ in of_tokens]
    gs = torch.autograd.grad(value, [*nodes, *others, *leaves], allow_unused=True)
    of_leaves = gs[len(nodes) + len(others) :]
    edges = []
    for layer, h, g in zip(layers, inputs, gs[1 : len(nodes)], strict=True) if with_edges else ():
        leaf, (args, named) = h.detach().requires_grad_(), calls[layer]
        with carried(model, mode), mode:
            output = layer(leaf, *args[1:], **named) if args else layer(**named | {"hidden_states": leaf})
        output = output[0] if isinstance(output, tuple | list) else output
        rows = []
        for j in range(ids.shape[1]):
            only = torch.zeros_like(g)
            only[:, j] = g[:, j]
            found = torch.autograd.grad(output, leaf, only, retain_graph=True)[0]
            rows.append((found * leaf)[0].flatten(1).sum(-1).detach())
        edges.append(torch.stack(rows))
    for module in pointwise:  # the first GPT's are all models'
        del module.forward
    relevance = [_by_token(node * g) for node, g in zip([*nodes, *others], gs, strict=False)]
    relevance[0] = relevance[0] * (not leading)
    while len(relevance) > len(nodes):
        relevance[0] += relevance.pop()
    for (leaf, mask), g in zip(of_tokens, of_leaves, strict=True):
        relevance[0][mask[0]] += (leaf * g).sum(-1).detach()
    return value.item(), torch.stack(relevance), edges


def _is_pointwise(cls: type) -> bool:
    """Whether it is an activation of transformers' or PyTorch's, or one with a backward pass of its own (Bloom's)."""
    called = [cls.forward.__globals__.get(name) for name in cls.forward.__code__.co_names]
    own = any(isinstance(one, type) and issubclass(one, torch.autograd.Function) for one in called)
    known = cls.__module__.endswith((".activations", ".activation")) and cls is not nn.Sigmoid  # without f(z)/z at 0
    return (own and cls.forward.__code__.co_argcount == 2) or known


def _by_token(relevance: Tensor) -> Tensor:
    """(N,) of (1, N, ...), or of streams (S, 1, N, D)."""
    streams = relevance.ndim == 4 and len(relevance) > 1
    return (relevance.movedim(0, 2) if streams else relevance)[0].flatten(1).sum(-1).detach()


def _hidden(args: tuple, named: dict) -> Tensor:
    return args[0] if args else named["hidden_states"]

"""What the kernel benchmark times: an operation at a size, who takes part, the work, and what the result has to be.

Everything is random, and bfloat16 where nothing else is said. ``work`` is what the operation needs, whoever computes
it: multiplications and additions of the matrix products, the hidden half of a causal square left out, or bytes, every
input read and every output written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import zennit_maps
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrp_fast import ops, reference
from lrp_fast.kernels import attention, edges, relevance
from lrp_fast.ops.edges import edge_tiles

HEADS, KV_HEADS = 32, 8
HIDDEN, INTERMEDIATE = 4096, 14336
EPS = 1e-5
PEERS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
DENSE = 4096  # tokens up to which plain PyTorch's attention is timed

Call = Callable[[], object]


class Machine:
    """Where tensors live: a CUDA device, or the CPU for a dry run, whose sizes are tiny."""

    def __init__(self, dry: bool, dtype: torch.dtype = torch.bfloat16):
        self.dry = dry
        self.device, self.dtype = ("cpu", torch.float32) if dry else ("cuda", dtype)
        self.generator = torch.Generator(self.device).manual_seed(0)

    def draw(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype or self.dtype)
        return x if scale == 1 else x.mul_(scale)


@dataclass
class Problem:
    """One operation at one size.

    ``prepare``: by contender, "ours" first, what sets it up and gives the call to be timed; a peer may fail in it.
    ``truth``: what our call has to return, from the inputs in float64.
    """

    prepare: dict[str, Callable[[], Call]]
    truth: Callable[[], tuple[Tensor, ...]]
    work: float
    unit: str  # "TFLOP/s" or "GB/s"
    dtype: torch.dtype | None = None  # where it is not the machine's


def cases(dry: bool) -> Iterator[tuple[str, int, Callable[[Machine, int], Problem]]]:
    """(what, size, how to build it), the most interesting first."""
    tokens, rows = ((32,), (8,)) if dry else ((16384, 65536, 4096, 131072, 1024), (16384, 65536))
    dims = (16,) if dry else (128, 64)

    def attention_at(n, dim):
        for what, build in (
            ("forward", lambda m, n: attention_forward(m, n, dim)),
            ("backward attnlrp", lambda m, n: attention_backward(m, n, dim, "attnlrp")),
            ("backward cp", lambda m, n: attention_backward(m, n, dim, "cp")),
            ("edges", lambda m, n: attention_edges(m, n, dim)),
        ):
            yield f"attention {what}, head_dim {dim}", n, build

    yield from attention_at(tokens[0], dims[0])
    for what, build in LINEAR.items():
        yield f"linear {what}", 16 if dry else 4096, build
    for what, build in POINTWISE.items():
        yield what, rows[0], build
    for what, n, build in attention_at(tokens[-1] if dry else DENSE, dims[0]):
        yield f"{what}, float32", n, in_float32(build)
    for what, build in LINEAR.items():
        yield f"linear {what}, float32", 16 if dry else 4096, in_float32(build)
    for n in tokens[1:2]:
        yield from attention_at(n, dims[0])
    for dim in dims[1:]:
        yield from attention_at(tokens[0], dim)
    for n in tokens[2:]:
        yield from attention_at(n, dims[0])
    for what, build in POINTWISE.items():
        for n in rows[1:]:
            yield what, n, build
    for n in tokens[1:]:
        for dim in dims[1:]:
            yield from attention_at(n, dim)


def in_float32(build):
    def built(machine: Machine, n: int) -> Problem:
        return replace(build(Machine(machine.dry, torch.float32), n), dtype=torch.float32)

    return built


def attention_tensors(machine: Machine, n: int, dim: int):
    """query, key, value and the output's gradient as a model has them: the heads of a token side by side."""
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS) if not machine.dry else (2, 1, 1, 2)
    return [machine.draw(1, n, h, dim).transpose(1, 2) for h in heads]


def pairs(n: int) -> int:
    """Of a query and a key that it reads."""
    return n * (n + 1) // 2


def attention_calls(machine: Machine, n: int, rule: str, backends) -> dict[str, Callable[..., Tensor]]:
    """By contender, out = f(query, key, value)."""
    calls = {"ours": lambda q, k, v: ops.attention(q, k, v, rule=rule, impl="triton")}
    if not machine.dry:
        for name, backend in backends.items():
            calls[name] = lambda q, k, v, backend=backend: sdpa(q, k, v, backend)
    if n <= DENSE:
        calls["torch"] = lambda q, k, v: ops.attention(q, k, v, rule=rule, impl="torch")
    return calls


def sdpa(query: Tensor, key: Tensor, value: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def attention_forward(machine: Machine, n: int, dim: int) -> Problem:
    query, key, value, _ = attention_tensors(machine, n, dim)

    def prepare(f):
        return lambda: lambda: f(query, key, value)

    def truth():
        q, k, v = (t.double() for t in (query, key, value))
        return (reference.attention(q, k, v, causal_mask(machine, n), scale=dim**-0.5),)

    contenders = {name: prepare(f) for name, f in attention_calls(machine, n, "attnlrp", PEERS).items()}
    return Problem(contenders, truth, 2 * 2 * dim * query.shape[1] * pairs(n), "TFLOP/s")


def attention_backward(machine: Machine, n: int, dim: int, rule: str) -> Problem:
    """cp needs the weights and dV, 2 products, and has our own attnlrp to compare with; attnlrp, as any backward, 5."""
    query, key, value, g = attention_tensors(machine, n, dim)

    def prepare(f):
        def with_graph():
            leaves = [t.detach().requires_grad_() for t in (query, key, value)]
            out = f(*leaves)
            return lambda: torch.autograd.grad(out, leaves, g, retain_graph=True, allow_unused=True)

        return with_graph

    def truth():
        tensors = (t.double() for t in (g, query, key, value))
        grads = reference.attention_backward(*tensors, causal_mask(machine, n), scale=dim**-0.5, rule=rule)
        return grads if rule == "attnlrp" else grads[2:]

    calls = attention_calls(machine, n, rule, PEERS if rule == "attnlrp" else {})
    if rule == "cp":
        calls["attnlrp"] = lambda q, k, v: ops.attention(q, k, v, rule="attnlrp", impl="triton")
    products = 5 if rule == "attnlrp" else 2
    contenders = {name: prepare(f) for name, f in calls.items()}
    return Problem(contenders, truth, products * 2 * dim * query.shape[1] * pairs(n), "TFLOP/s")


def attention_edges(machine: Machine, n: int, dim: int) -> Problem:
    """The 16 strongest edges into every query under attnlrp, for which 2 products are needed, as for the forward pass:
    that takes turns with it. What is compared is the strengths, and what was left out, positive and negative. PyTorch's
    form is timed with its lists brought to the host, where the graph keeps them."""
    query, key, value, g = attention_tensors(machine, n, dim)
    rows = torch.arange(n, device=query.device)

    def passed(tensors, impl):
        leaves, traces = [t.detach().requires_grad_() for t in tensors[:3]], []
        torch.autograd.grad(ops.attention(*leaves, impl=impl, traces=traces), leaves, tensors[3])
        return traces[0]

    def ours():
        reach = {"scale": dim**-0.5, "causal": True, "window": None, "softcap": None}
        kept = attention.forward(query, key, value, **reach)
        parts, shares = {"key_part": None, "value_part": None}, {"value_share": 0.5, "score_share": 0.25, "ratio": True}

        def call():
            given = edges.prepare(g, query, key, value, *kept, **reach, **parts, **shares)
            _, weights, dropped = edges.strongest(given, rows, 16)
            return torch.cat([weights.abs().sort().values, dropped], -1)

        return call

    def plain():
        trace = passed((query, key, value, g), "torch")
        return lambda: ops.attention_edges(trace, rows, topk=16, impl="torch")

    def truth():
        found = []
        trace = passed([t.double() for t in (query, key, value, g)], "torch")
        for _, _, tile in edge_tiles(trace, rows):
            tile = F.pad(tile, (0, 16))
            strongest = tile.abs().topk(16)
            rest = tile.scatter(1, strongest.indices, 0)
            sums = torch.stack([rest.clamp(min=0).sum(-1), rest.clamp(max=0).sum(-1)], -1)
            found.append(torch.cat([strongest.values.flip(-1), sums], -1))
        return (torch.cat(found),)

    contenders = {"ours": ours}
    for name, f in attention_calls(machine, n, "attnlrp", {"flash": PEERS["flash"]}).items():
        if name != "torch":
            contenders[f"forward {name}"] = lambda f=f: lambda: f(query, key, value)
    if n <= DENSE:
        contenders["torch"] = plain
    return Problem(contenders, truth, 2 * 2 * dim * query.shape[1] * pairs(n), "TFLOP/s")


def causal_mask(machine: Machine, n: int) -> Tensor:
    return reference.visible(1, n, n).to(machine.device)


def linear_problem(epsilon: float, gamma: float):
    """Forward and backward through gate_proj of an 8B model: 2 products plainly and with epsilon, 4 with gamma."""

    def build(machine: Machine, rows: int) -> Problem:
        ins, outs = (HIDDEN, INTERMEDIATE) if not machine.dry else (32, 48)
        x, g = machine.draw(rows, ins).requires_grad_(), machine.draw(rows, outs)
        weight = machine.draw(outs, ins, scale=ins**-0.5)

        def through(forward):
            return lambda: lambda: torch.autograd.grad(forward(), x, g)

        def zennit():
            module = zennit_maps.linear(weight, weight.new_zeros(outs), epsilon, gamma)
            return lambda: torch.autograd.grad(module(x), x, g)

        def truth():  # in closed form: the definition makes rows x in x out numbers
            wide = x.detach().double().requires_grad_()
            z = ops.linear(wide, weight.double(), epsilon=epsilon, gamma=gamma, impl="torch")
            return torch.autograd.grad(z, wide, g.double())

        prepare = {
            "ours": through(lambda: ops.linear(x, weight, epsilon=epsilon, gamma=gamma, impl="triton")),
            "plain": through(lambda: F.linear(x, weight)),
            "torch": through(lambda: ops.linear(x, weight, epsilon=epsilon, gamma=gamma, impl="torch")),
            "zennit": zennit,
        }
        return Problem(prepare, truth, (4 if gamma else 2) * 2 * rows * ins * outs, "TFLOP/s")

    return build


LINEAR = {"gamma": linear_problem(0.0, 0.25), "epsilon": linear_problem(0.01, 0.0)}


def both(call) -> dict[str, Callable[[], Call]]:
    """Ours and plain PyTorch's, of ``call(impl)``."""
    return {"ours": lambda: lambda: call("triton"), "torch": lambda: lambda: call("torch")}


def both_backward(call, leaves: list[Tensor], g: Tensor) -> dict[str, Callable[[], Call]]:
    """Their backward passes, of the graph that ``call(impl)`` makes."""

    def prepare(impl):
        def with_graph():
            out = call(impl)
            return lambda: torch.autograd.grad(out, leaves, g, retain_graph=True, allow_unused=True)

        return with_graph

    return {"ours": prepare("triton"), "torch": prepare("torch")}


def gated_forward(machine: Machine, rows: int) -> Problem:
    gate, up = wide_matrices(machine, rows, 2)
    return Problem(
        both(lambda impl: ops.gated_mlp(gate, up, impl=impl)),
        lambda: (reference.gated_mlp(gate.double(), up.double(), "silu"),),
        3 * gate.nbytes, "GB/s",
    )  # fmt: skip


def gated_backward(rule: str):
    def build(machine: Machine, rows: int) -> Problem:
        gate, up, g = wide_matrices(machine, rows, 3)
        leaves = [gate.requires_grad_(), up.requires_grad_()]

        def truth():
            wide = (t.detach().double() for t in (g, gate, up))
            grads = reference.gated_mlp_backward(*wide, "silu", rule=rule)
            return grads if rule == "attnlrp" else grads[1:]

        call = lambda impl: ops.gated_mlp(gate, up, rule=rule, impl=impl)  # noqa: E731
        # cp reads no up and writes no gradient of the gate
        return Problem(both_backward(call, leaves, g), truth, (5 if rule == "attnlrp" else 3) * gate.nbytes, "GB/s")

    return build


def wide_matrices(machine: Machine, rows: int, count: int) -> list[Tensor]:
    return [machine.draw(rows, INTERMEDIATE if not machine.dry else 48) for _ in range(count)]


def hidden_matrices(machine: Machine, rows: int, count: int) -> list[Tensor]:
    return [machine.draw(rows, HIDDEN if not machine.dry else 32) for _ in range(count)]


def norm_forward(machine: Machine, rows: int) -> Problem:
    (x,) = hidden_matrices(machine, rows, 1)
    weight = machine.draw(x.shape[1])
    return Problem(
        both(lambda impl: ops.rms_norm(x, weight, EPS, impl=impl)),
        lambda: (reference.rms_norm(x.double(), weight.double(), EPS),),
        2 * x.nbytes, "GB/s",
    )  # fmt: skip


def norm_forward_residual(machine: Machine, rows: int) -> Problem:
    x, residual = hidden_matrices(machine, rows, 2)
    weight = machine.draw(x.shape[1])

    def truth():
        total = x + residual  # in the working dtype, as the next layer sees it
        return reference.rms_norm(total.double(), weight.double(), EPS), total.double()

    call = lambda impl: ops.rms_norm(x, weight, EPS, residual=residual, impl=impl)  # noqa: E731
    return Problem(both(call), truth, 4 * x.nbytes, "GB/s")


def norm_backward(machine: Machine, rows: int) -> Problem:
    x, g = hidden_matrices(machine, rows, 2)
    weight = machine.draw(x.shape[1])
    x.requires_grad_()

    def truth():
        return (reference.rms_norm_backward(*(t.detach().double() for t in (g, x, weight)), EPS, rule="attnlrp"),)

    return Problem(
        both_backward(lambda impl: ops.rms_norm(x, weight, EPS, impl=impl), [x], g), truth, 2 * x.nbytes, "GB/s"
    )


def activation_forward(machine: Machine, rows: int) -> Problem:
    (z,) = wide_matrices(machine, rows, 1)
    return Problem(
        both(lambda impl: ops.activation(z, "gelu", impl=impl)),
        lambda: (reference.activation(z.double(), "gelu"),),
        2 * z.nbytes, "GB/s",
    )  # fmt: skip


def activation_backward(machine: Machine, rows: int) -> Problem:
    z, g = wide_matrices(machine, rows, 2)
    z.requires_grad_()

    def truth():
        return (reference.activation_backward(g.double(), z.detach().double(), "gelu", rule="attnlrp"),)

    return Problem(
        both_backward(lambda impl: ops.activation(z, "gelu", impl=impl), [z], g), truth, 3 * z.nbytes, "GB/s"
    )


def node_relevance(machine: Machine, rows: int) -> Problem:
    """bfloat16 states, float32 relevance gradients, as on the residual stream."""
    (x,) = hidden_matrices(machine, rows, 1)
    g = machine.draw(*x.shape, dtype=torch.float32)
    return Problem(
        {"ours": lambda: lambda: relevance.node_relevance(x, g), "torch": lambda: lambda: (x.float() * g).sum(-1)},
        lambda: ((x.double() * g.double()).sum(-1),),
        x.nbytes + g.nbytes, "GB/s",
    )  # fmt: skip


POINTWISE = {
    "gated MLP forward": gated_forward,
    "gated MLP backward attnlrp": gated_backward("attnlrp"),
    "gated MLP backward cp": gated_backward("cp"),
    "RMSNorm forward": norm_forward,
    "RMSNorm forward + residual": norm_forward_residual,
    "RMSNorm backward": norm_backward,
    "node relevance": node_relevance,
    "activation forward": activation_forward,
    "activation backward": activation_backward,
}

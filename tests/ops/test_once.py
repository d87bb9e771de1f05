"""Every op hands relevance gradients down once, one at a time, and says so where more is asked."""

import pytest
import torch

from lrp_fast import ops

MATRIX = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
OPS = {
    "activation": lambda x, **on: ops.activation(x, "silu", **on),
    "gated_mlp": lambda x, **on: ops.gated_mlp(x, x, "silu", **on),
    "rms_norm": lambda x, **on: ops.rms_norm(x, MATRIX[0], 1e-6, **on),
    "layer_norm": lambda x, **on: ops.layer_norm(x, MATRIX[0], None, 1e-6, **on),
    "linear": lambda x, **on: ops.linear(x, MATRIX, **on),
    "linear-gamma": lambda x, **on: ops.linear(x, MATRIX, gamma=0.1, **on),
    "rotary": lambda x, **on: ops.rotary(x, MATRIX, MATRIX),
    "attention": lambda x, **on: ops.attention(*[x.view(1, 1, 5, 8)] * 3, **on),
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


@every_op
def test_a_second_derivative_is_refused(op):
    x = MATRIX.clone().requires_grad_()
    with pytest.raises(ValueError, match="cannot be differentiated again: leave out create_graph=True"):
        torch.autograd.grad(op(x).sum(), x, create_graph=True)


@every_op
def test_batched_gradients_are_refused(op):
    x = MATRIX.clone().requires_grad_()
    y = op(x)
    gs = torch.ones(3, *y.shape)
    with pytest.raises(ValueError, match="one at a time: call torch.autograd.grad for each"):
        torch.autograd.grad(y, x, gs, is_grads_batched=True, retain_graph=True)
    with pytest.raises(ValueError, match="one at a time: call torch.autograd.grad for each"):
        torch.func.vmap(lambda g: torch.autograd.grad(y, x, g))(gs)


@every_op
def test_one_at_a_time_over_one_graph(op):
    x = MATRIX.clone().requires_grad_()
    y = op(x)
    first, second, both = (torch.autograd.grad(y, x, g * torch.ones_like(y), retain_graph=True)[0] for g in (1, 2, 3))
    torch.testing.assert_close(first + second, both)


@every_op
def test_checkpointing_recomputes_the_op(op):
    x = MATRIX.clone().requires_grad_()
    (expected,) = torch.autograd.grad(op(x).sum(), x)
    for reentrant in (True, False):
        y = torch.utils.checkpoint.checkpoint(op, x, use_reentrant=reentrant)
        x.grad = None
        y.sum().backward()
        assert torch.equal(x.grad, expected)

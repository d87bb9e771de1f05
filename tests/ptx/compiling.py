"""From a Triton kernel and a launch's arguments to PTX, as Triton's own launcher would do it on a device."""

import torch

from lrp_fast.kernels import common, resources


def compiled(kernel, arguments, constexprs, num_warps, num_stages, on):
    """PTX for a device of compute capability ``on``, the bytes of shared memory, and those of ``arguments`` that are
    the PTX's parameters: None and ones are not.
    """
    signature, constants = common.specialised(kernel, arguments, constexprs, on)
    case = (kernel.fn.__name__, kernel, signature, constants, num_warps, num_stages)
    made = resources.compiled(case, 10 * on[0] + on[1])
    parameters = [x for x, kind in zip(arguments, signature.values(), strict=False) if kind != "constexpr"]
    return made.asm["ptx"], made.metadata.shared, parameters


def copies(arguments):
    """With the same strides: what a launch may write to, so that it can be repeated."""
    return [x.clone(memory_format=torch.preserve_format) if isinstance(x, torch.Tensor) else x for x in arguments]

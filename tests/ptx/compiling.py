"""From a Triton kernel and a launch's arguments to PTX, as Triton's own launcher would do it on a device."""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature


def compiled(kernel, arguments, constexprs, num_warps, num_stages, on):
    """PTX for a device of compute capability ``on``, the bytes of shared memory, and those of ``arguments`` that are
    the PTX's parameters: None and ones are not.
    """
    target = GPUTarget("cuda", 10 * on[0] + on[1], 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    values, kinds, _ = bind(*arguments, **constexprs)
    found = dict(zip(values, kinds, strict=True))
    signature = {name: kind for name, (kind, _) in found.items()}
    constants = {name: values[name] for name, kind in signature.items() if kind == "constexpr"}
    attributes = {(n,): backend.parse_attr(x) for n, (kind, x) in enumerate(kinds) if x and kind != "constexpr"}
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    result = triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)
    parameters = [values[name] for name, kind in signature.items() if kind != "constexpr"]
    return result.asm["ptx"], result.metadata.shared, parameters


def copies(arguments):
    """With the same strides: what a launch may write to, so that it can be repeated."""
    return [x.clone(memory_format=torch.preserve_format) if isinstance(x, torch.Tensor) else x for x in arguments]

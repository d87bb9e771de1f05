"""Compiled kernels, run and judged on the CPU: the PTX that Triton emits for sm_80 and sm_90, executed with numpy.

    from tests.ptx.launching import Program, launch

    reports = launch(Program(ptx), shared, programs, arguments)

`compiling.compiled` gives ``ptx``, ``shared`` and a launch's arguments. Results are written back into the tensors. The
reports are a Counter of sentences, each with the kind of fault, the instruction and the line of the kernel's source:

- memory: a global access outside the elements of every tensor; shared memory that nothing has written; and what stops
  a device: misalignment, shared memory outside of the program's, addresses far from every tensor;
- races: between threads of a program on shared memory, by happens-before over bar.sync and bar.warp.sync; between
  programs on global memory; lanes that write different values to one address in one instruction;
- asynchronous work: shared memory that is read or overwritten while a cp.async writes it or a wgmma reads it, a
  fence.proxy.async that is missing, results of a wgmma used before wgmma.wait_group;
- instructions of whole warps or warpgroups with lanes missing.

What has no translation raises NotImplementedError, nothing is skipped. To be read beside NVIDIA's "PTX ISA", in this
order: parsing.py; translation.py with arithmetic.py and values.py; machine.py; memory.py; races.py; asynchronous.py;
warps.py; matrix.py; wgmma.py and accumulators.py; launching.py.

Not modelled: the order in which tensor cores add, and their rounding (sums are float32's, in the order of a BLAS);
the errors of .approx and .full instructions (rounded correctly here); payloads of NaNs; races on global memory between
threads of one program; what wgmma.fence orders; clusters, mbarrier, TMA, tcgen05 (sm_100); what ptxas makes of it all.
A race is seen only if the launch at hand gets to it; of each piece of shared memory only the last writer is known, and
the last reader or that there were several. Tensors may have 400 MB together.

mutation.py takes out one synchronisation after the other. Of attention's kernels on sm_90, the last 300 of 450 tokens
asking, bfloat16, head_dim 64, Triton 3.7.1:

======= ========= ============================= ===================================================================
kernel  noticed   not noticed                   because it is redundant there
======= ========= ============================= ===================================================================
forward 27 of 31  first barrier of both loops   it stands between the first and the second prefetch; the memory of
dq      29 of 33                                the second is new, or in the second loop was last used before the
                                                barrier that ends the first loop
                  fence.proxy.async before      each round has its own, behind its barrier and before its wgmma
                  both loops
dkv     34 of 37  fence and a barrier           as above
                  barrier that ends the first   the stage that is written next was last read a barrier earlier, in
                  loop                          every launch tried (an even number of rounds)
======= ========= ============================= ===================================================================

With 300 tokens that ask about themselves, two more of the forward pass are missed (25 of 31): the barriers that guard a
stage, and the scratch memory that lies over it, matter from the second round of the loop over the diagonal on.
"""

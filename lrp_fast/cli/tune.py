"""``lrp-fast tune``: what is fastest on this machine's GPU."""

from __future__ import annotations

import argparse
import sys

from .config import read_config
from .load import read_device

_COMMON = (128, 64)  # head_dims of most models


def run(options: argparse.Namespace) -> int:
    from ..doctor import head_dims_of
    from ..ops import backend, measured
    from ..tuning import bench_of, tune

    if not options.seconds > 0:
        raise ValueError(f"--seconds {options.seconds:g} leaves no time: give more than 0")
    device = read_device(options.device)
    if device.type != "cuda":
        raise ValueError(f"there is nothing to tune on --device {options.device}: tiles are those of a CUDA device")
    if (why := backend.without_triton(device)) is not None:
        raise ValueError(f"there is nothing to tune: {why}")
    given = {"pattern": options.rows}
    dims = _COMMON
    if options.model is not None:
        config = read_config(options.model)
        dims = head_dims_of(config)
        if not dims:
            raise ValueError(f"no rule covers an attention of {options.model!r}: `lrp-fast doctor` says what it holds")
        words = config.get_text_config()
        given["itemsize"] = 4 if str(config.dtype).endswith("float32") else 2
        given["capped"] = getattr(words, "attn_logit_softcapping", None) is not None
    bench, wrong = bench_of(device, options.seconds), False
    file = measured.file_of(bench.on)
    try:
        for step in tune(bench, dims, **given):
            wrong |= step.wrong
            print(step.told, flush=True)
    except KeyboardInterrupt:
        print(f"what was found until here is in {file}", file=sys.stderr)
        raise
    if bench.left() <= 0:
        print("the time is over: another call goes on with what is left", file=sys.stderr)
    print(f"in {file}, which is read from now on; delete it to be as before")
    return 1 if wrong else 0

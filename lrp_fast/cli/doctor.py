"""``lrp-fast doctor``: what is covered."""

from __future__ import annotations

import argparse
import json

from .config import read_config


def run(options: argparse.Namespace) -> int:
    from ..doctor import examine
    from ..hf import unreadable_format
    from ..report.findings import findings

    config = read_config(options.model)
    weights = unreadable_format(config)
    found, checks = examine(config)
    healthy = weights is None and bool(checks) and all(check.passed for check in checks)
    if options.json:
        told = {"modules": [one._asdict() for one in found], "checks": [one._asdict() for one in checks]}
        print(json.dumps(told | {"weights": weights, "healthy": healthy}))
    else:
        print(findings(found, weights, checks))
    return 0 if healthy else 1

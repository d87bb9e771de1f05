"""``lrp-fast attribute``: one decision, over tokens and hidden states."""

from __future__ import annotations

import argparse
import json
import sys

from .explain import explain
from .output import beside, check_files

SUFFIXES = (".html", ".json", ".safetensors")  # of what attribute writes


def run(options: argparse.Namespace) -> int:
    check_files("--out", options.out, SUFFIXES)
    result = explain(options)

    from ..files import write_atomically
    from ..report.html import write_html
    from ..report.record import as_json
    from ..report.table import best_table, table

    record = json.dumps(as_json(result), ensure_ascii=False, allow_nan=False)
    page, plain, saved = (beside(options.out, suffix) for suffix in SUFFIXES)
    result.save(saved)
    write_atomically(plain, (record + "\n").encode("utf-8", "backslashreplace"))
    write_html(result, page)
    if options.json:
        print(record)
    else:
        if options.target is None:
            print(best_table(result.explained), end="\n\n")
        print(table(result, options.top))
    print(f"wrote {page}, {plain}, {saved}", file=sys.stderr)
    return 0

"""``lrp-fast hops``: one decision, through what the model had generated, over the prompt."""

from __future__ import annotations

import argparse
import json

from .explain import loaded, read_question, read_tokens, watched
from .prompt import _read_prompt


def run(options: argparse.Namespace) -> int:
    prompt, question = _read_prompt(options), read_question(options)
    model, tokenizer = loaded(options)
    given = read_tokens(options, prompt, tokenizer)

    from .. import hops
    from ..report.hops import as_json, table

    asked = {"generated": options.generated, "bound": options.bound, "most": options.most}
    with watched(options, model, given) as shared:
        found = hops(model, given, **question, **asked, tokenizer=tokenizer, **shared)
    if options.json:
        print(json.dumps(as_json(found), ensure_ascii=False, allow_nan=False))
    else:
        print(table(found, options.top))
    return 0

"""Cases turned the way that the model decides."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..study.cases import Case, read_cases
from ..tokenizer import read as read_tokenizer
from .perturb import Prompt
from .readings import reader, settled
from .staging import ask, check_model


def preferred(model, cases, tokenizer=None) -> list[Case]:
    """The cases, with target and contrast exchanged where the model prefers the contrast.

    An explanation of "why this rather than that" can be judged by what makes the model change its mind where it is of
    this mind. A case that was turned has a field ``turned``, and no ``gold``: that speaks for the answer which the
    model did not give. Cases without two tokens to compare, and those that cannot be read, stay as they are.
    """
    check_model(model)
    tokenizer, found = read_tokenizer(tokenizer), []
    for case in read_cases(cases):
        if case.left_out is None and isinstance(case.target, str | int) and isinstance(case.contrast, str | int):
            case = _turned(model, case, tokenizer)
        found.append(case)
    return found


def _turned(model, case: Case, tokenizer) -> Case:
    try:
        asked = ask(model, case, tokenizer)
    except (ValueError, TypeError):
        return case
    everything = torch.ones(1, len(asked.ids), dtype=torch.bool)
    prompt = Prompt(model, asked.ids, asked.tokenizer)
    whole = prompt.read(everything, "zero", lambda logits: logits)[0].float()
    read = reader(settled(asked, whole).requests[0], whole)
    if float(read(whole[None])[0, 0]) >= 0:
        return case
    fields = {name: value for name, value in case.fields.items() if name != "gold"} | {"turned": True}
    return replace(case, target=case.contrast, contrast=case.target, fields=fields)

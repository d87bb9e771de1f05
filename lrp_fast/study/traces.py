"""The trace files of Debug-XAI, the code of "Contrastive Attribution in the Wild" (arXiv 2604.17761), as cases.

A trace is one JSON object: ``prompt`` and ``completion_before_err``, behind which the wrong token came;
``topk_token_explore``, that model's best next tokens there (rank, token_str, token_id, logit, eval_result, completion);
such lists of its siblings, ``1.7b_topk_token_explore`` and the like; ``contrast_token``, where somebody chose one; and
``l_instruction_phases``, texts of the prompt's instructions.

The target is the token of the lowest rank, by its id. The contrast is ``contrast_token``, by the id that it has among
the candidates; else the best-ranked candidate whose roll-out passed (``eval_result``), else the best-ranked such
candidate of a sibling, as text. Where a token is told as text alone, ours differs from Debug-XAI: a text of several
tokens is compared there by its last token, here at the first in which target and contrast differ. Both are the same
for a text of one token. Debug-XAI passes over traces whose first candidate is not known to be wrong; here they are
cases.
"""

from __future__ import annotations

import re

_LIST = "topk_token_explore"


def is_trace(given: dict) -> bool:
    """Whether it is still to be read as one: a case that was made of a trace carries its lists along."""
    return "completion_before_err" in given or (_LIST in given and not given.keys() & {"target", "left_out"})


def as_case(given: dict) -> dict:
    """A trace as `lrp_fast.study.read_cases` takes a case; what is not read of it is carried through.

    Instructions become the segments "instruction 1", "instruction 2", ... and what the model had written "completion".
    An instruction that does not stand in the prompt once, or shares characters with one before it, is none, and named
    in ``segments_left_out``, a text.

    Raises:
        TypeError, ValueError: one sentence, for what is no such trace.
    """
    before, begun = (given.get(name, "") for name in ("prompt", "completion_before_err"))
    if not isinstance(before, str) or not isinstance(begun, str) or not before + begun:
        raise TypeError("a trace's prompt and completion_before_err must be strings")
    candidates = _candidates(given.get(_LIST, []), _LIST)
    if not candidates:
        raise ValueError(f"the trace has no {_LIST}: the model's own next token is not known")
    about = given.get("metadata", {})
    name = about.get("uuid", given.get("id")) if isinstance(about, dict) else given.get("id")
    segments, left_out = _segments(given.get("l_instruction_phases", []), before, begun)
    read = ("id", "prompt", "completion_before_err", "segments")
    found = {"id": name, "prompt": before + begun, "target": _token(candidates[0]), "segments": segments}
    contrast, how = _contrast(given, candidates)
    if contrast is None:
        found |= {"left_out": "the trace names no contrast, and no candidate's roll-out passed"}
    else:
        found |= {"contrast": contrast, "contrast_from": how}
    if left_out:
        found["segments_left_out"] = "; ".join(left_out)
    return {key: value for key, value in given.items() if key not in read and key not in found} | found


def _candidates(given, name: str) -> list[dict]:
    """By rank."""
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise TypeError(f"a trace's {name} must be a list of objects")
    return sorted(given, key=lambda one: one.get("rank", given.index(one)))


def _contrast(given: dict, candidates: list[dict]) -> tuple[int | str | None, str]:
    """The token, and where it is from."""
    named = given.get("contrast_token")
    if isinstance(named, str) and named:
        for one in candidates:
            if {named, _unquoted(named)} & {one.get("token_str"), _unquoted(one.get("token_str"))}:
                return _token(one), "contrast_token"
        return _unquoted(named), "contrast_token"
    for one in candidates[1:]:
        if one.get("eval_result") is True:
            return _token(one), _LIST
    for name in sorted(key for key in given if key.endswith(f"_{_LIST}")):
        for one in _candidates(given[name], name):
            if one.get("eval_result") is True and isinstance(one.get("token_str"), str):
                return _unquoted(one["token_str"]), name  # its ids may be another vocabulary's
    return None, ""


def _token(one: dict) -> int | str:
    number, text = one.get("token_id"), one.get("token_str")
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    if not isinstance(text, str) or not text:
        raise ValueError(f"a candidate of the trace has neither a token_id nor a token_str: {one}")
    return _unquoted(text)


def _unquoted(text):
    """Without the quotes that some traces put around a token."""
    match = re.fullmatch(r"(['\"])(.+)\1", text, re.DOTALL) if isinstance(text, str) else None
    return match[2] if match else text


def _segments(phrases, before: str, begun: str) -> tuple[dict, list[str]]:
    if not isinstance(phrases, list) or not all(isinstance(one, str) for one in phrases):
        raise TypeError("a trace's l_instruction_phases must be a list of strings")
    segments, left_out, taken = {}, [], []
    for number, phrase in enumerate(phrases, 1):
        name, times = f"instruction {number}", before.count(phrase) if phrase.strip() else 0
        start = before.find(phrase)
        end = start + len(phrase)
        if times != 1:
            left_out.append(f"{name} stands in the prompt {times} times: {phrase!r}")
        elif any(start < other and one < end for one, other in taken):
            left_out.append(f"{name} shares characters with one before it: {phrase!r}")
        else:
            taken.append((start, end))
            segments[name] = ["chars", start, end]
    if begun.strip():
        segments["completion"] = ["chars", len(before), len(before) + len(begun)]
    return segments, left_out

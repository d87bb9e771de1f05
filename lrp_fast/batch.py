"""`attribute_batch`: several prompts, each explained as if it were alone."""

from __future__ import annotations

from . import prompt, question, targets
from .attribution import Attribution, attribute
from .graph import GraphSpec
from .memory import Memory
from .rules import Rules
from .stream import Progress
from .tokenizer import read as read_tokenizer


def attribute_batch(
    model,
    input_ids,
    attention_mask=None,
    target=None,
    contrast=None,
    position=-1,
    rule: str | Rules = "attnlrp",
    graph: GraphSpec | None = None,
    memory: Memory | None = None,
    tokenizer=None,
    progress: Progress | None = None,
    **others,
) -> list[Attribution]:
    """`attribute` for every row of a batch, without the row's padding.

    The rows run one after another, so that a row's numbers, and the memory it takes, are those of the prompt alone; all
    of them are checked before the first one runs.

        lrp_fast.attribute_batch(model, **tokenizer(prompts, padding=True, return_tensors="pt"), target=[5, 7])

    Args:
        input_ids: a sequence of prompts as `attribute` takes them (strings, chats, token ids), of any lengths; a
            LongTensor (B, N); or all that a tokenizer returned, as one argument or as keywords.
        attention_mask: (B, N), needed with such a tensor: 1 for tokens, 0 for padding, on the left or on the right.
        target, contrast, position: as in `attribute`, for one decision. A list, or an array of targets or contrasts,
            has an entry for each row; anything else holds for all of them. Positions count a row's own tokens, so that
            -1 is its last.
        model, rule, graph, memory, tokenizer, progress: as in `attribute`.
        others: what else a tokenizer returns (offset_mapping, ...), which is not needed; token_type_ids are refused if
            the model would make something of them. That it has cut a prompt short is noted where it says so: in what it
            returned as one argument, not among the keywords, unless it was called with return_overflowing_tokens=True.

    Returns:
        One result a row, in their order.

    Raises:
        ValueError, TypeError, UnsupportedModuleError: as `attribute`, with the row's number.
    """
    question.check_model(model)
    prompt.refuse_others(others)
    for given in (others, input_ids):
        question.check_token_types(model, prompt.types_of(given))
    tokenizer = read_tokenizer(tokenizer)
    prompts = prompt.rows(input_ids, attention_mask, others)
    given = {"target": _by_row("target", target), "contrast": _by_row("contrast", contrast), "position": position}
    for name, value in given.items():
        if isinstance(value, list) and len(value) != len(prompts):
            raise ValueError(f"{name} is a list of {len(value)} for {len(prompts)} prompts: give one entry for each")
    rows = []
    for row, (one, notes) in enumerate(prompts):
        asked = {name: value[row] if isinstance(value, list) else value for name, value in given.items()}
        try:
            read = prompt.read(one, tokenizer)
            read = read._replace(notes=(*notes, *read.notes))
            several = question.read(model, read, **asked, rule=rule, tokenizer=tokenizer).several
        except (ValueError, TypeError) as error:
            raise type(error)(f"row {row}: {error}") from error
        if several:
            raise TypeError(f"row {row} has several targets: attribute_batch explains one decision a row")
        rows.append((read, asked))
    options = {"rule": rule, "graph": graph, "memory": memory, "tokenizer": tokenizer, "progress": progress}
    return [attribute(model, one, **asked, **options) for one, asked in rows]


def _by_row(name: str, given):
    """An array with a row's id in each entry as a list; anything else as it is."""
    found = targets.several(name, given)
    shape = getattr(given, "shape", ())
    return [found] if len(shape) and not isinstance(found, list) else found

"""`attribute_batch`: several prompts, each explained as if it were alone."""

from __future__ import annotations

from . import prompt, question, targets
from .attribution import Attribution, explain
from .graph import GraphSpec
from .hf import check_edges, check_hooks, decoder_layers
from .memory import Memory, Plan
from .ops import read_tolerance
from .packing import Size, explain_together, packs
from .rules import Rules, as_rules
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
    return_exceptions: bool = False,
    tolerance: float = 0.0,
    **others,
) -> list[Attribution | ValueError]:
    """`attribute` for every row of a batch, without the row's padding.

    Rows of like length share a pass through the model, as many as fit without a layer's tensors having to wait further
    away than for the longest of them alone, up to where more tokens make none of them cheaper. A row's numbers are
    those of the prompt alone but for rounding, and the very same where it has a pass to itself.

    Rows that would not be as if alone have one each: in a model with somebody's forward hooks, which may look at the
    whole batch; with linear maps that round all tokens together (LLM.int8's outliers, torchao's PerTensor); and in a
    mixture of experts in 16 bits, where rounding decides which experts a token goes to. Where rotations are made for
    the prompt's length (dynamic NTK, LongRoPE), rows of one length share a pass.

        lrp_fast.attribute_batch(model, **tokenizer(prompts, padding=True, return_tensors="pt"), target=[5, 7])

    Args:
        input_ids: a sequence of prompts as `attribute` takes them (strings, chats, token ids), of any lengths; a
            LongTensor (B, N); or all that a tokenizer returned, as one argument or as keywords.
        attention_mask: (B, N), needed with such a tensor: 1 for tokens, 0 for padding, on the left or on the right.
        target, contrast, position: as in `attribute`, for one decision. A list, or an array of targets or contrasts,
            has an entry for each row; anything else holds for all of them. Positions count a row's own tokens, so that
            -1 is its last.
        model, rule, graph, memory, tokenizer, tolerance: as in `attribute`.
        progress: as in `attribute`, of one pass after another.
        return_exceptions: whether a row that turns out to have no explanation, as one whose logits hold NaN, has its
            ValueError in its place of the list. Otherwise the first of these is raised when all the others are done;
            its attribute ``results`` is that list, so that nothing that was computed is lost.
        others: what else a tokenizer returns (offset_mapping, ...), which is not needed; token_type_ids are refused if
            the model would make something of them. That it has cut a prompt short is noted where it says so: in what it
            returned as one argument, not among the keywords, unless it was called with return_overflowing_tokens=True.

    Returns:
        One result a row, in their order.

    Raises:
        ValueError, TypeError, UnsupportedModuleError: as `attribute`, with the row's number; before any layer runs, and
            whatever ``return_exceptions`` says, for all that can be known by then.
    """
    rules, tolerance = as_rules(rule), read_tolerance(tolerance)
    if graph is not None and not isinstance(graph, GraphSpec):
        raise TypeError(f"graph must be a lrp_fast.GraphSpec, not {type(graph).__name__}")
    question.check_model(model)
    if alone := [name for name in ("answer", "by_token", "sources", "observe") if name in others]:
        raise TypeError(f"attribute_batch takes no {alone[0]}=: explain these prompts one by one, with attribute")
    prompt.refuse_others(others)
    for given in (others, input_ids):
        question.check_token_types(model, prompt.types_of(given))
    tokenizer = read_tokenizer(tokenizer)
    prompts = prompt.rows(input_ids, attention_mask, others)
    given = {"target": _by_row("target", target), "contrast": _by_row("contrast", contrast), "position": position}
    for name, value in given.items():
        if isinstance(value, list) and len(value) != len(prompts):
            raise ValueError(f"{name} is a list of {len(value)} for {len(prompts)} prompts: give one entry for each")
    asked = []
    for row, (one, notes) in enumerate(prompts):
        mine = {name: value[row] if isinstance(value, list) else value for name, value in given.items()}
        try:
            read = prompt.read(one, tokenizer)
            read = read._replace(notes=(*notes, *read.notes))
            asked.append(question.read_on(model, read, **mine, rules=rules, tokenizer=tokenizer))
            question.refuse_images(asked[-1], "attribute_batch")
        except (ValueError, TypeError) as error:
            raise type(error)(f"row {row}: {error}") from error
        if asked[-1].several:
            raise TypeError(f"row {row} has several targets: attribute_batch explains one decision a row")
    check_hooks(model)
    if graph is not None:
        check_edges(decoder_layers(model))
    found = explain_all(model, asked, graph, memory, progress, tolerance)
    for row, one in enumerate(found):
        if isinstance(one, ValueError):
            found[row] = type(one)(f"row {row}: {one}")
    failed = [one for one in found if isinstance(one, ValueError)]
    if failed and not return_exceptions:
        failed[0].results = found
        raise failed[0]
    return found


def explain_all(
    model,
    asked: list[question.Question],
    graph: GraphSpec | None,
    memory: Memory | None,
    progress: Progress | None,
    tolerance: float,
) -> list[Attribution | ValueError]:
    """`attribute_batch` for questions that have been read, all by one rule and each of one target: a result each, or
    the ValueError of one that turns out to have none.

    Raises:
        ValueError: if the budget cannot hold one of them alone, with its row.
    """
    found: list[Attribution | ValueError | None] = [None] * len(asked)
    for pack in packs(model, list(map(size_of, asked)), asked[0].rules, graph, memory, tolerance):
        these = [asked[row] for row in pack.rows]
        results = explain_pack(model, these, pack.plan, graph, memory, progress, tolerance)
        for row, result in zip(pack.rows, results, strict=True):
            found[row] = result
    return found


def explain_pack(
    model,
    asked: list[question.Question],
    plan: Plan | None,
    graph: GraphSpec | None,
    memory: Memory | None,
    progress: Progress | None,
    tolerance: float,
) -> list[Attribution | ValueError]:
    """`explain_all` for questions that share a pass by this plan; by None, as many of them as do."""
    if plan is None:
        return explain_all(model, asked, graph, memory, progress, tolerance)
    together = [None]
    if len(asked) > 1:
        together = explain_together(model, asked, graph, plan, progress, tolerance)
    # What went wrong in company may not alone; if it does, this says what it is.
    how = (graph, memory, progress, tolerance)
    return [_alone(model, one, *how) if result is None else result for one, result in zip(asked, together, strict=True)]


def size_of(asked: question.Question) -> Size:
    return Size(len(asked.ids), len(asked.positions))


def _alone(model, asked: question.Question, *how) -> Attribution | ValueError:
    try:
        return explain(model, asked, *how)[0]
    except ValueError as error:
        return type(error)(str(error))  # a new one: this one holds on to the pass


def _by_row(name: str, given):
    """An array with a row's id in each entry as a list; anything else as it is."""
    found = targets.several(name, given)
    shape = getattr(given, "shape", ())
    return [found] if len(shape) and not isinstance(found, list) else found

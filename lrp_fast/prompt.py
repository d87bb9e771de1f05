"""What becomes a prompt's token ids: texts, chats, what a tokenizer returned, ids in any dress. The one place."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import tokenizers
import torch

from . import chat, images
from .hf import real_tokens
from .tokenizer import TRIED, Tokenizer, plain_text
from .tokenizer import read as read_tokenizer

# What a tokenizer returns besides the ids and the attention mask. No decoder needs it to read one prompt, but for the
# token_type_ids, which some add to what they read: `lrp_fast.question` sees to those.
BESIDE = frozenset(
    ["token_type_ids", "special_tokens_mask", "offset_mapping", "length", "overflow_to_sample_mapping", "labels"]
    + ["overflowing_tokens", "num_truncated_tokens", "assistant_masks"]
)
_MUST = "input_ids must be a LongTensor (N,) or (1, N), or a str"


class OfTheEnd(str):
    """A note that is of account where a next token is explained."""


class Prompt(NamedTuple):
    """A prompt that has been read.

    Attributes:
        ids: (N,) int64 on the CPU, the prompt's own copy.
        notes: a sentence each, what the reader of a result should know of how the ids came about.
        written: whether a tokenizer made the ids here, of a text or a chat.
        token_types: what came with the ids as token_type_ids; None if nothing did.
        text: what the tokenizer made the ids of; None where it was given ids, or wrote a chat as ids alone.
        messages: of a chat, in the form that the tokenizer's chat template took.
        images: what a processor made of the prompt's images, by name; empty of text alone.
        image_places: (start, end) of each image's tokens, once a model has said which these are.
    """

    ids: torch.Tensor
    notes: tuple[str, ...] = ()
    written: bool = False
    token_types: object = None
    text: str | None = None
    messages: list[dict] | None = None
    images: Mapping[str, torch.Tensor] = MappingProxyType({})
    image_places: list[tuple[int, int]] | None = None


def read(input_ids, tokenizer=None) -> Prompt:
    """What the caller calls a prompt, as ids.

    Args:
        input_ids: token ids, (N,) or (1, N), in a tensor, an array or a list; a string; chat messages, a list of dicts
            with "role" and "content"; what a tokenizer returned for one prompt; or a `Prompt`, which is handed back.
        tokenizer: needed for a string and for messages.

    Raises:
        TypeError, ValueError: one sentence that names the culprit and the mend.
    """
    tokenizer = read_tokenizer(tokenizer)
    if isinstance(input_ids, Prompt):
        return input_ids
    if isinstance(input_ids, np.ndarray) and input_ids.dtype.kind in "USO":
        input_ids = input_ids.tolist()
    if isinstance(input_ids, list | tuple) and len(input_ids) == 1 and isinstance(input_ids[0], str | bytes | list):
        only = input_ids[0]
        if isinstance(only, str | bytes) or chat.is_chat(only):
            input_ids = only  # as (1, N) is (N,)
    if isinstance(input_ids, bytes | bytearray | memoryview):
        kind = type(input_ids).__name__
        raise TypeError(f"input_ids is {kind}, which is no text yet: decode it, as .decode('utf-8') does")
    if isinstance(input_ids, str):
        return _of_text(plain_text(input_ids, "input_ids"), tokenizer)
    if chat.is_chat(input_ids):
        if tokenizer is None:
            raise ValueError("input_ids is a chat: give tokenizer= with it, or token ids")
        ids, notes, text, messages = chat.read(input_ids, tokenizer)
        said = chat.texts_of(messages) if text is None else text
        notes += [*_notes_of_ids(ids, tokenizer, written_here=True), *_dropped_note(said, ids, tokenizer)]
        return Prompt(_ids(ids), tuple(notes), written=True, text=text, messages=messages)
    for one in input_ids if isinstance(input_ids, list | tuple) else ():
        kind = "string" if isinstance(one, str) else "chat" if chat.is_chat(one) else "tokenizer's output"
        if kind != "tokenizer's output" or isinstance(one, Mapping | tokenizers.Encoding):
            raise TypeError(
                f"input_ids is a list of {kind}s: attribute_batch takes several prompts, attribute one {kind}"
            )
    cut: tuple[str, ...] = ()
    token_types, shown = None, {}
    if isinstance(input_ids, Mapping | tokenizers.Encoding):
        given = parts(input_ids, images.NAMES)
        cut = _cut(input_ids, 0)
        ids = _unpadded(_ids(given["input_ids"]), given["attention_mask"])
        token_types = types_of(input_ids)
        if isinstance(input_ids, Mapping):
            shown = images.read(input_ids, lambda types: _unpadded(_ids(types), given["attention_mask"]))
    else:
        ids = _ids(input_ids)
    return Prompt(ids, cut + _notes_of_ids(ids.tolist(), tokenizer), token_types=token_types, images=shown)


def rows(input_ids, attention_mask=None, beside: Mapping | None = None) -> list[tuple[object, tuple[str, ...]]]:
    """The prompts of a batch, without their padding, each with notes on how it came about.

    Args:
        beside: what else a tokenizer returned, where that came as keywords.

    Raises:
        TypeError, ValueError: one sentence that names the culprit and the mend.
    """
    if isinstance(input_ids, str):
        raise TypeError("input_ids is one string: attribute_batch takes a sequence of prompts")
    if chat.is_chat(input_ids):
        raise TypeError("input_ids is one chat: attribute_batch takes a sequence of prompts, [chat] for one")
    batch = input_ids
    if isinstance(batch, Mapping):
        given = parts(batch)
        if attention_mask is not None and given["attention_mask"] is not None:
            raise TypeError("attention_mask is given twice, in the batch and beside it: leave one out")
        input_ids = given["input_ids"]
        attention_mask = attention_mask if given["attention_mask"] is None else given["attention_mask"]
    if attention_mask is None:
        if isinstance(input_ids, torch.Tensor) or (isinstance(input_ids, np.ndarray) and input_ids.dtype.kind in "iuf"):
            raise ValueError("input_ids is an array, which may be padded: give its attention_mask with it")
        try:
            prompts = list(input_ids)
        except TypeError as error:
            raise TypeError(f"input_ids must be a sequence of prompts, not {type(input_ids).__name__}") from error
    else:
        prompts = _unpadded_rows(input_ids, attention_mask)
    if not prompts:
        raise ValueError("input_ids is an empty batch: give at least one prompt")
    return [(prompt, _cut(batch, row) or _cut(beside, row)) for row, prompt in enumerate(prompts)]


def parts(given: Mapping | tokenizers.Encoding, read_elsewhere: frozenset[str] = frozenset()) -> dict:
    """ "input_ids" and "attention_mask" (None without one) of what a tokenizer returned."""
    if isinstance(given, tokenizers.Encoding):
        return {"input_ids": given.ids, "attention_mask": given.attention_mask}
    if "input_ids" not in given:
        more = ", and a chat is a list of messages" if "role" in given or "messages" in given else ""
        raise TypeError(f"{_MUST}: it is a dict without 'input_ids'{more}")
    refuse_others(name for name in given if name not in {"input_ids", "attention_mask"} | read_elsewhere)
    return {name: given.get(name) for name in ("input_ids", "attention_mask")}


def types_of(given) -> object:
    """The token_type_ids among what a tokenizer returned for a model, or None."""
    return given.get("token_type_ids") if isinstance(given, Mapping) else None


def refuse_others(names) -> None:
    """Raise TypeError unless all names are of what a tokenizer returns and no decoder needs."""
    others = [name for name in names if name not in BESIDE]
    if others and others[0] in images.NAMES:
        raise TypeError(f"{others[0]!r} is of an image, and attribute_batch takes text alone: explain it by attribute")
    if others:
        raise TypeError(
            f"{others[0]!r} is not what a tokenizer makes of a text, nor of an image that lrp_fast takes: leave it out"
        )


def _ids(given) -> torch.Tensor:
    """(N,) int64, a copy."""
    if hasattr(given, "input_ids"):
        raise TypeError("input_ids is all that a tokenizer returned: pass its .input_ids")
    try:
        if not isinstance(given, torch.Tensor) and hasattr(given, "__array__"):
            given = np.asarray(given)
            if given.dtype.kind in "iu":
                given = given.astype(given.dtype.newbyteorder("="), order="C")  # this machine's, forwards in memory
        ids = torch.as_tensor(given)
        if ids.device.type == "meta" or ids.layout != torch.strided:
            raise TypeError(f"not a tensor of layout {ids.layout} on {ids.device}")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{_MUST}: {error}") from error
    if ids.ndim == 0:
        raise ValueError(f"input_ids must be (N,) or (1, N), one prompt, not a number: write [{ids.item()}]")
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1:
        shape = tuple(ids.shape)
        raise ValueError(f"input_ids must be (N,) or (1, N), one prompt, not {shape}: attribute_batch takes several")
    if len(ids) == 0:
        raise ValueError("input_ids is empty: give at least one token")
    if ids.dtype.is_floating_point or ids.is_complex() or holds_truth(given):
        raise TypeError(f"input_ids must hold whole numbers, not {torch.bool if holds_truth(given) else ids.dtype}")
    found = ids.detach().to("cpu", torch.int64, copy=True)
    if ids.dtype == torch.uint64 and (found < 0).any():
        raise ValueError(f"input_ids holds token {int(found[found < 0][0]) + 2**64}, which no vocabulary has")
    return found


def holds_truth(given) -> bool:
    """Whether there is a True or False in it, of which torch would make 1 and 0 among whole numbers."""
    if isinstance(given, list | tuple):
        return any(map(holds_truth, given))
    return isinstance(given, bool) or str(getattr(given, "dtype", "")) in ("bool", "torch.bool")


def _unpadded(ids: torch.Tensor, attention_mask) -> torch.Tensor:
    """(N,) ids without the padding that their mask marks; without a mask as they are."""
    if attention_mask is None:
        return ids
    mask = _mask(attention_mask)
    if mask.ndim == 2 and mask.shape[0] == 1:
        mask = mask[0]
    if mask.shape != ids.shape:
        shapes = f"{tuple(ids.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"input_ids and attention_mask must be of one shape, not {shapes}")
    try:
        start, end = real_tokens(mask[None])[0].tolist()
    except ValueError as error:
        raise ValueError(str(error).removeprefix("row 0 of ")) from error
    return ids[start:end].clone()


def _mask(given) -> torch.Tensor:
    try:
        mask = torch.as_tensor(given)
        if mask.device.type == "meta" or mask.layout != torch.strided:
            raise TypeError(f"not a tensor of layout {mask.layout} on {mask.device}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"attention_mask must be of the shape of input_ids, or be left out: {error}") from error
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("attention_mask must hold 1 for tokens and 0 for padding, and nothing else")
    return mask


def _unpadded_rows(input_ids, attention_mask) -> list:
    if _are_lists(input_ids, attention_mask):
        found = []
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            try:
                found.append(_unpadded(_ids(ids), mask))
            except (TypeError, ValueError) as error:
                raise type(error)(f"row {row}: {error}") from error
        return found
    try:
        ids, mask = torch.as_tensor(input_ids), torch.as_tensor(attention_mask)
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"input_ids and attention_mask must both be (B, N), or leave the mask out: {error}"
        raise ValueError(message) from error
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise ValueError(
            f"input_ids and attention_mask must both be (B, N), not {tuple(ids.shape)} and {tuple(mask.shape)}"
        )
    return [row[start:end] for row, (start, end) in zip(ids, real_tokens(_mask(mask)).tolist(), strict=True)]


def _are_lists(input_ids, attention_mask) -> bool:
    """Whether both are lists of rows, of the same lengths: what a tokenizer returns without return_tensors."""
    given = (input_ids, attention_mask)
    if not all(isinstance(one, list | tuple) and all(hasattr(row, "__len__") for row in one) for one in given):
        return False
    lengths = [[len(row) for row in one] for one in given]
    return lengths[0] == lengths[1]


def _cut(batch, row: int) -> tuple[str, ...]:
    """A note, if what a tokenizer returned says that it has cut the row's prompt short."""
    encodings = [batch] if isinstance(batch, tokenizers.Encoding) else getattr(batch, "encodings", None) or []
    cut = row < len(encodings) and any(len(one.ids) for one in encodings[row].overflowing)
    if isinstance(batch, Mapping):
        # Of slow tokenizers; below 0 where there was room left.
        cut = cut or any(left > 0 for left in np.ravel(batch.get("num_truncated_tokens", 0))[row:][:1])
        source = np.ravel(batch.get("overflow_to_sample_mapping", ()))  # of each row, the text it is a part of
        cut = cut or (row < len(source) and (source == source[row]).sum() > 1)
    return ("The tokenizer has cut the prompt short: call it without truncation for all of it.",) if cut else ()


def _of_text(given: str, tokenizer: Tokenizer | None) -> Prompt:
    if tokenizer is None:
        raise ValueError("input_ids is a string: give tokenizer= with it, or token ids")
    ids = tokenizer.encode(given, "input_ids")
    if given and not ids:
        raise ValueError(f"the tokenizer makes no token of input_ids {_short(given)}: give a text that it knows")
    notes = []
    plain = tokenizer.encode(given, "input_ids", added=False)
    front, back = tokenizer.added
    twice = _twice(ids, tokenizer)
    if twice and front:
        notes.append(
            f"The prompt begins with {tokenizer.named(twice)} twice: the text has it, and the tokenizer adds it again, "
            "as transformers' tokenizer(prompt) does; hand in chat messages, or ids that were encoded with "
            "add_special_tokens=False."
        )
    if back and ids[-len(back) :] == back:
        notes.append(_end_note(back, tokenizer))
    if given and not plain and ids:
        notes.append(f"The tokenizer makes no token of the text {_short(given)}.")
    unknown = tokenizer.unknown
    if unknown is not None:
        count = plain.count(unknown[0]) - given.count(unknown[1])  # less those that are asked for by name
        notes += _unknown_note(count, ids.index(unknown[0]) if count > 0 else 0, tokenizer)
    notes += _dropped_note(given, plain, tokenizer) if plain else []
    return Prompt(_ids(ids), tuple(notes), written=True, text=given)


def _notes_of_ids(ids: list[int], tokenizer: Tokenizer | None, written_here: bool = False) -> tuple[str, ...]:
    """Of ids that somebody else has made, with a tokenizer to judge them by."""
    if tokenizer is None:
        return ()
    notes = []
    front, back = tokenizer.added
    pad, unknown = tokenizer.id_of("pad"), tokenizer.unknown
    # Those that spell by bytes name an unknown token too, which then has some other use.
    lost = unknown[0] if unknown is not None and unknown[0] in tokenizer.of_no_character else None
    pads = {}
    if pad is not None and pad != lost and not written_here:
        for place, order in (("begins", ids), ("ends", ids[::-1])):
            count = next((i for i, one in enumerate(order) if one != pad), len(ids))
            if count > 1:  # a single one may be meant: some models part documents by it
                pads[place] = count
    twice = _twice(ids, tokenizer)
    if twice == [pad] and front == [pad] and pads.get("begins") == 2:
        del pads["begins"]
    if twice and "begins" not in pads:
        notes.append(
            f"The prompt begins with {tokenizer.named(twice)} twice: a text that has it, as a chat template writes it, "
            "is encoded with add_special_tokens=False, or handed in as chat messages."
        )
    if back and not written_here and "ends" not in pads and len(ids) > len(back) and ids[-len(back) :] == back:
        notes.append(_end_note(back, tokenizer))
    for place, count in pads.items():
        notes.append(
            f"The prompt {place} with {tokenizer.named([pad])}, {count} of them, which the model reads as tokens like "
            "any other: hand in what the tokenizer returned, its attention_mask included."
        )
    if lost in ids:
        notes += _unknown_note(ids.count(lost), ids.index(lost), tokenizer)
    return tuple(notes)


def _twice(ids: list[int], tokenizer: Tokenizer) -> list[int] | None:
    """What stands at the beginning twice: all that the tokenizer puts there, or the token that begins a text."""
    front, _ = tokenizer.added
    first = front if front and ids[: len(front)] == front else ids[:1]
    again = ids[len(first) :][: len(first)]
    if first and again == first == front:
        return first
    begins = {*first} & {*front[-1:], tokenizer.id_of("bos"), tokenizer.id_of("cls")}
    return again[:1] if again and again[0] in begins else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _end_note(back: list[int], tokenizer: Tokenizer) -> str:
    last = "the last one" if len(back) == 1 else f"the last {len(back)}"
    return OfTheEnd(
        f"The tokenizer ends the prompt with {tokenizer.named(back)}, so that the next token comes behind that; hand "
        f"in the ids without {last} to explain what comes behind the text."
    )


def _unknown_note(count: int, first: int, tokenizer: Tokenizer) -> list[str]:
    if count < 1:
        return []
    verb, name = "is" if count == 1 else "are", tokenizer.named([tokenizer.unknown[0]])
    place = "it is" if count == 1 else "the first is"
    return [
        f"{count} of the prompt's tokens {verb} {name}, which stands for what the tokenizer does not know; {place} at "
        f"position {first}."
    ]


def _dropped_note(given: str, ids: list[int], tokenizer: Tokenizer) -> list[str]:
    dropped = tokenizer.dropped(given, ids)
    if not dropped:
        return []
    count = f"{'at least ' * (len(set(given)) > TRIED)}{len(dropped) - 1}"
    others = f" and {count} more of its characters" if len(dropped) > 1 else ""
    return [f"The tokenizer drops {dropped[0]!r}{others} from the prompt: the model does not see what it cannot spell."]

"""Attributions on disk: what `save` accepts comes back, and what does not belong together is refused in a sentence."""

import copy
import json
import math
import os
import struct
from dataclasses import asdict, fields, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import lrp_fast
from lrp_fast import Rules, attribute

GONE = object()  # in an edit: take it out


@pytest.fixture(scope="module")
def result(tiny):
    """A difference, explained at two of 6 positions."""
    model = tiny("llama")
    found = attribute(model, [3, 1, 4, 1, 5, 9], target=3, contrast=5, position=[2, -1])
    return replace(found, tokens=[f"t{i}" for i in range(6)], special=[True] + [False] * 5)


def opened(path):
    """(what the file says of itself, its tensors)."""
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(path.read_bytes()[8 : 8 + size])
    return json.loads(header["__metadata__"]["lrp_fast"]), load_file(path)


def refused(path, message=""):
    with pytest.raises(ValueError, match=message or None) as raised:
        lrp_fast.load(path)
    said = str(raised.value)
    assert "that Attribution.save wrote" in said and repr(str(path)) in said and "\n" not in said and len(said) < 700
    return said


def same(one, two):
    return all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        for a, b in ((getattr(one, field.name), getattr(two, field.name)) for field in fields(one))
    )


@pytest.mark.parametrize("contrast", [None, 5, "mean", ("top", 1), ("top", 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_saved_comes_back(tiny, ids, tmp_path, contrast, dtype):
    found = attribute(tiny("llama", dtype), ids, 3, contrast, position=[*range(23)], rule=Rules("cp", epsilon=0.1))
    found.save(tmp_path / "case")
    assert same(lrp_fast.load(tmp_path / "case"), found)


def test_a_vocabulary_smaller_than_the_ten_best(tiny, tmp_path):
    found = attribute(tiny("llama", vocab_size=3, bos_token_id=1), [1, 2])
    assert len(found.explained.best) == 3
    found.save(tmp_path / "case")
    assert same(lrp_fast.load(tmp_path / "case"), found)


def test_logits_of_masked_tokens_come_back(tiny, tmp_path):
    result = attribute(tiny("llama"), [3, 1, 4, 1, 5, 9])
    best = [*result.explained.best[:9], replace(result.explained.best[9], logit=-math.inf)]
    found = replace(result, explained=replace(result.explained, best=best), tokens=["\ud800", "\u2028", "", *"abc"])
    found.save(tmp_path / "case")
    assert same(lrp_fast.load(tmp_path / "case"), found)


def test_what_is_loaded_does_not_hang_on_the_file(result, tmp_path):
    result.save(tmp_path / "case")
    found = lrp_fast.load(tmp_path / "case")
    with open(tmp_path / "case", "r+b") as file:
        file.truncate(0)
    assert same(found, result)


TERM = ("explained", "terms", 1)
EDITED = [  # where in the description, what stands there now, what is said of it
    (("value",), True, "value must be a number, not bool"),
    (("value",), "1", "value must be a number, not str"),
    (("value",), None, "value must be a number"),
    (("value",), math.nan, "value must be finite"),
    (("value",), -math.inf, "value must be finite"),
    (("value",), 10**400, "value must be finite"),
    (("value",), 10**300, "value must be the sum of what is explained"),
    (("value",), lambda value: value + 1, "value must be the sum of what is explained"),
    (("value",), lambda value: value * 1.0001, "value must be the sum of what is explained"),
    (("value",), GONE, "it holds no 'value'"),
    (("seconds",), 3, "it holds 'seconds', which is not known"),
    (("model",), None, "model must be a string"),
    (("model",), GONE, "it holds no 'model'"),
    (("tokens",), "abcdef", "tokens must be a list of strings"),
    (("tokens",), [1] * 6, "tokens must be a list of strings"),
    (("tokens",), ["a"] * 5 + [None], "tokens must be a list of strings"),
    (("tokens",), ["a"] * 5, "tokens must be 6 strings, one a token, not 5"),
    (("tokens",), [], "tokens must be 6 strings, one a token, not 0"),
    (("special",), [False] * 7, "special must be 6 truth values, one a token, not 7"),
    (("special",), [0, 1, 0, 0, 0, 0], "special must be a list of truth values"),
    (("special",), {}, "special must be a list of truth values"),
    (("rules",), None, "rules must hold name, epsilon, gamma, attention_epsilon, attention_gamma"),
    (("rules",), [], "rules must hold"),
    (("rules", "gamma"), GONE, "rules must hold"),
    (("rules", "delta"), 0.0, "rules must hold"),
    (("rules", "name"), "lrp", "unknown rule 'lrp': choose one of"),
    (("rules", "name"), ["cp"], r"unknown rule \['cp'\]"),
    (("rules", "name"), "x" * 10**6, "unknown rule 'xx"),
    (("rules", "epsilon"), -1, "epsilon must be a finite number >= 0, not -1"),
    (("rules", "epsilon"), True, "epsilon must be a finite number >= 0, not True"),
    (("rules", "epsilon"), math.nan, "epsilon must be a finite number >= 0, not nan"),
    (("rules", "epsilon"), 10**400, "epsilon must be a finite number >= 0, not 1000"),
    (("explained",), [], "explained must hold kind, terms, best, note, others, of, and nothing else"),
    (("explained", "more"), 1, "explained must hold"),
    (("explained", "note"), GONE, "explained must hold"),
    (("explained", "note"), 7, "explained.note must be a string"),
    (("explained", "kind"), "logit", r"explained.terms\[0\] has not the contrast of the kind 'logit'"),
    (("explained", "kind"), "mean", r"explained.terms\[0\] has not the contrast of the kind 'mean'"),
    (("explained", "kind"), "sum", "explained.kind must be one of logit, difference, mean, top"),
    (("explained", "kind"), ["top"], "explained.kind must be a string"),
    (("explained", "others"), 3, "explained.others must be 2 or more of the kind"),
    (("explained", "others"), 0, "explained.others must be 2 or more of the kind"),
    (("explained", "others"), 1, "explained.others must be 2 or more of the kind"),
    (("explained", "best", 0, "logit"), 1e308, "explained.best with the last term's ranks its tokens otherwise"),
    (("explained", "best", 0, "text"), "x", "explained gives token [0-9]+ two texts"),
    (("explained", "terms", 0, "target", "text"), "x", "explained gives token 3 two texts"),
    (("explained", "others"), True, "explained.others must be a whole number"),
    (("explained", "best"), [], "explained.best must be a list that is not empty"),
    (("explained", "best"), None, "explained.best must be a list that is not empty"),
    (("explained", "best"), lambda best: best[1:], "explained.best must be the best tokens in their order"),
    (("explained", "best"), lambda best: best[::-1], "explained.best must be the best tokens in their order"),
    (("explained", "best", 3, "logit"), 1e9, "explained.best ranks its tokens otherwise than by their logits"),
    (("explained", "best", 3, "logit"), math.nan, r"explained.best\[3\].logit must be a logit: finite, or -Infinity"),
    (("explained", "best", 0, "logit"), math.inf, r"explained.best\[0\].logit must be a logit: finite, or -Infinity"),
    (("explained", "best", 0, "id"), 10**6, "explained.best must be of the last term's position"),
    (("explained", "best", 4), lambda _: {}, r"explained.best\[4\] must hold id, text, logit, rank, and nothing else"),
    (("explained", "terms"), [], "explained.terms must be a list that is not empty"),
    (("explained", "terms"), {}, "explained.terms must be a list that is not empty"),
    (("explained", "terms"), lambda terms: terms * 2, "explained.terms must not name a position twice"),
    (("explained", "terms"), lambda terms: terms[1:], "value must be the sum of what is explained"),
    ((*TERM, "position"), 6, "explained names position 6 of 6 tokens"),
    ((*TERM, "position"), 2**62, "explained names position 4611686018427387904 of 6 tokens"),
    ((*TERM, "position"), -1, r"explained.terms\[1\].position must be 0 or above and below 2\*\*63"),
    ((*TERM, "position"), 10**30, r"explained.terms\[1\].position must be 0 or above and below 2\*\*63"),
    ((*TERM, "position"), 5.0, r"explained.terms\[1\].position must be a whole number"),
    ((*TERM, "position"), False, r"explained.terms\[1\].position must be a whole number"),
    ((*TERM, "target"), None, r"explained.terms\[1\].target must hold id, text, logit, rank"),
    ((*TERM, "target", "id"), -3, r"explained.terms\[1\].target.id must be 0 or above"),
    ((*TERM, "target", "id"), 5, r"explained.terms\[1\] must have two different tokens for target and contrast"),
    ((*TERM, "target", "rank"), -1, r"explained.terms\[1\].target.rank must be 0 or above"),
    ((*TERM, "target", "rank"), 0.5, r"explained.terms\[1\].target.rank must be a whole number"),
    ((*TERM, "target", "text"), 3, r"explained.terms\[1\].target.text must be a string"),
    ((*TERM, "target", "logit"), -math.inf, r"explained.terms\[1\] must have finite logits of target and contrast"),
    ((*TERM, "target", "logit"), 10**400, r"explained.terms\[1\].target.logit must be a logit"),
    ((*TERM, "target", "logit"), "1", r"explained.terms\[1\].target.logit must be a number"),
    ((*TERM, "contrast"), None, r"explained.terms\[1\] has not the contrast of the kind 'difference'"),
    ((*TERM, "contrast", "rank"), 10**6, "ranks its tokens otherwise than by their logits|gives one token two ranks"),
    ((*TERM, "contrast_logit"), None, r"explained.terms\[1\] has not the contrast of the kind 'difference'"),
    ((*TERM, "contrast_logit"), 1.0, r"explained.terms\[1\].contrast_logit must be the contrast's logit"),
    ((*TERM, "runner_up"), [], r"explained.terms\[1\].runner_up must hold"),
    ((*TERM, "runner_up"), None, r"explained.terms\[1\].runner_up must be the best token other than .*, null if none"),
    (("explained", "of"), "word", "explained.of must be one of token, masked token, label"),
    ((*TERM, "runner_up", "rank"), 5, r"explained.terms\[1\].runner_up must be the best token other than the target"),
    ((*TERM, "runner_up", "logit"), 1e308, "explained.best with the last term's ranks its tokens otherwise"),
    ((*TERM, "runner_up", "text"), "x", "explained gives token [0-9]+ two texts"),
    ((*TERM, "runner_up", "logit"), -1e9, r"explained.terms\[1\] ranks its tokens otherwise than by their logits"),
]


@pytest.mark.parametrize(
    ("place", "entry", "message"), EDITED, ids=[".".join(map(str, place)) for place, _, _ in EDITED]
)
def test_a_description_edited_by_hand(result, tmp_path, place, entry, message):
    result.save(tmp_path / "case")
    about, tensors = opened(tmp_path / "case")
    part = about
    for name in place[:-1]:
        part = part[name]
    if entry is GONE:
        del part[place[-1]]
    else:
        part[place[-1]] = entry(part[place[-1]]) if callable(entry) else entry
    save_file(tensors, tmp_path / "case", metadata={"lrp_fast": json.dumps(about)})
    refused(tmp_path / "case", message)


@pytest.mark.parametrize("contrast", ["mean", ("top", 3)])
def test_a_mean_above_all_logits(tiny, contrast, tmp_path):
    found = attribute(tiny("llama"), [3, 1, 4], contrast=contrast)
    (term,) = found.explained.terms
    high = replace(term, contrast_logit=max(term.target.logit, term.runner_up.logit) + 1)
    value = term.target.logit - high.contrast_logit
    changed = replace(found, explained=replace(found.explained, terms=[high]), value=value)
    with pytest.raises(TypeError, match=r"terms\[0\].contrast_logit must be a mean of logits, and is above"):
        changed.save(tmp_path / "case")


def test_what_is_best_lies_above_the_last_term_s_tokens(result):
    """A token that is no longer among the best has no larger logit than those."""
    best = [replace(one, logit=one.logit - 100) for one in result.explained.best]
    told = asdict(replace(result.explained, best=best))
    with pytest.raises(TypeError, match="explained.best with the last term's ranks its tokens otherwise than by their"):
        lrp_fast.Explained.from_dict(told)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("layers", lambda t: t.half(), "layers must be float32 or float64, not torch.float16"),
        ("layers", lambda t: t.long(), "layers must be float32 or float64, not torch.int64"),
        ("layers", lambda t: t.to(torch.complex64), "layers must be float32 or float64, not torch.complex64"),
        ("layers", lambda t: t[0].clone(), r"layers must be \(L \+ 1, N\) with at least 2 layers and 1 token, not \(6"),
        ("layers", lambda t: t[None], r"layers must be \(L \+ 1, N\)"),
        ("layers", lambda t: t[:1].clone(), r"layers must be \(L \+ 1, N\)"),
        ("layers", lambda t: t[:0].clone(), r"layers must be \(L \+ 1, N\)"),
        ("layers", lambda t: t[:, :0].clone(), r"layers must be \(L \+ 1, N\)"),
        ("layers", lambda t: t[:, :5].clone(), r"input_ids must be \(5,\) for layers \(4, 5\), not \(6,\)"),
        ("layers", lambda t: t.T.contiguous(), r"input_ids must be \(4,\) for layers \(6, 4\), not \(6,\)"),
        ("layers", lambda t: t / (t != t[1, 2]), "layers must be finite, and are not at layer 1, position 2"),
        ("layers", lambda t: t * math.nan, "layers must be finite, and are not at layer 0, position 0"),
        ("input_ids", lambda t: t.int(), "input_ids must be int64, not torch.int32"),
        ("input_ids", lambda t: t.double(), "input_ids must be int64, not torch.float64"),
        ("input_ids", lambda t: t.bool(), "input_ids must be int64, not torch.bool"),
        ("input_ids", lambda t: t - 2, "input_ids must be 0 or above, and -1 is there"),
        ("input_ids", lambda t: t[:5].clone(), r"input_ids must be \(6,\) for layers \(4, 6\), not \(5,\)"),
        ("input_ids", lambda t: t[None], r"input_ids must be \(6,\) for layers \(4, 6\), not \(1, 6\)"),
        ("input_ids", lambda t: t[:0].clone(), r"input_ids must be \(6,\)"),
        ("more", lambda _: torch.ones(1), "it holds 'more', which is not known"),
        ("layers", None, "it holds no 'layers'"),
        ("input_ids", None, "it holds no 'input_ids'"),
    ],
)
def test_tensors_of_another_kind(result, tmp_path, name, change, message):
    result.save(tmp_path / "case")
    about, tensors = opened(tmp_path / "case")
    changed = {} if change is None else {name: change(tensors.get(name))}
    others = {one: tensor for one, tensor in tensors.items() if one != name}
    save_file(others | changed, tmp_path / "case", metadata={"lrp_fast": json.dumps(about)})
    refused(tmp_path / "case", message)


def test_parts_of_two_files(result, tiny, ids, tmp_path):
    other = attribute(tiny("llama"), ids)
    for name, found in (("one", result), ("two", other)):
        found.save(tmp_path / name)
    (about, tensors), (_, others) = opened(tmp_path / "one"), opened(tmp_path / "two")
    for mixed in (tensors | {"layers": others["layers"]}, tensors | {"input_ids": others["input_ids"]}, others):
        save_file(mixed, tmp_path / "mixed", metadata={"lrp_fast": json.dumps(about)})
        refused(tmp_path / "mixed", "must be")


@pytest.mark.parametrize("part", ["terms", "best"])
def test_what_was_explained_of_two_files(result, tiny, tmp_path, part):
    other = attribute(tiny("llama"), [9, 2, 6, 5, 3, 5], target=3, contrast=5, position=[2, -1])
    mixed = replace(result, explained=replace(result.explained, **{part: getattr(other.explained, part)}))
    with pytest.raises((TypeError, ValueError), match="best must be of the last term's position|value must be the sum"):
        mixed.save(tmp_path / "case")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": torch.ones(4, 6).half()}, TypeError, "layers must be float32 or float64, not torch.float16"),
        ({"layers": torch.ones(4, 5)}, ValueError, r"input_ids must be \(5,\) for layers \(4, 5\), not \(6,\)"),
        ({"layers": torch.full((4, 6), math.nan)}, ValueError, "layers must be finite"),
        ({"tokens": ["a"]}, ValueError, "tokens must be 6 strings, one a token, not 1"),
        ({"special": [1] * 6}, TypeError, "special must be a list of truth values"),
        ({"value": math.inf}, ValueError, "value must be finite"),
        ({"value": 0.0}, ValueError, "value must be the sum of what is explained"),
        ({"model": b"a/model"}, TypeError, "not JSON serializable"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(result, tmp_path, change, error, message):
    (tmp_path / "case").write_bytes(b"before")
    with pytest.raises(error, match=message):
        replace(result, **change).save(tmp_path / "case")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def written(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_headers_that_lie(result, tmp_path):
    path = tmp_path / "case"
    result.save(path)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    for shape in ([2**40, 0], [0, 2**62], [2**63, 0], [2**64, 2], [2**32, 2**32], [-4, -6], [4.0, 6], "46", [True, 6]):
        hostile = copy.deepcopy(header)
        hostile["layers"]["shape"] = shape
        written(path, hostile, rest)
        refused(path)
        hostile["layers"]["data_offsets"] = [0, 0]
        written(path, hostile, rest)
        refused(path)
    for name, entry in (("layers", 5), ("layers", {"shape": [4, 6]}), ("__metadata__", [1]), ("__metadata__", None)):
        written(path, header | {name: entry}, rest)
        refused(path)
    for length in (2**63, 2**64 - 1, len(data), size - 1, size + 1, 0):
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        refused(path)
    text = data[8 : 8 + size].rstrip()
    written(path, text[:-1] + b"," + text[1:], rest)
    refused(path, "it says '.*' twice")
    written(path, b"\xff" + text, rest)
    refused(path, "can't decode byte 0xff")


def test_descriptions_that_lie(result, tmp_path):
    path = tmp_path / "case"
    result.save(path)
    about, tensors = opened(path)
    text = json.dumps(about)
    twice = text[:-1] + ', "value": 3}'
    deep = text[:-1] + ', "more": ' + "[" * 300 + "]" * 300 + "}"
    deeper = text[:-1] + ', "more": ' + "[" * 10**5 + "]" * 10**5 + "}"
    long = text.replace(json.dumps(about["value"]), "1" * 5000)
    for hostile, message in (
        (twice, "it says 'value' twice"),
        (deep, "its lists and dicts lie more than 200 deep within each other"),
        (deeper, "its lists and dicts lie more than 200 deep within each other"),
        (long, "Exceeds the limit"),
        (text[:-1], "Expecting"),
    ):
        save_file(tensors, path, metadata={"lrp_fast": hostile})
        refused(path, message)


def test_what_is_no_file_of_ours(result, tmp_path):
    path = tmp_path / "case"
    result.save(path)
    data = path.read_bytes()
    for length in [*range(0, len(data), 61), len(data) - 1]:
        path.write_bytes(data[:length])
        refused(path, "it is empty" if length == 0 else "it ends within its first 8 bytes" if length < 8 else "")
    refused(tmp_path, "it is a folder")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "it is no regular file")
    for path in (tmp_path / "absent", tmp_path / "case" / "absent"):
        with pytest.raises(FileNotFoundError, match="no attribution at"):
            lrp_fast.load(path)


def test_attributions_and_graphs_say_who_reads_them(tiny, ids, tmp_path):
    found = attribute(tiny("llama"), ids, graph=lrp_fast.GraphSpec(topk=2))
    found.save(tmp_path / "attribution")
    found.graph.save(tmp_path / "graph")
    assert refused(tmp_path / "graph").endswith("it is a graph, which lrp_fast.Graph.load reads")
    with pytest.raises(ValueError, match="it is an attribution, which lrp_fast.load reads$"):
        lrp_fast.Graph.load(tmp_path / "attribution")
    lrp_fast.load(tmp_path / "attribution"), lrp_fast.Graph.load(tmp_path / "graph")  # as advised


@pytest.mark.parametrize("asked", [{"contrast": 5}, {"contrast": None, "position": (0, 2)}, {"contrast": ("top", 3)}])
def test_what_was_explained_is_written_as_dataclasses_say(asked, tiny, ids):
    explained = attribute(tiny("llama"), ids, target=3, **asked).explained
    assert explained.as_dict() == asdict(explained)
    assert list(explained.as_dict()) == list(asdict(explained))

"""Other people's scores."""

import json

import numpy as np
import pytest
import torch

from lrp_fast.evaluate import scores_from


def test_both_kinds_of_file_hold_the_same(tmp_path):
    scores = {"a": [1.0, -2.5, 3.0], "case/2": [0.0, 4.0]}
    (tmp_path / "s.json").write_text(json.dumps(scores))
    np.savez(tmp_path / "s.npz", **{name: np.array(one, np.float32) for name, one in scores.items()})
    for name in ("s.json", "s.npz"):
        found = scores_from(tmp_path / name)
        assert found.of_case("a", 3).tolist() == scores["a"] and found.of_case("case/2", 2).tolist() == [0.0, 4.0]
        assert found.of_case("a", 3).dtype == torch.float64


def test_what_does_not_fit_the_case_is_refused(tmp_path):
    (tmp_path / "s.json").write_text('{"a": [1, 2]}')
    found = scores_from(tmp_path / "s.json")
    with pytest.raises(ValueError, match=r"s.json holds no scores of case 'b'"):
        found.of_case("b", 2)
    with pytest.raises(ValueError, match=r"holds 2 scores of case 'a', whose prompt has 3 tokens"):
        found.of_case("a", 3)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[1, 2]", TypeError, "must hold an object"),
        ('{"a": [1, NaN]}', ValueError, "hold NaN or infinities, the first at token 1"),
        ('{"a": [[1, 2]]}', ValueError, "have shape"),
        ('{"a": ["1"]}', TypeError, "must be numbers"),
        ('{"a": [true]}', TypeError, "must be numbers"),
        ('{"a": 3}', ValueError, "have shape"),
        ('{"a": [1], "a": [2]}', ValueError, "no JSON"),
        ("{", ValueError, "no JSON in UTF-8"),
    ],
)
def test_what_holds_no_scores_is_refused(tmp_path, text, error, words):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(error, match=words):
        scores_from(tmp_path / "s.json")


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "s.npz", a=np.array([{"b": 1}], dtype=object))
    with pytest.raises(ValueError, match="no .npz of plain numbers"):
        scores_from(tmp_path / "s.npz")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "s.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="no .npz of plain numbers"):
        scores_from(tmp_path / "s.npz")
    with pytest.raises(ValueError, match="neither .json nor .npz"):
        scores_from(tmp_path / "s.csv")
    with pytest.raises(FileNotFoundError):
        scores_from(tmp_path / "none.npz")

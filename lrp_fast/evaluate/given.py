"""Other people's scores, from a file, as a method."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..reading import cut, parsed


@dataclass(frozen=True)
class Scores:
    """Scores by the ids of cases.

    Attributes:
        where: the file's name, for sentences.
        by_case: of each case (N,) float64, finite.
    """

    where: str
    by_case: Mapping[str, Tensor]

    def of_case(self, case: str, length: int) -> Tensor:
        """(N,) of one case.

        Raises:
            ValueError: for a case that the file does not hold, or of which it holds another number of tokens.
        """
        found = self.by_case.get(case)
        if found is None:
            raise ValueError(f"{self.where} holds no scores of case {case!r}")
        if len(found) != length:
            raise ValueError(
                f"{self.where} holds {len(found)} scores of case {case!r}, whose prompt has {length} tokens: give "
                "one a token, special ones included"
            )
        return found


def scores_from(path: str | os.PathLike) -> Scores:
    """Read scores that something else has made; `lrp_fast.evaluate` takes them among its methods.

    Args:
        path: .json, an object of cases' ids and lists of numbers; or .npz, whose arrays are named by cases' ids. Each
            holds one number a token of the prompt, higher where it speaks for the target. Nothing is unpickled.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        ValueError, TypeError: one sentence, for one that holds anything else, or a number that is not finite.
    """
    path = Path(path)
    if path.suffix not in (".json", ".npz"):
        raise ValueError(f"{os.fspath(path)!r} is neither .json nor .npz: write scores by the ids of cases into one")
    found = _npz(path) if path.suffix == ".npz" else _json(path)
    return Scores(path.name, {case: _checked(path.name, case, one) for case, one in found.items()})


def _json(path: Path) -> dict:
    try:
        found = parsed(path.read_bytes().decode("utf-8-sig"))
    except (json.JSONDecodeError, ValueError) as error:
        raise ValueError(f"{path.name} is no JSON in UTF-8: {cut(str(error))}") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise TypeError(f"{path.name} must hold an object of cases' ids and lists of numbers, not a {kind}")
    return found


def _npz(path: Path) -> dict:
    with open(path, "rb"):  # an OSError of its own, which numpy's would hide
        pass
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise ValueError(f"{path.name} is no .npz of plain numbers: {cut(str(error))}") from error


def _checked(where: str, case: str, given) -> Tensor:
    try:
        if isinstance(given, list) and any(isinstance(one, bool | str) for one in given):
            raise ValueError
        found = np.asarray(given)
        if found.dtype.kind not in "iuf":
            raise ValueError
        found = found.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{where}: the scores of case {case!r} must be numbers, one a token") from error
    if found.ndim != 1:
        raise ValueError(f"{where}: the scores of case {case!r} have shape {found.shape}: give one a token")
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise ValueError(f"{where}: the scores of case {case!r} hold NaN or infinities, the first at token {bad[0]}")
    return torch.from_numpy(found)

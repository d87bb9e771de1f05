"""Runs made up without a model: pages show what is in a run's folder, and do not care where that comes from."""

from dataclasses import asdict

import torch

from lrp_fast import Rules
from lrp_fast.attribution import Attribution
from lrp_fast.explained import Explained, Term, Token
from lrp_fast.study import Folder, instruction_following, read_cases
from lrp_fast.study import folder as folders
from lrp_fast.study.table import write_table


def result_of(tokens, relevance=None, value=2.0, text=" red", seed=0):
    """An attribution of these tokens, the first of which is special; ``relevance`` is that of the embeddings."""
    layers = torch.randn(3, len(tokens), generator=torch.Generator().manual_seed(seed))
    if relevance is not None:
        layers[0] = torch.tensor(relevance)
    target, contrast = Token(3, " blue", 8.0 + value, int(value < 0)), Token(4, text, 8.0, int(value >= 0))
    best = sorted([target, contrast], key=lambda token: token.rank)
    explained = Explained("difference", [Term(len(tokens) - 1, target, contrast, 8.0, contrast)], best)
    return Attribution(
        target.logit - contrast.logit, layers, torch.arange(len(tokens)), explained, Rules("attnlrp"), "a/model",
        list(tokens), [True] + [False] * (len(tokens) - 1), dropped=torch.zeros(2, dtype=torch.float64),
    )  # fmt: skip


def write_run(path, given, results, begun="2026-01-02T03:04:05+00:00", why=None, ended=True):
    """A run's folder of these cases and, by id, results; those of ``why`` have failed, and others have not been run."""
    folder, cases = Folder(path), read_cases(given)
    manifest = {"model": "a/model", "revision": None, "fingerprint": "f", "dtype": "float32", "device": "cpu"}
    manifest |= {"rules": asdict(Rules("attnlrp")), "tolerance": 0.0, "graph": None, "cases": "c", "packs": []}
    manifest |= {"versions": {"lrp_fast": "0"}, "seed": 0, "command": None, "begun": begun}
    (path / "results").mkdir(parents=True)
    folders.begin(folder, manifest, folders.lines([case.as_line() for case in cases]))
    for id, result in results.items():
        result.save(folder.result(id))
    became = {case.id: ("refused", case.left_out) for case in cases if case.left_out}
    became |= {id: ("done", None) for id in results} | {id: ("failed", one) for id, one in (why or {}).items()}
    folders.append(
        folder, [{"id": id, "status": status, "why": one, "seconds": 0.1} for id, (status, one) in became.items()]
    )
    if ended:
        write_table(folder, cases, instruction_following, {})
    return folder

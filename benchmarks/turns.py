"""Turns folded into cases, and the judge of whether a case counts. conftest.py says what for."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import hybrids
import pytest
from prompts import digest
from workers import Failed, Worker

ROOT = Path(__file__).resolve().parents[1]
KEY = pytest.StashKey()
TURN = re.compile(r"-?turn\d+")
# Folders of packages that these peers alone see. What stands behind "@" tells apart peers of one file.
PACKAGES = {"flashtrace": ".venv/peers", "autolrp": ".venv/peers", "ours@before": ".venv/before"}


@dataclass(frozen=True)
class Reference:
    """What a case's relevance has to agree with: another case of its group, or a result made for the purpose.

    ``bound``: of the greatest difference over the greatest relevance, or with ``summed`` of the sum of differences over
    the sum of relevance; None: both are what is measured, and any will do.
    """

    name: str
    bound: float | None
    summed: bool = False


@dataclass
class Turns:
    config: pytest.Config
    versions: dict = field(default_factory=dict)  # of what ran in the contenders' processes
    prompts: dict = field(default_factory=dict)  # digests by number of tokens
    not_counted: list[dict] = field(default_factory=list)
    results: dict = field(default_factory=dict)  # (group, name): numbers, to compare
    references: dict = field(default_factory=dict)  # (group, name): Reference
    failed: dict = field(default_factory=dict)  # (group, name): sentence
    peaks: dict = field(default_factory=dict)  # (group, name): 10^6 bytes, of the last warm-up
    _workers: dict = field(default_factory=dict)

    def directory(self, model: str) -> str:
        """Where the model lies: one of the demo's, or a hybrid; --model stands in for any."""
        if given := self.config.getoption("--model"):
            return given
        if model in hybrids.MODELS | hybrids.ATTENTION:
            return str(hybrids.model_directory(model))
        spec = importlib.util.spec_from_file_location(f"benchmark_{model}", ROOT / "demo" / f"{model}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return str(module.model_directory())

    def timed(
        self, benchmark, params: dict, group: str, name: str, call: Callable, *, warm_ups: int = 1,
        against: Reference | None = None, numbers: Callable | None = None, **info,
    ):  # fmt: skip
        """One turn of ``call()`` in this process. ``numbers``: of what it returned, those to compare, a flat list.

        Before the first turn it is called ``warm_ups`` times, untimed.
        """
        benchmark.group = group
        benchmark.extra_info.update(info, case=name)
        result = benchmark.pedantic(call, rounds=1, warmup_rounds=warm_ups if params.get("turn", 0) == 0 else 0)
        if against is not None:
            self.references[group, name] = against
        if numbers is not None:
            self.results[group, name] = numbers(result)
        return result

    def contender(
        self, benchmark, params: dict, group: str, name: str, peer: str, call: str, given: dict, *, warm_ups: int = 1,
        against: Reference | None = None, numbers: Callable | None = None, model: str = "smollm2",
        options: dict | None = None, **info,
    ):  # fmt: skip
        """One turn of a call in the process of ``peer``; its result. A contender that fails is not tried again.

        ``numbers``: of that result, those to compare; None: all relevance in it.
        """
        benchmark.group = group
        if (group, name) in self.failed:
            pytest.skip(self.failed[group, name])
        warm = warm_ups if params.get("turn", 0) == 0 else 0
        try:
            worker = self.worker(peer, model, options)
            for small in [self._small(given)] if params.get("turn", 0) == 0 else []:
                worker.prepare(call, small)  # lazily loaded code, and every page of the memory-mapped weights
                worker.run()
            for _ in range(warm):
                worker.prepare(call, given)
                worker.run()
                self.peaks[group, name] = worker.report()["peak_mb"]
            # Once warm, as calls follow each other in one process: no heap is given back for the measurement.
            fresh = (group, name) not in self.peaks
            benchmark.pedantic(worker.run, setup=lambda: worker.prepare(call, given, fresh), rounds=1)
            report = worker.report()
        except Failed as error:
            self.missing(group, name, str(error))
        self.versions |= worker.versions
        self.prompts[group] = digest(given.get("ids") or given.get("prompts"))
        benchmark.extra_info.update(info, case=name, peak_mb=self.peaks.get((group, name), report["peak_mb"]))
        if isinstance(report["result"], dict) and report["result"].get("dropped") is not None:
            benchmark.extra_info["dropped"] = max(report["result"]["dropped"])  # of the layers
        if against is not None:
            self.references[group, name] = against
        self.results[group, name] = (numbers or flat)(report["result"])
        return report["result"]

    def missing(self, group: str, name: str, why: str) -> NoReturn:
        """The case has no figures: a row that says so, once, and its further turns are skipped."""
        if (group, name) not in self.failed:
            self.failed[group, name] = why
            self.not_counted.append({"group": group, "name": name, "why": why})
        pytest.skip(why)

    def reference(
        self, group: str, name: str, peer: str, call: str, given: dict, model: str = "smollm2", **options
    ) -> list[float]:
        """A result to compare with, untimed, made once, by a process of its own that is gone afterwards."""
        if (group, name) not in self.results:
            worker = Worker(peer, self.directory(model), options)
            try:
                worker.prepare(call, given)
                worker.run()
                self.results[group, name] = flat(worker.report()["result"])
            finally:
                worker.close()
        return self.results[group, name]

    def worker(self, peer: str, model: str, options: dict | None) -> Worker:
        key = peer, model, repr(options)
        if key not in self._workers or not self._workers[key].alive:
            folder = PACKAGES.get(peer)
            packages = str(ROOT / folder) if folder and (ROOT / folder).is_dir() else None
            if "@" in peer and packages is None:
                raise Failed(f"{folder} is not there, which `make bench` makes of the repository's history")
            self._workers[key] = Worker(peer.partition("@")[0], self.directory(model), options, packages)
        return self._workers[key]

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def folded(self, benchmarks: list) -> list:
        """A benchmark for each case, with the turns of all; those that do not count go to ``not_counted``."""
        cases: dict = {}
        for one in benchmarks:
            if one.has_error or not one.stats.data:
                continue
            one.name, one.fullname = TURN.sub("", one.name), TURN.sub("", one.fullname)
            one.param = TURN.sub("", one.param) if one.param else one.param
            params = dict(one.params or {})
            params.pop("turn", None)
            one.params = params
            first = cases.setdefault((one.group, one.extra_info.get("case", one.name)), one)
            if first is not one:
                for seconds in one.stats.data:
                    first.stats.update(seconds)
                if "peak_mb" in one.extra_info:
                    first.extra_info["peak_mb"] = max(first.extra_info["peak_mb"], one.extra_info["peak_mb"])
        counted = []
        for key, one in cases.items():
            if (why := self._verdict(key, one.extra_info)) is None:
                counted.append(one)
            elif key not in self.failed:
                self.not_counted.append({"group": key[0], "name": key[1], "why": why})
        return counted

    def _verdict(self, key: tuple[str, str], info: dict) -> str | None:
        """Why it does not count; the gap goes into ``info``."""
        if key in self.failed:  # in a later turn
            return self.failed[key]
        against = self.references.get(key)
        if against is None:
            return None
        truth = self.results.get((key[0], against.name))
        if truth is None:
            return f"{against.name}, which it is held against, has no result"
        found = self.results[key]
        if len(found) != len(truth):
            return f"{len(found)} numbers, where {against.name} has {len(truth)}"
        summed, greatest = error(found, truth)
        info.update(against=against.name, error_summed=summed, error_greatest=greatest, bound=against.bound)
        gap = summed if against.summed else greatest
        how = "sum of |difference| over sum of |relevance|" if against.summed else "of the greatest relevance"
        if against.bound is None or gap <= against.bound:
            return None
        return f"differs from {against.name} by {gap:.1e} {how}, bound {against.bound:g}"

    @staticmethod
    def _small(given: dict) -> dict:
        cut = {name: given[name][:8] for name in ("ids",) if name in given}
        cut |= {name: [ids[:8] for ids in given[name][:2]] for name in ("prompts",) if name in given}
        return given | cut


def flat(result) -> list[float]:
    """The relevance in what a call returned, of all its parts, as one list."""
    if isinstance(result, dict):
        return result.get("relevance", [result["value"]] if "value" in result else [])
    if isinstance(result, list):
        return [number for one in result for number in (flat(one) if isinstance(one, (dict, list)) else [one])]
    return []


def error(found: list[float], truth: list[float]) -> tuple[float, float]:
    """Sum of |difference| over sum of |truth|; greatest difference over greatest |truth|."""
    import torch

    a, b = torch.tensor(found, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64)
    difference = (a - b).abs().nan_to_num(nan=float("inf"))
    return (difference.sum() / b.abs().sum()).item(), (difference.max() / b.abs().max()).item()

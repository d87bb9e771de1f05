"""What test_shipped.py leaves behind: a file of JSON lines a target and Triton. So a run may be interrupted and go on,
and several may run at once. benchmarks/executed.py adds them up.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import triton

from lrp_fast.kernels.common import Case
from tests.kernels.executor import Executor, identity


class Record:
    """A file in ``folder``. ``sources``: a digest of the kernels' sources. What came out well of those is done."""

    def __init__(self, folder: str, sources: str, executor: Executor):
        self.executor = executor
        self.head = {"target": f"sm_{executor.target}", "triton": triton.__version__, "sources": sources}
        self.path = Path(folder) / f"{self.head['target']}-triton-{triton.__version__}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = map(json.loads, self.path.read_text().splitlines() if self.path.exists() else [])
        self.done = {line["case"] for line in lines if line["sources"] == sources and not line.get("failed", True)}
        self.values, self.worst = 0, 0.0

    def needs(self, cases: Iterable[Case], dtype: torch.dtype) -> None:
        """Programs that have to be among those executed with ``dtype``."""
        self._write(dtype=_named(dtype), needed={_digest(identity(case)): case[0] for case in cases})

    @contextmanager
    def case(self, item):
        """What is executed and `checked` inside is one case, named as the test ``item``. What is raised goes on."""
        begun, launches = time.perf_counter(), self.executor.launches
        self.values, self.worst = 0, 0.0
        self.executor.used.clear()
        try:
            yield
        except pytest.skip.Exception:
            raise
        except BaseException as error:
            self._write_case(item, begun, launches, f"{type(error).__name__}: {error}".splitlines()[0][:200])
            raise
        else:
            self._write_case(item, begun, launches, "reports" if self.executor.reports else None)

    def _write_case(self, item, begun, launches, failed):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        self._write(
            case=item.name, dtype=_named(parameters.get("dtype", torch.float32)),
            programs={_digest(key): key[1] for key in self.executor.used}, launches=self.executor.launches - launches,
            values=self.values, worst=self.worst, seconds=round(time.perf_counter() - begun, 1),
            reports=self.executor.reports, failed=failed,
        )  # fmt: skip

    def checked(self, values: int, worst: float) -> None:
        """So many values, of whose errors the largest is ``worst`` of what is allowed."""
        self.values += values
        self.worst = max(self.worst, worst)

    def _write(self, **line) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(self.head | line) + "\n")


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest(key: tuple) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]

"""What test_shipped.py leaves behind: a file of JSON lines of a target and a Triton. So a run may be interrupted and go
on, and several may run at once. benchmarks/executed.py adds them up.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import torch
import triton

from lrp_fast.kernels.common import Case
from tests.kernels.executor import Executor, identity

KERNELS = Path(__file__).resolve().parents[2] / "kernels"


def sources() -> dict[str, str]:
    """A digest of each file that the kernels' code comes from."""
    files = [*sorted(KERNELS.glob("**/*.py")), KERNELS / "tiles.json"]
    return {path.relative_to(KERNELS).as_posix(): _digest(path.read_bytes()) for path in files}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fingerprint(key: tuple) -> str:
    return _digest(repr(key).encode())


class Record:
    """A file in ``folder``. What came out as it should, of the kernels as they are now, is ``done``."""

    def __init__(self, folder: str, executor: Executor):
        self.executor, self.sources = executor, _digest(repr(sources()).encode())
        self.path = Path(folder) / f"sm_{executor.target}-triton-{triton.__version__}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = map(json.loads, self.path.read_text().splitlines() if self.path.exists() else [])
        lines = [line for line in lines if line["sources"] == self.sources]
        self.done = {(line["case"], line["dtype"]) for line in lines if "case" in line and not line["failed"]}
        self.values, self.worst = 0, 0.0

    def is_done(self, item) -> bool:
        return self._name(item) in self.done

    def needs(self, cases: Iterable[Case], dtype: torch.dtype) -> None:
        """Programs that have to be among those executed with ``dtype``."""
        self._write(dtype=_named(dtype), needed={_fingerprint(identity(case)): case[0] for case in cases})

    @contextmanager
    def case(self, item):
        """What is executed and `checked` inside is one case, named as the test ``item``. What is raised goes on."""
        executor, begun, launches, failed = self.executor, time.perf_counter(), self.executor.launches, None
        self.values, self.worst = 0, 0.0
        executor.used.clear()
        try:
            yield
        except BaseException as error:
            failed = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise
        finally:
            outcome = {"failed": failed or ("reports" if executor.reports else None), "reports": executor.reports}
            outcome |= {"launches": executor.launches - launches, "programs": sorted(map(_fingerprint, executor.used))}
            outcome |= {"values": self.values, "worst": self.worst, "seconds": round(time.perf_counter() - begun, 1)}
            case, dtype = self._name(item)
            self._write(case=case, dtype=dtype, **outcome)

    def checked(self, values: int, worst: float) -> None:
        """So many values, of whose errors the largest is ``worst`` of what is allowed."""
        self.values += values
        self.worst = max(self.worst, worst)

    def _name(self, item) -> tuple[str, str]:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return item.name, _named(parameters.get("dtype", torch.float32))

    def _write(self, **line) -> None:
        head = {"target": f"sm_{self.executor.target}", "triton": triton.__version__, "sources": self.sources}
        with self.path.open("a") as file:
            file.write(json.dumps(head | line) + "\n")

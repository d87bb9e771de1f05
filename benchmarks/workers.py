"""Contenders in processes of their own, with a limit on their memory: this end of the pipe to peers/serve.py."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT_BYTES = 16 * 10**9  # of a process, the model included
CALL_SECONDS = 420  # a call that takes longer is a row that says so
OUT_OF_MEMORY = re.compile(r"(?:can't|Cannot|not enough) (?:allocate )?memory|MemoryError|bad_alloc|SIGKILL")


class Failed(Exception):
    """Why a contender has no figure, in one sentence."""


class Worker:
    """One such process. What it raises, or dies of, is a `Failed`; after that it is closed."""

    def __init__(
        self,
        peer: str,
        directory: str,
        options: dict | None = None,
        packages: str | None = None,
        limit_bytes: int = LIMIT_BYTES,
    ):
        """``packages``: a folder of packages that this peer alone sees, before those of this environment."""
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, see close
        self.limit = limit_bytes
        path = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-P", HERE / "peers" / "serve.py", peer, directory, json.dumps(options or {})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=os.environ | {"PYTHONPATH": path}, preexec_fn=lambda: _limit_memory(limit_bytes),
        )  # fmt: skip
        self.versions = self._answer()["versions"]

    def prepare(self, call: str, given: dict, fresh: bool = True) -> None:
        """``fresh``: the heap is given back before the call and after it, and its peak is measured."""
        self._ask({"prepare": call, "given": given, "fresh": fresh})

    def run(self) -> None:
        self._ask({"run": True})

    def report(self) -> dict:
        """``peak_mb`` above what was resident before, 10^6 bytes, of a fresh call; and the call's ``result``."""
        return self._ask({"report": True})

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    def _ask(self, request: dict) -> dict:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: the answer says of what
        return self._answer()

    def _answer(self) -> dict:
        if not select.select([self.process.stdout], [], [], CALL_SECONDS)[0]:
            self.close()
            raise Failed(f"took more than {CALL_SECONDS} s")
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"failed": self._last_words()}
        if "failed" in answer:
            why = answer["failed"]
            self.close()  # also after an exception: what it left behind would weigh on the next call
            raise Failed(f"out of memory at {self.limit / 1e9:g} GB" if OUT_OF_MEMORY.search(why) else why)
        return answer

    def _last_words(self) -> str:
        status = self.process.wait()
        if status == -9:
            return "SIGKILL"  # nobody but the system does this to it
        self.errors.seek(0)
        said = self.errors.read()
        why = OUT_OF_MEMORY.search(said)
        return why[0] if why else f"ended with exit status {status}: {said.strip().rpartition(chr(10))[2][:300]}"


def _limit_memory(limit_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

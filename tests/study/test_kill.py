"""Killed at any moment and started again, a run ends in the folder of an undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


class Worker:
    """The process of worker.py."""

    def __init__(self, directory):
        command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), str(directory)]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(command, **streams)
        self.said("ready")

    def said(self, word):
        for line in self.process.stdout:
            name, _, number = line.strip().partition(" ")
            if name == word:
                return number
            if name == "ended":
                self.ended = int(number)
                return None
        raise AssertionError("the worker ended")

    def run(self, folder, count, step=None, after=None):
        """How it ended, how many steps it took (None if it was killed), in how many seconds."""
        self.process.stdin.write(json.dumps({"folder": str(folder), "count": count, "step": step}) + "\n")
        self.process.stdin.flush()
        begun, pid = time.perf_counter(), int(self.said("pid"))
        if after is not None:
            time.sleep(after)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        steps = self.said("steps")
        status = self.ended if steps is None else int(self.said("ended") or self.ended)
        return status, steps and int(steps), time.perf_counter() - begun


@pytest.fixture(scope="module")
def worker(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = Worker(folder)
    yield found
    found.process.stdin.close()
    found.process.wait(60)


def whole(folder, content, moments):
    found = content(folder)
    log = [line["id"] for line in found["log.jsonl"]]
    assert len(set(log)) == len(log), moments
    return found


def test_at_steps_of_writing(worker, content, tmp_path):
    """Each run dies at its own step, counted from where it goes on, until there is none left to die at."""
    status, steps, _ = worker.run(tmp_path / "undisturbed", 12)
    assert status == 0 and steps > 30
    draw = random.Random(0)
    moments = []
    while True:
        moments.append(draw.randrange(1, 12))
        status, *_ = worker.run(tmp_path / "run", 12, step=moments[-1])
        if status == 0:
            break
        assert status == -signal.SIGKILL
        assert len(moments) < 40, moments
    assert len(moments) > 3
    assert whole(tmp_path / "run", content, moments) == content(tmp_path / "undisturbed")


def test_at_random_moments(worker, content, tmp_path):
    kill(worker, content, tmp_path, 12, 4)


@pytest.mark.slow  # half a minute
def test_at_thirty_moments_of_sixty_cases(worker, content, tmp_path):
    kill(worker, content, tmp_path, 60, 30)


def kill(worker, content, tmp_path, count, times):
    status, _, seconds = worker.run(tmp_path / "undisturbed", count)
    assert status == 0
    draw = random.Random(times)
    moments, killed = [], 0
    while killed < times and len(moments) < 4 * times:
        moments.append(draw.uniform(0.0, 2.5 * seconds / times))  # so that they fall into all of the run
        status, *_ = worker.run(tmp_path / "run", count, after=moments[-1])
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        if status == 0:  # it has got to the end: another folder
            assert whole(tmp_path / "run", content, moments) == content(tmp_path / "undisturbed")
            (tmp_path / "run").rename(tmp_path / f"run {len(moments)}")
    status, *_ = worker.run(tmp_path / "run", count)
    assert status == 0
    assert whole(tmp_path / "run", content, moments) == content(tmp_path / "undisturbed")

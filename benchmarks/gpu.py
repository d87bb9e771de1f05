"""What `make gpu` does: everything that needs a CUDA device, with the packages that this Python has and no network.

The package is built into build/gpu, which is then the first entry of PYTHONPATH: nothing is installed. First
``lrp-fast doctor`` holds every operation against its definition, which takes half a minute. Then the tests marked
``gpu`` run in several processes at once, because nearly all of their time is Triton's compiler's; then the kernels
and a whole model are timed, with red tests too, but the report says so and the exit status is 1. It is 2 where
nothing can run at all. --parts selects some of this; the time that the tests leave is shared evenly. Nothing of it
goes on when the time is over: what a part has started is ended with it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu"
NEEDED = ("torch", "triton", "transformers", "pytest", "setuptools", "pybind11")
SETUPTOOLS = 77  # the first that reads pyproject.toml's licence
PARTS = ("doctor", "tests", "kernels", "model")
BENCHMARKS = ("kernels", "model")
SECONDS = 540  # in all
DOCTOR_SECONDS = 120  # at most
TEST_SECONDS = 270  # 16 cores compiled for 185 s in most of 14 processes, for longer in three
STOP_SECONDS = 10  # of them, for what was interrupted to report
LAST_CASE_SECONDS = 40  # before its time is over a benchmark begins no more cases
MOST_WORKERS = 14
NO_TESTS = 5  # pytest's exit status where a process had none to run
WORKER_BYTES = 5 * 2**30  # of the device's free memory: a context, and the largest test's dense float64 truth
# -P: the folder kernels/ must not answer to `import kernels`. No plugins but pytest's own, see `main`.
PYTEST = [sys.executable, "-P", "-m", "pytest", "-q", "--tb=short", "--durations=5", "--disable-warnings",
          "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where the JSON goes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
                        help=f"of {', '.join(PARTS)}, in this order (default: all)")  # fmt: skip
    parser.add_argument("--commit", help="what is measured (default: what git says)")
    parser.add_argument("--dry-run", action="store_true", help="a few tests and tiny sizes in Triton's interpreter")
    options = parser.parse_args()
    end = time.monotonic() + SECONDS

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"make gpu: {sys.executable} lacks {', '.join(missing)}; name a Python that has them with PYTHON=…",
              file=sys.stderr)  # fmt: skip
        return 2
    found = importlib.metadata.version("setuptools")
    if int(found.partition(".")[0]) < SETUPTOOLS:
        print(f"make gpu: {sys.executable} has setuptools {found}; {SETUPTOOLS} or newer builds the package: put it "
              "first in PYTHONPATH, or name another Python with PYTHON=…", file=sys.stderr)  # fmt: skip
        return 2
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        print(f"make gpu: torch {torch.__version__} finds no CUDA device here.", file=sys.stderr)
        return 2

    # float32 is float32, also for the products that kernels are compared with.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "NVIDIA_TF32_OVERRIDE": "0"}
    environment["PYTHONUNBUFFERED"] = "1"
    environment.pop("TRITON_INTERPRET", None)
    if options.dry_run:
        environment["TRITON_INTERPRET"] = "1"
    if not build(environment, end):
        return 1
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(BUILD / "lib"), os.environ.get("PYTHONPATH"))))
    tests, healthy = "not run", True
    if "doctor" in options.parts:
        healthy = run_doctor(environment, min(time.monotonic() + DOCTOR_SECONDS, end), options.dry_run)
    if "tests" in options.parts:
        memory = None if options.dry_run else torch.cuda.mem_get_info()[0]
        tests = run_tests(environment, memory, min(time.monotonic() + TEST_SECONDS, end))
        if not options.dry_run:
            keep_families(environment, end, options)
    benchmarks = [part for part in BENCHMARKS if part in options.parts]
    green = healthy and not tests.startswith("FAILED")
    for left, part in zip(range(len(benchmarks), 0, -1), benchmarks, strict=True):
        green &= run_benchmark(part, (end - time.monotonic()) / left, environment, tests, options)
    print(f"tests: {tests}")
    return 0 if green else 1


def build(environment: dict[str, str], end: float) -> bool:
    """lrp_fast, lrp_fast.kernels and the C++ extension, into an empty folder, by setup.py alone."""
    start = time.monotonic()
    shutil.rmtree(BUILD, ignore_errors=True)
    command = [sys.executable, "-P", "setup.py", "-q", "build", "--build-base", BUILD / "work", "--build-lib",
               BUILD / "lib"]  # fmt: skip
    log = BUILD.with_suffix(".log")
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as file:
        status = run(command, end, cwd=ROOT, env=environment, stdout=file, stderr=file)
    took = f"in {time.monotonic() - start:.0f} s"
    if status is None:
        print(f"{log.read_text()}the build was stopped: it was not done {took}")
    else:
        print(log.read_text() if status else f"built {took}", flush=True)
    return status == 0


def run(command: list, end: float, **options) -> int | None:
    """The exit status; None where it and all that it started had to be killed, because ``end`` had come."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        return process.wait(max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return None
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """A process that leads a session of its own, and what is left of that."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_doctor(environment: dict[str, str], end: float, dry_run: bool) -> bool:
    """Whether the operations are right on the device, as its table says. A dry run is plain PyTorch's, on the CPU."""
    command = [sys.executable, "-P", "-m", "lrp_fast.cli", "doctor", "--device", "cpu" if dry_run else "cuda"]
    status = run(command, end, env=environment)
    if status is None:
        print("doctor: stopped when its time was over")
    return status == 0


def run_tests(environment: dict[str, str], free_bytes: int | None, end: float) -> str:
    """How the tests came out, in a few words; what failed is printed, and all of it is in build/gpu/tests.log.

    Args:
        free_bytes: of the device's memory; None: a few tests without a device.
    """
    start = time.monotonic()
    workers = len(os.sched_getaffinity(0))
    if free_bytes is None:
        workers, selected = 2, ["tests/kernels/test_relevance.py"]
    else:
        workers, selected = fitting(workers, free_bytes), ["-m", "gpu", "tests"]
    running, logs = [], [BUILD / f"tests-{i}.log" for i in range(workers)]
    for i, log in enumerate(logs):
        with log.open("w") as file:
            command = [*PYTEST, f"--shard={i}/{workers}", f"--families={BUILD / f'families-{i}.json'}", *selected]
            options = {"cwd": ROOT, "env": environment, "stdout": file, "stderr": file, "start_new_session": True}
            running.append(subprocess.Popen(command, **options))
    stopped = finish(running, end - STOP_SECONDS)

    counts, green = Counter(), not stopped
    for worker, log in zip(running, logs, strict=True):
        output = log.read_text()
        if worker.returncode not in (0, NO_TESTS):
            green = False
            print(f"---- {log.name}, exit status {worker.returncode}\n{output[-3000:]}", flush=True)
        for summary in re.findall(r"^\d+ .* in [\d.:]+s.*$", output, re.MULTILINE)[-1:]:
            for number, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", summary):
                counts[what.rstrip("s")] += int(number)
    (BUILD / "tests.log").write_text("\n".join(f"---- {log.name}\n{log.read_text()}" for log in logs))

    found = ", ".join(f"{number} {what}" for what, number in counts.items()) or "nothing ran"
    found += f" in {time.monotonic() - start:.0f} s, {workers} processes"
    if stopped:
        found += f", {stopped} of them stopped when their time was over"
    verdict = f"{'passed' if green and counts['passed'] else 'FAILED'}: {found}"
    print(f"tests {verdict}", flush=True)
    return verdict


def fitting(cores: int, free_bytes: int) -> int:
    """How many processes may test at once."""
    return max(1, min(cores, MOST_WORKERS, free_bytes // WORKER_BYTES))


def finish(running: list[subprocess.Popen], end: float) -> int:
    """How many had to be stopped: as Ctrl-C does, upon which pytest reports what failed so far, then by force."""
    try:
        wait(running, end)
        late = [worker for worker in running if worker.poll() is None]
        for worker in late:
            worker.send_signal(signal.SIGINT)
        wait(late, time.monotonic() + STOP_SECONDS)
        return len(late)
    finally:
        for worker in running:
            kill(worker)


def wait(running: list[subprocess.Popen], end: float) -> None:
    while time.monotonic() < end and any(worker.poll() is None for worker in running):
        time.sleep(0.1)


def keep_families(environment: dict[str, str], end: float, options: argparse.Namespace) -> None:
    """What the tests showed of each family of models, unless some were stopped before their end."""
    counted = sorted(BUILD.glob("families-*.json"))
    if len(counted) < len(list(BUILD.glob("tests-*.log"))):
        return print("families: not all of the tests ran, so nothing is written about them")
    out = options.results / "families-gpu.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, ROOT / "benchmarks" / "run.py", "families", "--counted", *counted, "--out", out]
    run(command + (["--commit", options.commit] if options.commit else []), end, env=environment)


def run_benchmark(
    part: str, limit: float, environment: dict[str, str], tests: str, options: argparse.Namespace
) -> bool:
    command = [sys.executable, ROOT / "benchmarks" / "run.py", part, "--tests", tests, "--seconds",
               f"{limit - LAST_CASE_SECONDS:.0f}"]  # fmt: skip
    if options.dry_run:
        command.append("--dry-run")
    else:
        options.results.mkdir(parents=True, exist_ok=True)
        command += ["--out", options.results / f"{part}.json"]
    if options.commit:
        command += ["--commit", options.commit]
    status = run(command, time.monotonic() + limit, env=environment)
    if status is None:
        print(f"{part}: stopped after {max(limit, 0):.0f} s; what is written is of the cases told above")
    return status == 0


if __name__ == "__main__":
    sys.exit(main())

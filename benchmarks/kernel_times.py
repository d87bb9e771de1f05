"""The kernels on a CUDA device, timed: what is timed, and against whom, is kernel_cases.py's.

A case is checked at 1,024 rows against a float64 truth before it is timed; a wrong one is not timed. Contenders take
turns, in an order that is turned round from round to round, between CUDA events. Before each call the L2 cache is
overwritten, and the GPU sleeps until the call is queued, so that launching it takes none of its time. Shares are of
a large matrix product's rate in the case's dtype, or of a large copy's, measured first. Cases come in order of
interest, and the clock decides where the list ends.
"""

from __future__ import annotations

import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from kernel_cases import Call, Machine, Problem, cases

CHECKED = 1024  # rows of the size at which results are compared
CACHE_BYTES = 2**28  # more than any L2
CASE_SECONDS = 40
SLEEP_CYCLES = 2_000_000  # about a millisecond of a GPU


def measure(seconds: float, dry: bool, keep: Callable[[dict], object]) -> dict:
    """Ceilings, a row a case, what the clock left out, and what went wrong; every row is also told on stderr.

    ``keep`` is given all of that anew after every case.
    """
    end = time.monotonic() + seconds
    machine = Machine(dry)
    found = {"ceilings": ceilings(machine), "rows": [], "left_out": [], "wrong": []}
    if not dry:
        product = ceilings(Machine(dry, torch.float32))["TFLOP/s"]
        found["ceilings"]["TFLOP/s, float32"] = product
    at_fault: dict[str, str | None] = {}
    for what, size, build in cases(dry):
        if time.monotonic() > end:
            found["left_out"].append(f"{what}, {size}")
            continue
        # One kernel that fails must not cost the others' figures.
        try:
            with deadline(CASE_SECONDS):
                if what not in at_fault:
                    at_fault[what] = fault(machine, build)
                    if at_fault[what]:
                        found["wrong"].append(f"{what}: {at_fault[what]}")
                if at_fault[what]:
                    continue
                row = time_problem(machine, build(machine, size))
        except torch.OutOfMemoryError:
            found["left_out"].append(f"{what}, {size} (out of memory)")
        except TimeoutError:
            found["left_out"].append(f"{what}, {size} (stopped after {CASE_SECONDS} s)")
        except Exception as error:
            at_fault[what] = f"{type(error).__name__}: {error}"[:500]
            found["wrong"].append(f"{what}, {size}: {at_fault[what]}")
        else:
            ceilings_of = found["ceilings"]
            ceiling = ceilings_of.get(f"{row['unit']}, {row['dtype']}", ceilings_of[row["unit"]])
            row["share_of_ceiling"] = row["contenders"]["ours"]["rate"] / ceiling["rate"]
            found["rows"].append({"what": what, "size": size} | row)
            print(table_line(found["rows"][-1]), file=sys.stderr, flush=True)
        keep(found)
    return found


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """TimeoutError in what takes longer: as soon as Python runs again, so not within one call of the driver."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fault(machine: Machine, build) -> str | None:
    """What is wrong with our result at a small size; None where nothing is."""
    problem = build(machine, 64 if machine.dry else CHECKED)
    results = problem.prepare["ours"]()()
    results = results if isinstance(results, tuple) else (results,)
    # A few roundings lie between operands and result; the tests hold kernels to a narrower bound.
    bound = max(2 * torch.finfo(problem.dtype or machine.dtype).eps, 1e-5)
    for found, truth in zip((t for t in results if t is not None), problem.truth(), strict=True):
        error = ((found.double() - truth).norm() / truth.norm()).item()
        if not error <= bound:
            return f"relative error {error:.2g}, more than {bound:.2g}"
    return None


def time_problem(machine: Machine, problem: Problem) -> dict:
    calls, errors, peaks = {}, {}, {}
    for name, prepare in problem.prepare.items():
        try:
            call = prepare()
            call()
            peaks[name] = None if machine.dry else peak_mb(call)
        except TimeoutError:
            raise
        except Exception as error:  # whatever a peer cannot do costs its own figure, not ours
            if name == "ours":
                raise
            errors[name] = f"{type(error).__name__}: {error}"[:300]
        else:
            calls[name] = call
    times = milliseconds(calls, 0.8, machine.dry)
    contenders = {}
    for name, ms in times.items():
        median = statistics.median(ms)
        contenders[name] = {
            "median_ms": median,
            "quartiles_ms": statistics.quantiles(ms, n=4)[::2] if len(ms) > 1 else None,
            "rounds": len(ms),
            "rate": problem.work / (median * 1e-3) / (1e12 if problem.unit == "TFLOP/s" else 1e9),
            "peak_mb": peaks[name],
        }
    return {
        "unit": problem.unit,
        "dtype": str(problem.dtype or machine.dtype).removeprefix("torch."),
        "work": problem.work,
        "contenders": contenders,
        "failed_contenders": errors,
    }


def ceilings(machine: Machine) -> dict:
    """The rates of a large matrix product and of a large copy, both of the working dtype."""
    n, length = (64, 2**16) if machine.dry else (8192, 2**30)
    a, b = machine.draw(n, n), machine.draw(n, n)
    x = machine.draw(length)
    y = torch.empty_like(x)
    found = {}
    for unit, call, work, scale, what in (
        ("TFLOP/s", lambda: a @ b, 2 * n**3, 1e12, f"{n} x {n} x {n} product"),
        ("GB/s", lambda: y.copy_(x), 2 * x.nbytes, 1e9, f"copy of {x.nbytes} bytes, read and written"),
    ):
        call()
        (ms,) = milliseconds({unit: call}, 0.3, machine.dry).values()
        found[unit] = {"what": what, "rate": work / (statistics.median(ms) * 1e-3) / scale, "rounds": len(ms)}
    return found


def milliseconds(calls: dict[str, Call], seconds: float, dry: bool) -> dict[str, list[float]]:
    """Times of each call, taking turns: 3 to 30 rounds, as many as ``seconds`` allow; one round of a dry run."""
    if dry:
        return {name: [on_the_wall(call)] for name, call in calls.items()}
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda")
    orders = [list(calls.items()), list(calls.items())[::-1]]
    once = one_round(orders[0], cache)
    count = int(min(30, max(3, 1000 * seconds / sum(once.values()))))
    rounds = [one_round(orders[i % 2], cache) for i in range(count)]
    return {name: [times[name] for times in rounds] for name in calls}


def one_round(calls: list[tuple[str, Call]], cache: torch.Tensor) -> dict[str, float]:
    events = {name: (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for name, _ in calls}
    for name, call in calls:
        cache.zero_()
        torch.cuda._sleep(SLEEP_CYCLES)
        events[name][0].record()
        call()
        events[name][1].record()
    torch.cuda.synchronize()
    return {name: start.elapsed_time(end) for name, (start, end) in events.items()}


def on_the_wall(call: Call) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def peak_mb(call: Call) -> float:
    """What ``call`` allocates beyond what is there, its results included, in 10^6 bytes."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def table(results: dict) -> str:
    head = f"{'':50} {'size':>7} {'ours, ms':>9} {'rate':>13} {'ceiling':>8} {'peak':>8}  time of others over ours"
    lines = [head, *(table_line(row) for row in results["rows"])]
    lines += [f"{unit}: {one['rate']:.0f} is the ceiling, {one['what']}" for unit, one in results["ceilings"].items()]
    lines += [f"WRONG: {what}" for what in results["wrong"]]
    if left_out := results["left_out"]:
        some = "; ".join(left_out[:5]) + (" ..." if len(left_out) > 5 else "")
        lines.append(f"left out for want of time or memory, {len(left_out)} cases: {some}")
    return "\n".join(lines)


def table_line(row: dict) -> str:
    ours = row["contenders"]["ours"]
    rate = f"{ours['rate']:.0f} {row['unit']}"
    peak = "" if ours["peak_mb"] is None else f"{ours['peak_mb']:.0f} MB"
    medians = {name: one["median_ms"] for name, one in row["contenders"].items() if name != "ours"}
    others = [f"{name} {median / ours['median_ms']:.2f}" for name, median in medians.items()]
    others += [f"{name} failed" for name in row["failed_contenders"]]
    return (
        f"{row['what']:50} {row['size']:>7} {ours['median_ms']:>9.3f} {rate:>13} {row['share_of_ceiling']:>8.0%} "
        f"{peak:>8}  {', '.join(others)}"
    )

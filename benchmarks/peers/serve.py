"""A contender's process: loads a model once and answers calls over a pipe, JSON lines; ../workers.py is the other end.

    python -P benchmarks/peers/serve.py MODULE DIRECTORY [OPTIONS]

MODULE is a file beside this one, whose ``load(directory, **options)`` returns calls by name; OPTIONS is a JSON object.
Runs in whatever environment the contender needs, and imports nothing of ours but, by its path, what reads peak memory.

Requests, each answered by one line:

    {"prepare": name, "given": {...}, "fresh": true}   the heap is given back and the peak's mark set, unless it is not
                                        to be fresh; nothing runs
    {"run": true}                       the call. It is timed from the other end, with a tenth of a millisecond of pipe
    {"report": true}                    {"peak_mb": ..., "result": ...}, what the call returned, its tensors as lists

An answer {"failed": sentence} stands for an exception.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    warnings.simplefilter("ignore")

    def answer(what: dict) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    name, directory, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    try:
        memory = module(HERE.parent / "memory.py")
        calls = module(HERE / f"{name}.py").load(directory, **options)
    except Exception as error:
        return answer({"failed": sentence(error)})
    answer({"versions": versions()})
    result = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "prepare" in request:
                result = None  # the last one's tensors are no part of the next one's peak
                call, given = calls[request["prepare"]], request["given"]
                start = memory.start() if request["fresh"] else None
                answer({})
            elif "run" in request:
                result = call(**given)
                answer({})
            else:
                peak = None if start is None else memory.above(start) / 1e6
                answer({"peak_mb": peak, "result": plain(result)})
                result = None
                if start is not None:
                    memory.start()  # what it need not hold while the others have their turn, it gives back
        except Exception as error:
            answer({"failed": sentence(error)})


def module(path: Path):
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def versions() -> dict[str, str]:
    """Of what this process has imported, as far as it matters here."""
    names = ("torch", "transformers", "lxt", "captum", "inseq", "flashtrace", "autolrp", "zennit")
    return {name: importlib.metadata.version(name) for name in names if name in sys.modules}


def sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0][:300]


def plain(result):
    if isinstance(result, dict):
        return {name: plain(value) for name, value in result.items()}
    if isinstance(result, (list, tuple)):
        return [plain(one) for one in result]
    return result.tolist() if hasattr(result, "tolist") else result


if __name__ == "__main__":
    main()

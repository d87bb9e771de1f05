"""A process that runs studies to be killed: torch is imported once, and every run is a fork of that.

It reads a line of JSON for each, {"folder", "count", "step", "where"}, prints the run's process id, and when that has
ended, how. With a step the run kills itself there: the step-th time that it is about to rename a file, has renamed one,
or has half of its lines in the log.
"""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import torch
import transformers

from lrp_fast import packing, study
from lrp_fast.study import folder as folders

_KILLED = {"steps": 0, "at": None}


def step():
    _KILLED["steps"] += 1
    if _KILLED["steps"] == _KILLED["at"]:
        os.kill(os.getpid(), signal.SIGKILL)


def prepare():
    packing._PASS["cpu"], packing._ENOUGH["cpu"] = 1, 30
    rename, append = os.replace, folders.append

    def replace(*given):
        step()
        rename(*given)
        step()

    def halves(folder, entries):
        if entries:
            text = folders.lines(entries)
            with open(folder.path / "log.jsonl", "ab", buffering=0) as file:
                file.write(text[: len(text) // 2])
                step()
                file.write(text[len(text) // 2 :])
        else:
            append(folder, entries)

    os.replace, folders.append = replace, halves


def main(directory):
    spec = importlib.util.spec_from_file_location("ours", Path(__file__).with_name("conftest.py"))
    ours = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ours)
    torch.set_num_threads(1)  # a pool of OpenMP does not survive a fork
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _KILLED["at"] = asked.get("step")
                study.run(model, ours.made(asked["count"]), asked["folder"], tokenizer=tokenizer)
                print(f"steps {_KILLED['steps']}", flush=True)
                status = 0
            finally:
                os._exit(status)
        print(f"pid {child}", flush=True)
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

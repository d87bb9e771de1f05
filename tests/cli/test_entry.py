"""Where the installed command begins: what can be said at once is said without torch and transformers."""

import json
import subprocess
import sys
import tomllib

import pytest

SAID = """
import importlib, json, sys
try:
    sys.exit(importlib.import_module({module!r}).{function}({arguments!r}))
finally:
    print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


@pytest.fixture
def entry(root):
    """``entry(*arguments)``: what the console script does, in a process of its own, and which packages it imported."""
    script = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]["lrp-fast"]
    module, _, function = script.partition(":")

    def call(*arguments):
        code = SAID.format(module=module, function=function, arguments=list(arguments))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        *out, imported = done.stdout.splitlines()
        return done.returncode, "\n".join(out), done.stderr, set(json.loads(imported))

    return call


HEAVY = {"torch", "transformers", "numpy", "tqdm", "safetensors", "lrp_fast"}


COMMANDS = [
    "", "attribute", "graph", "hops", "ablate", "study", "study run", "study pairs", "study compare", "study page",
    "evaluate", "plan", "doctor", "tune",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(entry, command):
    status, out, err, imported = entry(*command.split(), "--help")
    assert (status, err) == (0, "") and out.startswith("usage: lrp-fast") and "examples:" in out
    assert not imported & HEAVY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["explain"], "invalid choice: 'explain'"),
        (["attribute", "model"], "one of the arguments --prompt --prompt-file is required"),
        (["plan", "model", "--tokens", "0"], "0 is too few: give 1 or more"),
        (["graph", "model", "--prune", "most"], "'most' is no pruning"),
        (["hops", "model", "--prompt", "a", "--generated", "4"], "'4' is no span of positions"),
        (["ablate", "model", "--prompt", "a"], "the following arguments are required: --cut"),
        (["evaluate", "model", "--out", "a"], "the following arguments are required: --cases"),
        (["study"], "the following arguments are required: PART"),
        (["study", "run", "model"], "the following arguments are required: cases, --out"),
        (["study", "page"], "the following arguments are required: run"),
        (["study", "compare", "a", "b"], "the following arguments are required: --out"),
        (["doctor", "--device", "cuda", "--dtype", "float64"], "invalid choice: 'float64'"),
        (["tune", "--seconds", "long"], "invalid float value: 'long'"),
    ],
)
def test_what_is_asked_wrongly_needs_no_torch(entry, arguments, message):
    status, out, err, imported = entry(*arguments)
    assert (status, out) == (2, "") and message in err
    assert not imported & HEAVY


def test_the_command_is_found(entry, tmp_path):
    status, out, err, imported = entry("graph", str(tmp_path / "absent.safetensors"))
    assert (status, out) == (2, "") and "no graph at" in err and imported >= HEAVY

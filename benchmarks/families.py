"""The README's table of families: what the tests show of each.

    python benchmarks/run.py families      # runs the tests that show something, writes results/families.json
    python benchmarks/families.py          # makes the README's table of results/families*.json (`make families`: both)

A test says by its marker, ``shows("graph")`` say, which column it speaks for, and by its parameter ``family``, or the
marker's argument of that name, of which family. tests/conftest.py counts how they come out. `make gpu` writes
results/families-gpu.json, for the column "gpu".
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lrp_fast.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
# family: its module in transformers
FAMILIES = {
    "Llama": "llama", "Mistral": "mistral", "Qwen2": "qwen2", "Qwen3": "qwen3", "SmolLM3": "smollm3", "Phi-3": "phi3",
    "OLMo 2": "olmo2", "OLMo 3": "olmo3", "Granite": "granite", "Gemma": "gemma", "Gemma 2": "gemma2",
    "Gemma 3": "gemma3", "StableLM": "stablelm", "Cohere": "cohere", "GPT-NeoX": "gpt_neox", "Falcon": "falcon",
    "GPT-2": "gpt2", "Mixtral": "mixtral", "Qwen2-MoE": "qwen2_moe", "Qwen3-MoE": "qwen3_moe", "GPT-OSS": "gpt_oss",
}  # fmt: skip
# what a test may show: the column's heading
COLUMNS = {
    "attribution": "attribution", "graph": "graph", "streaming": "streaming", "quantised": "quantised",
    "adapters": "adapters", "gpu": "on a GPU",
}  # fmt: skip
MARKS = ("<!-- families: made by benchmarks/families.py -->\n\n", "\n\n<!-- end of families -->")
# What tests/hf/test_decoders.py shows of each causal language model of transformers, by its model type behind DECODER.
DECODER = "decoder "
OF_DECODERS = ("decoder", "edges", "waiting", "refused", "no edges")
DECODER_MARKS = ("<!-- decoders: made by benchmarks/families.py -->\n\n", "\n\n<!-- end of decoders -->")
ENCODER_MARKS = ("<!-- encoders: made by benchmarks/families.py -->\n\n", "\n\n<!-- end of encoders -->")


def measure() -> dict:
    """How the tests came out that need no GPU: family -> column -> outcome -> number of tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "families.json"
        options = ["-q", "-m", "shows and not gpu", "--ignore=tests/kernels", f"--families={path}"]
        subprocess.run([sys.executable, "-P", "-m", "pytest", *options, "tests"], cwd=ROOT, stdout=sys.stderr)
        if not path.is_file():
            raise RuntimeError("pytest did not run to its end: nothing is said about the families")
        return json.loads(path.read_text())


def added_up(counts: Iterable[dict]) -> dict:
    """Several such counts as one."""
    total = {}
    for one in counts:
        for family, columns in one.items():
            for column, outcomes in columns.items():
                total.setdefault(family, {}).setdefault(column, Counter()).update(outcomes)
    return total


def table(results: dict) -> str:
    """A row for each family that lrp_fast covers.

    Raises:
        ValueError: for a family or a column that the table does not have.
    """
    shown = {name: columns for name, columns in results["shown"].items() if not name.startswith(DECODER)}
    for name in {*shown} - {*FAMILIES} | {column for columns in shown.values() for column in columns} - {*COLUMNS}:
        raise ValueError(f"a test shows {name!r}, which is no family of lrp_fast, and not one of {', '.join(COLUMNS)}")
    lines = [f"| family | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for family in FAMILIES:
        cells = (verdict(shown.get(family, {}).get(column, {})) for column in COLUMNS)
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def decoders_table(results: dict, told) -> str:
    """A row for each causal language model of transformers; ``told`` is tests/decoders.py."""
    lines = ["| model type | attribution | graph | streaming |", "|---|---|---|---|"]
    for name in told.ALL:
        shown = {column: verdict(found) for column, found in results["shown"].get(f"{DECODER}{name}", {}).items()}
        if name in told.REFUSED:
            cells = [f"refused: {told.REFUSED[name][0]}" if shown.get("refused") == "yes" else "not yet", "", ""]
        elif name in told.WRAPPERS:
            cells = ["as a wrapper: see below", "", ""]
        else:
            cells = [shown.get(column, "not yet") for column in ("decoder", "edges", "waiting")]
            if name in told.WITHOUT_GRAPH and shown.get("no edges") == "yes":
                cells[1] = f"refused: {told.WITHOUT_GRAPH[name]}"
            elif name in told.FADING and cells[1] == "yes":
                cells[1] = "yes, not of plain gradients"
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def encoders_table(told) -> str:
    """A row for each masked language model of transformers: what tests/hf/test_encoders.py holds of it; ``told`` is
    tests/encoders.py."""
    lines = ["| model type | attribution and graph |", "|---|---|"]
    for name in told.ALL:
        refused = f"refused: {told.REFUSED[name][0]}" if name in told.REFUSED else "not tried"
        lines.append(f"| `{name}` | {'yes' if name in told.COVERED else refused} |")
    return "\n".join(lines)


def verdict(outcomes: dict[str, int]) -> str:
    """"yes" where every test passed, and there was one; one that was skipped shows nothing."""
    if outcomes.get("failed"):
        return "**fails**"
    return "yes" if outcomes.get("passed") and not outcomes.get("skipped") else "not yet"


def section(reports: list[dict]) -> str:
    """What stands between the marks: the table, and a line for each report that it is made of."""
    lines = [table({"shown": added_up(report["results"]["shown"] for report in reports)}), ""]
    for report in reports:
        versions = ", ".join(f"{name} {report['versions'][name]}" for name in ("torch", "transformers"))
        device = report["results"].get("gpu", "CPU")
        lines.append(f"Commit {report['commit']}, {versions}, {device}.")
    return "\n".join(lines)


def committed() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / "results").glob("families*.json"))]


def between_marks(readme: str, marks: tuple[str, str] = MARKS) -> tuple[str, str, str]:
    """What comes before them, the first included, what stands between them, and what comes after it."""
    before, _, rest = readme.partition(marks[0])
    inside, mark, after = rest.partition(marks[1])
    if not mark:
        raise ValueError(f"README.md lacks the lines {marks[0].strip()} and {marks[1].strip()}, in this order")
    return before + marks[0], inside, mark + after


def put_between(marks: tuple[str, str], made: str) -> None:
    """In the README, ``made`` in the place of what stands between them."""
    readme = ROOT / "README.md"
    before, _, after = between_marks(readme.read_text("utf-8"), marks)
    write_atomically(readme, f"{before}{made}{after}".encode())


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests import decoders, encoders

    reports = committed()
    rows = decoders_table({"shown": added_up(report["results"]["shown"] for report in reports)}, decoders)
    for marks, made in ((MARKS, section(reports)), (DECODER_MARKS, rows), (ENCODER_MARKS, encoders_table(encoders))):
        put_between(marks, made)

"""Are the explanations true? Every method on a real model: benchmarks/results/evaluate-MODEL.json and two pictures.

    python benchmarks/faithfulness.py smollm2            # or gemma3; `make evaluate` does both, side by side
    python benchmarks/faithfulness.py smollm2 --plan     # how many tokens would go through the model
    python benchmarks/faithfulness.py smollm2 --few 5    # of so many cases: prints, and keeps nothing

In parts, each into a folder of build/evaluate, so that what was stopped goes on while the code is the same:

- "search": epsilon and gamma of attnlrp on `HELD_OUT` of the short cases, which are then left out;
- "short": most methods on the others, by the protocols that are cheap;
- "curves": all methods on some of these, by the protocols that are not;
- "needles": what reads long prompts, on haystacks by length and depth.

Sizes are such that both models together take less than an hour on two quiet cores, at about 3 ms a token and thread.

Cases are those of demo/study/evaluated.py, turned the way that the model decides (`lrp_fast.evaluate.preferred`).
"""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import sys
import time
from functools import partial
from pathlib import Path

from results import RESULTS, ROOT, changed_since, commit, machine, versions

MODELS = ("smollm2", "gemma3")
HELD_OUT = 0.08
SHORT = ("flip", "recovery")
CURVES = ("morf_lerf", "contextcite", "agreement", "flip", "recovery", "disrupt_recover", "graph_cuts")
EVERY = 15  # so many short cases are one of "curves"
STEPS = 5  # of the curves
NEEDLES = (256, 512, 1024)
WORDS = ("random", "gradient", "abs_gradient", "gim", "cp", "attnlrp")
# Of "curves" alone: what costs most, itself or because the model changes its mind so late.
COSTLY = ("position", "last_attention", "attention_rollout", "integrated_gradients:steps=8", "leave_one_out")
ATTENTION = ("last_attention", "attention_rollout")  # of "needles", too
# What the methods take themselves, in forward passes: where it is not 4.
PASSES = {
    "random": 0, "position": 0, "last_attention": 1, "attention_rollout": 1, "integrated_gradients:steps=8": 25,
    "leave_one_out": 20,
}  # fmt: skip
BUILD = ROOT / "build" / "evaluate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--plan", action="store_true", help="count, and run nothing but the cases' own prompts")
    parser.add_argument("--few", type=int, metavar="N", help="of N cases: printed, and not kept")
    parser.add_argument("--needles", type=int, nargs="*", default=list(NEEDLES), metavar="N", help="lengths in tokens")
    options = parser.parse_args()
    model, tokenizer = loaded(options.model)
    if options.plan:
        return plan(model, tokenizer, options.needles)
    found = judged(options, model, tokenizer)
    if options.few:
        return print(json.dumps(found["seconds"]))
    from lrp_fast.files import without_infinity, write_atomically

    path = RESULTS / f"evaluate-{options.model}.json"
    write_atomically(path, (json.dumps(without_infinity(found), indent=None, separators=(",", ":")) + "\n").encode())
    print(f"wrote {path.name}", file=sys.stderr)


def loaded(name: str):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = runpy.run_path(str(ROOT / "demo" / f"{name}.py"))["model_directory"]()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(directory)


def short_cases() -> list[dict]:
    return demo("short")()


def needle_cases(lengths: list[int]) -> list[dict]:
    return demo("haystacks")(lengths, 1) if lengths else []


def demo(name: str):
    folder = str(ROOT / "demo" / "study")
    sys.path.insert(0, folder)
    try:
        return runpy.run_path(f"{folder}/evaluated.py")[name]
    finally:
        sys.path.remove(folder)


def judged(options: argparse.Namespace, model, tokenizer) -> dict:
    """All parts; what is kept of them."""
    from lrp_fast.evaluate import preferred, run, search
    from lrp_fast.evaluate.methods import named

    few, seconds, marks = options.few, {}, time.perf_counter()
    folder = begun(BUILD / (f"{options.model}-few" if few else options.model), anew=bool(few))

    def done(part: str) -> None:
        nonlocal marks
        seconds[part], marks = round(time.perf_counter() - marks, 1), time.perf_counter()
        print(f"{options.model}, {part}: {seconds[part]:.0f} s", file=sys.stderr, flush=True)

    all_short = short_cases()
    cases = preferred(model, all_short[:: max(1, len(all_short) // few)][:few] if few else all_short, tokenizer)
    done("turned")
    grid = {"gamma": (0.0, 0.1)} if few else None
    best = searched(folder, lambda: search(model, cases, grid=grid, tokenizer=tokenizer, share=HELD_OUT), cases)
    done("search")
    also = () if best["method"] in WORDS else (best["method"],)
    methods, some = ({word: named(word) for word in words} for words in ((*WORDS, *also), (*COSTLY, *WORDS, *also)))
    rest = [case for case in cases if case.id not in best["cases"]]
    parts = {
        "short": (rest, methods, protocols(SHORT)),
        "curves": (rest[:: 1 if few else EVERY], some, protocols(CURVES)),
    }
    needles = needle_cases(options.needles)[: few or None]
    if needles:
        needles = preferred(model, needles, tokenizer)
        quick = {word: named(word) for word in (*WORDS, *ATTENTION, *also)}
        parts["needles"] = (needles, quick, protocols(("recovery",)))
    found = {}
    for part, (of, by, how) in parts.items():
        bar = partial(told, options.model, part)
        found[part] = run(model, of, by, how, folder / part, tokenizer=tokenizer, progress=bar)
        done(part)
    if few:
        from lrp_fast.evaluate.printed import table

        print("\n\n".join(map(table, found.values())))
    else:
        pictures(options.model, found, needles)
    return about(options.model, cases, best, found, needles, seconds)


def begun(folder: Path, anew: bool) -> Path:
    """The folder, emptied of what other code has found, or of all; which code is as of now is settled here, too."""
    path, now = folder / "commit", None if commit()["dirty"] else commit()["id"]
    if anew or not path.is_file() or changed_since(path.read_text()):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        path.write_text(now or "none")
    return folder


def told(model: str, part: str, done: int, of: int) -> None:
    if done % 20 == 0 or done == of:
        print(f"{model}, {part}: {done} of {of} cases", file=sys.stderr, flush=True)


def protocols(names: tuple[str, ...]) -> dict:
    from lrp_fast.evaluate import PROTOCOLS

    found = {name: PROTOCOLS[name] for name in names}
    if "morf_lerf" in found:
        one = found["morf_lerf"]
        found["morf_lerf"] = one._replace(run=partial(one.run, steps=STEPS))
    return found


def searched(folder: Path, look, cases: list) -> dict:
    """What `search` found: kept, as it costs as much as a part."""
    from lrp_fast.files import write_atomically

    path = folder / "search.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found["of"] == [case.id for case in cases]:
            return found
    one = look()
    found = {"method": one.word, "measure": one.measure, "cases": [case.id for case in one.held_out]}
    found |= {"table": one.table, "of": [case.id for case in cases]}
    write_atomically(path, json.dumps(found).encode())
    return found


def about(name: str, cases: list, best: dict, found: dict, needles: list, seconds: dict) -> dict:
    """What is committed: tables, and of every case and method every measure."""
    told = {"commit_info": commit(), "machine_info": machine(), "versions": versions(), "model": name}
    told |= {"seconds": seconds, "steps": STEPS, "search": {key: one for key, one in best.items() if key != "of"}}
    told["turned"] = [case.id for case in cases if case.fields.get("turned")]
    told["kinds"] = {case.id: case.fields["kind"] for case in cases}
    told["needles"] = {case.id: [case.fields["length"], case.fields["depth"]] for case in needles}
    told["parts"] = {}
    for part, one in found.items():
        measures: dict[str, dict] = {}
        for row in one.rows:
            if row.why is None:
                values = {key: float(f"{value:.4g}") for key, value in row.measures.items()}
                measures.setdefault(row.protocol, {}).setdefault(row.method, {})[row.case] = values
        failed = [[row.case, row.method, row.protocol, row.why] for row in one.rows if row.why is not None]
        told["parts"][part] = {"about": one.about, "better": one.better, "table": one.table()}
        told["parts"][part] |= {"measures": measures, "failed": failed}
    return told


def pictures(name: str, found: dict, needles: list) -> None:
    from lrp_fast.evaluate import plots
    from lrp_fast.files import write_atomically

    write_atomically(ROOT / "docs" / f"evaluate-{name}-curves.svg", plots.removal_curves(found["curves"]))
    if "needles" in found:
        drawn = plots.needle_ranks(found["needles"], needles)
        write_atomically(ROOT / "docs" / f"evaluate-{name}-needles.svg", drawn)


def plan(model, tokenizer, lengths: list[int]) -> None:
    """Tokens through the model by part, as of random rankings; "flip" to its end, which it seldom goes to."""
    from lrp_fast.evaluate import plan as count

    short = short_cases()
    held = round(HELD_OUT * len(short))
    searched, rest, needles = short[:held], short[held:], needle_cases(lengths)
    total = 0
    for part, cases, names, words in (
        ("search", searched, ("flip",), ("attnlrp",) * 9),
        ("short", rest, SHORT, (*WORDS, "searched")),
        ("curves", rest[::EVERY], CURVES, (*COSTLY, *WORDS, "searched")),
        ("needles", needles, ("recovery",), (*WORDS, *ATTENTION, "searched")),
    ):
        found = count(model, cases, len(words), protocols(names), tokenizer=tokenizer)
        own = sum(PASSES.get(word, 4) for word in words) * sum(case["length"] for case in cases)
        for name, tokens in [*((one.protocol, one.tokens) for one in found), ("the methods", own)]:
            print(f"{part:<8} {name:<16} {len(cases):5} cases {tokens:12,} tokens")
            total += tokens
    print(f"in all {total:,} tokens")


if __name__ == "__main__":
    main()

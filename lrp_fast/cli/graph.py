"""``lrp-fast graph``: by which route."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lrp_fast_cli.options import pruning as read_pruning

from .explain import explain, read_spec
from .output import check_files


def run(options: argparse.Namespace) -> int:
    outputs = {name: getattr(options, name) for name in ("save", "html", "node_link", "neuronpedia")}
    files = {name: path for name, path in outputs.items() if path is not None}
    for name, path in files.items():
        check_files("--" + name.replace("_", "-"), path)
    if options.save and options.save.suffix != ".safetensors":
        raise ValueError(f"--save {options.save} would not be known as a graph file: let its name end in .safetensors")
    if len(set(files.values())) < len(files):
        raise ValueError("two outputs have one name: each needs a file of its own")

    from ..files import write_atomically
    from ..report.graph import as_json, table
    from ..report.graph_html import write_graph_html

    is_file = options.model.endswith(".safetensors")
    whole = _read_graph(options) if is_file else _build_graph(options)
    words, pruning = options.prune or read_pruning("none" if is_file else "influence:0.8,0.98")
    kept = whole.prune(**pruning) if pruning else whole
    paths = kept.paths(options.paths)

    def write_json(path: Path, data: dict) -> None:
        write_atomically(path, json.dumps(data, allow_nan=False).encode("ascii"))

    if options.save:
        kept.save(options.save)
    if options.html:
        write_graph_html(kept, options.html)
    if options.json:
        print(json.dumps(as_json(whole, kept, paths), ensure_ascii=False, allow_nan=False))
    else:
        print(table(whole, kept, paths, words))
    if options.node_link:  # these two come last: they refuse a graph of millions of edges
        write_json(options.node_link, kept.to_node_link())
    if options.neuronpedia:
        write_json(options.neuronpedia, kept.to_attribution_graph(options.neuronpedia.stem))
    if files:
        print(f"wrote {', '.join(map(str, files.values()))}", file=sys.stderr)
    return 0


def _read_graph(options: argparse.Namespace):
    from ..graph import Graph

    given = [name for name, default in options.defaults.items() if getattr(options, name) != default]
    if given:
        option = "--" + given[0].replace("_", "-")
        raise ValueError(f"{option} is for building a graph, and {options.model} is one: leave it out, or name a model")
    try:
        return Graph.load(options.model)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def _build_graph(options: argparse.Namespace):
    if options.prompt is None and options.prompt_file is None:
        raise ValueError("give --prompt or --prompt-file with a model; without them, a graph file, NAME.safetensors")
    if options.topk is None and options.mass is None:
        options.topk = 16
    return explain(options, read_spec(options)).graph

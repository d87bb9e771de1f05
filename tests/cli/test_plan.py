"""`lrp-fast plan`: what it would take."""

import json
from pathlib import Path

from lrp_fast.cli import main


def test_a_plan_needs_no_weights(directory, tmp_path, capsys):
    config = tmp_path / "only" / "config.json"
    config.parent.mkdir()
    config.write_bytes((Path(directory) / "config.json").read_bytes())
    assert main(["plan", str(config.parent), "--tokens", "100000", "--device-budget", "0.5GB"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("100,000 tokens of ") and "float32, rule attnlrp" in out and "on cuda" in out
    assert main(["plan", str(config.parent), "--tokens", "1000", "--device", "cpu", "--json", "--targets", "2"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["tiers"] == ["graph"] * 3 and planned["n_tokens"] == 1000 and planned["peak"]["cpu"] > 0


def test_a_plan_counts_a_graph(directory, capsys):
    sizes = ["plan", directory, "--tokens", "1000", "--device", "cpu", "--json"]
    peaks = []
    for more in ([], ["--topk", "8"], ["--topk", "8", "--layers", "0"]):
        assert main([*sizes, *more]) == 0
        peaks.append(json.loads(capsys.readouterr().out)["peak"]["cpu"])
    assert peaks[0] < peaks[2] < peaks[1]
    assert main([*sizes, "--layers", "0"]) == 2 and "give --topk or --mass too" in capsys.readouterr().err


def test_a_plan_says_what_is_wrong(directory, tmp_path, capsys):
    assert main(["plan", str(tmp_path / "none"), "--tokens", "10"]) == 2
    assert "is neither a folder here nor a name on the hub" in capsys.readouterr().err
    assert main(["plan", directory, "--tokens", "100000", "--device-budget", "1MB"]) == 2
    assert "on cuda cannot hold one layer of 100000 tokens: at least" in capsys.readouterr().err

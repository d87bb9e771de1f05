"""Prompt files: what of a file is the prompt."""

import json


def test_a_newline_at_the_end_of_a_prompt_file_is_not_part_of_the_prompt(run, tmp_path):
    for text in ("the capital of australia is", "the capital of australia is\n"):
        (tmp_path / "case.txt").write_text(text, "utf-8")
        status, out, _ = run("--prompt-file", "case.txt", "--json")
        assert status == 0 and len(json.loads(out)["tokens"]) == 5

"""`lrp-fast hops`: what is printed is what `lrp_fast.hops` finds."""

import json
import re

import pytest
import torch
import transformers

import lrp_fast

PROMPT = ("--prompt", "the capital of australia is new sydney is")
TWO = ("--target", "sydney", "--contrast", "canberra")
GENERATED = ("--generated", "4:7")


@pytest.fixture
def hops(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return lambda *question, **more: lrp_fast.hops(model, PROMPT[1], *question, tokenizer=tokenizer, **more)


def test_the_tables(run, tmp_path, hops):
    status, out, err = run(*PROMPT, *TWO, *GENERATED, "--top", "3", command="hops")
    assert status == 0 and "loading" in err and "loading" not in out and not list(tmp_path.iterdir())
    found = hops(range(4, 7), "sydney", "canberra")
    assert out.startswith("Why 'sydney' rather than 'canberra' after position 7?\nlogit difference ")
    for i, row in enumerate(zip(found.values.tolist(), found.totals.tolist(), found.left.tolist(), strict=True)):
        name = f"hop {i}" if i else "first"
        assert f"\n{name:6}  {row[0]:+#11.4g}  {row[1]:+#11.4g}  {row[2]:#11.4g}\n" in out
    assert out.count("\nhop ") == len(found.values) - 1 >= 1
    assert "left out" not in out
    hops_done, share = len(found.values) - 1, float(found.left[-1] / found.passes[0].double().abs().sum())
    end = f"after {hops_done} hop{'s' * (hops_done != 1)}, {share:.2g} of the first pass's |relevance| is left"
    assert found.settled and f"\n{end}: the bound, 0.01, is reached\n" in out
    own = found.relevance[[0, 1, 2, 3, 7]]
    strongest = torch.tensor([0, 1, 2, 3, 7])[own.abs().argsort(descending=True)][:3].tolist()
    rows = re.findall(r"^ +\d+ +(\d+)  '\w+' +([+-][\d.e+-]+) ", out, re.MULTILINE)
    assert [int(position) for position, _ in rows] == strongest
    assert [float(value) for _, value in rows] == pytest.approx(found.relevance[strongest].tolist(), rel=1e-3)
    assert f"share: of the summed |relevance| of 5 tokens, {own.double().abs().sum():#.4g}" in out


def test_the_table_says_that_the_bound_was_missed(run):
    status, out, _ = run(*PROMPT, *TWO, *GENERATED, "--bound", "0", "--most", "1", command="hops")
    assert status == 0 and re.search(r"\nafter 1 hop, [\d.e-]+ of .*: the bound, 0, is not reached, .*--most", out)


def test_the_table_of_bounded_passes(run, hops):
    status, out, _ = run(*PROMPT, *TWO, *GENERATED, "--tolerance", "0.5", command="hops")
    assert status == 0 and "\nleft out: of the attention's mass" in out
    found = hops(range(4, 7), "sydney", "canberra", tolerance=0.5)
    rows = re.findall(r"^(?:first|hop \d).*  +([\d.e+-]+) %  +([\d.e+-]+) %$", out, re.MULTILINE)
    shares = 100 * found.dropped
    truth = zip(shares.mean(1).tolist(), shares.amax(1).tolist(), strict=True)
    assert rows == [(f"{mean:.2g}", f"{most:.2g}") for mean, most in truth]


def test_the_record(run, hops):
    asked = ("--rule", "cp", "--bound", "0", "--most", "2", "--generated=-4:-1", "--json")
    status, out, _ = run(*PROMPT, *TWO, *asked, command="hops")
    assert status == 0
    told, found = json.loads(out), hops(range(4, 7), "sydney", "canberra", rule="cp", bound=0.0, most=2)
    assert (told["value"], told["generated"], told["rules"]["name"]) == (found.first.value, [4, 5, 6], "cp")
    assert [token["relevance"] for token in told["tokens"]] == found.relevance.tolist()
    assert [token["first"] for token in told["tokens"]] == found.first.relevance.tolist()
    assert [token["position"] for token in told["tokens"] if token["generated"]] == [4, 5, 6]
    columns = (found.values.tolist(), found.totals.tolist(), found.left.tolist())
    columns = (*columns, found.dropped.tolist())
    assert [list(one.values()) for one in told["passes"]] == list(map(list, zip(*columns, strict=True)))
    assert len(told["passes"]) == 3 and list(told["passes"][0]) == ["explained", "brought", "left", "dropped"]
    assert (told["bound"], told["settled"]) == (0.0, found.settled) == (0.0, False)


def test_an_answer(run, hops):
    status, out, _ = run(*PROMPT, "--answer", "new zealand", *GENERATED, "--json", command="hops")
    assert status == 0
    told, found = json.loads(out), hops(range(4, 7), answer="new zealand", contrast=("top", 1))
    assert told["value"] == found.first.value and len(told["tokens"]) == 9
    status, out, _ = run(*PROMPT, "--logprob", "--position", "-2", *GENERATED, command="hops")
    assert status == 0 and "after position 6?\nlog-probability -" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PROMPT,), "the following arguments are required: --generated"),
        (GENERATED, "one of the arguments --prompt --prompt-file is required"),
        ((*PROMPT, "--generated", "4"), "'4' is no span of positions: write START:END"),
        ((*PROMPT, "--generated", "4:4"), "'4:4' is no span of positions"),
        ((*PROMPT, "--generated", "4:"), "'4:' is no span of positions"),
        ((*PROMPT, "--generated=-4:3"), "'-4:3' is no span of positions"),
        ((*PROMPT, "--generated", "0:3"), "generated names position 0, which no token before it predicted"),
        ((*PROMPT, "--generated", "4:20"), "position 8 is outside|outside the prompt's 8 tokens"),
        ((*PROMPT, *GENERATED, "--bound", "1"), "bound must be a share, at least 0 and below 1"),
        ((*PROMPT, *GENERATED, "--most", "-1"), "most must be 0 or more hops, not -1"),
        ((*PROMPT, *GENERATED, "--target", "new", "--answer", "new"), "--target and --answer both say"),
        ((*PROMPT, *GENERATED, "--host-budget", "100"), "cannot hold one layer"),
    ],
)
def test_what_is_asked_wrongly_exits_with_2_and_one_sentence(run, arguments, message):
    status, out, err = run(*arguments, command="hops")
    assert status == 2 and out == "" and re.search(message, err) and "Traceback" not in err

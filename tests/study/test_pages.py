"""What `page` writes into its folder: every file read as a parser reads it. The browser's part is tests/report's."""

import base64
import json
import os
import re
import sys
from html.parser import HTMLParser

import pytest

import lrp_fast
from lrp_fast.report.html import write_html
from lrp_fast.study import Folder, page, read_cases
from lrp_fast.study import folder as folders
from lrp_fast.study.pages import columns, write
from lrp_fast.study.table import figures_of, write_table
from tests.study.made import result_of, write_run

pytest.importorskip("matplotlib")

HOSTILE = ["</script><script>alert(1)</script>", "../../../escaped", "..", "<!--<script>", "\u202e{{js}}", "\x00 &amp;"]


class Page(HTMLParser):
    """The names of a page's elements, what they refer to, and the data block."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text("utf-8")
        self.tags, self.addresses, self.scripts, self.open = [], [], [], []
        self.feed(self.text)
        self.close()
        assert not self.open, self.open
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def cell(data, key, row):
    return data["cells"][key][row]


def shown(data):
    return [one["key"] for one in data["columns"]]


GIVEN = [
    {"id": "a", "prompt": "the red wire", "kind": "wire", "depth": 0.5, "segments": {"instruction 1": [0, 2]}},
    {"id": "b", "prompt": "the blue wire", "kind": "wire", "long": "x" * 500},
    {"id": "c", "prompt": 3},
    {"id": "d", "prompt": "the last", "kind": "other"},
    {"id": "e", "prompt": "the next", "list": [1, 2]},
]


@pytest.fixture
def run(tmp_path):
    """Five cases: two that are done, a malformed one, one that failed, and one that has not been run."""
    first = result_of(["<s>", "the", " red"], [50.0, 1.0, -2.0]).by_source({"instruction 1": (0, 2)})
    results = {"a": first, "b": result_of(["<s>", "the", " blue"], [9.0, 4.0, 1.0], value=-1.0)}
    return write_run(tmp_path / "run", GIVEN, results, why={"d": "out of memory: <b>"}, ended=False)


def ended(folder):
    """The same, when the last case is done too."""
    result_of(["<s>", "the", " next"]).save(folder.result("e"))
    folders.append(folder, [{"id": "e", "status": "done", "why": None, "seconds": 0.1}])
    write_table(folder, folder.cases(), lambda value, segments: "found" if segments else None, {})
    return folder


def test_a_row_a_case(run):
    index = page(run)
    assert index == run.path / "pages" / "index.html"
    data = Page(index).data
    assert data["cells"]["case"] == ["a", "b", "c", "d", "e"]
    assert data["cells"]["status"] == ["done", "done", "refused", "failed", "waiting"]
    assert data["cells"]["value"] == [2.0, -1.0, None, None, None]
    assert data["cells"]["strip"] == [".eA", ".q_", None, None, None]
    assert data["cells"]["strongest"] == [" red", "the", None, None, None]
    assert data["cells"]["why"][2:] == ["item 3: prompt must be a string, not 3", "out of memory: <b>",
                                        "the run has not come to it"]
    assert data["cells"]["field.kind"] == ["wire", "wire", None, "other", None]
    assert data["cells"]["field.depth"][0] == 0.5 and len(cell(data, "field.long", 1)) == 160
    result = lrp_fast.load(run.result("a"))
    assert cell(data, "entropy", 0) == pytest.approx(figures_of(result, None)["entropy"], rel=1e-5)
    assert cell(data, "segment.instruction 1", 0) == 51.0
    assert "field.list" not in shown(data) and "finding" not in shown(data)
    assert data["subtitle"] == "A study of 5 cases: 2 done, 1 refused, 1 failed, 1 waiting."
    assert [one[:27] for one in data["notes"]] == ["This run has not ended; wha"]


def test_reasons_that_differ_in_texts_and_numbers_are_one(tmp_path):
    whys = ["the answer is right: ' Rome.'", 'the answer is right: "it\'s 7"', "the difference is -0.25, not above 1"]
    whys += ["the difference is 0.5, not above 1", "case3 has 2 tokens", "case3 has 2 tokens", "a word is missing."]
    given = [{"id": str(i), "prompt": "a"} for i in range(len(whys))]
    run = write_run(tmp_path / "run", given, {}, why={str(i): why for i, why in enumerate(whys)})
    (found,) = (one for one in Page(page(run)).data["tables"] if one["title"] == "Without a result")
    assert found["rows"] == [
        ["failed: the answer is right: …", "2"], ["failed: the difference is …, not above …", "2"],
        ["failed: case3 has 2 tokens", "2"], ["failed: a word is missing.", "1"],
    ]  # fmt: skip


def test_what_the_table_says_is_shown(run):
    """A finding, and what else of a plain kind others left there."""
    pandas = pytest.importorskip("pandas")
    ended(run)
    rows = pandas.read_parquet(run.table)
    rows["commitment"] = [3, 7, None, None, 5]
    rows["others"] = [[1], [2], None, None, [3]]
    rows.to_parquet(run.table)
    data = Page(page(run)).data
    assert data["cells"]["finding"] == ["found", None, None, None, None]
    assert data["cells"]["more.commitment"] == [3, 7, None, None, 5] and "more.others" not in shown(data)
    assert data["notes"] == [] and [one["title"] for one in data["figures"]][-1] == "What segments carry"


def test_graphs_have_columns_where_they_were_asked_for(model, tokenizer, tmp_path):
    given = [{"id": str(i), "prompt": "the capital of australia is"[: 11 + i]} for i in range(2)]
    lrp_fast.study.run(model, given, tmp_path / "run", tokenizer=tokenizer, graph=lrp_fast.GraphSpec(topk=2))
    data = Page(page(tmp_path / "run")).data
    graph = lrp_fast.Graph.load(Folder(tmp_path / "run").graph("0"))
    assert cell(data, "graph.edges", 0) == sum(len(graph.entries(layer)[0]) for layer in range(graph.num_layers))
    lrp_fast.study.run(model, given, tmp_path / "plain", tokenizer=tokenizer)
    assert not [one for one in shown(Page(page(tmp_path / "plain")).data) if one.startswith("graph")]


def test_what_observers_saw_is_shown(model, tokenizer, tmp_path):
    """Also where a field of the cases is called as they are, and where their file has been torn since."""
    case = {"prompt": "the capital of australia is", "target": "sydney", "segments": {"one": [0, 2], "two": [2, 4]}}
    given = [{"id": "a", "commitment": "mine", "heads": "mine too"} | case, {"id": "b"} | case]
    seen = {"heads": 2, "neurons": 2, "lens": True, "steps": True}
    lrp_fast.study.run(model, given, tmp_path / "run", tokenizer=tokenizer, observe=seen)
    folder = Folder(tmp_path / "run")
    row = lrp_fast.study.table(folder).set_index("id").loc["a"]
    data = Page(page(folder)).data
    best = row.heads[0]
    assert cell(data, "seen.head", 0) == f"layer {best['layer']}, head {best['head']}"
    assert cell(data, "seen.head_relevance", 0) == pytest.approx(best["output"], rel=1e-5)
    assert cell(data, "seen.neuron", 0) == f"layer {row.neurons[0]['layer']}, neuron {row.neurons[0]['neuron']}"
    assert data["cells"]["more.commitment"] == [row.commitment] * 2 and data["cells"]["field.commitment"][0] == "mine"
    own = folder.path / "pages" / "cases" / f"{folders.key('a')}.html"
    told = dict(Page(own).data["facts"])
    assert [name for name in told if name not in ("Case", "commitment", "heads")] == [
        "Strongest heads", "Strongest neurons", "Commitment layer", "Logit lens by layer", "Step one", "Step two",
    ]  # fmt: skip
    heads = told["Strongest heads"]
    assert heads.startswith(f"{cell(data, 'seen.head', 0)} ") and heads.count(";") == 1
    assert told["Commitment layer"] == str(row.commitment)
    assert told["Logit lens by layer"].count(",") == model.config.num_hidden_layers
    assert "moved" not in told["Step one"] and "; moved from the step before by " in told["Step two"]
    folder.observed("a").write_bytes(b"")
    page(folder)
    assert "is missing or torn: start the run again" in dict(Page(own).data["facts"])["Observed"]


@pytest.mark.parametrize("name", ["graph", "heads", "steps", "commitment", "value", "status", "strip", "segments.x"])
def test_a_field_may_be_called_as_what_the_pages_show(name, tmp_path):
    given = [{"id": id, "prompt": "x", name: f"{id}'s own"} for id in "ab"]
    run = write_run(tmp_path / "run", given, {id: result_of(["<s>", "x"]) for id in "ab"})
    data = Page(page(run)).data
    assert data["cells"][f"field.{name}"] == ["a's own", "b's own"]
    assert [key for key in shown(data) if name in key and key.partition(".")[0] in ("graph", "seen", "more")] == []


def test_every_link_leads_to_a_page(run):
    index = page(run)
    data = Page(index).data
    column = data["columns"][0]
    linked = [i for i, one in enumerate(data["cells"][column["linked"]]) if one is not None]
    pages = {f"{column['at']}{data['keys'][i]}.html" for i in linked}
    assert linked == [0, 1] and pages == {f"cases/{one.name}" for one in (index.parent / "cases").iterdir()}
    for one in pages:
        for _, address in Page(index.parent / one).data["links"]:
            assert (index.parent / "cases" / address).resolve() == index


def test_a_case_has_the_page_of_today(run, tmp_path):
    index = page(run)
    ours = Page(index.parent / "cases" / f"{folders.key('a')}.html")
    write_html(lrp_fast.load(run.result("a")), tmp_path / "page.html")
    plain = Page(tmp_path / "page.html")
    assert ours.data.pop("facts") == [["Case", "a"], ["kind", "wire"], ["depth", "0.5"]]
    assert ours.data.pop("links") == [["All cases", "../index.html"]]
    plain.data.pop("facts"), plain.data.pop("links")
    assert ours.data == plain.data and ours.scripts[1] == plain.scripts[1] and ours.tags == plain.tags


def test_nothing_leaves_the_data_block_or_the_folder(tmp_path):
    """Whatever ids, tokens, fields, segments and reasons say."""
    given = [
        {"id": id, "prompt": "x", HOSTILE[0]: id, "field": HOSTILE[0], "segments": {id: [0, 1]}} for id in HOSTILE
    ]
    results = {id: result_of(["<s>", id, HOSTILE[0]], text=id).by_source({id: (0, 1)}) for id in HOSTILE[:-1]}
    run = write_run(tmp_path / "in" / HOSTILE[4], given, results, why={HOSTILE[-1]: HOSTILE[0]})
    harmless = write_run(tmp_path / "harmless", GIVEN[:1], {"a": result_of(["<s>", "a"])})
    pages, plain = page(run, out=tmp_path / "out").parent, page(harmless).parent
    assert Page(pages / "index.html").tags == Page(plain / "index.html").tags
    assert not Page(pages / "index.html").addresses
    case = next((plain / "cases").iterdir())
    names = sorted(str(one.relative_to(tmp_path / "out")) for one in pages.rglob("*") if one.is_file())
    assert names == sorted(["index.html", "pages.json", ".lock", *(f"cases/{folders.key(id)}.html" for id in results)])
    assert all(re.fullmatch(r"(cases/)?[.\w-]+", one) for one in names)
    for one in (pages / "cases").iterdir():
        assert Page(one).tags == Page(case).tags and not Page(one).addresses
    data = Page(pages / "index.html").data
    assert data["cells"]["case"] == HOSTILE and data["title"] == HOSTILE[4]
    assert data["cells"][f"field.{HOSTILE[0]}"] == HOSTILE
    block = Page(pages / "index.html").scripts[0]
    assert block.isascii() and not re.search("[<>&\x00-\x1f]", block)
    for one in data["figures"]:
        svg = base64.b64decode(one["svg"]).decode()
        assert svg.startswith("<svg") and not re.search(r"<script|https?://(?!www\.w3\.org)", svg)


def test_no_host_is_asked_and_only_its_own_script_acts(run):
    text = page(run).read_text()
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    allowed = r"default-src 'none'; style-src 'sha256-[\w+/=]+'; script-src 'sha256-[\w+/=]+'; img-src data:"
    assert re.fullmatch(allowed, policy)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\b|\bfetch\(|XMLHttpRequest", text)


def times(pages):
    return {one.name: one.stat().st_mtime_ns for one in (pages / "cases").iterdir()}


def test_a_page_that_is_there_stays(run):
    pages = page(run).parent
    before = times(pages)
    ended(run)
    assert Page(page(run)).data["cells"]["status"][-1] == "done"
    after = times(pages)
    assert {name: after[name] for name in before} == before and len(after) == 3


@pytest.mark.parametrize("what", ["a newer result", "cut", "other templates"])
def test_a_page_that_no_longer_holds_is_written_again(what, run, monkeypatch):
    pages = page(run).parent
    before = times(pages)
    name = f"{folders.key('a')}.html"
    if what == "a newer result":
        result_of(["<s>", "other", " tokens"]).save(run.result("a"))
        later = before[name] + 1_000_000
        os.utime(run.result("a"), ns=(later, later))
    elif what == "cut":
        os.truncate(pages / "cases" / name, 1000)
    else:
        plain = write.templates
        monkeypatch.setattr(write, "templates", lambda name: plain(name) | {"css": "p { margin: 0 }"})
    page(run)
    changed = {one for one, time in times(pages).items() if time != before[one]}
    assert changed == (set(before) if what == "other templates" else {name})
    assert Page(pages / "cases" / name).data["tokens"][1] == ("other" if what == "a newer result" else "the")


def test_it_goes_on_where_it_was_ended(run, monkeypatch):
    plain, written = write.case_page, []

    def ending(*given):
        written.append(given)
        if len(written) == 2:
            raise KeyboardInterrupt
        return plain(*given)

    with monkeypatch.context() as patch:
        patch.setattr(write, "case_page", ending)
        with pytest.raises(KeyboardInterrupt):
            page(run)
    pages = run.path / "pages"
    before = times(pages)
    (pages / "cases" / ".a.html.0123abcd.part").touch()
    assert len(before) == 1 and not (pages / "index.html").exists()
    page(run)
    assert before.items() < times(pages).items() and len(times(pages)) == 2


@pytest.mark.parametrize("lost", ["torn", "missing"])
def test_a_result_that_is_lost_is_a_row(lost, run):
    if lost == "torn":
        os.truncate(run.result("a"), run.result("a").stat().st_size - 4)
    else:
        run.result("a").unlink()
    data = Page(page(run)).data
    assert data["cells"]["status"][:2] == ["lost", "done"] and data["cells"]["strip"][0] is None
    why = cell(data, "why", 0)
    assert why.startswith({"torn": "its result is not a whole file", "missing": "its result is missing: start"}[lost])
    assert os.fspath(run.path) not in why


def test_other_folders_are_left_alone(run, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="home' holds other things, 'thesis.tex': name a new one"):
        page(run, out=tmp_path / "home")
    assert [one.name for one in (tmp_path / "home").iterdir()] == ["thesis.tex"]
    other = write_run(tmp_path / "other", GIVEN[:1], {"a": result_of(["<s>", "a"])}, begun="2026-02-02T00:00:00+00:00")
    page(run, out=tmp_path / "out")
    with pytest.raises(ValueError, match="out' holds the pages of another run: name a new one"):
        page(other, out=tmp_path / "out")
    with folders.locked(tmp_path / "out"), pytest.raises(ValueError, match="another process works on .*out"):
        page(run, out=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="is no study's folder"):
        page(tmp_path / "home")
    for taken in (tmp_path / "home" / "thesis.tex", tmp_path / "home" / "thesis.tex" / "pages"):
        with pytest.raises(ValueError, match="thesis.tex.* is no folder, or lies in none: name a new one"):
            page(run, out=taken)


def test_without_matplotlib_that_is_said_first(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"drawn with matplotlib: pip install 'lrp-fast\[study\]'"):
        page(run)
    assert not (run.path / "pages").exists()


def test_three_thousand_cases_are_less_than_5_mb(tmp_path, monkeypatch):
    """Fields for which there is no room are named."""
    ids = [f"a case of some length {i}" for i in range(3000)]
    fields = {f"field {i}": f"{i} is a text of many words, " * 10 for i in range(10)}
    run = write_run(tmp_path / "run", [{"id": id, "prompt": "x"} | fields for id in ids], {}, ended=False)
    folders.append(run, [{"id": id, "status": "done", "why": None, "seconds": 0} for id in ids])
    result = result_of(["<s>", *(f" token{i}" for i in range(99))])
    for id in ids:
        run.result(id).touch()
    figures = figures_of(result, None)
    write_table(run, run.cases(), lambda *_: "over-weighted irrelevant instruction", {id: figures for id in ids})
    monkeypatch.setattr(write, "load", lambda path: result)  # the same one, and no page of it, to save time
    monkeypatch.setattr(write, "case_page", lambda *given: b"</html>\n")
    index = page(run)
    assert len(list((index.parent / "cases").iterdir())) == 3000
    assert 3_000_000 < index.stat().st_size < 5_000_000
    data = Page(index).data
    assert len(data["cells"]["case"]) == 3000 and {"strip", "entropy", "finding", "field.field 0"} <= set(shown(data))
    assert re.fullmatch(r"Columns that the page has no room for: .*field 9.*\. cases.parquet .*", data["notes"][0])


def test_columns_that_hold_nothing_are_not_there():
    found, left_out = columns.embedded(
        [columns.Column("case", "case", "case", ["a"]), columns.Column("x", "x", "text", [None])]
        + [columns.Column("y", "y", "plain", [float("inf")]), columns.Column("z", "z", "plain", [1 / 3])],
        ["key"],
    )
    assert found["cells"] == {"case": ["a"], "z": [0.333333]} and left_out == []


@pytest.fixture
def other(tmp_path):
    """Of another model: "a" with the value's sign turned, another prompt at "b", and no "c"."""
    results = {"a": result_of(["<s>", "the", " red"], [1.0, 3.0, 1.0], value=-2.0)}
    results |= {id: result_of(["<s>", "the"]) for id in ("b", "d")}
    given = [GIVEN[0], {"id": "b", "prompt": "another"}, *GIVEN[3:]]
    return write_run(tmp_path / "other run", given, results, begun="2026-03-03T00:00:00+00:00", why={"e": "y"})


def test_a_comparison_shows_cases_side_by_side(run, other, tmp_path):
    index = page(ended(run), [other], tmp_path / "out")
    compared = Page(index.with_name("comparison.html"))
    data = compared.data
    assert data["title"] == "run compared with other run" and data["cells"]["case"] == ["a", "b", "c", "d", "e"]
    assert (cell(data, "value.0", 0), cell(data, "value.1", 0), cell(data, "change.1", 0)) == (2.0, -2.0, -4.0)
    assert data["cells"]["change.1"][1:] == [None] * 4
    assert cell(data, "strip.0", 0) == ".eA" and cell(data, "strip.1", 0) == ".qa"
    assert cell(data, "flips.1", 0).startswith("sign") and cell(data, "status.1", 2) == "missing"
    assert {one["title"] for one in data["tables"]} >= {"Means", "Not compared", "Otherwise than in run"}
    for column in data["columns"]:
        for row, one in enumerate(data["cells"].get(column.get("linked"), [])):
            if "at" in column and one is not None:
                assert (index.parent / column["at"] / f"{data['keys'][row]}.html").is_file()
    for _, address in data["links"]:
        links = Page(index.parent / address).data["links"]
        there = [(index.parent / address).parent / one for _, one in links]
        assert index.with_name("comparison.html") in [one.resolve() for one in there]
    assert page(run, other, tmp_path / "out") == index


def test_a_run_that_has_no_table_is_not_compared(run, other):
    with pytest.raises(FileNotFoundError, match="has no table yet"):
        page(run, [other])
    assert not (run.path / "pages").exists()


def test_a_case_is_read_as_it_was_given(run):
    assert [case.id for case in read_cases(run.path / "cases.jsonl")] == ["a", "b", "c", "d", "e"]

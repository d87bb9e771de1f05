"""Results appear whole or not at all, and nothing stays behind."""

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest

import lrp_fast
from lrp_fast.files import aside, write_atomically
from lrp_fast.report.graph_html import write_graph_html
from lrp_fast.report.html import write_html


def test_a_result_replaces_the_one_before(tmp_path):
    for data in (b"first", b"second"):
        write_atomically(tmp_path / "case.json", data)
        assert [path.name for path in tmp_path.iterdir()] == ["case.json"]
        assert (tmp_path / "case.json").read_bytes() == data


def test_a_failure_leaves_the_one_before(tmp_path):
    write_atomically(tmp_path / "case.json", b"first")
    with pytest.raises(ZeroDivisionError), aside(tmp_path / "case.json") as part:
        part.write_bytes(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "case.json").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["case.json"]


@pytest.mark.slow
def test_what_a_killed_writer_left_goes_with_the_next_result(tmp_path):
    path = tmp_path / "case[1].json"  # a name that means something else to glob
    code = """
        import sys
        from lrp_fast.files import aside
        with aside(sys.argv[1]) as part:
            part.write_bytes(b"half")
            print("ready", flush=True)
            sys.stdin.readline()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "ready\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".case[1].json.") and not path.exists()
    write_atomically(path, b"whole")
    assert left.exists(), "a writer at work must be left alone"
    other = tmp_path / ".case[1].json.gz.01234567.part"  # of another result
    other.write_bytes(b"half")
    for path_left in (left, other):
        os.utime(path_left, (0, 0))
    write_atomically(path, b"whole")
    assert {found.name for found in tmp_path.iterdir()} == {path.name, other.name}


def refusal(write, path, kind):
    """The one sentence with which ``write(path)`` fails; it names what was asked for, and nothing stays behind."""
    folder = path.parent
    before = sorted(folder.rglob("*")) if folder.is_dir() else []
    with pytest.raises(kind) as raised:
        write(path)
    said = str(raised.value)
    assert "\n" not in said and ".part" not in said and repr(path.name) in said and repr(str(folder)) in said
    assert (sorted(folder.rglob("*")) if folder.is_dir() else []) == before
    return said, raised.value.errno


@pytest.fixture(params=["bytes", "attribution", "graph", "page", "graph page"])
def write(request, tiny, ids):
    """``write(path)``: each of the ways in which a result gets to disk."""
    if request.param == "bytes":
        return lambda path: write_atomically(path, b"data")
    result = lrp_fast.attribute(tiny("llama"), ids, graph=lrp_fast.GraphSpec(topk=2))
    return {
        "attribution": result.save,
        "graph": result.graph.save,
        "page": lambda path: write_html(result, path),
        "graph page": lambda path: write_graph_html(result.graph, path),
    }[request.param]


def test_a_folder_that_is_not_there(write, tmp_path):
    path = tmp_path / "no" / "such" / "case.safetensors"
    said, number = refusal(write, path, FileNotFoundError)
    assert said.endswith("(No such file or directory): make that folder, or name one that exists")
    assert number == errno.ENOENT
    path.parent.mkdir(parents=True)  # as advised
    write(path)
    assert os.listdir(path.parent) == ["case.safetensors"]


def test_what_is_no_place_for_a_file(write, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    said, _ = refusal(write, tmp_path / "file" / "case", NotADirectoryError)
    assert said.endswith("name a folder, and a file in it")
    (tmp_path / "folder").mkdir()
    said, _ = refusal(write, tmp_path / "folder", IsADirectoryError)
    assert said.endswith("that is a folder, so name a file in it")
    write(tmp_path / "folder" / "case")  # as advised
    said, _ = refusal(write, tmp_path / ("n" * 256), OSError)
    assert said.endswith("(File name too long): give it a shorter name")
    with pytest.raises(IsADirectoryError, match=r"cannot write '\.\.' in the folder '\.'"):
        write("..")
    os.mkfifo(tmp_path / "pipe")
    said, _ = refusal(write, tmp_path / "pipe", FileExistsError)
    assert said.endswith("that is no regular file, so name another") and (tmp_path / "pipe").is_fifo()


def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path):
    path = tmp_path / ("n" * 255)
    with pytest.raises(ZeroDivisionError), aside(path) as part:
        part.write_bytes(b"half")
        os.utime(part, (0, 0))
        os.link(part, left := part.with_name(part.name.replace(part.name[-13:-5], "01234567")))
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == [left.name]
    for data in (b"first", b"second"):
        write_atomically(path, data)
        assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == data


@pytest.mark.parametrize(
    ("number", "kind", "mend"),
    [
        (errno.EACCES, PermissionError, "(Permission denied): name a folder and a file that you may write"),
        (errno.EROFS, OSError, "(Read-only file system): name a folder on a disk that can be written"),
        (errno.EIO, OSError, "(Input/output error): name another file"),
        (errno.ENOENT, FileNotFoundError, "(No such file or directory): write it again"),
        (None, OSError, "(a word of its own): name another file"),
    ],
)
def test_what_the_system_refuses(write, tmp_path, monkeypatch, number, kind, mend):
    def refuse(*_):
        raise OSError(number, os.strerror(number)) if number else OSError("a word of its own\nand more")

    monkeypatch.setattr(os, "replace", refuse)
    said, found = refusal(write, tmp_path / "case", kind)
    assert said.endswith(mend) and found == number


def test_a_disk_that_is_full(write, tmp_path):
    """No file may hold more than 3 bytes for a while: what is beyond fails as it does on a full disk."""
    write(tmp_path / "case")
    before = (tmp_path / "case").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3, limits[1]))
        said, number = refusal(write, tmp_path / "case", OSError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said.endswith("(File too large): name a folder on a disk that takes files of this size")
    assert number == errno.EFBIG and (tmp_path / "case").read_bytes() == before
    assert os.listdir(tmp_path) == ["case"]

"""Results appear whole or not at all, and nothing stays behind."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from lrp_fast.files import aside, write_atomically


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

"""How the words given to options are read."""

import pytest

from lrp_fast.cli import main
from lrp_fast_cli import options


@pytest.mark.parametrize(
    ("text", "size"),
    [("800MB", 800_000_000), ("60 GB", 60 * 10**9), ("1.5TiB", 3 * 2**39), ("512", 512), ("2kib", 2048), ("7B", 7)],
)
def test_sizes_read_as_people_write_them(text, size):
    assert options.size(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "1XB", "1e9", "GB"])
def test_what_is_no_size_is_refused(text, directory, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", directory, "--tokens", "10", f"--host-budget={text}"])
    assert stop.value.code == 2 and "is no size: write 800MB, 60GB" in capsys.readouterr().err

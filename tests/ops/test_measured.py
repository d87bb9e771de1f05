"""What was measured on a device: written whole, read once, checked, and not used where it does not belong."""

import json
import warnings

import pytest
import torch

pytest.importorskip("triton")

from lrp_fast.kernels import tiles  # noqa: E402
from lrp_fast.ops import backend, measured  # noqa: E402

DEVICE = measured.Device("NVIDIA H100 80GB HBM3", (9, 0), 232448)
ROW, PATH = "dkv, head_dim 128, 2 bytes", "attention backward, head_dim 128, 2 bytes"
FOUND = measured.Measured({ROW: measured.Tile([32, 64, 4, 3], 100_000)}, {PATH: "triton"})


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backend.read_again()
    yield tmp_path
    backend.read_again()


def read():
    return measured.read(DEVICE, tiles.TABLE)


def rewrite(change):
    """The written file, with its JSON changed."""
    path = measured.write(DEVICE, FOUND)
    told = json.loads(path.read_text())
    told = change(told) or told
    path.write_text(told if isinstance(told, str) else json.dumps(told))


def test_what_is_written_is_read(cache):
    assert read().state == "absent" and "`lrp-fast tune` does" in read().told
    path = measured.write(DEVICE, FOUND)
    assert path == cache / "lrp_fast" / "tuned-nvidia-h100-80gb-hbm3.json" and [*path.parent.iterdir()] == [path]
    assert read() == measured.Found(FOUND, "used", f"tiles and paths as measured, {path}")
    assert "last bits of results differ" in path.read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", "NVIDIA H200"), ("capability", "8.0"), ("triton", "3.0.0"), ("torch", "2.0"), ("lrp_fast", "0.0")],
)
def test_what_another_device_or_version_measured_is_not_used(name, value):
    rewrite(lambda told: told.update({name: value}))
    found = read()
    assert (found.measured, found.state) == (measured.NOTHING, "other")
    assert f"was measured with {name} {value}, and this is " in found.told and "run `lrp-fast tune` again" in found.told


BROKEN = {
    "it is no file that `lrp-fast tune` wrote": [
        lambda told: "[1, 2]",
        lambda told: told.update(format="lrp_fast.graph/1"),
    ],
    "Expecting value": [lambda told: "not JSON"],
    "it says 'tiles' twice": [lambda told: '{"tiles": 1, "tiles": 2}'],
    "lie more than 200 deep": [lambda told: "[" * 100_000],
    "it holds no 'paths'": [lambda told: told.pop("paths") and told],
    "it holds 'more', which is not known": [lambda told: told.update(more=1)],
    "it takes 1,000,001 bytes": [lambda told: "x" * 1_000_001],
    "its tiles and paths are no JSON objects": [
        lambda told: told.update(tiles=[]),
        lambda told: told.update(paths=None),
    ],
    "it has tiles for 'a row', which is no row of tiles.json": [lambda told: told["tiles"].update({"a row": {}})],
    f"its tile for {ROW!r} is no entry with the shared memory": [
        lambda told: told["tiles"].update({ROW: [32, 64, 4, 3]}),
        lambda told: told["tiles"].update({ROW: {"entry": [32, 64, 4, 3]}}),
        lambda told: told["tiles"][ROW].update(shared=True),
    ],
    f"its entry for {ROW!r} is no list of 4 whole numbers": [
        lambda told: told["tiles"][ROW].update(entry=[32, 64, 4]),
        lambda told: told["tiles"][ROW].update(entry=[32, 64, 4.0, 3]),
        lambda told: told["tiles"][ROW].update(entry=None),
    ],
    "has a block that is no power of two from 16 to 256": [
        lambda told: told["tiles"][ROW].update(entry=[48, 64, 4, 3]),
        lambda told: told["tiles"][ROW].update(entry=[0, 64, 4, 3]),
    ],
    "has warps that are not 1, 2, 4, 8 or 16": [lambda told: told["tiles"][ROW].update(entry=[32, 64, 3, 3])],
    "has stages that are not 1 to 8": [lambda told: told["tiles"][ROW].update(entry=[32, 64, 4, 0])],
    "takes 232,449 bytes of shared memory, and a block has 232,448 here": [
        lambda told: told["tiles"][ROW].update(shared=232449)
    ],
    "its path for 'attention sideways' is 'triton'": [
        lambda told: told["paths"].update({"attention sideways": "triton"})
    ],
    f"its path for {PATH!r} is 'cuda'": [lambda told: told["paths"].update({PATH: "cuda"})],
}


@pytest.mark.parametrize(
    ("words", "change"), [(words, change) for words, changes in BROKEN.items() for change in changes]
)
def test_a_broken_file_is_told_in_one_sentence(words, change):
    rewrite(change)
    found = read()
    assert (found.measured, found.state) == (measured.NOTHING, "broken") and words in found.told
    assert found.told.endswith("; delete it, or run `lrp-fast tune` again") and "\n" not in found.told


def test_a_folder_in_its_place_is_told(cache):
    measured.file_of(DEVICE).mkdir(parents=True)
    assert read().state == "broken"


def test_nobody_has_to_have_a_home(monkeypatch):
    """As in a container whose user is a number that no file knows."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(measured.Path, "home", home)
    why = "no home directory is known: set XDG_CACHE_HOME"
    assert read() == measured.Found(measured.NOTHING, "absent", f"nothing that was measured is read: {why}")
    with pytest.raises(OSError, match=why):
        measured.write(DEVICE, FOUND)


@pytest.fixture
def on_cuda(monkeypatch):
    """A CUDA device as far as tables are concerned."""
    monkeypatch.setattr(measured, "device_of", lambda device: DEVICE)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: DEVICE.capability)
    return torch.device("cuda", 0)


BEFOREHAND = ("vendor", "triton")


class Query:
    """What `preferred` looks at."""

    is_cuda, device, shape = True, torch.device("cuda", 0), (1, 2, 3, 80)

    @staticmethod
    def element_size():
        return 2


def test_what_was_measured_goes_before_the_table(on_cuda):
    assert backend.table_of(on_cuda) is tiles.TABLE and backend.preferred("attention backward", Query) == BEFOREHAND
    measured.write(DEVICE, FOUND)
    assert backend.table_of(on_cuda) is tiles.TABLE  # read once
    backend.read_again()
    table = backend.table_of(on_cuda)
    assert tiles.find(table, ROW, (9, 0)) == [32, 64, 4, 3]
    assert tiles.find(table, ROW, (8, 0)) == tiles.TABLE[ROW]["small"]
    assert {row: entries for row, entries in table.items() if row != ROW} == {
        row: entries for row, entries in tiles.TABLE.items() if row != ROW
    }
    assert backend.preferred("attention backward", Query) == ("triton", *BEFOREHAND)
    assert backend.preferred("attention forward", Query) == BEFOREHAND
    assert backend.table_of(torch.device("cpu")) is tiles.TABLE


def test_a_broken_file_warns_once_and_the_table_serves(on_cuda):
    rewrite(lambda told: "{")
    with pytest.warns(UserWarning, match=r"tuned-nvidia-h100-80gb-hbm3.json is not used: .*; delete it, or run"):
        assert backend.table_of(on_cuda) is tiles.TABLE
    with warnings.catch_warnings(action="error"):
        backend.table_of(on_cuda)
        assert backend.preferred("attention backward", Query) == BEFOREHAND


def test_one_of_another_version_is_silent_but_for_the_doctor(on_cuda):
    rewrite(lambda told: told.update(triton="3.0.0"))
    with warnings.catch_warnings(action="error"):
        assert backend.table_of(on_cuda) is tiles.TABLE
    assert backend.found_on(on_cuda).state == "other"

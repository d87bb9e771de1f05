"""tiles.json: an entry for every launch on every device, in a form that can be read beside another."""

import importlib
import json

import pytest
import torch

from lrp_fast import ops
from lrp_fast.kernels import attention, common, edges, linear, tiles
from lrp_fast.ops import measured

EXACT = {name for entries in tiles.TABLE.values() for name in entries} - {"small", "large"}
DEVICES = [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0), *(tuple(map(int, name.split("."))) for name in EXACT)]


@pytest.mark.parametrize("on", sorted(set(DEVICES)))
def test_attention_s_rows_are_complete(on, monkeypatch):
    monkeypatch.setattr(attention.arguments, "capability", lambda _: on)
    for dim in (64, 80, 96, 128, 256):
        for dtype in (torch.float16, torch.float32):
            for gamma, capped in ((False, False), (False, True), (True, False)):
                x = torch.empty(1, dim, dtype=dtype)
                for step in ("forward", "dkv", "dq"):
                    assert min(attention.config(step, x, gamma, capped)) > 0
                assert min(attention.config("masses", x, False, capped)) > 0
            for step in ("edges", "edges parts", "edges gamma") if x[0].nbytes <= 512 else ():
                assert min(attention.config(step, x, False, False)) > 0


@pytest.mark.parametrize("on", sorted(set(DEVICES)))
@pytest.mark.parametrize("kernel", [linear.gamma_forward_kernel, linear.gamma_backward_kernel])
def test_linear_s_rows_are_complete(kernel, on):
    for rows in (1, 33):
        for itemsize in (2, 4):
            linear.Tiles(*tiles.find(tiles.TABLE, linear.row(kernel, rows, itemsize), on))


def test_which_entry_serves_a_device():
    table = {"a row": {"small": [1], "large": [2]}}
    for on, entry in (((8, 0), [1]), ((8, 9), [1]), ((9, 0), [2]), ((10, 3), [2]), ((12, 0), [1])):
        assert tiles.find(table, "a row", on) == entry
    tuned = tiles.replaced(table, "a row", (8, 9), (3,))
    assert [tiles.find(tuned, "a row", on) for on in ((8, 0), (8, 9))] == [[1], [3]]
    assert tiles.find(table, "a row", (8, 9)) == [1]


def test_the_file_is_a_line_a_row():
    rows = (f"  {json.dumps(row)}: {json.dumps(entries)}" for row, entries in tiles.TABLE.items())
    assert tiles.FILE.read_text() == "{\n" + ",\n".join(rows) + "\n}\n"


def test_every_entry_is_one_that_may_be_measured():
    for entries in tiles.TABLE.values():
        assert all(measured.fits(entry, entries["small"]) is None for entry in entries.values())


def test_launches_take_their_tiles_from_the_table_that_they_are_given():
    table = tiles.TABLE
    for row, entries in tiles.TABLE.items():
        table = tiles.replaced(table, row, (9, 0), [16, 16, *entries["large"][2:-2], 2, 1])
    query, x = torch.empty(1, 1, 256, 64, device="meta"), torch.empty(64, 64, device="meta")
    plain = {"scale": 1.0, "causal": True, "window": None, "softcap": None}
    flags = plain | {"table": table}

    def launch_all():
        out, lse, _ = attention.forward(query, query, query, **flags)
        shares = {"value_share": 0.5, "score_share": 0.25, "ratio": True}
        attention.backward(out, query, query, query, out, lse, None, **flags, **shares)
        attention.tile_masses(out, query, query, out, lse, None, **flags)
        given = edges.prepare(
            out, query, query, query, out, lse, None, key_part=None, value_part=None, **plain, **shares
        )  # fmt: skip
        rows = torch.empty(256, dtype=torch.int64, device="meta")
        edges.strongest(given, rows, 16, table=table)
        edges.tile(given, rows, slice(0, 256), torch.empty(2**16, device="meta"), table=table)
        z, t = linear.gamma_forward(x, x, None, 0.1, 0.1, table=table)
        linear.gamma_backward(z, x, t, x, 0.1, table=table)

    with common.taken_down((9, 0)) as launched:
        launch_all()
    launches = [one[2:] for one in launched if "BLOCK_N" in one[2]]
    assert len(launches) == 8
    for constants, num_warps, num_stages in launches:
        assert (constants["BLOCK_M"], constants["BLOCK_N"], num_warps, num_stages) == (16, 16, 2, 1)


def test_operations_launch_by_the_table_of_their_device(monkeypatch):
    """What was measured there, if anything: every kernel that has rows."""
    table = tiles.TABLE
    for row, entries in tiles.TABLE.items():
        table = tiles.replaced(table, row, (9, 0), [16, 16, *entries["large"][2:-2], 2, 1])
    for name in ("attention", "edges", "linear"):
        monkeypatch.setattr(importlib.import_module(f"lrp_fast.ops.{name}"), "table", lambda x: table)
    x, traces = torch.randn(1, 2, 64, 16).requires_grad_(), []
    given = {"impl": "triton"}
    with common.taken_down((9, 0)) as launched:
        out = ops.attention(x, x, x, traces=traces, **given)
        out.backward(out)
        rows = torch.arange(64)
        ops.attention_edges(traces[0], rows, topk=3, **given)
        ops.attention_edges(traces[0], rows, mass=1.0, **given)
        z = ops.linear(x[0, 0], torch.randn(32, 16), gamma=0.1, **given)
        z.backward(z)
    launches = [one[2:] for one in launched if "BLOCK_N" in one[2]]
    assert len(launches) == 7
    assert all((c["BLOCK_M"], c["BLOCK_N"], *rest) == (16, 16, 2, 1) for c, *rest in launches)

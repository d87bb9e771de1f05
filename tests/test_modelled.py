"""The issue model behind `benchmarks/run.py modelled`: on loops made by hand, whose cycles can be counted, and on one
kernel from its source to its share."""

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import modelled
    from loops import calibration, h100, sass
    from loops.play import play
    from loops.sass import Instruction

FFMA = Instruction("FFMA R0, R1, R2, R3")
MUFU = Instruction("MUFU.EX2 R4, R4")
COPY = Instruction("LDGSTS.E.BYPASS.128 [R8], desc[UR4][R10.64]")
COMMIT = Instruction("LDGDEPBAR")
BARRIER = Instruction("BAR.SYNC.DEFER_BLOCKING 0x0")
PRODUCT = Instruction("HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8], R24")  # 64 cycles
LAST_PRODUCT = PRODUCT._replace(text=PRODUCT.text + ", gsb0")


def copies_left(groups):
    return Instruction(f"DEPBAR.LE SB0, {groups:#x}")


def products_left(groups):
    return Instruction(f"WARPGROUP.DEPBAR.LE gsb0, {groups:#x}")


def test_independent_streams_hide_each_others_latency_until_every_cycle_issues():
    body = [FFMA._replace(stall=4)] * 10
    assert [play(body, 4, programs).cycles for programs in (1, 2, 4, 8)] == [40, 20, 10, 10]
    assert play(body, 8, 1).cycles == 40  # one program of two warpgroups: each iteration is of both
    assert play(body, 4, 1).idle == {"fixed latency": 30, "issue": 10}


def test_a_result_is_waited_for_by_its_scoreboard():
    load, use = Instruction("LDS R0, [R1]", written=3), FFMA._replace(waits=(3,))
    found = play([load, use], 4, 1)
    assert found.cycles == 30 + 1 and found.idle == {"scoreboard": 29, "issue": 2}
    assert play([load, use._replace(waits=(2,))], 4, 1).cycles == 4  # another's: then lsu is what is waited for


def test_operands_are_not_overwritten_before_they_are_read():
    store, overwrite = Instruction("STS [R1], R0", read=0), FFMA._replace(waits=(0,))
    assert play([store, overwrite], 4, 1).cycles == h100.CONSTANTS["operands_read"] + 1


@pytest.mark.parametrize("programs", [1, 2])
def test_exponentials_take_eight_cycles_each_whoever_wants_them(programs):
    found = play([MUFU, FFMA, FFMA] * 4, 4, programs)
    assert found.cycles == 4 * 8 and next(iter(found.idle)) == "pipe mufu"


def test_wide_accesses_take_shared_memory_longer():
    cycles = [play([Instruction(op)] * 4, 4, 1).cycles / 4 for op in ("LDS", "STS.64", "LDS.128", "LDSM.16.M88.4")]
    assert cycles == [4, 8, 16, 16]


def test_two_stages_expose_the_copy_and_three_hide_it():
    multiply = [*[PRODUCT] * 9, LAST_PRODUCT, products_left(0)]
    two, three = (play([copies_left(n), BARRIER, *multiply, COPY, COMMIT], 4, 1) for n in (0, 1))
    taken = h100.CONSTANTS["l2_latency"] + 4 * 32 * 16 / h100.CONSTANTS["l2_bytes_per_clock"]
    assert three.cycles == pytest.approx(640 + 65 + 15 + 4)
    assert two.cycles == pytest.approx(three.cycles + taken - 2) and two.idle["cp.async"] == pytest.approx(taken - 2)
    assert next(iter(two.idle)) == "cp.async" and "cp.async" not in three.idle


def test_copies_come_no_faster_than_the_l2_gives_them():
    body = [*[COPY] * 20, COMMIT, copies_left(1)]
    assert play(body, 4, 1).cycles == pytest.approx(20 * 4 * 32 * 16 / 38.8, rel=0.01)
    assert play([*[COPY._replace(text="LDGSTS.E [R8], desc")] * 80, *body[20:]], 4, 1).cycles == pytest.approx(
        20 * 4 * 32 * 16 / 38.8, rel=0.01
    )


def test_products_run_in_order_and_their_results_come_after_a_tail():
    body = [*[PRODUCT] * 3, LAST_PRODUCT]
    alone = play([*body, products_left(0)], 4, 1)
    assert alone.cycles == 4 * 64 + 65 + 1 and alone.idle == {"wgmma": 65, "issue": 1}
    assert play([*body, products_left(1)], 4, 1).cycles == 4 * 64  # the next ones are issued before the results come
    assert play([*body, products_left(0)], 4, 2).cycles == 4 * 64  # one program's tail behind the other's products
    assert play([*body, products_left(0)], 8, 1).cycles == 2 * 4 * 64


def test_a_warp_issues_few_products_ahead_of_the_tensor_cores():
    # The last of 20 goes when 8 of the 19 before it are left, and only then what comes behind it.
    body = [*[PRODUCT] * 19, LAST_PRODUCT, *[FFMA] * 1000, products_left(0)]
    assert play(body, 4, 1).cycles == 11 * 64 + 1 + 1000 + 1


def test_a_narrow_product_takes_as_long_as_its_operands():
    shared = Instruction("HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24, gsb0")
    registers = Instruction("HGMMA.64x16x16.F32.BF16 R24, R4, gdesc[UR4], R24, gsb0")
    assert h100.product_cycles(shared) == (8, 20) and h100.product_cycles(registers) == (8, 8)
    assert h100.product_cycles(PRODUCT) == (64, 64)
    found = play([shared, products_left(4)], 4, 1)
    assert found.cycles == 20 and found.idle == {"wgmma operands": 12}


def test_at_a_barrier_a_programs_warps_wait_for_each_other_alone():
    found = play([BARRIER, *[FFMA] * 10], 8, 1)
    assert found.cycles == 20 + 2 + 15 - 1 and found.idle["barrier"] == 14
    assert play([BARRIER], 4, 2).cycles == 15 / 2


def test_programs_begin_apart():
    body = [MUFU, FFMA, FFMA] * 4
    alone = play(body, 4, 1).cycles
    assert play(body, 4, 2).cycles == alone  # bound by the exponentials of both
    assert play(body, 4, 2, apart=1e6).cycles == alone / 2  # long over when the second one begins
    assert modelled.mean_over_offsets(body, 4, 1) == play(body, 4, 1)
    fifths = [play(body, 4, 2, apart=n * alone * 2 / 5).cycles for n in range(5)]
    assert modelled.mean_over_offsets(body, 4, 2).cycles == pytest.approx(sum(fifths) / 5)


def test_what_the_model_does_not_know_is_not_played():
    for text in ("HMMA.16816.F32.BF16 R4, R8, R12, R4", "UTMALDG.2D [UR8], [UR4]", "DEPBAR.LE SB1, 0x2"):
        with pytest.raises(ValueError, match="the model does not know: " + text[:8]):
            play([Instruction(text)], 4, 1)


def test_occupancy():
    by_registers = [h100.occupancy(registers, 0, 8) for registers in (255, 129, 128, 80, 1)]
    assert by_registers == [1, 1, 2, 3, 8]  # the last by warps
    assert h100.occupancy(16, 0, 1) == 32
    assert [h100.occupancy(32, shared, 4) for shared in (232449, 232448, 115713, 115712)] == [0, 1, 1, 2]


LISTING = """
\t.section\t.text.kernel,"ax",@progbits
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;                          /* 0x0000000000007919 */
                                                                               /* 0x000e2200000e0000 */
.L_x_0:
        /*0010*/              @!P1 BRA `(.L_x_2) ;                             /* 0x0000000000009947 */
                                                                               /* 0x001fea0003800000 */
.L_x_1:
        /*0020*/                   FFMA R2, R0, R2, R2 ;                       /* 0x0000000200027223 */
                                                                               /* 0x000fc80000000002 */
        /*0030*/                   STS [R5], R2 ;                              /* 0x0000000205007388 */
                                                                               /* 0x0083e80000000800 */
        /*0040*/               @P0 BRA `(.L_x_1) ;                             /* 0xfffffffc00f40947 */
                                                                               /* 0x000fea000383ffff */
.L_x_2:
        /*0050*/               @P2 BRA `(.L_x_0) ;                             /* 0xfffffffc00ec2947 */
                                                                               /* 0x000fea000383ffff */
        /*0060*/                   EXIT ;                                      /* 0x000000000000794d */
                                                                               /* 0x000fea0003800000 */
"""


def test_a_disassembly_is_read():
    code = sass.parse(LISTING)
    assert code == [
        Instruction("S2R R0, SR_TID.X", stall=1, written=0),
        Instruction("@!P1 BRA `(.L_x_2)", stall=5, waits=(0,), target=5),
        Instruction("FFMA R2, R0, R2, R2", stall=4),
        Instruction("STS [R5], R2", stall=4, read=1, waits=(3,)),
        Instruction("@P0 BRA `(.L_x_1)", stall=5, target=2),
        Instruction("@P2 BRA `(.L_x_0)", stall=5, target=1),
        Instruction("EXIT", stall=5),
    ]
    assert [one.op for one in code[1:4]] == ["BRA", "FFMA", "STS"]
    assert sass.innermost_loops(code) == [code[2:5]]


def test_the_main_loop_is_the_shortest_with_products():
    def loop(number, *instructions):
        return [*instructions, Instruction("BRA", target=number)]

    mma_sync = Instruction("HMMA.16816.F32.BF16 R4, R8, R12, R4")
    masked, plain, none = loop(0, FFMA, FFMA, PRODUCT), loop(4, FFMA, PRODUCT), loop(7, FFMA)
    assert modelled.main_loop([*masked, *plain, *none]) == (plain, "wgmma")
    assert modelled.main_loop(loop(0, mma_sync)) == (loop(0, mma_sync), "mma.sync")
    assert modelled.main_loop(loop(0, FFMA)) == ([], None)


def test_the_calibration_from_its_source_to_its_share():
    found = modelled.modelled(calibration.case(modelled.ON))
    assert (found["products"], found["programs"], found["shared"]) == ("wgmma", 1, 128 * 1024)
    assert found["share"] == pytest.approx(0.54, abs=0.03)  # the scale that modelled.py names
    # Every cycle is one of a multiplication or has a cause.
    assert sum(found["idle"].values()) == pytest.approx((1 - found["share"]) * found["cycles"], abs=20)


def test_every_launch_of_a_row_is_there_and_mma_sync_has_no_share(tmp_path):
    results = modelled.measure("dkv gamma, head_dim 128")
    assert [(one["row"], one["launch"], one["products"]) for one in results["rows"]] == [
        ("dkv gamma, head_dim 128, 2 bytes", launch, "mma.sync") for launch in ("dK dV", "dV alone")
    ]
    assert all("share" not in one for one in results["rows"])
    table = modelled.table(results)
    assert table.count("by mma.sync") == 2 and "dkv gamma, head_dim 128: dV alone" in table and "calibration" in table
    assert "Elements of 4 bytes go without tensor cores." in table
    (tmp_path / "same.json").write_text(json.dumps({"commit": "abc", "results": results}))
    assert modelled.compared(tmp_path / "same.json", results) == "Nothing has changed since abc."
    with pytest.raises(SystemExit, match="no row of tiles.json with elements of 2 bytes matches 'dq, head_dim 3'"):
        modelled.measure("dq, head_dim 3")


def test_before_and_after_as_markdown(tmp_path):
    one = {"row": "a", "launch": "", "entry": [64, 8, 2], "registers": 9, "stack": 0, "shared": 7, "programs": 1,
           "products": "wgmma", "cycles": 100, "share": 0.5, "idle": {"mufu": 40, "issue": 10}}  # fmt: skip
    slow = one | {"row": "b", "products": "mma.sync", "share": None}
    del slow["share"]
    constants = {"constants": {}, "units": {}}
    file = tmp_path / "before.json"
    file.write_text(json.dumps({"commit": "abc", "results": {**constants, "rows": [one, slow, one | {"row": "same"}]}}))
    after = [
        one | {"entry": [64, 8, 3], "share": 0.625, "idle": {"issue": 9}}, one | {"row": "b"}, one | {"row": "same"},
        one | {"row": "new"},
    ]  # fmt: skip
    lines = modelled.compared(file, {**constants, "rows": after}).splitlines()
    assert lines[0].startswith("| since abc | tile, warps, stages | registers |") and len(lines) == 5
    assert lines[2] == "| a | 64, 8, 2 → 64, 8, 3 | 9 | 0 | 7 | 1 | 50% → 62% | mufu (40 cycles) → issue (9 cycles) |"
    assert lines[3] == "| b | 64, 8, 2 | 9 | 0 | 7 | 1 | – → 50% | by mma.sync → mufu (40 cycles) |"
    assert lines[4].startswith("| new | – → 64, 8, 2 | – → 9 |")
    lines = modelled.compared(file, {"constants": {"barrier": 15}, "units": {}, "rows": after}).splitlines()
    assert lines[-1] == "The model itself is not the one of abc."

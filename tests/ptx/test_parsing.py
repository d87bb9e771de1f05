"""PTX text as instructions and blocks."""

import pytest

from tests.ptx.parsing import address, elements, parse, split_operands
from tests.ptx.snippets import text

BODY = """
    mov.u32 %r1, %tid.x;
    { .reg .b16 tmp; mov.b32 {%rs1, %rs2}, %r1; }
    setp.lt.s32 %p1, %r1, 5;
    @!%p1 bra $L__BB0_2;
    // a comment; with a semicolon
    st.shared.b32 [%r1+16], {%r1};
    $L__tmp3:
    add.s32 %r2, %r1, -4;  // behind an instruction
    bar.sync \t0;
    $L__BB0_2:
    @%p1 ld.global.v2.b32 { %r3, %r4 }, [ %rd1 + -8 ];
"""


def test_blocks_labels_and_lines():
    kernel = parse(text(BODY, ["u64", "f32"], 64))
    assert (kernel.name, kernel.parameters, kernel.threads) == ("snippet", ["u64", "f32"], 64)
    assert [[i.opcode for i in block] for block in kernel.blocks] == [
        ["mov.u32", "mov.b32", "setp.lt.s32", "bra"],
        ["st.shared.b32", "add.s32", "bar.sync"],
        ["ld.global.v2.b32", "ret"],
    ]
    assert kernel.labels == {"$L__BB0_2": 2}
    assert [i.line for i in kernel.instructions] == [1, 2, 3, 4, 6, 8, 9, 11, 11]
    branch, load = kernel.blocks[0][3], kernel.blocks[2][0]
    assert (branch.predicate, branch.negated, branch.operands) == ("%p1", True, ["$L__BB0_2"])
    assert (load.predicate, load.negated, load.operands) == ("%p1", False, ["{ %r3, %r4 }", "[ %rd1 + -8 ]"])
    assert load.text == "@%p1 ld.global.v2.b32 { %r3, %r4 }, [ %rd1 + -8 ]"
    assert load.registers == {"%p1", "%r3", "%r4", "%rd1"}


def test_operands():
    assert split_operands("{%r1, %r2}, [%r3+4], 0f3F, %p1|%p2") == ["{%r1, %r2}", "[%r3+4]", "0f3F", "%p1|%p2"]
    assert elements("{%r1,%r2}") == ["%r1", "%r2"] and elements("%r1") == ["%r1"]
    assert address("[global_smem]") == ("global_smem", 0) and address("[ %rd1 + -8 ]") == ("%rd1", -8)
    assert address("[%r1+0x10]") == ("%r1", 16)
    with pytest.raises(NotImplementedError):
        address("[%r1+%r2]")


def test_registers_of_one_block():
    """Which nothing else reads: %r2 is written first, %rs1 too, %r3 only where %p1 holds, so that it may be read."""
    kernel = parse(text(BODY, [], 64))
    assert kernel.local == [{"%rs1", "%rs2"}, {"%r2"}, set()]
    adding = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r20}, %rd20, %rd21, 1, 1, 1, 0, 0;\n"
    adding += "mma.sync {%r24}, {%r26}, {%r27}, {%r24};\nst.shared.b32 [%r28], %r29;\nmov.b32 %r30, %r31;"
    assert parse(text(adding, [], 64)).local == [{"%r30"}]


def test_narrowest_accesses():
    def found(body):
        return parse(text(body, [], 32)).narrowest

    assert found("ret;") == {"shared": 16, "global": 16}
    assert found("st.shared.v2.b32 [%r1], {%r2, %r3};\nld.global.b16 %rs1, [%rd1];") == {"shared": 8, "global": 2}
    copy = "cp.async.ca.shared.global [%r1], [%rd1], 0x4, 4;\ncp.async.commit_group;"
    assert found(copy) == {"shared": 4, "global": 4}


def test_variables_in_shared_memory():
    fixed = text("ret;", [], 32).replace(".extern .shared .align 16 .b8 global_smem[];",
                                         ".shared .align 4 .b8 a[6];\n.shared .align 16 .b8 b[8];")  # fmt: skip
    kernel = parse(fixed)
    assert kernel.shared == {"a": 0, "b": 16} and kernel.static_shared == 24
    both = fixed.replace(".shared .align 4", ".extern .shared .align 16 .b8 global_smem[];\n.shared .align 4")
    with pytest.raises(NotImplementedError, match="beside that of the launch"):
        parse(both)


def test_other_text_is_refused():
    whole = text("ret;", [], 32)
    for wrong in (whole + whole, ".func foo() { ret; }\n" + whole, whole.replace(".reqntid 32", ""),
                  whole.replace("\tret;", ".local .b8 x[4];\nret;")):  # fmt: skip
        with pytest.raises(NotImplementedError):
            parse(wrong)

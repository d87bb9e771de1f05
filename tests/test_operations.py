"""What the doctor holds against its definition, and that it sees what is wrong: in plain PyTorch, on the CPU."""

import itertools

import pytest
import torch

from lrp_fast import doctor, operations, ops
from lrp_fast.operations import SMALL
from lrp_fast.operations.witness import watched
from lrp_fast.ops import backend, measured
from lrp_fast.report.operations import operations_table, verdict

CPU = torch.device("cpu")
CASES = operations.cases(SMALL)


def held(operation, form=None, dtype=torch.float32):
    """Of the first case of that operation, or that form of it."""
    case = next(one for one in CASES if one.operation == operation and form in (None, one.form))
    return operations.hold(case, CPU, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_operation_is_as_it_is_defined(dtype):
    found = [operations.hold(case, CPU, dtype) for case in CASES]
    assert [one for one in found if not one.passed] == []
    assert {one.path for one in found} == {"torch"} and {one.dtype for one in found} == {str(dtype)[6:]}


def test_names_are_given_once_and_the_first_head_dim_comes_in_every_form():
    names = [case.name for case in operations.cases()]
    assert len(set(names)) == len(names) > 80
    assert operations.case("attention", "attnlrp, head_dim 24", 24, SMALL).name in [
        case.name for case in operations.cases(operations.Size(9, 9, (16, 24), 9, 9))
    ]


OPERATIONS = {
    "attention": {"attention", "attention backward"},
    "attention_edges": {"edges, lists", "edges, tiles"},
    "linear": {"linear", "linear backward"},
    "rms_norm": {"RMSNorm", "RMSNorm backward"},
    "layer_norm": {"LayerNorm", "LayerNorm backward"},
    "activation": {"activation", "activation backward"},
    "gated_mlp": {"gated MLP", "gated MLP backward"},
    "node_relevance": {"node relevance"},
}


def enlarged(found):
    """One percent more of all floats, whatever they lie in."""
    if isinstance(found, torch.Tensor):
        return found * 1.01 if found.is_floating_point() else found
    parts = map(enlarged, found)
    return type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_factor_is_seen_in_the_operation_that_has_it(name, monkeypatch):
    own = getattr(ops, name)
    monkeypatch.setattr(ops, name, lambda *args, **given: enlarged(own(*args, **given)))
    failed = {case.operation for case in CASES if not operations.hold(case, CPU, torch.float32).passed}
    assert OPERATIONS[name] <= failed <= OPERATIONS[name] | OPERATIONS["attention_edges"]


def test_what_is_told_of_a_wrong_rule_of_other_bits_and_of_nothing(monkeypatch):
    own = ops.attention
    monkeypatch.setattr(ops, "attention", lambda *args, **given: own(*args, **given | {"rule": "cp"}))
    one = held("attention backward")
    assert not one.passed and "nothing where its definition does not" in one.failed

    monkeypatch.setattr(ops, "attention", lambda *args, **given: own(*args, **given | {"rule": "gradient"}))
    one = held("attention backward")
    assert not one.passed and one.same_bits and one.error > one.allowed and not one.failed

    count, relevance = itertools.count(), ops.node_relevance
    nearly = lambda *args, **given: relevance(*args, **given) * (1 + next(count) * 2e-7)  # noqa: E731
    monkeypatch.setattr(ops, "node_relevance", nearly)
    other = held("node relevance")
    assert not other.passed and not other.same_bits and other.error <= other.allowed

    def raising(*args, **given):
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(ops, "activation", raising)
    broken = held("activation")
    assert not broken.passed and broken.failed == "RuntimeError: no kernel image is available"

    table = operations_table(doctor.setting("cpu"), [one, other, broken])
    rows = [line for line in table.splitlines() if "FAIL" in line]
    assert rows[0].endswith("yes        FAIL: further off than rounding explains")
    assert rows[1].endswith("no         FAIL: other bits the second time")
    assert rows[2].endswith("FAIL: RuntimeError: no kernel image is available")
    assert rows[3].startswith("3 of 3 operations FAILED: do not trust relevance that is computed on this device.")


def test_only_the_vendor_s_backward_pass_may_change_its_bits():
    one = operations.Held("attention backward", "cp", "bfloat16", "vendor", (), 0.1, 0.2, False)
    assert one.passed and not one._replace(path="triton").passed and not one._replace(operation="attention").passed
    assert "vendor: PyTorch's own attention" in operations_table(doctor.setting("cpu"), [one])
    assert verdict([one]) == "All 1 operations are as they are defined, within rounding."


def test_a_number_that_is_none_fails():
    one = operations.Held("", "", "", "torch", (), float("nan"), 1.0, True)
    assert not one.passed


def test_what_the_vendor_computes_is_seen_on_cuda_alone():
    x = torch.randn(1, 2, 8, 16).requires_grad_()
    out, seen = watched(lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x), CPU)
    assert out.shape == x.shape and seen == ("torch", ())


def test_progress_and_what_does_not_go_together(monkeypatch):
    few = CASES[-4:]
    monkeypatch.setattr(doctor, "cases", lambda size: few)
    told = []
    found = doctor.operations("cpu", progress=lambda *at: told.append(at))
    # as where several threads compile
    found += doctor._held(few, (CPU, torch.float32, "auto"), 3, lambda *at: told.append(at))
    assert [one.form for one in found] == 2 * [case.form for case in few] and all(one.passed for one in found)
    assert told == 2 * [(i, 4) for i in (1, 2, 3, 4)]
    if not backend.interprets():
        with pytest.raises(ValueError, match="need a CUDA device; TRITON_INTERPRET=1 in the environment interprets"):
            doctor.operations("cpu", impl="triton")


def test_a_model_s_own_head_dims(tiny):
    assert doctor.head_dims_of(tiny("qwen3").config) == (24,) and doctor.head_dims_of(tiny("gemma3").config) == (24,)


def test_what_a_cuda_device_is_told_to_be(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A device")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "without_triton", lambda device: None)
    found = measured.Found(measured.NOTHING, "absent", "nothing was measured on this A device yet")
    monkeypatch.setattr(backend, "found_on", lambda device: found)
    where = doctor.setting("cuda")
    assert (where.device, where.capability, where.dtype) == ("A device", "9.0", "bfloat16")
    lines = operations_table(where, []).splitlines()
    assert lines[0].startswith("operations on A device, compute capability 9.0, bfloat16, PyTorch ")
    assert lines[1] == "note: nothing was measured on this A device yet"
    monkeypatch.setattr(backend, "without_triton", lambda device: "Triton is not installed: install triton")
    assert doctor.setting("cuda").notes == ("Triton is not installed: install triton",)
    with pytest.raises(ValueError, match="impl='triton' is not to be had: Triton is not installed: install triton"):
        doctor.operations("cuda", impl="triton")
    monkeypatch.setattr(backend, "interprets", lambda: True)
    with pytest.raises(ValueError, match="TRITON_INTERPRET is set, with which no kernel is compiled: unset it"):
        doctor.operations("cuda")

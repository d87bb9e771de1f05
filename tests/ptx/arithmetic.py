"""Translations of the instructions that compute in registers (PTX ISA 9.7.1 to 9.7.8: integer, floating-point and half
precision arithmetic, comparison, logic and shift, data movement and conversion). ``w`` is translation.py's Writer.

Instructions that the device only approximates (.approx, .full) are rounded correctly here.
"""

import re

from tests.ptx.parsing import NUMPY, REGISTERS, bank_of, elements, modifiers

FROM_16 = {"bf16": "V.from_bf16({})", "f16": "V.from_f16({})"}
TO_16 = {"bf16": "V.to_bf16", "f16": "V.to_f16"}


# ---- Arithmetic ----

INTEGER = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "mad": "{} * {} + {}", "div": "V.divide({}, {})",
    "rem": "np.fmod({}, {})", "min": "np.minimum({}, {})", "max": "np.maximum({}, {})",
    "neg": "-{}", "abs": "np.abs({})",
}  # fmt: skip
FLOAT = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "fma": "V.fma({}, {}, {})", "div": "{} / {}",
    "min": "V.smaller({}, {})", "max": "V.larger({}, {})", "neg": "-{}", "abs": "np.abs({})", "rcp": "V.ONE_F / {}",
    "sqrt": "np.sqrt({})", "rsqrt": "(1 / np.sqrt({}.astype(f8))).astype(f4)",
    "ex2": "np.exp2({}.astype(f8)).astype(f4)", "lg2": "np.log2({}.astype(f8)).astype(f4)",
    "tanh": "np.tanh({}.astype(f8)).astype(f4)", "sin": "np.sin({}.astype(f8)).astype(f4)",
    "cos": "np.cos({}.astype(f8)).astype(f4)",
}  # fmt: skip
APPROXIMATE = ("rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh", "sin", "cos", "div")


def _arithmetic(w, i):
    kind = i.parts[-1]
    if kind.startswith(("bf16", "f16")):
        return _half(w, i, kind)
    if kind == "f32":
        return _float(w, i)
    return _integer(w, i, kind)


def _float(w, i):
    name = i.parts[0]
    known = ["approx", "full"] if name in APPROXIMATE else ["NaN"] if name in ("min", "max") else []
    modifiers(i, "rn", "ftz", *known)
    form = FLOAT[name]
    if "NaN" in i.parts:
        form = form.replace("(", "_or_nan(", 1)
    arguments = [w.read(x, "f4") for x in i.operands[1:]]
    if form.count("{}") != len(arguments):
        raise NotImplementedError(i.text)
    if "ftz" in i.parts:
        expression = f"V.ftz({form.format(*(f'V.ftz({x})' for x in arguments))})"
    else:
        expression = form.format(*arguments)
    w.write(i.operands[0], expression, "f4")


def _integer(w, i, kind):
    name = i.parts[0]
    form, kind, given = INTEGER[name], NUMPY[kind], i.operands[1:]
    if kind[0] == "f" or form.count("{}") != len(given):
        raise NotImplementedError(i.text)
    if "wide" in i.parts:  # twice as wide a result
        modifiers(i, "wide")
        wide = f"{kind[0]}{2 * int(kind[1])}"
        a, b = (f"{w.read(x, kind)}.astype({wide})" for x in given[:2])
        rest = [w.read(x, wide) for x in given[2:]]
        return w.write(i.operands[0], form.format(a, b, *rest), wide)
    if "hi" in i.parts:  # the upper half of that
        modifiers(i, "hi")
        if kind not in ("i4", "u4"):
            raise NotImplementedError(i.text)
        a, b = (f"{w.read(x, kind)}.astype({kind[0]}8)" for x in given[:2])
        product = f"(({a} * {b}) >> {w.constant(32, kind[0] + '8')}).astype({kind})"
        rest = [w.read(x, kind) for x in given[2:]]
        return w.write(i.operands[0], " + ".join([product, *rest]), kind)
    modifiers(i, *(["lo"] if name in ("mul", "mad") else []), *(["relu"] if name in ("min", "max") else []))
    if name in ("mul", "mad") and "lo" not in i.parts:
        raise NotImplementedError(i.text)
    expression = form.format(*(w.read(x, kind) for x in given))
    if "relu" in i.parts:
        expression = f"np.maximum({expression}, {w.constant(0, kind)})"
    w.write(i.operands[0], expression, kind)


def _half(w, i, kind):
    """Of bf16 or f16, alone or packed in pairs: in float32, which rounds the same but for fma."""
    name, number = i.parts[0], kind.removesuffix("x2")
    if name not in ("add", "sub", "mul", "fma", "min", "max", "neg", "abs"):
        raise NotImplementedError(i.text)
    modifiers(i, "rn", *(["NaN"] if name in ("min", "max") else []))
    form = FLOAT[name]
    if form.count("{}") != len(i.operands) - 1:
        raise NotImplementedError(i.text)
    if name == "fma":
        form = "V.fma_16({}, {}, {}, " + TO_16[number] + ")"
    elif name == "neg":  # of a NaN too
        form = "({} ^ {})"
    elif name == "abs":
        form = "({} & {})"
    else:
        if "NaN" in i.parts:
            form = form.replace("(", "_or_nan(", 1)
        form = f"{TO_16[number]}({form})"

    def one(parts):
        if name == "neg":
            return form.format(parts[0], w.constant(0x8000, "u2"))
        if name == "abs":
            return form.format(parts[0], w.constant(0x7FFF, "u2"))
        return form.format(*(FROM_16[number].format(x) for x in parts))

    if kind == number:
        w.write(i.operands[0], one([w.read(x, "u2") for x in i.operands[1:]]), "u2")
    else:
        low = one([half_of(w, x, 0) for x in i.operands[1:]])
        high = one([half_of(w, x, 16) for x in i.operands[1:]])
        w.write(i.operands[0], f"V.pair({low}, {high})", "u4")


def half_of(w, operand, first):
    """16 bits of a packed pair."""
    whole = w.read(operand, "u4")
    return f"({whole} >> {w.constant(16, 'u4')}).astype(u2)" if first else f"{whole}.astype(u2)"


# ---- Comparison and selection ----

COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">",
           "hs": ">="}  # fmt: skip


def compared(how, a, b, floating):
    """Of numbers, comparisons with a NaN are false, with "u" behind (equ, neu, ...) they are true."""
    if not floating:
        return f"({a} {COMPARE[how]} {b})"
    unordered = f"({a} != {a}) | ({b} != {b})"
    if how in ("num", "nan"):
        return f"({unordered})" if how == "nan" else f"(~({unordered}))"
    if how == "neu":
        return f"({a} != {b})"
    if how == "ne":
        return f"(({a} != {b}) & ~({unordered}))"
    if how.endswith("u"):
        return f"(({a} {COMPARE[how[:-1]]} {b}) | {unordered})"
    return f"({a} {COMPARE[how]} {b})"


def _compare(w, i):
    """setp: to p, or to p|q with q the opposite, or for pairs of halves the other half's."""
    kind, how = i.parts[-1], i.parts[1]
    combine = next((x for x in i.parts[2:-1] if x in ("and", "or", "xor")), None)
    modifiers(i, how, "ftz", "and", "or", "xor")
    to = i.operands[0].split("|")
    given = i.operands[1:3]
    if len(i.operands) != (4 if combine else 3) or kind == "f64":
        raise NotImplementedError(i.text)
    if kind in ("bf16x2", "f16x2"):
        first, second = (
            compared(how, *(FROM_16[kind[:-2]].format(half_of(w, x, at)) for x in given), True) for at in (0, 16)
        )
    else:
        if kind in FROM_16:
            a, b = (FROM_16[kind].format(w.read(x, "u2")) for x in given)
        else:
            a, b = (w.read(x, NUMPY[kind]) for x in given)
        if "ftz" in i.parts:
            a, b = f"V.ftz({a})", f"V.ftz({b})"
        first = compared(how, a, b, kind[0] == "f" or kind == "bf16")
        second = f"(~{first})"
    if combine:
        other = w.predicate(i.operands[3])
        first, second = (f"({x} {LOGIC[combine]} {other})" for x in (first, second))
    if len(to) == 2:
        w.lines.append(f"q = {second}")
    w.write(to[0], first, "b")
    if len(to) == 2:
        w.write(to[1], "q", "b")


def _select(w, i):
    modifiers(i)
    to, a, b, condition = i.operands
    kind = NUMPY[i.parts[-1]]
    w.write(to, f"where({w.predicate(condition)}, {w.read(a, kind)}, {w.read(b, kind)})", kind)


# ---- Logic and shift ----

LOGIC = {"and": "&", "or": "|", "xor": "^"}


def _logic(w, i):
    modifiers(i)
    name, kind = i.parts[0], i.parts[-1]
    read, kind = (w.predicate, "b") if kind == "pred" else (lambda x: w.read(x, NUMPY[i.parts[-1]]), NUMPY[kind])
    given = [read(x) for x in i.operands[1:]]
    if len(given) != (1 if name == "not" else 2):
        raise NotImplementedError(i.text)
    w.write(i.operands[0], f"~{given[0]}" if name == "not" else f"{given[0]} {LOGIC[name]} {given[1]}", kind)


def _shift(w, i):
    modifiers(i)
    kind = NUMPY[i.parts[-1]]
    if i.parts[0] == "shr" and i.parts[-1][0] == "b":
        kind = kind.replace("i", "u")
    value, amount = i.operands[1:]
    x = w.read(value, kind)
    if not amount.startswith("%") and int(amount, 0) < 8 * int(kind[1]):
        sign = "<<" if i.parts[0] == "shl" else ">>"
        return w.write(i.operands[0], f"{x} {sign} {w.constant(int(amount, 0), kind)}", kind)
    name = "left" if i.parts[0] == "shl" else "right"
    w.write(i.operands[0], f"V.shift_{name}({x}, {w.read(amount, 'u4')})", kind)


def _extract(w, i):
    """bfe"""
    modifiers(i)
    first, count = (int(x, 0) & 255 for x in i.operands[2:])  # registers: not a number, not translated
    kind = {"u32": "u4", "s32": "i4"}[i.parts[-1]]
    name = "unsigned" if kind == "u4" else "signed"
    w.write(i.operands[0], f"V.bits_{name}({w.read(i.operands[1], kind)}, {first}, {count})", kind)


def _permute(w, i):
    if i.opcode != "prmt.b32":
        raise NotImplementedError(i.text)
    a, b, selectors = (w.read(x, "u4") for x in i.operands[1:])
    w.write(i.operands[0], f"V.permute({a}, {b}, {selectors})", "u4")


def _lookup(w, i):
    if i.opcode != "lop3.b32":
        raise NotImplementedError(i.text)
    a, b, c = (w.read(x, "u4") for x in i.operands[1:4])
    w.write(i.operands[0], f"V.lookup({a}, {b}, {c}, {int(i.operands[4], 0)})", "u4")


# ---- Movement and conversion ----


def _move(w, i):
    """mov, which also packs and unpacks."""
    modifiers(i)
    to, source = i.operands
    if i.parts[-1] == "pred":
        return w.write(to, w.predicate(source), "b")
    kind = f"u{NUMPY[i.parts[-1]][1]}"
    if source.startswith("{"):
        given = elements(source)
        part = int(kind[1]) // len(given)
        wide = [f"{w.read(x, f'u{part}')}.astype({kind})" for x in given]
        pieces = (f"({x} << {w.constant(8 * part * n, kind)})" for n, x in enumerate(wide))
        return w.write(to, " | ".join(pieces), kind)
    if to.startswith("{"):
        results = elements(to)
        part = int(kind[1]) // len(results)
        w.lines.append(f"v = {w.read(source, kind)}")
        for n, register in enumerate(results):
            w.write(register, f"(v >> {w.constant(8 * part * n, kind)}).astype(u{part})", f"u{part}")
        return None
    if re.fullmatch(r"%(r|rd|rs)\d+", source):
        if bank_of(source) != bank_of(to) or REGISTERS[bank_of(to)] != int(kind[1]):
            raise NotImplementedError(i.text)
        return w.move(to, source)
    return w.write(to, w.read(source, kind), kind)


def _convert(w, i):
    *between, to, source = i.parts[1:]
    if set(between) - {"rn", "rni", "rzi", "rmi", "rpi", "ftz"} or "f64" in (to, source):
        raise NotImplementedError(i.text)
    rounding = next((x for x in between if x != "ftz"), None)
    if to in ("bf16x2", "f16x2"):
        if source != "f32" or rounding != "rn" or "ftz" in between:
            raise NotImplementedError(i.text)
        high, low = (f"{TO_16[to[:-2]]}({w.read(x, 'f4')})" for x in i.operands[1:])
        return w.write(i.operands[0], f"V.pair({low}, {high})", "u4")
    value = w.read(i.operands[1], "u2" if source == "bf16" else NUMPY[source])
    if source == "bf16":
        value = FROM_16["bf16"].format(value)
    if "ftz" in between and source == "f32":
        value = f"V.ftz({value})"
    from_float = source[0] == "f" or source == "bf16"
    if not (to[0] == "f" or to == "bf16"):
        kind = NUMPY[to]
        if from_float:
            return w.widen(i.operands[0], f"V.to_integer({value}, {rounding!r}, {kind})", kind)
        if rounding:
            raise NotImplementedError(i.text)
        return w.widen(i.operands[0], f"{value}.astype({kind})", kind)
    if rounding in ("rni", "rzi", "rmi", "rpi"):
        if to != source:
            raise NotImplementedError(i.text)
        value = f"V.ROUNDED[{rounding!r}]({value})"
    narrower = not from_float or int(re.sub(r"\D", "", to)) < int(re.sub(r"\D", "", source))
    if narrower != (rounding == "rn") and rounding not in ("rni", "rzi", "rmi", "rpi"):
        raise NotImplementedError(i.text)
    if to == "bf16":
        if source not in ("f32", "bf16"):
            raise NotImplementedError(i.text)
        return w.write(i.operands[0], f"V.to_bf16({value})", "u2")
    return w.write(i.operands[0], f"{value}.astype({NUMPY[to]})", NUMPY[to])


OPERATIONS = {
    **dict.fromkeys({*INTEGER, *FLOAT}, _arithmetic), **dict.fromkeys([*LOGIC, "not"], _logic),
    "setp": _compare, "selp": _select, "shl": _shift, "shr": _shift, "bfe": _extract, "prmt": _permute, "lop3": _lookup,
    "mov": _move, "cvt": _convert,
}  # fmt: skip

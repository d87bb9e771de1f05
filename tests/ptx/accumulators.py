"""Results of wgmma.mma_async that are looked at, and operands in registers that are overwritten, before
wgmma.wait_group says that it is over (PTX ISA 9.7.15.2): by data flow over the text, on every path.
"""

import re
from collections import Counter

NOT_COMMITTED = 0
MANY = 9  # groups that have been committed since, and more
READ = "read "


def early(kernel, describe):
    """Reports, each of one instruction, that ``describe`` words."""
    found = Counter()
    if not any(i.opcode.startswith("wgmma.mma_async") for i in kernel.instructions):
        return found
    # On the way into each block: register that is not there yet to the groups committed since, its own among them; and
    # with READ before it, one that is still read.
    entry = {0: {}}
    work = [0]
    while work:
        number = work.pop()
        state = dict(entry[number])
        for i in kernel.blocks[number]:
            state = _after(i, state, lambda kind, i=i: found.update({describe(kind, i): 1}))
        for following in _successors(kernel, number):
            old = entry.get(following)
            joined = state if old is None else {x: min(old.get(x, MANY), state.get(x, MANY)) for x in {*old, *state}}
            if joined != old:
                entry[following] = dict(joined)
                work.append(following)
    return found


def _registers(text):
    return re.findall(r"%r\d+", text)


def _after(i, state, report):
    if i.operands and not i.operands[0].startswith("["):
        written = {READ + x for x in _registers(i.operands[0])} & {*state}
        if written:
            report("register that an unfinished wgmma reads is overwritten")
            state = {x: groups for x, groups in state.items() if x not in written}
    if i.opcode.startswith("wgmma.mma_async"):
        # Accumulating onto an unfinished result is what wgmma are for; multiplying it is not.
        if {*_registers(" ".join(i.operands[1:]))} & {*state}:
            report("operand of wgmma that is the result of an unfinished one")
        read = [READ + x for x in _registers(i.operands[1])]
        return {**state, **dict.fromkeys([*_registers(i.operands[0]), *read], NOT_COMMITTED)}
    if i.opcode.startswith("wgmma.commit_group"):
        return {x: min(groups + 1, MANY) for x, groups in state.items()}
    if i.opcode.startswith("wgmma.wait_group"):
        most = int(i.operands[0], 0)
        return {x: groups for x, groups in state.items() if groups <= most}
    if not state:
        return state
    touched = i.registers & {*state}
    if touched:
        report("result of wgmma used before it is there")
    return {x: groups for x, groups in state.items() if x not in touched}


def _successors(kernel, number):
    block = kernel.blocks[number]
    last = block[-1] if block else None
    following = [number + 1] if number + 1 < len(kernel.blocks) else []
    if last is None or not last.ends_block or last.opcode.startswith(("bar", "barrier")):
        return following
    if last.opcode.startswith("bra"):
        return [kernel.labels[last.operands[-1]], *(following if last.predicate else [])]
    return following if last.predicate else []

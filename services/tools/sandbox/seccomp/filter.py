"""The filter itself: from the rules to the bytes that the kernel loads."""

from __future__ import annotations

import errno
import functools
import platform

from services.tools.sandbox.seccomp import bpf, rules
from services.tools.sandbox.seccomp.numbers import Architecture, architecture
from services.tools.sandbox.seccomp.rules import Reach


def compile_filter(arch: str | None = None, *, reach: Reach = Reach.OWN) -> bytes:
    """Give the filter for a machine (this one if unset) as an array of `struct sock_filter`, ready for `bwrap --seccomp`.

    Calls that a sandbox needs pass, the others fail; a call of another architecture or ABI kills the process.

    Raises:
        FailedPreconditionError: there is no table for this machine.
    """
    return _compile(arch or platform.machine(), reach)


@functools.cache
def _compile(arch: str, reach: Reach) -> bytes:
    return bpf.assemble(program(architecture(arch), reach))


def program(machine: Architecture, reach: Reach) -> bpf.Block:
    """Build the whole filter: the architecture first, then a search for the number, then what its rule asks."""
    kill = bpf.give(bpf.KILL_PROCESS)
    known = bpf.choose(_cases(machine, reach))
    by_number = known
    if machine.foreign_bit:
        by_number = bpf.branch(bpf.JUMP_IF_ANY_BIT, machine.foreign_bit, kill, known)
    ours = bpf.load(bpf.NUMBER_OFFSET, by_number)
    return bpf.load(
        bpf.ARCHITECTURE_OFFSET,
        (bpf.Instruction(bpf.JUMP_IF_EQUAL, 1, 0, machine.audit_id), *kill, *ours),
    )


def _cases(machine: Architecture, reach: Reach) -> tuple[tuple[int, bpf.Block], ...]:
    """List (first number, what to do) so that neighbours differ; from the last one on everything is unknown."""
    names = {number: name for name, number in machine.numbers.items()}
    unknown = bpf.fail(errno.ENOSYS)
    cases: list[tuple[int, bpf.Block]] = []
    for number in range(machine.newest + 2):
        name = names.get(number)
        block = unknown if name is None else _verdict(name, reach)
        if not cases or cases[-1][1] != block:
            cases.append((number, block))
    return tuple(cases)


def _verdict(name: str, reach: Reach) -> bpf.Block:
    requirements = (rules.CHECKED | rules.CHECKED_BY_REACH[reach]).get(name)
    if requirements is not None:
        return functools.reduce(
            lambda then, requirement: requirement.before(then), reversed(requirements), bpf.give(bpf.ALLOW)
        )
    if name in rules.ABSENT:
        return bpf.fail(rules.ABSENT[name])
    own = reach is Reach.OWN and name in rules.ALLOWED_ON_OWN_NAMES
    return bpf.give(bpf.ALLOW) if own or name in rules.ALLOWED else bpf.fail(errno.EPERM)

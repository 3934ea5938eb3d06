"""The filter itself: from the rules to the bytes that the kernel loads."""

from __future__ import annotations

import errno
import functools
import platform

from services.tools.sandbox.seccomp import bpf, rules
from services.tools.sandbox.seccomp.numbers import Architecture, architecture
from services.tools.sandbox.seccomp.rules import Sockets


def compile_filter(arch: str | None = None, *, sockets: Sockets = Sockets.UNIX) -> bytes:
    """Give the filter for a machine (this one if unset) as an array of `struct sock_filter`, ready for `bwrap --seccomp`.

    Calls that a sandbox needs pass, the others fail; a call of another architecture or ABI kills the process.

    Raises:
        FailedPreconditionError: there is no table for this machine.
    """
    return _compile(arch or platform.machine(), sockets)


@functools.cache
def _compile(arch: str, sockets: Sockets) -> bytes:
    return bpf.assemble(program(architecture(arch), sockets))


def program(machine: Architecture, sockets: Sockets) -> bpf.Block:
    """Build the whole filter: the architecture first, then a search for the number, then what its rule asks."""
    kill = bpf.give(bpf.KILL_PROCESS)
    known = bpf.choose(_cases(machine, sockets))
    by_number = known
    if machine.foreign_bit:
        by_number = bpf.branch(bpf.JUMP_IF_ANY_BIT, machine.foreign_bit, kill, known)
    ours = bpf.load(bpf.NUMBER_OFFSET, by_number)
    return bpf.load(
        bpf.ARCHITECTURE_OFFSET,
        (bpf.Instruction(bpf.JUMP_IF_EQUAL, 1, 0, machine.audit_id), *kill, *ours),
    )


def _cases(machine: Architecture, sockets: Sockets) -> tuple[tuple[int, bpf.Block], ...]:
    """List (first number, what to do) so that neighbours differ; from the last one on everything is unknown."""
    names = {number: name for name, number in machine.numbers.items()}
    unknown = bpf.fail(errno.ENOSYS)
    cases: list[tuple[int, bpf.Block]] = []
    for number in range(machine.newest + 2):
        name = names.get(number)
        block = unknown if name is None else _verdict(name, sockets)
        if not cases or cases[-1][1] != block:
            cases.append((number, block))
    return tuple(cases)


def _verdict(name: str, sockets: Sockets) -> bpf.Block:
    requirements = rules.SOCKETS[sockets].get(name) or rules.CHECKED.get(name)
    if requirements is not None:
        return functools.reduce(
            lambda then, requirement: requirement.before(then), reversed(requirements), bpf.give(bpf.ALLOW)
        )
    if name in rules.ABSENT:
        return bpf.fail(rules.ABSENT[name])
    own = sockets is Sockets.UNIX and name in rules.ALLOWED_WITH_OWN_SOCKETS
    return bpf.give(bpf.ALLOW) if own or name in rules.ALLOWED else bpf.fail(errno.EPERM)

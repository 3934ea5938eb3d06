"""A tiny assembler for classic BPF as seccomp(2) runs it.

A program is built from blocks. A block returns on every path, so blocks compose without labels: a branch is its test, then the
block for "yes", then the block for "no". All jumps go forward, as the kernel demands.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

# linux/bpf_common.h
LOAD_WORD: Final = 0x20
JUMP_ALWAYS: Final = 0x05
JUMP_IF_EQUAL: Final = 0x15
JUMP_IF_AT_LEAST: Final = 0x35
JUMP_IF_ANY_BIT: Final = 0x45
RETURN: Final = 0x06

# linux/seccomp.h
ALLOW: Final = 0x7FFF0000
FAIL: Final = 0x00050000
KILL_PROCESS: Final = 0x80000000

# Where struct seccomp_data keeps its fields; an argument is 64 bits, its low word first on the little-endian machines served here.
NUMBER_OFFSET: Final = 0
ARCHITECTURE_OFFSET: Final = 4
_ARGUMENTS_OFFSET: Final = 16
_ARGUMENT_BYTES: Final = 8
_ARGUMENT_COUNT: Final = 6

# linux/filter.h, BPF_MAXINSNS
MAX_INSTRUCTIONS: Final = 4096
# A conditional jump has eight bits for its distance.
_MAX_SHORT_JUMP: Final = 255


class Instruction(NamedTuple):
    """One `struct sock_filter`."""

    code: int
    if_true: int
    if_false: int
    operand: int


Block = tuple[Instruction, ...]


def give(action: int) -> Block:
    """Build the block that ends with this action."""
    return (Instruction(RETURN, 0, 0, action),)


def fail(error: int) -> Block:
    """Build the block that makes the call fail with this errno."""
    return give(FAIL | error)


def load(offset: int, then: Block) -> Block:
    """Put a word of seccomp_data before a block that tests it."""
    return (Instruction(LOAD_WORD, 0, 0, offset), *then)


def load_argument(argument: int, then: Block) -> Block:
    """Put the low word of argument 0 to 5 before a block that tests it."""
    return load(_place(argument), then)


def load_high_word(argument: int, then: Block) -> Block:
    """Put the high word of argument 0 to 5 before a block that tests it."""
    return load(_place(argument) + _ARGUMENT_BYTES // 2, then)


def _place(argument: int) -> int:
    if not 0 <= argument < _ARGUMENT_COUNT:
        raise ValueError(f"a call has arguments 0 to {_ARGUMENT_COUNT - 1}, not {argument}")
    return _ARGUMENTS_OFFSET + _ARGUMENT_BYTES * argument


def branch(test: int, operand: int, yes: Block, no: Block) -> Block:
    """Test the loaded word and go on with one of two blocks; a long way is jumped in two steps."""
    if len(yes) <= _MAX_SHORT_JUMP:
        return (Instruction(test, 0, len(yes), operand), *yes, *no)
    return (Instruction(test, 1, 0, operand), Instruction(JUMP_ALWAYS, 0, 0, len(yes)), *yes, *no)


def choose(cases: tuple[tuple[int, Block], ...]) -> Block:
    """Build a binary search over the loaded word: each case counts from its start up to the next one's.

    The cases are sorted by their start; the first also takes everything below it.
    """
    if len(cases) == 1:
        return cases[0][1]
    middle = len(cases) // 2
    return branch(JUMP_IF_AT_LEAST, cases[middle][0], choose(cases[middle:]), choose(cases[:middle]))


def assemble(program: Block) -> bytes:
    """Give the program as an array of `struct sock_filter`, which is what bwrap and the kernel take.

    Raises:
        ValueError: it is longer than the kernel takes.
    """
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(f"the filter has {len(program)} instructions, the kernel takes {MAX_INSTRUCTIONS}")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)

"""A machine that runs classic BPF as the kernel runs a seccomp filter, written from the kernel's description and not from ours."""

import struct
from dataclasses import dataclass

ALLOW = "allow"
KILL = "kill"

_SECCOMP_DATA_BYTES = 64


@dataclass(frozen=True)
class Call:
    """One system call as the filter sees it."""

    arch: int
    number: int
    arguments: tuple[int, ...] = ()

    def packed(self) -> bytes:
        arguments = (*self.arguments, *([0] * (6 - len(self.arguments))))
        masked = (argument & 0xFFFF_FFFF_FFFF_FFFF for argument in arguments)
        return struct.pack("<IIQ6Q", self.number & 0xFFFF_FFFF, self.arch, 0, *masked)


class BpfMachine:
    """Loads a program, checking what the kernel checks, and runs it on calls."""

    def __init__(self, program: bytes) -> None:
        assert len(program) % 8 == 0
        self._program = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
        assert 1 <= len(self._program) <= 4096
        for place, (code, yes, no, operand) in enumerate(self._program):
            self._check(place, code, yes, no, operand)
        assert self._program[-1][0] == 0x06, "the last instruction returns"

    def _check(self, place: int, code: int, yes: int, no: int, operand: int) -> None:
        left = len(self._program) - place - 1
        match code:
            case 0x20:  # ld word, absolute: aligned and inside seccomp_data
                assert operand % 4 == 0
                assert operand < _SECCOMP_DATA_BYTES
            case 0x05:  # ja
                assert operand < left
            case 0x15 | 0x35 | 0x45:  # jeq, jge, jset
                assert yes < left
                assert no < left
            case 0x06:  # ret
                pass
            case _:
                raise AssertionError(f"instruction {place} has the code {code:#x}")

    def run(self, call: Call) -> str | int:
        """Give "allow", "kill", or the errno that the call fails with."""
        data = call.packed()
        at, word = 0, 0
        while True:
            code, yes, no, operand = self._program[at]
            at += 1
            if code == 0x20:
                (word,) = struct.unpack_from("<I", data, operand)
            elif code == 0x05:
                at += operand
            elif code == 0x06:
                return self._action(operand)
            else:
                holds = {0x15: word == operand, 0x35: word >= operand, 0x45: bool(word & operand)}[code]
                at += yes if holds else no

    @staticmethod
    def _action(value: int) -> str | int:
        match value & 0xFFFF_0000:
            case 0x7FFF_0000:
                return ALLOW
            case 0x8000_0000:
                return KILL
            case 0x0005_0000:
                return value & 0xFFFF
        raise AssertionError(f"the filter gave {value:#x}")

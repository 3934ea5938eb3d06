import pathlib
import re

import pytest

from services.tools.sandbox.seccomp.numbers import AARCH64, X86_64

X86_HEADER = pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("read", 0, 63),
        ("openat", 257, 56),
        ("clone", 56, 220),
        ("execve", 59, 221),
        ("exit_group", 231, 94),
        ("ptrace", 101, 117),
        ("mount", 165, 40),
        ("bpf", 321, 280),
        ("socket", 41, 198),
        ("rseq", 334, 293),
        ("clone3", 435, 435),
        ("openat2", 437, 437),
        ("fchmodat2", 452, 452),
        ("mseal", 462, 462),
        ("file_setattr", 469, 469),
    ],
)
def test_well_known_numbers_are_right(name: str, x86_64: int, aarch64: int) -> None:
    assert X86_64.numbers[name] == x86_64
    assert AARCH64.numbers[name] == aarch64


def test_no_number_is_given_twice() -> None:
    for machine in (X86_64, AARCH64):
        assert len(set(machine.numbers.values())) == len(machine.numbers)


@pytest.mark.skipif(not X86_HEADER.exists(), reason="the kernel's headers for x86-64 are not installed")
def test_the_table_agrees_with_the_kernels_own_header() -> None:
    header = dict(re.findall(r"#define __NR_(\w+) (\d+)", X86_HEADER.read_text()))
    assert {name: X86_64.numbers.get(name) for name in header} == {
        name: int(number) for name, number in header.items()
    }

import pytest

from services.tools.sandbox.seccomp import bpf
from tests.fakes.bpf_machine import ALLOW, BpfMachine, Call


def padded(length: int, error: int) -> bpf.Block:
    """Build a block of so many instructions that fails with this errno."""
    return (*[bpf.Instruction(bpf.LOAD_WORD, 0, 0, 0)] * (length - 1), *bpf.fail(error))


@pytest.mark.parametrize("length", [1, 254, 255, 256, 257, 2000])
def test_a_branch_reaches_both_sides_however_long_they_are(length: int) -> None:
    block = bpf.load(
        bpf.NUMBER_OFFSET, bpf.branch(bpf.JUMP_IF_EQUAL, 7, padded(length, 1), padded(length, 2))
    )
    machine = BpfMachine(bpf.assemble(block))
    assert machine.run(Call(0, 7)) == 1
    assert machine.run(Call(0, 8)) == 2


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_the_search_finds_every_case(count: int) -> None:
    cases = tuple((10 * place, padded(9, place + 1)) for place in range(count))
    machine = BpfMachine(bpf.assemble(bpf.load(bpf.NUMBER_OFFSET, bpf.choose(cases))))
    for number in range(10 * count + 50):
        assert machine.run(Call(0, number)) == min(number // 10, count - 1) + 1


def test_an_argument_is_read_where_the_kernel_puts_it() -> None:
    for argument in range(6):
        test = bpf.branch(bpf.JUMP_IF_EQUAL, 99, bpf.give(bpf.ALLOW), bpf.fail(1))
        machine = BpfMachine(bpf.assemble(bpf.load_argument(argument, test)))
        assert machine.run(Call(0, 0, tuple(99 if place == argument else 0 for place in range(6)))) == ALLOW
        assert machine.run(Call(0, 0, tuple(0 if place == argument else 99 for place in range(6)))) == 1


def test_there_is_no_seventh_argument() -> None:
    with pytest.raises(ValueError, match="arguments 0 to 5"):
        bpf.load_argument(6, bpf.fail(1))


def test_a_program_longer_than_the_kernel_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="4097 instructions, the kernel takes 4096"):
        bpf.assemble(padded(4097, 1))

"""Programs that set variables, write or delete: what their arguments may be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from services.tools.policy.model import Risk
from services.tools.policy.shell.arguments import ANYTHING, Argument
from services.tools.policy.shell.bench import Bench, Place, known, refuse

_TEST_BINARY: Final = frozenset(
    {"=", "==", "!=", "-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-nt", "-ot", "-ef", "<", ">"}
)
_TEST_UNARY: Final = frozenset(
    {"-z", "-n", "-e", "-f", "-d", "-s", "-r", "-w", "-x", "-L", "-h", "-S", "-p", "-b", "-c"}
)


def judge_test(place: Place, arguments: Sequence[Argument], _bench: Bench) -> None:
    """`-v` and `-R` evaluate a name, commands in its index included."""
    inner = list(arguments)
    if place.name == "[" and (not inner or inner.pop() != Argument("]")):
        raise refuse(place.name, "its last argument must be ]")
    if all(argument.known for argument in inner):
        if any(argument.text in {"-v", "-R"} for argument in inner):
            raise refuse(place.name, "-v and -R are not taken; test for empty text with -z")
        return
    if not all(argument.single for argument in inner):
        raise refuse(place.name, 'a variable must be quoted here: [ "$x" = y ]')
    texts = [argument.text if argument.known else None for argument in inner]
    if texts[:1] == ["!"]:
        texts = texts[1:]
    is_plain = (
        len(texts) == 1
        or (len(texts) == 2 and texts[0] in _TEST_UNARY)  # noqa: PLR2004 - an operator and its operand
        or (len(texts) == 3 and texts[1] in _TEST_BINARY)  # noqa: PLR2004 - an operator between its operands
    )
    if not is_plain:
        raise refuse(
            place.name, "with a variable only one test is taken at a time; join tests with && and ||"
        )


_PRINTF_SETS: Final = re.compile(r"%[^%A-Za-z]*[hjlLqtz]*n")


def judge_printf(place: Place, arguments: Sequence[Argument], _bench: Bench) -> None:
    """`-v` sets a variable and evaluates its name, `%n` sets one; after the format nothing is an option."""
    text = known(place, arguments, 0, "the format")
    if text.startswith("-"):
        raise refuse(place.name, "its format may not begin with -; write '%s' first")
    if _PRINTF_SETS.search(text):
        raise refuse(place.name, "%n is not taken in its format")


def judge_read(place: Place, arguments: Sequence[Argument], _bench: Bench) -> None:
    """Only `-r` and plain names: an index in a name is evaluated, commands in it included."""
    names = 0
    for index in range(len(arguments)):
        text = known(place, arguments, index, "each name")
        names += text.isascii() and text.isidentifier()
        if text != "-r" and not (text.isascii() and text.isidentifier()):
            raise refuse(place.name, f"{text[:40]!r} is not taken; only -r and plain names")
    if not names:
        raise refuse(place.name, "a name is missing")


def judge_numbers_only(place: Place, arguments: Sequence[Argument], _bench: Bench) -> None:
    """One number at most, or what gives one."""
    if len(arguments) > 1 or any(
        not re.fullmatch(r"[0-9]{1,3}", each.text) for each in arguments if each.known
    ):
        raise refuse(place.name, "takes one number")
    if any(not each.single for each in arguments):
        raise refuse(place.name, "takes one number; quote it")


def _operands(arguments: Sequence[Argument]) -> list[Argument]:
    """What is no option: a lone - is a name, and so is everything after --."""
    operands, only_names = [], False
    for each in arguments:
        if each == Argument("--") and not only_names:
            only_names = True
        elif only_names or not (each.known and each.text.startswith("-") and each.text != "-"):
            operands.append(each)
    return operands


def judge_writes_all(_place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """Every operand is written."""
    bench.raise_risk(Risk.MEDIUM)
    for argument in _operands(arguments):
        bench.require_write(argument)


def judge_writes_last(_place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """The last operand is written."""
    bench.raise_risk(Risk.MEDIUM)
    for argument in _operands(arguments)[-1:]:
        bench.require_write(argument)


def judge_moves(_place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """The last operand is written, the others go away."""
    bench.raise_risk(Risk.MEDIUM)
    *sources, target = _operands(arguments) or [ANYTHING]
    bench.require_write(target)
    for source in sources:
        bench.require_delete(source)


def judge_deletes(_place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """Every operand goes away."""
    bench.raise_risk(Risk.HIGH)
    for argument in _operands(arguments):
        bench.require_delete(argument)


def judge_uniq(_place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """A second operand is written."""
    operands = _operands(arguments)
    if len(operands) > 1 or any(not each.single for each in operands):
        bench.raise_risk(Risk.MEDIUM)
        for argument in operands[1:2]:
            bench.require_write(argument)


_XXD_VALUES: Final = frozenset({"-c", "-g", "-l", "-n", "-o", "-s"})


def judge_xxd(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """A second operand is written; a value after one of its short options is none."""
    left: list[Argument] = []
    is_value = False
    for each in arguments:
        if is_value and each.single:
            is_value = False
        elif each.known and each.text in _XXD_VALUES:
            is_value = True
        else:
            is_value = False
            left.append(each)
    judge_uniq(place, left, bench)

"""Cases whose answers are computed: sums, comparisons, counting and lists of numbers."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

from scripts.embedded.intent import Case, Intent
from scripts.embedded.wording import Section, read_sections

if TYPE_CHECKING:
    from collections.abc import Iterable

TOO_HARD: Final = "That is too hard for me. I add and subtract up to 100 and multiply up to 12."
_ONES: Final = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS: Final = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905 - a sentence reads better
_LARGEST: Final = 100
_TABLE: Final = 12
# Products with a factor up to this number may be guessed, so they are not called too hard.
_EASY_FACTOR: Final = 2
_COUNT_LIMIT: Final = 50
# One case in this many spells its numbers as words.
_SPELLED_SHARE: Final = 6
# People mostly ask small sums, so pairs up to this number come several times.
_SMALL: Final = 20
_SMALL_COPIES: Final = 6


def spell(number: int) -> str:
    """Returns the English name of a number from 0 to 100."""
    if number == _LARGEST:
        return "one hundred"
    if number < len(_ONES):
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + ("-" + _ONES[ones] if ones else "")


def _write(rng: Random, **numbers: int) -> dict[str, str]:
    if rng.randrange(_SPELLED_SHARE):
        return {name: str(value) for name, value in numbers.items()}
    hyphen = rng.choice("- ")
    return {name: spell(value).replace("-", hyphen) for name, value in numbers.items()}


def _pairs(limit: int) -> Iterable[tuple[int, int]]:
    return ((a, b) for a in range(limit + 1) for b in range(limit + 1))


def _computed(slots: dict[str, str], answer: str) -> Case:
    return Case(slots, answer, identity=answer)


def _sum_cases(rng: Random) -> dict[str, list[Case]]:
    pairs = [*_pairs(_LARGEST), *(pair for pair in _pairs(_SMALL) for _ in range(_SMALL_COPIES))]
    return {
        "add": [_computed(_write(rng, a=a, b=b), f"{a} + {b} = {a + b}.") for a, b in pairs],
        "subtract": [_computed(_write(rng, a=a, b=b), f"{a} - {b} = {a - b}.") for a, b in pairs if a >= b],
        "negative": [_computed(_write(rng, a=a, b=b), f"{a} - {b} = {a - b}.") for a, b in pairs if a < b],
        "compare.large": [
            _computed(_write(rng, a=a, b=b), f"{max(a, b)} is larger than {min(a, b)}.")
            for a, b in pairs
            if a != b
        ],
        "compare.small": [
            _computed(_write(rng, a=a, b=b), f"{min(a, b)} is smaller than {max(a, b)}.")
            for a, b in pairs
            if a != b
        ],
    }


def _table_cases(rng: Random) -> dict[str, list[Case]]:
    # Several writings of each product, since the table itself can only be remembered.
    table = [pair for pair in _pairs(_TABLE) for _ in range(4)]
    return {
        "multiply": [_computed(_write(rng, a=a, b=b), f"{a} * {b} = {a * b}.") for a, b in table],
        "divide": [
            _computed({**_write(rng, b=b), "p": str(a * b)}, f"{a * b} / {b} = {a}.") for a, b in table if b
        ],
    }


def _single_cases(rng: Random) -> dict[str, list[Case]]:
    numbers = [n for n in range(1, _LARGEST) for _ in range(3)]
    return {
        "parity": [_computed(_write(rng, a=n), f"{n} is {'odd' if n % 2 else 'even'}.") for n in numbers],
        "next": [_computed(_write(rng, a=n), f"The number after {n} is {n + 1}.") for n in numbers],
        "previous": [_computed(_write(rng, a=n), f"The number before {n} is {n - 1}.") for n in numbers],
        "double": [_computed(_write(rng, a=n), f"2 * {n} = {2 * n}.") for n in numbers],
        "count": [
            _computed(_write(rng, a=n), ", ".join(str(i) for i in range(1, n + 1)) + ".")
            for n in range(2, _COUNT_LIMIT + 1)
            for _ in range(3)
        ],
    }


def _hard_cases(rng: Random) -> dict[str, list[Case]]:
    def big() -> int:
        return rng.randrange(101, rng.choice((1000, 10_000, 1_000_000)))

    sums = [
        Case(
            {"m": str(big()), "n": str(big()), **_write(rng, a=rng.randrange(100), b=rng.randrange(100))},
            TOO_HARD,
        )
        for _ in range(4000)
    ]
    products = [
        Case({"a": str(a), "b": str(b)}, TOO_HARD)
        for a, b in _pairs(_LARGEST)
        if max(a, b) > _TABLE and min(a, b) > _EASY_FACTOR
    ]
    return {"too_big": sums, "product.too_big": products}


def _list_cases(rng: Random) -> dict[str, list[Case]]:
    cases: dict[str, list[Case]] = {"list.reverse": [], "list.last": [], "list.first": []}
    for _ in range(4000):
        limit = rng.choice((10, 10, 100))
        values = [str(rng.randrange(limit)) for _ in range(rng.randrange(3, 7))]
        slots = {"x": rng.choice((", ", " ")).join(values)}
        cases["list.reverse"].append(Case(slots, ", ".join(reversed(values)) + "."))
        cases["list.last"].append(Case(slots, f"The last number is {values[-1]}."))
        cases["list.first"].append(Case(slots, f"The first number is {values[0]}."))
    return cases


# Shares of training within the group of computed answers.
_WEIGHTS: Final = {
    "add": 16.0, "subtract": 14.0, "negative": 2.0, "multiply": 7.0, "divide": 2.5, "compare.large": 2.0,
    "compare.small": 1.5, "parity": 0.8, "next": 0.8, "previous": 0.8, "double": 1.0, "count": 0.7, "too_big": 1.2,
    "product.too_big": 1.0, "list.reverse": 2.0, "list.last": 0.6, "list.first": 0.6,
}  # fmt: skip


def number_intents() -> list[Intent]:
    """Returns the intents with computed answers; the cases are drawn with a fixed seed."""
    rng = Random(17)
    sections = read_sections("algorithm_wordings.txt")
    cases = {
        **_sum_cases(rng),
        **_table_cases(rng),
        **_single_cases(rng),
        **_hard_cases(rng),
        **_list_cases(rng),
    }
    return [_intent(name, sections, drawn) for name, drawn in cases.items()]


def _intent(name: str, sections: dict[str, Section], cases: list[Case]) -> Intent:
    families = sections[{"negative": "subtract", "product.too_big": "multiply"}.get(name, name)].lines
    if name == "negative":
        families = tuple(line for line in families if "minus" in line or " - " in line)
    remembered = name in {"multiply", "divide", "count"}
    return Intent(name, families, cases, _WEIGHTS[name], computed=not remembered)

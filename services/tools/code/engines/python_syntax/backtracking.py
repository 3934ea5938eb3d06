"""Regular expressions that take exponential time: repetition of what repeats, or of what overlaps."""

from __future__ import annotations

import re
from re import _constants, _parser  # type: ignore[attr-defined]  # the parser of the standard library has no public name
from typing import Any, Final

# Any: the parser's own nodes are untyped tuples.
Node = Any
_REPEATS: Final = frozenset({_constants.MAX_REPEAT, _constants.MIN_REPEAT})
_MANY: Final = 16
# Longer ones are tables of words.
_MAX_PATTERN: Final = 2000


def is_exponential(pattern: str) -> bool:
    """Tell whether some text can make a backtracking engine try exponentially many ways."""
    if len(pattern) > _MAX_PATTERN:
        return False
    try:
        return _walk(_parser.parse(pattern), inside=False)
    except (re.error, RecursionError, OverflowError, ValueError):
        return False


def _walk(sequence: Node, *, inside: bool, beside: tuple[Node, ...] = ()) -> bool:
    """Look for a repetition inside of another; `beside` is what stands beside this sequence in the outer repetition."""
    for index, (operator, argument) in enumerate(sequence):
        others = (*beside, *(item for position, item in enumerate(sequence) if position != index))
        if operator in _REPEATS:
            low, high, body = argument
            many = high > _MANY
            if many and low != high and inside and not _fenced(body, others):
                return True
            if _walk(body, inside=inside or many, beside=() if many else others):
                return True
            if many and _overlaps(body):
                return True
        elif operator is _constants.SUBPATTERN:
            if _walk(argument[3], inside=inside, beside=others):
                return True
        elif operator is _constants.BRANCH and any(
            _walk(branch, inside=inside, beside=others) for branch in argument[1]
        ):
            return True
    return False


def _fenced(body: Node, others: tuple[Node, ...]) -> bool:
    """A repetition is harmless when something must stand beside it that cannot be taken for its own text."""
    mine = _first(body)
    for operator, argument in others:
        if operator in _REPEATS and argument[0] == 0:
            continue
        theirs = _first([(operator, argument)])
        if mine is not None and theirs and not mine & theirs:
            return True
    return False


def _overlaps(body: Node) -> bool:
    """`(a|a)*`: two branches that can begin with the same character and are each one character long."""
    for operator, argument in body:
        if operator is _constants.SUBPATTERN and _overlaps(argument[3]):
            return True
        if operator is _constants.BRANCH:
            sets = [_first(branch) for branch in argument[1]]
            for index, one in enumerate(sets):
                for other in sets[index + 1 :]:
                    if (
                        one is not None
                        and other is not None
                        and one & other
                        and all(len(branch) == 1 for branch in argument[1])
                    ):
                        return True
    return False


def _first(sequence: Node) -> set[int] | None:  # noqa: PLR0911 - one answer per kind of node
    """Give the ASCII characters that a sequence can begin with; None when that cannot be told."""
    for operator, argument in sequence:
        if operator is _constants.LITERAL:
            return {argument}
        if operator is _constants.NOT_LITERAL:
            return set(range(128)) - {argument}
        if operator is _constants.ANY:
            return set(range(128)) - {10}
        if operator is _constants.IN:
            return _members(argument)
        if operator is _constants.SUBPATTERN:
            return _first(argument[3])
        if operator in _REPEATS:
            return _first(argument[2])
        if operator is _constants.BRANCH:
            sets = [_first(branch) for branch in argument[1]]
            return (
                None
                if any(one is None for one in sets)
                else set().union(*(one for one in sets if one is not None))
            )
        if operator not in {_constants.AT, _constants.ASSERT, _constants.ASSERT_NOT}:
            return None
    return None


def _members(items: Node) -> set[int] | None:
    found: set[int] = set()
    negated = False
    for operator, argument in items:
        if operator is _constants.NEGATE:
            negated = True
        elif operator is _constants.LITERAL:
            found.add(argument)
        elif operator is _constants.RANGE:
            found.update(range(argument[0], min(argument[1], 127) + 1))
        elif operator is _constants.CATEGORY:
            found |= _category(argument)
        else:
            return None
    return set(range(128)) - found if negated else found


def _category(name: Node) -> set[int]:
    pattern = {
        _constants.CATEGORY_DIGIT: r"\d",
        _constants.CATEGORY_NOT_DIGIT: r"\D",
        _constants.CATEGORY_SPACE: r"\s",
        _constants.CATEGORY_NOT_SPACE: r"\S",
        _constants.CATEGORY_WORD: r"\w",
    }.get(name, r"\W")
    return {code for code in range(128) if re.match(pattern, chr(code))}

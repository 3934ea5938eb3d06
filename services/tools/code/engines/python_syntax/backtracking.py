"""Regular expressions that take exponential time: repetition of what repeats, or of what overlaps."""

from __future__ import annotations

import re
from re import _constants, _parser  # type: ignore[attr-defined]  # the parser of the standard library has no public name
from typing import Any, Final

# Any: the parser's own nodes are untyped tuples.
Node = Any
_REPEATS: Final = frozenset({_constants.MAX_REPEAT, _constants.MIN_REPEAT})
_MANY: Final = 16


def is_exponential(pattern: str) -> bool:
    """Tell whether some text can make a backtracking engine try exponentially many ways."""
    try:
        return _walk(_parser.parse(pattern), inside=False)
    except (re.error, RecursionError, OverflowError, ValueError):
        return False


def _walk(sequence: Node, *, inside: bool) -> bool:
    for operator, argument in sequence:
        if operator in _REPEATS:
            low, high, body = argument
            many = high > _MANY
            if many and low != high and inside and not _fenced(sequence, operator, argument):
                return True
            if _walk(body, inside=inside or many):
                return True
            if many and _overlaps(body):
                return True
        elif operator is _constants.SUBPATTERN:
            if _walk(argument[3], inside=inside):
                return True
        elif operator is _constants.BRANCH:
            if any(_walk(branch, inside=inside) for branch in argument[1]):
                return True
    return False


def _fenced(sequence: Node, operator: Node, argument: Node) -> bool:
    """A repetition is harmless when what stands beside it in the outer one cannot be taken for its own text."""
    mine = _first(argument[2])
    for other_operator, other in sequence:
        if (other_operator, other) == (operator, argument):
            continue
        if other_operator in _REPEATS and other[0] == 0:
            continue
        theirs = _first([(other_operator, other)])
        if mine is not None and theirs is not None and not mine & theirs:
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


def _first(sequence: Node) -> set[int] | None:
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
        if operator is not _constants.AT:
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

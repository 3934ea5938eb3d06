"""Brace expansion: `{a,b}` and `{1..9}` become several words before anything else happens to them.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from services.tools.policy.shell.syntax import Brace, Literal, Part

# Words that one word may become.
MAX_EXPANSIONS: Final = 256
# In one word; each may be looked at from every other.
MAX_BRACES: Final = 64
_NUMBERS: Final = re.compile(r"(-?[0-9]{1,9})\.\.(-?[0-9]{1,9})(?:\.\.(-?[0-9]{1,9}))?")
_LETTERS: Final = re.compile(r"([A-Za-z])\.\.([A-Za-z])")

_Parts = tuple[Part, ...]


class _TooManyError(Exception):
    """More words than one word may become."""


def expand_braces(parts: Sequence[Part]) -> list[_Parts] | None:
    """The words that one word becomes; None when they, or the braces, are too many. Braces that expand nothing stay."""
    if sum(part == Brace("{") for part in parts) > MAX_BRACES:
        return None
    try:
        return _expanded(tuple(parts))
    except _TooManyError:
        return None


def joined(parts: Iterable[Part]) -> _Parts:
    """The same with braces as text, and texts that meet made one."""
    result: list[Part] = []
    texts: list[str] = []
    for part in parts:
        if isinstance(part, Literal | Brace):
            texts.append(part.text)
            continue
        if texts:
            result.append(Literal("".join(texts)))
            texts = []
        result.append(part)
    if texts:
        result.append(Literal("".join(texts)))
    return tuple(result)


def _expanded(parts: _Parts) -> list[_Parts]:
    for begin, part in enumerate(parts):
        if part != Brace("{"):
            continue
        end = _closing(parts, begin)
        if end is None:
            continue
        choices = _choices(parts[begin + 1 : end])
        if choices is None:
            continue
        middle = [word for choice in choices for word in _expanded(choice)]
        rest = _expanded(parts[end + 1 :])
        if len(middle) * len(rest) > MAX_EXPANSIONS:
            raise _TooManyError
        return [(*parts[:begin], *one, *after) for one in middle for after in rest]
    return [parts]


def _closing(parts: _Parts, begin: int) -> int | None:
    depth = 0
    for index in range(begin, len(parts)):
        depth += (parts[index] == Brace("{")) - (parts[index] == Brace("}"))
        if depth == 0:
            return index
    return None


def _choices(inside: _Parts) -> list[_Parts] | None:
    """What stands between the commas, or in the range; None when it is neither."""
    found: list[_Parts] = []
    depth = begin = 0
    for index, part in enumerate(inside):
        depth += (part == Brace("{")) - (part == Brace("}"))
        if depth == 0 and part == Brace(","):
            found.append(inside[begin:index])
            begin = index + 1
    if found:
        return [*found, inside[begin:]]
    text = "".join(part.text if isinstance(part, Literal) else "{" for part in inside)
    return _range(text)


def _range(text: str) -> list[_Parts] | None:
    numbers = _NUMBERS.fullmatch(text)
    letters = _LETTERS.fullmatch(text)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        step = abs(int(numbers[3] or 1)) or 1
        width = (
            max(len(numbers[1]), len(numbers[2])) if _is_padded(numbers[1]) or _is_padded(numbers[2]) else 0
        )
    elif letters:
        first, last, step, width = ord(letters[1]), ord(letters[2]), 1, 0
    else:
        return None
    values = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    if len(values) > MAX_EXPANSIONS:
        raise _TooManyError
    texts = (chr(value) if letters else f"{value:0{width}d}" for value in values)
    return [(Literal(text),) for text in texts]


def _is_padded(number: str) -> bool:
    digits = number.removeprefix("-")
    return len(digits) > 1 and digits.startswith("0")

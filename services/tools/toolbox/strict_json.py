"""JSON as one reading only: what two parsers could understand differently is no JSON here."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

from kala.errors import InvalidArgumentError

MIN_BYTES: Final = 2
MAX_BYTES: Final = 1_048_576
# Arguments of tools are flat; deeper JSON is no honest call.
MAX_DEPTH: Final = 32
# A longer number is no size, offset or time.
MAX_NUMBER_CHARS: Final = 64
_TEXT: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET: Final = re.compile(r"[\[\]{}]")


def read_object(field: str, text: str) -> dict[str, Any]:  # Any: JSON; the schema decides
    """The object of a JSON text; raises InvalidArgumentError for anything else.

    Refused besides what is no JSON: a key that comes twice, NaN and infinities, a float outside of double range, halves of
    surrogate pairs, more than MAX_DEPTH levels, and fewer or more bytes than the contract takes.
    """
    if len(text) > MAX_BYTES:
        raise InvalidArgumentError(field, f"must be {MIN_BYTES} to {MAX_BYTES} bytes")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(field, "must be UTF-8") from None
    if not MIN_BYTES <= size <= MAX_BYTES:
        raise InvalidArgumentError(field, f"must be {MIN_BYTES} to {MAX_BYTES} bytes, not {size}")
    if _depth(text) > MAX_DEPTH:
        raise InvalidArgumentError(field, f"must not be nested more than {MAX_DEPTH} deep")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except _StrictError as error:
        raise InvalidArgumentError(field, str(error)) from None
    except (ValueError, RecursionError) as error:
        place = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidArgumentError(field, f"is not JSON{place}") from None
    if not isinstance(value, dict):
        raise InvalidArgumentError(field, "must be a JSON object, such as {}")
    if "\\u" in text:
        _require_whole_characters(field, value)
    return value


class _StrictError(ValueError):
    """JSON with more than one reading."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _StrictError(f"has the key {twice[:80]!r} twice")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise _StrictError(f"must not hold {text}, which is no JSON")


def _finite(text: str) -> float:
    number = float(text) if len(text) <= MAX_NUMBER_CHARS else math.inf
    if not math.isfinite(number):
        raise _StrictError(f"has the number {text[:40]}, which is outside of double range")
    return number


def _whole(text: str) -> int:
    if len(text) > MAX_NUMBER_CHARS:
        raise _StrictError(f"has the number {text[:40]}…, which is too long")
    return int(text)


def _depth(text: str) -> int:
    """The deepest level of the text, or one that is too deep, quotes respected; cheap, and before any parser recurses."""
    depth = deepest = 0
    for bracket in _BRACKET.finditer(_TEXT.sub("", text)):
        depth += 1 if bracket.group() in "[{" else -1
        deepest = max(deepest, depth)
        if deepest > MAX_DEPTH:
            break
    return deepest


def _require_whole_characters(field: str, value: object) -> None:
    if isinstance(value, dict):
        for key, member in value.items():
            _require_whole_characters(field, key)
            _require_whole_characters(field, member)
    elif isinstance(value, list):
        for member in value:
            _require_whole_characters(field, member)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(field, "must not hold half of a surrogate pair") from None

"""What the fields of a leaf may hold, as small composable checks over parsed JSON."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from kala.audit import canonical
from kala.audit.times import format_time, parse_time
from kala.errors import VerificationError

# A check says whether a value is allowed. `Any`: values are parsed JSON of any kind.
Check = Callable[[Any], bool]
_PAIR: Final = 2
MAX_LAW: Final = 4


def matches(pattern: str) -> Check:
    """A string that matches the whole pattern."""
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def optional(check: Check) -> Check:
    """Null, or what `check` allows."""
    return lambda value: value is None or check(value)


def one_of(values: frozenset[str]) -> Check:
    """One of these strings."""
    return lambda value: isinstance(value, str) and value in values


def integer_up_to(top: int = canonical.MAX_INTEGER, *, least: int = 0) -> Check:
    """An integer from `least` to `top`; a bool is none."""
    return lambda value: type(value) is int and least <= value <= top


def list_of(check: Check) -> Check:
    """A list whose every item `check` allows."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def unique_by(key: str, check: Check) -> Check:
    """A list of objects whose every item `check` allows, no two with the same `key`."""
    allowed = list_of(check)
    return lambda value: allowed(value) and len({item[key] for item in value}) == len(value)


def object_of(fields: Mapping[str, Check]) -> Check:
    """An object with exactly these keys, each with an allowed value."""
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == fields.keys()
        and all(fields[k](v) for k, v in value.items())
    )


def is_text(value: Any) -> bool:
    """Whether it is a string."""
    return isinstance(value, str)


def is_bool(value: Any) -> bool:
    """Whether it is true or false."""
    return isinstance(value, bool)


def is_time(value: Any) -> bool:
    """Whether it is a time of the calendar in the one spelling that leaves use."""
    try:
        return isinstance(value, str) and format_time(parse_time(value)) == value
    except VerificationError:
        return False


def is_base64(value: Any) -> bool:
    """Whether it is base64 of at least one byte in its one spelling (RFC 4648 section 4)."""
    try:
        return (
            isinstance(value, str)
            and base64.b64encode(binascii.a2b_base64(value, strict_mode=True)).decode() == value != ""
        )
    except ValueError:
        return False


def is_attributes(value: Any) -> bool:
    """Whether it is a list of [key, value] pairs of strings, sorted by key, each key once."""
    if not isinstance(value, list) or not all(
        isinstance(p, list) and len(p) == _PAIR and all(map(is_text, p)) for p in value
    ):
        return False
    keys = [pair[0] for pair in value]
    return keys == sorted(set(keys))


hex8: Final = matches("[0-9a-f]{16}")
hex16: Final = matches("[0-9a-f]{32}")
hex32: Final = matches("[0-9a-f]{64}")
name: Final = matches(r"[a-z0-9_.]{1,64}")
filled: Final = matches(r"(?s).+")
law: Final = optional(integer_up_to(MAX_LAW))
maybe_text: Final = optional(filled)

"""Canonical JSON: the one spelling of a value, a subset of RFC 8785 without floats.

Floats are left out because their canonical form is the part of RFC 8785 that implementations get wrong.
Integers stay within 53 bits, so that every JSON reader keeps them exact; object keys are ASCII, so that sorting
by code point and by UTF-16 unit agree.
"""

from __future__ import annotations

import json
from typing import Final, NoReturn, TypeAlias

from kala.errors import VerificationError

# RFC 8785 section 3.2.2.3 and RFC 7493 section 2.2: the integers that a double holds exactly.
MAX_INTEGER: Final = (1 << 53) - 1
# A leaf nests 4 levels deep; the bound keeps a hostile input from exhausting the stack.
MAX_DEPTH: Final = 16

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

_encode: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


def encode(value: Json) -> bytes:
    """The canonical bytes of `value`; raises `VerificationError` for anything outside the subset."""
    check(value)
    return encode_trusted(value)


def encode_trusted(value: Json) -> bytes:
    """The canonical bytes of a value already known to lie within the subset."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError as error:
        raise VerificationError("canonical JSON holds only valid Unicode") from error


def decode(data: bytes) -> Json:
    """Reads canonical bytes back; anything but the canonical spelling is rejected."""
    value = parse(data)
    if encode(value) != data:
        raise VerificationError("the JSON is not in canonical form")
    return value


def parse(data: bytes) -> Json:
    """Reads JSON without floats and without repeated keys, in any spelling."""
    try:
        return _decoder.decode(data.decode())  # type: ignore[no-any-return] # json has no static result type
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise VerificationError(f"this is not JSON of the canonical subset: {error}") from error


def check(value: Json, depth: int = 0) -> None:
    """Raises `VerificationError` when `value` lies outside the subset."""
    if value is None or isinstance(value, (bool, str)):
        return
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise VerificationError(f"{value} does not fit in 53 bits")
    elif depth >= MAX_DEPTH:
        raise VerificationError(f"JSON nested deeper than {MAX_DEPTH}")
    elif isinstance(value, list):
        for item in value:
            check(item, depth + 1)
    elif isinstance(value, dict):
        _check_keys(value)
        for item in value.values():
            check(item, depth + 1)
    else:
        raise VerificationError(f"canonical JSON holds no {type(value).__name__}")


def _check_keys(value: dict[str, Json]) -> None:
    for key in value:
        if not key.isascii():
            raise VerificationError("the keys of canonical JSON are ASCII strings")


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"a float or constant ({text[:20]})")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a repeated key")
    return value


_decoder: Final = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float, object_pairs_hook=_unique)

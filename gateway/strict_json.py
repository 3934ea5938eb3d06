"""Reads JSON that leaves no room for two readings: no repeated keys, no NaN, no NUL, no lone surrogates, bounded depth.

A judge and an actor that read the same bytes differently would be a way around the judge; so what can be read in two
ways is refused, with the field's name.  Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from kala.errors import InvalidArgumentError

MAX_DEPTH: Final = 64
"""Deeper than any message or sensible JSON Schema, far below what exhausts a parser's stack."""

MAX_NUMBER_CHARS: Final = 64
"""A double needs 17 digits; a longer number is an attack on somebody's parser."""

_SUSPICIOUS: Final = re.compile(rb"\\u(?:0000|[dD][89abAB])|\\u[dD][c-fC-F]")
"""Escapes that may spell NUL or half a surrogate pair; only then are all strings looked at."""

_PATH_SAFE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def read_object(body: bytes) -> dict[str, Any]:  # Any: JSON
    """Read a JSON object, or raise InvalidArgumentError that says what is wrong, where, and how to mend it."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            "body",
            f"is not valid UTF-8 at byte {error.start}; send JSON encoded as UTF-8",
            reason="INVALID_UTF8",
        ) from error
    if text.startswith("\ufeff"):
        raise InvalidArgumentError(
            "body", "starts with a byte order mark; send plain UTF-8", reason="INVALID_JSON"
        )
    value = _parse(text)
    if not isinstance(value, dict):
        raise InvalidArgumentError("body", "must be a JSON object", reason="INVALID_JSON")
    _check_depth(value)
    if _SUSPICIOUS.search(body):
        _check_strings(value)
    return value


def _parse(text: str) -> Any:  # Any: JSON
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise _too_deep() from error
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(
            "body",
            f"is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg.lower()}",
            reason="INVALID_JSON",
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidArgumentError(
                    _shown(key), "appears twice in the same JSON object; send it once", reason="DUPLICATE_KEY"
                )
            seen.add(key)
    return result


def _integer(text: str) -> int:
    if len(text) > MAX_NUMBER_CHARS:
        raise _bad_number()
    return int(text)


def _float(text: str) -> float:
    if len(text) > MAX_NUMBER_CHARS:
        raise _bad_number()
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _bad_number()
    return value


def _constant(name: str) -> NoReturn:
    raise InvalidArgumentError("body", f"holds {name}, which is not JSON", reason="INVALID_JSON")


def _bad_number() -> InvalidArgumentError:
    return InvalidArgumentError(
        "body",
        f"holds a number that no double can hold, or one of over {MAX_NUMBER_CHARS} characters",
        reason="INVALID_NUMBER",
    )


def _too_deep() -> InvalidArgumentError:
    return InvalidArgumentError(
        "body", f"nests deeper than {MAX_DEPTH} levels; flatten the object that does", reason="TOO_DEEP"
    )


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _check_depth(value: dict[str, Any]) -> None:  # Any: JSON
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise _too_deep()


def _check_strings(value: Any) -> None:  # Any: JSON
    for path, text in _strings(value, ""):
        if "\0" in text:
            raise InvalidArgumentError(path, "contains a NUL character; remove it", reason="NUL_CHARACTER")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                path,
                f"contains half a surrogate pair at character {error.start}; send whole characters",
                reason="LONE_SURROGATE",
            ) from error


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:  # Any: JSON
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = f"{path}.{_shown(key)}" if path else _shown(key)
            yield inner, key
            yield from _strings(item, inner)


def _shown(key: str) -> str:
    """Give a key as it may stand in a message: names as they are, anything else as its JSON spelling, cut."""
    return key if _PATH_SAFE.fullmatch(key) else json.dumps(key[:64])

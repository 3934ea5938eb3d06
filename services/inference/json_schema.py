"""JSON Schema as a check of what a model wrote: bounded in work, with linear-time patterns, without network.  Pure.

A schema comes from whoever may send requests, and a few lines of one can ask for years of work: nested `anyOf` doubles
it at each level, and Python's regular expressions have no bound at all.  So every keyword that is looked at counts, and
patterns are RE2's.  `format` is an annotation, as drafts 2019-09 and 2020-12 have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

import orjson
import re2
from jsonschema import (
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
)
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

MAX_WORK: Final = 1_000_000
"""A check of that size takes about a second, a real one a thousandth of it."""

KEYWORD_WORK: Final = 10
"""What looking at a keyword costs, against 1 for each member of what it looks at: measured, roughly."""

MAX_PATTERN_BYTES: Final = 1 << 20
"""Memory of one compiled pattern; `(a{1000}){1000}` asks for more."""

MAX_PATH_CHARS: Final = 120

KEPT_SCHEMAS: Final = 128
"""Compiled schemas that are kept: clients send the same few again and again."""

_TOO_MUCH: Final = "is too complex to be checked; simplify it"

Check = Callable[[Any, Any, Any, Any], Iterable[ValidationError] | None]  # Any: JSON


class UncheckableSchemaError(ValueError):
    """The schema is no JSON Schema, or none that can be checked here; the text says why, for a field's name before it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong; `path` holds names out of the checked value, `keyword` is the schema's."""

    keyword: str
    path: str


class Schema:
    """A schema that can be checked."""

    __slots__ = ("_validator",)

    def __init__(self, text: str) -> None:
        """Raises UncheckableSchemaError."""
        schema = _parsed(text)
        _refuse_what_reaches_out(schema)
        kind = _kind(schema)
        try:
            problem = _first(_bounded(kind)(kind.META_SCHEMA, registry=Registry()), schema)
        except _TooMuchError:
            raise UncheckableSchemaError(_TOO_MUCH) from None
        if problem is not None:
            raise UncheckableSchemaError(f"is no JSON Schema: {problem.path} has a wrong {problem.keyword!r}")
        for pattern in _patterns(schema):
            _regex(pattern)
        self._validator = _bounded(kind)(schema, registry=Registry())

    def first_fault(self, value: object) -> Fault | None:
        """Give what is wrong with a value, None where nothing is; raises UncheckableSchemaError."""
        try:
            return _first(self._validator, value)
        except _TooMuchError:
            raise UncheckableSchemaError(_TOO_MUCH) from None
        except Unresolvable:
            raise UncheckableSchemaError("has a $ref that leads nowhere") from None


@lru_cache(maxsize=KEPT_SCHEMAS)
def schema_of(text: str) -> Schema:
    """Give the schema of a JSON text; raises UncheckableSchemaError."""
    return Schema(text)


class _TooMuchError(Exception):
    """The check takes more work, or a deeper nesting, than it may."""


_work_left: ContextVar[list[int]] = ContextVar("_work_left")


def _first(validator: Any, value: object) -> Fault | None:  # Any: the library makes its classes at run time
    token = _work_left.set([MAX_WORK])
    try:
        error = next(validator.iter_errors(value), None)
    except (RecursionError, orjson.JSONEncodeError):
        raise _TooMuchError from None
    finally:
        _work_left.reset(token)
    if error is None:
        return None
    return Fault(str(error.validator or "false"), error.json_path[:MAX_PATH_CHARS])


def _parsed(text: str) -> dict[str, Any]:  # Any: JSON
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise UncheckableSchemaError("is no JSON") from None
    if not isinstance(schema, dict):
        raise UncheckableSchemaError("must be a JSON object")
    return schema


def _kind(schema: dict[str, Any]) -> Any:  # Any: JSON; the library makes its classes at run time
    named = schema.get("$schema", "")
    kind = _KINDS.get(named.rstrip("#")) if isinstance(named, str) else None
    if kind is None:
        raise UncheckableSchemaError(
            "has a $schema that is not known here; use draft 4, 6, 7, 2019-09 or 2020-12"
        )
    return kind


def _members(schema: object) -> Iterator[tuple[str, Any]]:  # Any: JSON
    """Give every member of every object in a schema, but of the values that it only compares with."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for name, member in value.items():
                yield name, member
                if name not in {"const", "enum", "default", "examples", "example"}:
                    waiting.append(member)


def _refuse_what_reaches_out(schema: dict[str, Any]) -> None:  # Any: JSON
    names = set()
    for name, member in _members(schema):
        names.add(name)
        if name in {"$ref", "$dynamicRef"} and isinstance(member, str) and not member.startswith("#"):
            raise UncheckableSchemaError(
                "refers to another document; put it under $defs and refer to '#/$defs/…'"
            )
    if {"patternProperties", "unevaluatedProperties"} <= names:
        # The library matches names for this pair with Python's own patterns, deep inside.
        raise UncheckableSchemaError("cannot have both patternProperties and unevaluatedProperties")


def _patterns(schema: dict[str, Any]) -> Iterator[str]:  # Any: JSON
    for name, member in _members(schema):
        if name == "pattern" and isinstance(member, str):
            yield member
        elif name == "patternProperties" and isinstance(member, dict):
            yield from member


@lru_cache(maxsize=KEPT_SCHEMAS)
def _regex(pattern: str) -> Any:  # Any: re2 has no type stubs
    options = re2.Options()
    options.max_mem = MAX_PATTERN_BYTES
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        raise UncheckableSchemaError(
            f"has the pattern {pattern[:60]!r}, which cannot be checked: no look-around, no back-references, no \\u"
        ) from None


@cache
def _bounded(kind: Any) -> Any:  # Any: the library makes its classes at run time
    """Make a draft's validator that counts its work and matches with RE2."""
    checks: Mapping[str, Check] = kind.VALIDATORS | {
        name: check for name, check in _OWN_CHECKS.items() if name in kind.VALIDATORS
    }
    counted = {name: _counted(check) for name, check in checks.items()}
    bounded = extend(kind, validators=counted)  # type: ignore[no-untyped-call]  # the stub has no types for it
    # The library's own takes up an unbounded class wherever a part of the schema names its draft.
    bounded.evolve = _evolved
    return bounded


def _evolved(self: Any, **changes: Any) -> Any:  # Any: attributes of a class made at run time
    kept = {"schema": self.schema, "registry": self._registry, "_resolver": self._resolver}
    return type(self)(**(kept | changes))


def _counted(check: Check) -> Check:
    def counting(
        validator: Any, value: Any, instance: Any, schema: Any
    ) -> Iterable[ValidationError] | None:  # Any: JSON
        left = _work_left.get()
        left[0] -= KEYWORD_WORK + _size(value) + _size(instance)
        if left[0] < 0:
            raise _TooMuchError
        return check(validator, value, instance, schema)

    return counting


def _size(value: object) -> int:
    return len(value) if isinstance(value, dict | list) else 0


def _pattern(_validator: Any, pattern: str, instance: object, _schema: object) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _regex(pattern).search(instance):
        yield ValidationError("does not match the pattern")


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], instance: object, _schema: object
) -> Iterator[ValidationError]:
    for pattern, schema in patterns.items():
        for name, member in _object(instance).items():
            if _regex(pattern).search(name):
                yield from validator.descend(member, schema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, schema: Any, instance: object, parent: dict[str, Any]
) -> Iterator[ValidationError]:
    named, patterns = parent.get("properties", {}), parent.get("patternProperties", {})
    for name, member in _object(instance).items():
        if name in named or any(_regex(pattern).search(name) for pattern in patterns):
            continue
        if schema is False:
            yield ValidationError("has a property too many")
        else:
            yield from validator.descend(member, schema, path=name)


def _unique_items(
    _validator: Any, is_unique: object, instance: object, _schema: object
) -> Iterator[ValidationError]:
    if is_unique is True and isinstance(instance, list):
        written = [orjson.dumps(_plain(item), option=orjson.OPT_SORT_KEYS) for item in instance]
        if len(set(written)) < len(written):
            yield ValidationError("has an item twice")


def _plain(value: Any) -> Any:  # Any: JSON
    """Write numbers that are equal alike: 1.0 is 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value) if abs(value) < 2**53 else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    return value


def _object(value: object) -> dict[str, Any]:  # Any: JSON
    return value if isinstance(value, dict) else {}


_OWN_CHECKS: Final[Mapping[str, Check]] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
}

_KINDS: Final[Mapping[str, Any]] = {
    "": Draft202012Validator
} | {  # Any: the library makes its classes at run time
    str(kind.ID_OF(kind.META_SCHEMA)).rstrip("#"): kind
    for kind in (
        Draft4Validator,
        Draft6Validator,
        Draft7Validator,
        Draft201909Validator,
        Draft202012Validator,
    )
}

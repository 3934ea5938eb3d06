"""Says in one sentence, with field, limit and cure, what pydantic found wrong.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, Final

from pydantic import ValidationError

from kala.errors import InvalidArgumentError

_Context = Mapping[str, Any]  # Any: pydantic's own, one shape per error type

_TYPES: Final = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer without a fraction",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null or absent",
}

_LIMITS: Final[dict[str, Callable[[_Context], str]]] = {
    "greater_than_equal": lambda context: f"must be at least {context['ge']}",
    "greater_than": lambda context: f"must be above {context['gt']}",
    "less_than_equal": lambda context: f"must be at most {context['le']}",
    "less_than": lambda context: f"must be below {context['lt']}",
    "string_too_long": lambda context: f"must have at most {context['max_length']} characters; shorten it",
    "string_too_short": lambda context: f"must have at least {context['min_length']} character(s)",
    "too_long": lambda context: f"must have at most {context['max_length']} entries; send fewer",
    "too_short": lambda context: f"must have at least {context['min_length']} entry",
    "literal_error": lambda context: f"must be {context['expected']}",
    "union_tag_invalid": lambda context: f"must be one of {context['expected_tags']}",
    "finite_number": lambda _: "must be a finite number",
    "missing": lambda _: "is required",
    "extra_forbidden": lambda _: "is not a known field; remove it",
}

_PATTERNS: Final = {
    "url": "must be a data URI (data:image/png|jpeg|webp|gif;base64,…); remote images are not fetched, send the bytes",
    "image_url": "must be a data URI (data:image/png|jpeg|webp|gif;base64,…); remote images are not fetched, send the bytes",
    "name": "must have 1 to 64 characters of A-Z, a-z, 0-9, _ and -",
}

_JSON_NAMES: Final = {
    str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


def first_error(error: ValidationError, body: object) -> InvalidArgumentError:
    """Give the first fault as InvalidArgumentError whose field is a path into `body`."""
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    path = path_of(first["loc"], body, is_missing=kind == "missing")
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        discriminator = str(context["discriminator"]).strip("'")
        path = f"{path}.{discriminator}" if path else discriminator
    return InvalidArgumentError(path or "body", _problem(kind, context, first))


def refuse_unknown(body: Mapping[str, Any], known: Container[str]) -> None:  # Any: JSON
    """Raise InvalidArgumentError that names the first parameter that the endpoint does not know."""
    for name in body:
        if name not in known:
            raise InvalidArgumentError(
                name if name.isidentifier() else "body",
                f"{name[:64]!r} is not a parameter of this endpoint; remove it",
                reason="UNKNOWN_PARAMETER",
            )


def path_of(location: tuple[int | str, ...], body: object, *, is_missing: bool) -> str:
    """Write a location as `messages[3].content[0].text`, without the tags of unions that pydantic puts between."""
    path, here = "", body
    for position, step in enumerate(location):
        if isinstance(step, int):
            path += f"[{step}]"
            here = here[step] if isinstance(here, list) and step < len(here) else None
        elif isinstance(here, dict) and step in here:
            path += f".{step}" if path else step
            here = here[step]
        elif is_missing and position == len(location) - 1:
            path += f".{step}" if path else step
    return path


def _problem(kind: str, context: _Context, first: Mapping[str, Any]) -> str:  # Any: as above
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, not {_JSON_NAMES.get(type(first['input']), 'something else')}"
    if kind in _LIMITS:
        return _LIMITS[kind](context)
    if kind == "union_tag_not_found":
        return "is required"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(str(first["loc"][-1]), "has a wrong form")
    return str(first["msg"])

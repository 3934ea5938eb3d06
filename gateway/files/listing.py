"""Lists as OpenAI's clients page through them: `after`, `limit`, `order`, and what comes back.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from kala.errors import InvalidArgumentError

MAX_LIMIT: Final = 1000
MAX_VALUE_CHARS: Final = 256

_PAGING: Final = frozenset({"after", "limit"})


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for."""

    limit: int
    after: str
    newest_first: bool
    filters: Mapping[str, str]


def read_page(query: str, *, default: int, also: Collection[str] = ()) -> Page:
    """Read a query string; InvalidArgumentError names a field that is unknown, repeated or out of bounds.

    A field whose name ends with `[]` is a list and may be repeated; only its last entry is given.
    """
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError as error:  # not UTF-8, or too many
        raise InvalidArgumentError("query", "is not a query string of at most 16 fields in UTF-8") from error
    for name, value in pairs:
        if name not in _PAGING and name not in also:
            known = ", ".join(sorted(_PAGING | set(also)))
            raise InvalidArgumentError(name[:80], f"is not a known field here; known are {known}")
        if name in found and not name.endswith("[]"):
            raise InvalidArgumentError(name, "is given twice")
        if len(value) > MAX_VALUE_CHARS or "\0" in value:
            raise InvalidArgumentError(name, f"must have at most {MAX_VALUE_CHARS} characters and no NUL")
        found[name] = value
    order = found.pop("order", "desc")
    if order not in {"asc", "desc"}:
        raise InvalidArgumentError("order", "must be 'asc' or 'desc'")
    limit = _limit(found.pop("limit", str(default)))
    return Page(limit, found.pop("after", ""), order == "desc", found)


def written_page(items: Sequence[dict[str, Any]], *, limit: int) -> dict[str, Any]:  # Any: JSON
    """Write a page from `limit` and one more of its items, which tells whether there are more."""
    data = list(items[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(items) > limit,
    }


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 10_000):  # noqa: PLR2004 - OpenAI's bound
        raise InvalidArgumentError("limit", "must be an integer from 1 to 10000")
    return min(int(text), MAX_LIMIT)

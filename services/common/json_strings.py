"""The strings of a JSON value, for judges that read what is said and not how it is nested."""

from __future__ import annotations

from collections.abc import Iterator


def strings_of(value: object, depth: int) -> Iterator[str]:
    """Every string and key of a parsed JSON value in its order, `depth` levels down at most."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list):
        for item in value:
            yield from strings_of(item, depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_of(item, depth - 1)

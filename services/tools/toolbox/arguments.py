"""The arguments of one call, read as their schema says; an argument that nobody asked for is an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from kala.errors import InvalidArgumentError
from services.tools.toolbox.strict_json import read_object

FIELD: Final = "arguments_json"


class Arguments:
    """The arguments of a call to one tool; each is asked for once."""

    def __init__(self, text: str) -> None:
        self._left: dict[str, Any] = read_object(FIELD, text)  # Any: JSON, looked at one by one

    def end(self) -> None:
        """Raises InvalidArgumentError for an argument that the tool does not have."""
        for name in self._left:
            raise _wrong(name, "is no argument of this tool; leave it out")

    def has(self, name: str) -> bool:
        """Whether it is there and was not asked for yet."""
        return name in self._left

    def text(self, name: str, *, least: int = 0, most: int, default: str | None = None) -> str:
        """A text of `least` to `most` characters."""
        value = self._take(name, default)
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise _wrong(name, f"must be a text of {least} to {most} characters")
        return value

    def texts(self, name: str, *, most: int, most_chars: int) -> tuple[str, ...]:
        """A list of texts; empty when it is not there."""
        value = self._take(name, [])
        if not isinstance(value, list) or len(value) > most:
            raise _wrong(name, f"must be a list of at most {most} texts")
        for index, item in enumerate(value):
            if not isinstance(item, str) or len(item) > most_chars or "\0" in item:
                raise _wrong(
                    f"{name}[{index}]", f"must be a text of at most {most_chars} characters, without NUL"
                )
        return tuple(value)

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of the texts."""
        value = self._take(name, default)
        if value not in choices:
            raise _wrong(name, f"must be one of {', '.join(choices)}")
        return str(value)

    def flag(self, name: str) -> bool:
        """True or false; false when it is not there."""
        value = self._take(name, False)
        if not isinstance(value, bool):
            raise _wrong(name, "must be true or false")
        return value

    def count(self, name: str, *, least: int, most: int, default: int) -> int:
        """A whole number; 3.0 is one, as JSON Schema has it."""
        value = self._take(name, default)
        is_whole = isinstance(value, float) and value.is_integer()
        if isinstance(value, bool) or not (isinstance(value, int) or is_whole) or not least <= value <= most:
            raise _wrong(name, f"must be a whole number from {least} to {most}")
        return int(value)

    def seconds(self, name: str, *, least: float, most: float) -> float | None:
        """A number; None when it is not there."""
        if name not in self._left:
            return None
        value = self._left.pop(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise _wrong(name, f"must be a number of seconds from {least:g} to {most:g}")
        return float(value)

    def _take(self, name: str, default: object) -> Any:  # Any: JSON, looked at by the callers
        if name in self._left:
            return self._left.pop(name)
        if default is None:
            raise _wrong(name, "is missing")
        return default


def _wrong(name: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{FIELD}.{name[:80]}", problem)

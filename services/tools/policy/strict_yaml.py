"""YAML read key by key: each is asked for by its kind and unit, and one that nobody asked for is an error."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from enum import Enum
from typing import Any, Final, TypeVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from kala.errors import InvalidArgumentError

_SIZE: Final = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB)")
_SIZES: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_SPAN: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h)")
_SPANS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

E = TypeVar("E", bound=Enum)


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, and references, with which a short file could make a huge document."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - the base class's
        """Build a mapping whose keys are all different."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or keys.count(key.value) > 1:
                raise ConstructorError(
                    None, None, f"the key {key.value!r} comes twice or is no plain text", key.start_mark
                )
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Build a node of the document; no reference."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # the stub has no types for it
            raise ComposerError(None, None, "references are not taken; write it out", mark)
        return super().compose_node(parent, index)


class Section:
    """A mapping of the file; `where` is its path, for messages."""

    def __init__(self, where: str, content: object) -> None:
        if not isinstance(content, dict):
            raise InvalidArgumentError(where, "must be a mapping of keys to values")
        self.where = where
        self._left: dict[str, Any] = dict(content)  # Any: YAML, looked at one by one

    def end(self) -> None:
        """Raises InvalidArgumentError for a key that nobody asked for."""
        for key in self._left:
            raise InvalidArgumentError(
                self.path(key), "is no setting of the policy; take it out or mend its name"
            )

    def path(self, key: str) -> str:
        """The full path of a key."""
        return f"{self.where}.{key}" if self.where else str(key)

    def has(self, key: str) -> bool:
        """Whether the key is there and was not asked for yet."""
        return key in self._left

    def section(self, key: str) -> Section:
        """A mapping."""
        return Section(self.path(key), self._take(key))

    def sections(self, key: str, *, most: int) -> list[Section]:
        """A list of mappings."""
        return [
            Section(f"{self.path(key)}[{index}]", item) for index, item in enumerate(self._list(key, most))
        ]

    def texts(self, key: str, *, most: int) -> list[str]:
        """A list of texts; numbers and yes or no in it must be quoted."""
        items = self._list(key, most)
        for index, item in enumerate(items):
            if not isinstance(item, str):
                raise InvalidArgumentError(
                    f"{self.path(key)}[{index}]", f'must be a text; write "{item}" in quotes'
                )
        return items

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self._take(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "must be a text; put it in quotes")
        return value

    def path_text(self, key: str) -> str:
        """A text that may be empty."""
        value = self._take(key)
        if not isinstance(value, str):
            raise self._wrong(key, "must be a text; put it in quotes")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._take(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "must be true or false")
        return value

    def choice(self, key: str, choices: type[E]) -> E:
        """One of an enumeration's names, in small letters."""
        value = self._take(key)
        for choice in choices:
            if value == choice.name.lower():
                return choice
        raise self._wrong(key, f"must be {_listed(choice.name.lower() for choice in choices)}")

    def choice_or_never(self, key: str, choices: type[E]) -> E | None:
        """As `choice`, or None for "never"."""
        if self._left.get(key) == "never":
            del self._left[key]
            return None
        return self.choice(key, choices)

    def count(self, key: str, *, least: int, most: int) -> int:
        """A whole number."""
        value = self._take(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(key, f"must be a whole number from {least} to {most}")
        return value

    def size(self, key: str, *, least: int = 0) -> int:
        """A number of bytes, with its unit."""
        value = self._take(key)
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if not found:
            raise self._wrong(key, 'must be a size with its unit, such as "64MiB" (B, KiB, MiB, GiB)')
        number = int(found[1]) * _SIZES[found[2]]
        if not least <= number < 2**63:
            raise self._wrong(key, f"must be at least {least} bytes and less than 2^63")
        return number

    def span(self, key: str, *, least: float, most: float) -> float:
        """A time in seconds, with its unit."""
        value = self._take(key)
        found = _SPAN.fullmatch(value) if isinstance(value, str) else None
        if not found:
            raise self._wrong(key, 'must be a time with its unit, such as "30s" (ms, s, m, h)')
        seconds = int(found[1]) * _SPANS[found[2]]
        if not least <= seconds <= most:
            raise self._wrong(key, f"must be from {least:g} s to {most:g} s")
        return seconds

    def _take(self, key: str) -> object:
        if key not in self._left:
            raise InvalidArgumentError(self.path(key), "is missing; the default policy shows every key")
        value: object = self._left.pop(key)
        return value

    def _list(self, key: str, most: int) -> list[Any]:  # Any: YAML, looked at by the callers
        value = self._take(key)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(key, f"must be a list of at most {most}")
        return value

    def _wrong(self, key: str, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(self.path(key), problem)


def read_document(data: bytes, *, where: str) -> Section:
    """The file's top; raises InvalidArgumentError with the line of what is no YAML."""
    try:
        document = yaml.load(data.decode(), _Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError:
        raise InvalidArgumentError(where, "is not UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        raise InvalidArgumentError(place, str(getattr(error, "problem", None) or "is not YAML")) from None
    return Section(where, document)


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last

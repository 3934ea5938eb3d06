"""YAML read key by key, with the line and column of whatever is wrong; unknown and repeated keys are errors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeVar

import yaml

from kala.errors import InvalidArgumentError

MAX_YAML_BYTES: Final = 256 * 1024
MAX_EVENTS: Final = 20_000
"""Values and brackets: ten times what a job has that builds a dataset of 256 files; more would take seconds to read."""
MAX_DEPTH: Final = 16
"""Nothing in a job lies deeper than a file of a source of a dataset."""

_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE: Final = re.compile(r"[0-9]{1,18}")
_SPAN: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(s|m|min|h|d)")
_SPANS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}

SHOWN_CHARS: Final = 60

V = TypeVar("V")


def problem_at(node: yaml.Node, path: str, problem: str) -> InvalidArgumentError:
    """The error for a value, naming its line, column and path."""
    return _at(node.start_mark, f"{path}: {problem}" if path else problem)


class Value:
    """One value of the document and its path."""

    def __init__(self, node: yaml.Node, path: str) -> None:
        self.node = node
        self.path = path

    def wrong(self, problem: str) -> InvalidArgumentError:
        """The error that this value is."""
        return problem_at(self.node, self.path, problem)

    def text(self, *, most: int = 4_096) -> str:
        """A text as it is written; numbers count as texts."""
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value:
            raise self.wrong("must be a text")
        if len(self.node.value) > most:
            raise self.wrong(f"is longer than {most} characters; shorten it")
        return str(self.node.value)

    def whole(self) -> int:
        """A whole number."""
        text = self._plain()
        if not _WHOLE.fullmatch(text):
            raise self.wrong(f"is {shown(text)}; it must be a whole number")
        return int(text)

    def number(self) -> float:
        """A number; "2e-3" is one too, which YAML itself takes for a text."""
        text = self._plain()
        if not _NUMBER.fullmatch(text) or math.isinf(float(text)):
            raise self.wrong(f"is {shown(text)}; it must be a number")
        return float(text)

    def flag(self) -> bool:
        """True or false."""
        text = self._plain().lower()
        if text not in {"true", "false"}:
            raise self.wrong(f"is {shown(text)}; it must be true or false")
        return text == "true"

    def choice(self, choices: Mapping[str, V]) -> V:
        """One of several words; case, "-" and "_" make no difference."""
        text = self._plain()
        folded = {_folded(name): value for name, value in choices.items()}
        if _folded(text) not in folded:
            raise self.wrong(f"is {shown(text)}; it must be {listed(choices)}{did_you_mean(text, choices)}")
        return folded[_folded(text)]

    def seconds(self) -> float:
        """A span such as "90s", "30m", "24h" or "2d"; a number alone is seconds."""
        text = self._plain()
        found = _SPAN.fullmatch(text)
        if found:
            return float(found[1]) * _SPANS[found[2]]
        if _WHOLE.fullmatch(text):
            return float(text)
        raise self.wrong(f'is {shown(text)}; it must be a time such as "90s", "30m", "24h" or "2d"')

    def items(self, *, most: int) -> list[Value]:
        """The entries of a list."""
        if not isinstance(self.node, yaml.SequenceNode) or len(self.node.value) > most:
            raise self.wrong(f"must be a list of at most {most}")
        return [Value(node, f"{self.path}[{index}]") for index, node in enumerate(self.node.value)]

    def section(self, known: Iterable[str]) -> Section:
        """A mapping whose keys are all among `known`."""
        return Section(self, tuple(known))

    def _plain(self) -> str:
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.wrong("must be a single value, no list and no mapping")
        return str(self.node.value).strip()


class Section:
    """A mapping of the document."""

    def __init__(self, value: Value, known: tuple[str, ...]) -> None:
        self.value = value
        if not isinstance(value.node, yaml.MappingNode):
            raise value.wrong("must be a mapping of keys to values")
        self._values: dict[str, Value] = {}
        for key, node in value.node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            if name not in known:
                raise problem_at(
                    key, value.path, f"{shown(name)} is no key here{did_you_mean(name, known, known)}"
                )
            if name in self._values:
                raise problem_at(key, value.path, f"{shown(name)} comes twice; keep one")
            if not _is_null(node):
                self._values[name] = Value(node, f"{value.path}.{name}" if value.path else name)

    def get(self, key: str) -> Value | None:
        """The value of a key, or None where it is absent or null."""
        return self._values.get(key)

    def need(self, key: str) -> Value:
        """The value of a key that must be there."""
        found = self._values.get(key)
        if found is None:
            raise self.value.wrong(f"has no {key}; add it")
        return found


def read_document(text: str) -> Value:
    """The document's top; raises InvalidArgumentError for what is too long or is not one document of YAML."""
    if len(text.encode(errors="surrogatepass")) > MAX_YAML_BYTES:
        raise InvalidArgumentError("yaml", f"is longer than {MAX_YAML_BYTES} bytes; shorten it")
    try:
        _require_shallow(text)
        node = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise _not_yaml(error) from None
    if node is None:
        raise InvalidArgumentError("yaml", "is empty; examples/train/ shows whole jobs")
    return Value(node, "")


def did_you_mean(name: str, known: Iterable[str], otherwise: Iterable[str] = ()) -> str:
    """The end of a message: the likeliest name, else the list of names in `otherwise`, else nothing."""
    by_folded = {_folded(each): each for each in known}
    close = get_close_matches(_folded(name[:SHOWN_CHARS]), list(by_folded), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {by_folded[close[0]]!r}?"
    names = listed(otherwise)
    return f"; it must be {names}" if names else ""


def listed(names: Iterable[str]) -> str:
    """Names for a message: "a, b or c"."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} or {last}" if first else last


def _require_shallow(text: str) -> None:
    """References could make a short text huge, and depth would exhaust the composer's recursion."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        if count > MAX_EVENTS:
            raise _at(event.start_mark, "has more values than any job; name fewer files")
        if isinstance(event, yaml.AliasEvent):
            raise _at(event.start_mark, "references are not taken; write it out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _at(event.start_mark, "is nested too deeply")


def _not_yaml(error: Exception) -> InvalidArgumentError:
    reason = getattr(error, "problem", None) or "has characters that YAML does not take"
    return _at(getattr(error, "problem_mark", None), f"is no YAML: {reason}")


def _at(mark: Any, problem: str) -> InvalidArgumentError:  # Any: PyYAML's two kinds of marks share no base
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return InvalidArgumentError("yaml", f"{where}{problem}")


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _folded(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def shown(text: str) -> str:
    """A text in a message: quoted, without control characters, and no longer than it takes to be found again."""
    return repr(text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 3]}...")

"""What the interpreter knows of a value: where it came from, what it may carry, and what of it is constant."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

# Stands in a text's skeleton for a part that is not known.
HOLE: Final = "\x00"
MAX_STEPS: Final = 16
MAX_TAINTS: Final = 6
MAX_TEXT: Final = 2000


class Kind(Enum):
    """Where data comes from, as far as that matters."""

    # An HTTP request's parts.
    HTTP = "an HTTP request"
    # A file that was uploaded over HTTP.
    UPLOAD = "an uploaded file"
    # Standard input, arguments, environment.
    LOCAL = "the user's input"
    # A socket or the answer of another server.
    NETWORK = "the network"
    # A parameter of a function whose callers are not seen.
    PARAMETER = "the caller"
    # An exception or a traceback.
    EXCEPTION = "an exception"
    # A password, key or token, told by its name.
    SECRET = "a secret"


# What an attacker may choose, in falling order of certainty.
REMOTE: Final = frozenset({Kind.HTTP, Kind.UPLOAD, Kind.NETWORK})
OUTSIDE: Final = REMOTE | {Kind.LOCAL}
ANYONE: Final = OUTSIDE | {Kind.PARAMETER}


class Label(Enum):
    """What a value can be made safe for."""

    HTML = "html"
    SQL = "sql"
    PATH = "path"
    SHELL = "shell"
    URL = "url"
    LOG = "log"
    HEADER = "header"
    LDAP = "ldap"
    XML = "xml"
    REGEX = "regex"
    CODE = "code"
    NOSQL = "nosql"
    NAME = "name"
    CSV = "csv"
    # Numbers stay dangerous as sizes and indexes.
    SIZE = "size"


EVERYTHING: Final = frozenset(Label)
TEXT: Final = EVERYTHING - {Label.SIZE}


@dataclass(frozen=True, slots=True)
class Taint:
    """Data from one source; `place` tells sources apart, `cleared` says what the data is safe for by now."""

    kind: Kind
    place: tuple[int, int]
    steps: tuple[tuple[ast.AST, str], ...]
    cleared: frozenset[Label] = frozenset()

    def then(self, node: ast.AST, what: str) -> Taint:
        """Add a station, unless the last one says the same or there are too many."""
        if len(self.steps) >= MAX_STEPS or self.steps[-1][0] is node or self.steps[-1][1] == what:
            return self
        return replace(self, steps=(*self.steps, (node, what)))


class _Nothing(Enum):
    """The constant that is not known."""

    NOTHING = 0


NOTHING: Final = _Nothing.NOTHING


@dataclass(frozen=True, slots=True)
class Value:
    """One value; `origin` is a dotted path such as "sqlite3.connect().cursor" and empty when unknown."""

    origin: str = ""
    taints: tuple[Taint, ...] = ()
    # str, bytes, int, float, bool or None when known.
    const: object = NOTHING
    # Literal parts of a text with a HOLE for each other part; None when it is no text or nothing is known of it.
    text: str | None = None
    # Parts of a list, tuple, set or dictionary display.
    items: tuple[Value, ...] = ()
    keys: tuple[object, ...] = ()
    node: ast.AST | None = None
    # Came out of joining or formatting texts.
    built: bool = False

    def from_(self, kinds: Iterable[Kind], label: Label | None = None) -> tuple[Taint, ...]:
        """Give the taints of these kinds that were not made safe for a use."""
        wanted = frozenset(kinds)
        return tuple(t for t in self.taints if t.kind in wanted and (label is None or label not in t.cleared))

    def cleared_for(self, labels: frozenset[Label]) -> Value:
        """Give the same value, safe for these uses."""
        if not self.taints:
            return self
        return replace(self, taints=tuple(replace(t, cleared=t.cleared | labels) for t in self.taints))

    def then(self, node: ast.AST, what: str) -> Value:
        """Add a station to the way of what it carries."""
        return replace(self, taints=tuple(t.then(node, what) for t in self.taints)) if self.taints else self

    @property
    def string(self) -> str:
        """The constant when it is a text, else empty."""
        return self.const if isinstance(self.const, str) else ""

    @property
    def number(self) -> int:
        """The constant when it is a whole number or a truth value, else -1."""
        return int(self.const) if isinstance(self.const, int) else -1

    @property
    def known(self) -> bool:
        """Whether the constant is known."""
        return self.const is not NOTHING


UNKNOWN: Final = Value()


def merge(*groups: tuple[Taint, ...]) -> tuple[Taint, ...]:
    """Join taints; of one source, only what every way cleared stays cleared."""
    if sum(1 for group in groups if group) <= 1:
        return next((group for group in groups if group), ())
    merged: dict[tuple[Kind, tuple[int, int]], Taint] = {}
    for taint in (taint for group in groups for taint in group):
        key = (taint.kind, taint.place)
        old = merged.get(key)
        merged[key] = taint if old is None else replace(old, cleared=old.cleared & taint.cleared)
    return tuple(merged.values())[:MAX_TAINTS]


def join(left: Value, right: Value) -> Value:
    """Give a value that may be either."""
    if left is right or left == right:
        return left
    same = left.const is not NOTHING and left.const == right.const and type(left.const) is type(right.const)
    return Value(
        origin=left.origin
        if left.origin == right.origin or not right.origin
        else right.origin
        if not left.origin
        else "",
        taints=merge(left.taints, right.taints),
        const=left.const if same else NOTHING,
        text=left.text if left.text == right.text else (left.text if right.text is None else right.text),
        items=left.items or right.items,
        keys=left.keys or right.keys,
        node=left.node,
        built=left.built or right.built,
    )


def skeleton(value: Value) -> str:
    """Give the literal parts of a value as text, with holes."""
    if value.text is not None:
        return value.text[:MAX_TEXT]
    if isinstance(value.const, int | float) and not isinstance(value.const, bool):
        return str(value.const)
    return HOLE

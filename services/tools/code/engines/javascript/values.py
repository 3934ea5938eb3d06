"""What is known of a value: its name from the module on, its text, and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from services.tools.code.grammar import Node
from services.tools.code.model import Region, Step

_MAX_TEXT: Final = 4_096
_MAX_STEPS: Final = 12
HOLE: Final = "\0"
"""Stands in a text for a part that is not known."""


class Kind(Enum):
    """Where data comes from."""

    REQUEST = "a request"
    BROWSER = "the page's address or a message"
    INPUT = "standard input or the command line"
    CALLER = "a parameter"
    ERROR = "an error"


OUTSIDE: Final = frozenset({Kind.REQUEST, Kind.BROWSER, Kind.INPUT})
ANYONE: Final = OUTSIDE | {Kind.CALLER}


@dataclass(frozen=True, slots=True)
class Taint:
    """One way that data came; `whole`: an object that a caller shapes, not only a text."""

    kind: Kind
    steps: tuple[Step, ...]
    whole: bool = True
    # The expression that it came from, for checks that clear it.
    origin: str = ""
    # Rules that a check or an escape cleared; "*" is every rule.
    cleared: frozenset[str] = frozenset()

    def then(self, region: Region, what: str) -> Taint:
        """The same data, one station on."""
        return (
            self if len(self.steps) >= _MAX_STEPS else replace(self, steps=(*self.steps, Step(region, what)))
        )


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of an expression."""

    taint: Taint | None = None
    # Dotted, e.g. "child_process.exec"; calls end in "()".
    name: str = ""
    # The text with a hole for each unknown part; None where it is no text.
    text: str | None = None
    keys: Mapping[str, Value] = field(default_factory=dict)
    items: tuple[Value, ...] = ()
    function: Node | None = None

    @property
    def built(self) -> bool:
        """Whether it is a text with known and unknown parts."""
        return self.text is not None and HOLE in self.text and self.text != HOLE

    @property
    def constant(self) -> str:
        """The text where it is wholly known, else nothing."""
        return self.text if self.text is not None and HOLE not in self.text else ""

    def of(self, kinds: frozenset[Kind], rule: str = "*") -> bool:
        """Whether it comes from one of these, and nothing cleared it for the rule."""
        return self.taint is not None and self.taint.kind in kinds and not self.taint.cleared & {"*", rule}


UNKNOWN: Final = Value()


def joined(parts: list[Value], region: Region) -> Value:
    """Texts one after the other."""
    text = "".join(HOLE if part.text is None else part.text for part in parts)[:_MAX_TEXT]
    taint = worst(parts)
    if taint is not None:
        taint = replace(taint.then(region, "joined into a text"), whole=False)
    return Value(taint=taint, text=text)


def either(one: Value, other: Value) -> Value:
    """One of two values."""
    if one is other or other == UNKNOWN:
        return one
    if one == UNKNOWN:
        return other
    kept = worst([one, other])
    return replace(one if one.taint is kept and kept is not None else other, taint=kept)


def worst(values: list[Value]) -> Taint | None:
    """The taint that says most."""
    taints = [value.taint for value in values if value.taint is not None]
    order = list(Kind)
    return min(taints, key=lambda taint: order.index(taint.kind), default=None)


def module_name(name: str) -> str:
    """A module as everything else names it."""
    return re.sub(r"^node:", "", name).replace("/", ".")

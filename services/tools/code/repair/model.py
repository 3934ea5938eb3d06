"""What a rewrite is made of: places in a text, what they become, and why one is not made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

if TYPE_CHECKING:
    from services.tools.code.repair.tree import Tree

PREFIX: Final = "kala.rewrite."


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """Bytes of the UTF-8 text, from `start` to before `end`, and the text that takes their place."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """One rewrite of one place; `changes` do not overlap, `imports` are modules that it needs at the top."""

    rewrite: str
    note: str
    changes: tuple[Change, ...]
    imports: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a finding lies: bytes of the UTF-8 text."""

    start: int
    end: int


class DeclinedError(Exception):
    """A rewrite fits the place but would not be safe; the message says why, for the reader of the outcome."""


class Rewrite(Protocol):
    """One kind of rewrite. It keeps comments and layout, and does nothing to code that it has rewritten."""

    # Rules whose findings it may cure.
    rules: ClassVar[frozenset[str]]

    @property
    def id(self) -> str:
        """Begins with `kala.rewrite.`."""
        ...

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Give the rewrite of a finding, None where there is nothing for it, or raise DeclinedError."""
        ...

"""What rewrites share."""

from __future__ import annotations

from typing import ClassVar

import libcst as cst

from services.tools.code.repair.model import PREFIX, Change, Proposal


class Named:
    """A rewrite with its id, the rules whose findings it may cure, and why behaviour stays."""

    name: ClassVar[str]
    rules: ClassVar[frozenset[str]]
    note: ClassVar[str]

    @property
    def id(self) -> str:
        """As the outcome names it."""
        return PREFIX + self.name

    def proposal(self, *changes: Change, imports: frozenset[str] = frozenset(), note: str = "") -> Proposal:
        """Say what to change."""
        return Proposal(self.id, note or self.note, tuple(sorted(changes)), imports)


def attribute(module: str, name: str) -> cst.BaseExpression:
    """Write `module.name`."""
    return cst.parse_expression(f"{module}.{name}")

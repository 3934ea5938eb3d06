"""Roles: named sets of scopes, for keys and for the roles that an identity provider knows.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.keys import SCOPES
from kala.errors import InvalidArgumentError

ROLES: Final = {
    "user": frozenset({SCOPES["chat"], SCOPES["tools"]}),
    "operator": frozenset({SCOPES["chat"], SCOPES["tools"], SCOPES["train"]}),
    "auditor": frozenset({SCOPES["audit.read"]}),
    "admin": frozenset({SCOPES["chat"], SCOPES["admin"]}),
}
"""Who runs the suite cannot read the log, and who reads the log runs nothing; erasing is in no role and is given by itself."""


def scopes_of(roles: Iterable[str], *, field: str = "roles") -> frozenset[int]:
    """Give the scopes of all of them together, or raise InvalidArgumentError that lists the roles there are."""
    scopes: set[int] = set()
    for number, role in enumerate(roles):
        if role not in ROLES:
            raise InvalidArgumentError(
                f"{field}[{number}]", f"{role[:32]!r} is not one of {', '.join(sorted(ROLES))}"
            )
        scopes |= ROLES[role]
    return frozenset(scopes)

"""Passwords leave the program's text."""

from __future__ import annotations

import re
from typing import ClassVar, Final

import libcst as cst

from services.tools.code.repair.model import DeclinedError, Place, Proposal
from services.tools.code.repair.rewrites.base import Named
from services.tools.code.repair.rewrites.settings import named_setting
from services.tools.code.repair.tree import Tree

_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class PasswordFromEnvironment(Named):
    """`DB_PASSWORD = "…"` becomes `DB_PASSWORD = os.environ["DB_PASSWORD"]`."""

    name = "password_from_environment"
    rules: ClassVar[frozenset[str]] = frozenset(
        {"kala.python.hardcoded_password", "kala.python.hardcoded_key", "bandit.B105"}
    )
    note = (
        "With the variable set to the old value the program does the same; without it, it stops with KeyError. The old value "
        "stands in the code's history: replace it."
    )

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the assignment at the place."""
        for assign in tree.inside(place, cst.Assign):
            if not isinstance(assign.value, cst.SimpleString):
                continue
            name = named_setting(assign)
            if len(assign.targets) != 1 or not _WORD.fullmatch(name):
                raise DeclinedError("the secret has no name that a variable could have")
            module, imports = tree.module_alias("os")
            is_bytes = "b" in assign.value.prefix.lower()
            source = f'{module}.environ["{name.upper()}"]' + (".encode()" if is_bytes else "")
            return self.proposal(tree.replaced(assign.value, source), imports=imports)
        if any(True for _ in tree.inside(place, cst.SimpleString)):
            raise DeclinedError(
                "the secret stands in a call or a comparison; give it a name and read that from outside"
            )
        return None

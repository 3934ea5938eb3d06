"""Temporary files and permissions."""

from __future__ import annotations

from typing import ClassVar, Final

import libcst as cst

from services.tools.code.repair.model import DeclinedError, Place, Proposal
from services.tools.code.repair.rewrites.base import Named, attribute
from services.tools.code.repair.tree import Tree, keyword, positional, with_keyword

_MKTEMP: Final = ("suffix", "prefix", "dir")
_OWNER: Final = 0o700
_OTHERS: Final = 0o077
_MODES: Final = {"os.chmod": 1, "os.fchmod": 1, "os.lchmod": 1, "os.mkdir": 1, "os.makedirs": 1, "os.open": 2}


class NamedTemporaryFile(Named):
    """`tempfile.mktemp()` becomes `tempfile.NamedTemporaryFile(delete=False).name`."""

    name = "named_temporary_file"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.insecure_temporary", "bandit.B306"})
    note = (
        "A name of the same form, of a file that exists already, is empty and belongs to this user alone, so that nobody "
        "can put another in its place."
    )

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the call at the place."""
        for call, _ in tree.calls(place, "tempfile.mktemp"):
            if positional(call) is None:
                raise DeclinedError("the call's arguments are unpacked")
            module, imports = tree.module_alias("tempfile")
            plain = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))
            args = [
                arg if arg.keyword else arg.with_changes(keyword=cst.Name(_MKTEMP[index]), equal=plain)
                for index, arg in enumerate(call.args)
            ]
            new = call.with_changes(func=attribute(module, "NamedTemporaryFile"), args=args)
            made = tree.code(with_keyword(new, "delete", "False"))
            return self.proposal(tree.replaced(call, f"{made}.name"), imports=imports)
        return None


class OwnerOnly(Named):
    """`os.chmod(x, 0o777)` becomes `os.chmod(x, 0o700)`."""

    name = "owner_only"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.open_permissions", "kala.python.open_umask"})
    note = "The owner may do what they could before; the group and everybody else may not."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the mode at the place."""
        for call, _ in tree.calls(place, "os.umask"):
            given = positional(call)
            if given and isinstance(given[0], cst.Integer) and given[0].evaluated_value & _OTHERS != _OTHERS:
                return self.proposal(tree.replaced(given[0], "0o077"))
        for call in tree.inside(place, cst.Call):
            mode = self._mode(tree, call)
            if mode is None:
                continue
            if not isinstance(mode, cst.Integer):
                raise DeclinedError("the mode is not a number in the call")
            narrow = mode.evaluated_value & _OWNER
            if narrow != mode.evaluated_value:
                return self.proposal(tree.replaced(mode, f"0o{narrow:o}"))
        return None

    def _mode(self, tree: Tree, call: cst.Call) -> cst.BaseExpression | None:
        name = tree.name(call.func)
        at = _MODES.get(name)
        if at is None:
            is_method = isinstance(call.func, cst.Attribute) and call.func.attr.value == "chmod"
            if not is_method:
                return None
            at = 0
        given = positional(call)
        if given is None:
            return None
        named = keyword(call, "mode")
        if named is not None:
            return named.value
        return given[at] if len(given) > at else None

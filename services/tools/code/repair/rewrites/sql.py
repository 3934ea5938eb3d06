"""SQL: values leave the query's text and become its parameters."""

from __future__ import annotations

from typing import ClassVar, Final

import libcst as cst

from services.tools.code.repair.model import Change, DeclinedError, Place, Proposal
from services.tools.code.repair.query import parameterised
from services.tools.code.repair.rewrites.base import Named
from services.tools.code.repair.texts import has_expression, pieces_of
from services.tools.code.repair.tree import Tree

_EXECUTE: Final = frozenset({"execute", "raw"})
_PLACEHOLDERS: Final = {
    "sqlite3": "?",
    "aiosqlite": "?",
    "pyodbc": "?",
    "psycopg2": "%s",
    "psycopg": "%s",
    "pymysql": "%s",
    "MySQLdb": "%s",
    "mysql": "%s",
    "django": "%s",
}


class ParameterisedQuery(Named):
    """`execute(f"… {x}")` becomes `execute("… ?", (x,))`, also where the query was given a name just before."""

    name = "parameterised_query"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.sql_injection"})
    note = (
        "The database gets the same values beside the query instead of inside it: rows stay the same for values without "
        "quotes, and quotes in a value are now part of it. None becomes NULL, and a number that is kept as text is compared "
        "as text where the column has no type."
    )

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the call at the place."""
        for call in tree.inside(place, cst.Call):
            if not isinstance(call.func, cst.Attribute) or call.func.attr.value not in _EXECUTE:
                continue
            if not call.args or call.args[0].star or call.args[0].keyword is not None:
                continue
            found = self._rewritten(tree, call)
            if found is not None:
                return found
        return None

    def _rewritten(self, tree: Tree, call: cst.Call) -> Proposal | None:
        query = call.args[0].value
        text = _assigned(tree, query) if isinstance(query, cst.Name) else query
        pieces = None if text is None else pieces_of(tree, text)
        if text is None or pieces is None or not has_expression(pieces):
            return None
        if tree.defines(_EXECUTE):
            raise DeclinedError("the file has an execute of its own, which may take no parameters")
        if len(call.args) > 1:
            raise DeclinedError("the query has parameters already, beside the values in its text")
        done = parameterised(pieces, placeholder=_placeholder(tree), code=tree.code)
        values = f"({done.values[0]},)" if len(done.values) == 1 else f"({', '.join(done.values)})"
        after = tree.place(call.args[0].value).end
        if text is query:
            place = _whole(tree, query)
            return self.proposal(Change(place.start, place.end, f"{done.query}, {values}"))
        return self.proposal(tree.replaced(text, done.query), Change(after, after, f", {values}"))


def _whole(tree: Tree, node: cst.BaseExpression) -> Place:
    """A node with its parentheses."""
    place = tree.place(node)
    text = tree.text
    start, end = place.start, place.end
    for _ in node.lpar:
        start = text.rfind(b"(", 0, start)
        end = text.find(b")", end) + 1
    return Place(start, end)


def _placeholder(tree: Tree) -> str:
    found = {mark for module, mark in _PLACEHOLDERS.items() if tree.imports(module)}
    if len(found) != 1:
        raise DeclinedError(
            "the file does not say which database it speaks to, and so how placeholders are written (? or %s)"
        )
    return found.pop()


def _assigned(tree: Tree, name: cst.Name) -> cst.BaseExpression | None:
    """The text that a name holds, where it is given once, just above in the same block, and used only here."""
    body = tree.body_of(name)
    mentions = tree.names_in(body, name.value)
    if len(mentions) != len(("given", "used")) or mentions[1] is not name:
        raise DeclinedError(f"{name.value} is used or changed elsewhere too")
    target = tree.parent(mentions[0])
    assign = None if target is None else tree.parent(target)
    if not isinstance(assign, cst.Assign) or len(assign.targets) != 1:
        raise DeclinedError(f"what {name.value} holds cannot be followed")
    above, used = _block(tree, assign), _block(tree, name)
    if above is not used:
        raise DeclinedError(f"{name.value} is given in another block than it is used in")
    _require_still(tree, assign, name)
    return assign.value


def _block(tree: Tree, node: cst.CSTNode) -> cst.CSTNode | None:
    above = tree.parent(node)
    while above is not None and not isinstance(above, cst.IndentedBlock | cst.Module):
        above = tree.parent(above)
    return above


def _require_still(tree: Tree, assign: cst.Assign, use: cst.Name) -> None:
    """The values are taken later than before: nothing between may give their names anew."""
    start, end = tree.place(assign).end, tree.place(use).start
    read = {node.value for node in tree.inside(tree.place(assign.value), cst.Name)}
    for kind in (cst.Assign, cst.AugAssign, cst.AnnAssign, cst.NamedExpr, cst.Call):
        for between in tree.inside(Place(start, end), kind):
            if isinstance(between, cst.Call):
                continue
            names = {node.value for node in tree.inside(tree.place(between), cst.Name)}
            if names & read:
                raise DeclinedError("a value of the query changes before the query runs")

"""Which checks make a value safe: what a condition proves about the names in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.tools.code.python.values import EVERYTHING, TEXT, Label

_L = Label
_ALNUM: Final = frozenset({"isdigit", "isalnum", "isdecimal", "isnumeric", "isalpha", "isidentifier"})
_CHECKER: Final = re.compile(
    r"(?:^|_)(?:is_?(?:valid|safe|allowed|whitelisted|permitted|trusted|local)|valid(?:ate|ated)?|allowed|safe|permitted|sanit|whitelist|check_(?:url|path|host|name|file|input)|verify_(?:url|path|host|name|file|input))"
    r"|^url_has_allowed_host|^is_safe_url|^allowed_file|^is_relative_to$",
    re.IGNORECASE,
)
_TERMINATING: Final = re.compile(r"^(?:abort|exit|_exit|quit|fail|error|send_error|redirect|die)$")
_RESOLVED: Final = re.compile(r"realpath|abspath|resolve|normpath|commonp|canonical|absolute", re.IGNORECASE)
_HOSTS: Final = re.compile(r"netloc|hostname|host|domain|scheme", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Proof:
    """A dotted name and what it is safe for."""

    name: str
    labels: frozenset[Label]


def proofs(test: ast.expr, resolved: frozenset[str]) -> tuple[list[Proof], list[Proof]]:
    """Give what is proved where the condition holds, and what where it does not.

    `resolved` are names whose values are absolute, normalised paths: only of these does a prefix say something.
    """
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yes, no = proofs(test.operand, resolved)
        return no, yes
    if isinstance(test, ast.BoolOp):
        parts = [proofs(value, resolved) for value in test.values]
        yes = [proof for part in parts for proof in part[0]]
        no = [proof for part in parts for proof in part[1]]
        # "a and b" proves both where it holds; "a or b" denies both where it does not.
        return (yes, []) if isinstance(test.op, ast.And) else ([], no)
    found = list(_simple(test, resolved))
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE):
        return found, found
    if (
        isinstance(test, ast.Compare)
        and len(test.ops) == 1
        and isinstance(test.ops[0], ast.NotIn | ast.NotEq)
    ):
        return [], found
    return found, []


def terminates(body: list[ast.stmt]) -> bool:
    """Tell whether control never leaves a block at its end."""
    if not body:
        return False
    last = body[-1]
    if isinstance(last, ast.Return | ast.Raise | ast.Continue | ast.Break):
        return True
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
        return bool(_TERMINATING.match(_last_name(last.value.func)))
    if isinstance(last, ast.If):
        return terminates(last.body) and terminates(last.orelse)
    return False


def dotted(node: ast.expr) -> str:
    """Give the dotted path of a name or attribute chain, else empty."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def names_in(node: ast.AST) -> Iterator[str]:
    """Give every name and attribute chain in an expression, without called functions' own names."""
    called = {
        call.func for call in ast.walk(node) if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    for part in ast.walk(node):
        if isinstance(part, ast.Name | ast.Attribute) and part not in called:
            path = dotted(part)
            if path:
                yield path


def _simple(test: ast.expr, resolved: frozenset[str]) -> Iterator[Proof]:
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        yield from _compared(test, resolved)
    elif isinstance(test, ast.Call):
        yield from _called(test, resolved)
    elif isinstance(test, ast.NamedExpr):
        yield from _simple(test.value, resolved)


def _compared(test: ast.Compare, resolved: frozenset[str]) -> Iterator[Proof]:
    left, right, operator = test.left, test.comparators[0], test.ops[0]
    if isinstance(operator, ast.In | ast.NotIn):
        if not isinstance(left, ast.Constant) and _is_collection(right):
            labels = (
                frozenset({_L.URL, _L.HEADER, _L.LOG}) if _HOSTS.search(ast.unparse(left)) else EVERYTHING
            )
            labels = frozenset({_L.NAME}) if _is_extension(left) else labels
            for name in names_in(left):
                yield Proof(name, labels)
    elif isinstance(operator, ast.Eq | ast.NotEq):
        for one, other in ((left, right), (right, left)):
            text = ast.unparse(one)
            if isinstance(other, ast.Constant) and isinstance(other.value, str) and other.value:
                if not _is_extension(one):
                    labels = (
                        frozenset({_L.URL, _L.HEADER})
                        if "netloc" in text or "hostname" in text
                        else EVERYTHING
                    )
                    for name in names_in(one):
                        yield Proof(name, labels)
            elif "netloc" in text or "hostname" in text:
                for name in names_in(one):
                    yield Proof(name, frozenset({_L.URL, _L.HEADER}))
            elif "commonp" in text or (_RESOLVED.search(text) and "dirname" in text):
                for name in names_in(one):
                    yield Proof(name, frozenset({_L.PATH, _L.NAME}))
    elif isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
        for name in (*names_in(left), *names_in(right)):
            yield Proof(name, frozenset({_L.SIZE}))
    elif (isinstance(operator, ast.IsNot) and isinstance(left, ast.Call)) or (
        isinstance(operator, ast.Is) and isinstance(left, ast.Call)
    ):
        yield from _called(left, resolved)


def _called(call: ast.Call, resolved: frozenset[str]) -> Iterator[Proof]:
    name = _last_name(call.func)
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
    if name in _ALNUM and receiver is not None:
        for part in names_in(receiver):
            yield Proof(part, TEXT)
    elif name in {"match", "fullmatch", "search"}:
        pattern = _pattern(call)
        anchored = (
            pattern is None
            or name == "fullmatch"
            or (pattern.endswith(("$", "\\Z")) and (name == "match" or pattern.startswith(("^", "\\A"))))
        )
        if anchored and not (pattern is not None and re.search(r"\.[*+]\)?\$?$", pattern)):
            for argument in call.args:
                for part in names_in(argument):
                    yield Proof(part, TEXT)
    elif name == "startswith" and receiver is not None:
        text = ast.unparse(receiver)
        if _RESOLVED.search(text) or any(part in resolved for part in names_in(receiver)):
            for part in names_in(receiver):
                yield Proof(part, frozenset({_L.PATH, _L.NAME}))
        elif (
            call.args
            and isinstance(call.args[0], ast.Constant)
            and re.match(r"https?://[\w.-]+/", str(call.args[0].value))
        ):
            for part in names_in(receiver):
                yield Proof(part, frozenset({_L.URL, _L.HEADER}))
    elif name == "is_relative_to" and receiver is not None:
        for part in names_in(receiver):
            yield Proof(part, frozenset({_L.PATH, _L.NAME}))
    elif name in {"all", "any"} and call.args:
        for part in names_in(call.args[0]):
            yield Proof(part, TEXT)
    elif _CHECKER.search(name):
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            for part in names_in(argument):
                yield Proof(part, EVERYTHING)


def _is_collection(node: ast.expr) -> bool:
    """Tell whether membership in this says something: a set of choices, not a text or the request."""
    if isinstance(node, ast.Call):
        return _last_name(node.func) in {
            "keys",
            "values",
            "set",
            "frozenset",
            "list",
            "tuple",
            "listdir",
            "get",
            "objects",
        }
    path = dotted(node)
    if path:
        return not re.search(
            r"request|session|\.(?:form|args|json|data|cookies|headers|files)$|url$|path$|name$|text$", path
        )
    return isinstance(node, (ast.List | ast.Tuple | ast.Set | ast.Dict, ast.Subscript))


def _is_extension(node: ast.expr) -> bool:
    return bool(re.search(r"ext|suffix|rsplit\('\.'|split\('\.'|content_type|mimetype", ast.unparse(node)))


def _pattern(call: ast.Call) -> str | None:
    """Give the literal pattern of a regular expression call; None when it is compiled elsewhere."""
    if isinstance(call.func, ast.Attribute) and dotted(call.func.value) in {"re", "regex"} and call.args:
        first = call.args[0]
        return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
    return None


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""

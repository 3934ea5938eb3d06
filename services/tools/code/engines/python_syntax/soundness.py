"""Errors that nobody handles, loops without an end, files that stay open."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.guards import dotted
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.values import OUTSIDE

_SECURITY: Final = re.compile(
    r"admin|role|auth|permission|user|login|is_staff|token|password|owner|access|request|session|valid",
    re.IGNORECASE,
)


def errors(subject: Subject) -> Iterator[Hit]:
    """Assertions as checks, and errors that are swallowed."""
    for node in subject.tree.all(ast.Assert):
        holder = subject.tree.function_around(node)
        if (
            holder is None
            or holder.name.startswith("test")
            or re.search(r"assert_|^check$|^main$", holder.name)
        ):
            continue
        text = subject.tree.text(node.test)
        parameters = {argument.arg for argument in (*holder.args.args, *holder.args.kwonlyargs)}
        scope = next((scope for scope in subject.facts.scopes if scope.node is holder), None)
        if (
            re.search(
                r"is_admin|\.role|has_perm|is_authenticated|is_superuser|is_staff|authori[sz]ed|password|input\(|sys\.argv",
                text,
            )
            or (scope is not None and scope.is_route)
            or (
                _SECURITY.search(text)
                and any(isinstance(part, ast.Name) and part.id in parameters for part in ast.walk(node.test))
            )
        ):
            yield subject.hit("reachable_assertion", node)
    for handler in subject.tree.all(ast.ExceptHandler):
        broad = handler.type is None or dotted(handler.type) in {"Exception", "BaseException"}
        silent = all(
            isinstance(statement, ast.Pass)
            or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            for statement in handler.body
        )
        skips = len(handler.body) == 1 and isinstance(handler.body[0], ast.Continue)
        if broad and (silent or skips) and _may_hide(subject, handler):
            yield subject.hit("swallowed_error", handler)
    for call in subject.facts.calls:
        if (
            call.name in {"int", "float", "json.loads"}
            and call.arg(0).from_(OUTSIDE)
            and subject.tree.enclosing(call.node, ast.Try) is None
        ):
            yield subject.hit("unhandled_error", call.node)


def _may_hide(subject: Subject, handler: ast.ExceptHandler) -> bool:
    """A program without imports, files and input computes; what it ignores hides no attack."""
    outer = subject.tree.parents.get(handler)
    body = " ".join(subject.tree.text(part) for part in outer.body) if isinstance(outer, ast.Try) else ""
    return bool(
        subject.facts.imports - {"typing", "math", "re", "collections", "functools", "itertools", "string"}
    ) or bool(re.search(r"open\(|input\(|self\.\w+\.\w+\(", body))


def loops(subject: Subject) -> Iterator[Hit]:
    """Loops that nothing ends, and such that go one too far."""
    for node in subject.tree.all(ast.While):
        if isinstance(node.test, ast.Constant) and node.test.value:
            caught = subject.tree.enclosing(node, ast.Try) is not None
            if not caught and not _can_leave(node) and not _serves(node):
                yield subject.hit("infinite_loop", node)
        elif isinstance(node.test, ast.Compare) and not _can_leave(node) and _never_changes(node):
            yield subject.hit("infinite_loop", node)
    for loop in subject.tree.all(ast.For):
        bound = _length_plus(loop.iter)
        if bound and isinstance(loop.target, ast.Name) and _indexes(loop, bound, loop.target.id):
            yield subject.hit("off_by_one", loop)


def _can_leave(node: ast.While) -> bool:
    """Whether a break, return, raise or exit in it can end it."""
    waiting: list[tuple[ast.AST, bool]] = [(statement, False) for statement in node.body]
    while waiting:
        part, inner = waiting.pop()
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(part, ast.Return | ast.Raise | ast.Yield | ast.YieldFrom | ast.Await) or (
            isinstance(part, ast.Break) and not inner
        ):
            return True
        if isinstance(part, ast.Call) and re.search(
            r"(?:^|\.)(?:exit|_exit|quit|abort|kill|execv\w*|stop)$", dotted(part.func)
        ):
            return True
        nested = inner or isinstance(part, ast.For | ast.While | ast.AsyncFor)
        waiting.extend((child, nested) for child in ast.iter_child_nodes(part))
    return False


def _serves(node: ast.While) -> bool:
    """Servers and watchers loop for ever on purpose, and wait while they do."""
    return bool(
        re.search(
            r"accept\(|recv|sleep\(|input\(|\.get\(|serve|wait\(|poll\(|select\(|handle_request|readline|next\(",
            ast.unparse(node),
        )
    )


def _never_changes(node: ast.While) -> bool:
    """No name of the condition is bound, and nothing that is called in the loop or its condition could change one."""
    names = {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}
    if not names or any(
        isinstance(part, ast.Call | ast.Attribute | ast.Subscript) for part in ast.walk(node.test)
    ):
        return False
    for part in (inner for statement in node.body for inner in ast.walk(statement)):
        if isinstance(part, ast.Name) and part.id in names and isinstance(part.ctx, ast.Store | ast.Del):
            return False
        if isinstance(part, ast.Global | ast.Nonlocal) or (
            isinstance(part, ast.Call)
            and dotted(part.func) not in {"print", "len", "str", "int"}
            and any(isinstance(a, ast.Name) and a.id in names for a in part.args)
        ):
            return False
        if (
            isinstance(part, ast.Call)
            and isinstance(part.func, ast.Attribute)
            and isinstance(part.func.value, ast.Name)
            and part.func.value.id in names
        ):
            return False
    return True


def _length_plus(node: ast.expr) -> str:
    """`range(len(x) + 1)` or `range(1, len(x) + 1)`: give x."""
    if not (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "range"
        and node.args
    ):
        return ""
    end = node.args[0] if len(node.args) == 1 else node.args[1]
    if (
        isinstance(end, ast.BinOp)
        and isinstance(end.op, ast.Add)
        and isinstance(end.right, ast.Constant)
        and end.right.value == 1
    ):
        inner = end.left
        if (
            isinstance(inner, ast.Call)
            and isinstance(inner.func, ast.Name)
            and inner.func.id == "len"
            and inner.args
        ):
            return ast.unparse(inner.args[0])
    return ""


def _indexes(node: ast.For, name: str, index: str) -> bool:
    """Whether the last index is used as it is, with no test of it in the loop."""
    if any(
        isinstance(part, ast.If | ast.Try | ast.IfExp | ast.BoolOp)
        for statement in node.body
        for part in ast.walk(statement)
    ):
        return False
    return any(
        isinstance(part, ast.Subscript)
        and ast.unparse(part.value) == name
        and isinstance(part.slice, ast.Name)
        and part.slice.id == index
        for statement in node.body
        for part in ast.walk(statement)
    )


def leaks(subject: Subject) -> Iterator[Hit]:
    """Files and connections that are opened and not surely closed."""
    for store in subject.facts.stores:
        if (
            store.value.origin in {"open()", "socket.socket()", "sqlite3.connect()", "io.open()"}
            and isinstance(store.target, ast.Name)
            and isinstance(store.value.node, ast.Call)
        ):
            holder = subject.tree.function_around(store.node)
            if holder is None:
                continue
            name = store.target.id
            text = subject.tree.text(holder)
            escapes = re.search(rf"return .*\b{name}\b|yield .*\b{name}\b|self\.\w+ = {name}\b", text)
            if not escapes and not re.search(rf"\b{name}\.close\(|closing\({name}|with {name}\b", text):
                yield subject.hit("resource_leak", store.node)


CHECKS: Final[tuple[Check, ...]] = (errors, loops, leaks)

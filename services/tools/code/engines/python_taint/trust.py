"""Decisions, settings, sessions and names of code that come from outside."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.tree import FunctionNode
from services.tools.code.python.values import ANYONE, OUTSIDE, REMOTE, Kind, Label, Taint, Value

_ROLES: Final = re.compile(
    r"admin|role|is_?staff|superuser|privilege|permission|auth(?:enticated|orized)?|logged_?in|user_?type|access|level",
    re.IGNORECASE,
)
_LOADERS: Final = frozenset(
    {
        "__import__",
        "importlib.import_module",
        "importlib.__import__",
        "imp.load_source",
        "imp.load_module",
        "django.utils.module_loading.import_string",
        "werkzeug.utils.import_string",
        "pydoc.locate",
        "pkgutil.resolve_name",
    }
)
_ADDRESS: Final = re.compile(
    r"remote_addr|REMOTE_ADDR|X-Forwarded-For|HTTP_X_FORWARDED_FOR|X-Real-IP|client_address|gethostbyaddr|HTTP_REFERER|request\.referr?er|['\"]Referer['\"]|HTTP_HOST|user_agent|User-Agent|remote_ip"
)
_LISTS: Final = re.compile(
    r"request|session|cookie|environ|args|form|json|data|config|settings|params|headers|files", re.IGNORECASE
)


def reflection(subject: Subject) -> Iterator[Hit]:
    """Code that is looked up by a name from outside."""
    for call in subject.facts.calls:
        if call.name in _LOADERS:
            taints = call.arg(0).from_(OUTSIDE, Label.CODE) or (
                call.arg(0).from_(ANYONE, Label.CODE)
                if call.arg(0).built is False and call.name != "importlib.import_module"
                else ()
            )
            if taints:
                yield subject.hit("unsafe_reflection", call.node, taints)
        elif call.name == "getattr":
            taints = call.arg(1).from_(OUTSIDE, Label.CODE)
            if taints:
                yield subject.hit("unsafe_reflection", call.node, taints)
        elif call.name == "setattr":
            taints = call.arg(1).from_(OUTSIDE, Label.CODE)
            if taints:
                yield subject.hit("mass_assignment", call.node, taints)
        elif call.method == "update" and call.name.endswith("__dict__.update"):
            taints = tuple(taint for value in call.args for taint in value.from_(OUTSIDE))
            if taints:
                yield subject.hit("mass_assignment", call.node, taints)
        elif call.starred and call.name[:1].isupper() and call.scope.is_route:
            yield from _spread(subject, call.node)
    for node in subject.tree.all(ast.Subscript):
        if (
            isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Name)
            and node.value.func.id in {"globals", "locals", "vars"}
        ):
            holder = subject.tree.function_around(node)
            if (
                holder is not None
                and isinstance(node.slice, ast.Name | ast.Subscript | ast.Call)
                and isinstance(node.ctx, ast.Load)
            ):
                yield subject.hit("unsafe_reflection", node)


def _spread(subject: Subject, node: ast.Call) -> Iterator[Hit]:
    for keyword in node.keywords:
        if keyword.arg is None and re.search(
            r"request\.(?:json|form|get_json|data|POST|GET|args|values)", subject.tree.text(keyword.value)
        ):
            yield subject.hit("mass_assignment", node)


def decisions(subject: Subject) -> Iterator[Hit]:
    """Rights that a request grants itself."""
    seen: list[tuple[ast.AST, Value, str]] = [
        (c.node, side, subject.tree.text(c.node))
        for c in subject.facts.compares
        for side in (c.left, c.right)
        if not isinstance(c.operator, ast.Is | ast.IsNot)
    ]
    for choice in subject.tree.all(ast.If):
        if isinstance(choice.test, ast.Call):
            seen.extend(
                (choice, Value(taints=call.receiver.taints), subject.tree.text(choice.test))
                for call in subject.facts.calls
                if call.node is choice.test
            )
    for node, value, text in seen:
        source = _chosen(value)
        if source is None:
            continue
        where = subject.tree.text(source.steps[0][0]) + " " + " ".join(what for _, what in source.steps)
        if _ADDRESS.search(where) or _ADDRESS.search(text):
            continue
        if not _ROLES.search(text) or not re.search(
            r"admin|True|true|staff|root|owner|yes|manager|superuser|'1'|moderator", text
        ):
            continue
        rule = (
            "cookie_decision"
            if re.search(r"cookie", where, re.IGNORECASE) or "cookies" in text
            else "untrusted_decision"
        )
        yield subject.hit(rule, node, (source,))
    yield from _by_address(subject)


def _chosen(value: Value) -> Taint | None:
    return next(
        (
            taint
            for taint in value.taints
            if taint.kind is Kind.HTTP and not any(isinstance(step, ast.arg) for step, _ in taint.steps[:1])
        ),
        None,
    )


def _by_address(subject: Subject) -> Iterator[Hit]:
    """Rights by where a request comes from."""
    aliases = {
        store.name
        for store in subject.facts.stores
        if store.name and _ADDRESS.search(subject.tree.text(store.node))
    }
    for node in subject.tree.all(ast.Compare):
        text = subject.tree.text(node)
        if not (
            _ADDRESS.search(text)
            or any(isinstance(part, ast.Name) and part.id in aliases for part in ast.walk(node))
        ):
            continue
        if any(
            isinstance(part, ast.Constant) and part.value is None for part in (node.left, *node.comparators)
        ):
            continue
        holder = subject.tree.enclosing(node, ast.If)
        if holder is not None and (len(holder.body) <= 4 or holder.orelse):
            yield subject.hit("address_decision", node)


def sessions(subject: Subject) -> Iterator[Hit]:
    """Sessions whose id or contents come from outside."""
    for store in subject.facts.stores:
        if not isinstance(store.target, ast.Subscript | ast.Attribute):
            continue
        base = subject.tree.text(store.target.value)
        text = subject.tree.text(store.target)
        if not re.search(r"(?:^|\.)session$", base):
            continue
        if re.search(r"session_?(?:id|key)|\bsid\b", text, re.IGNORECASE):
            taints = store.value.from_(REMOTE, Label.NAME)
            if taints:
                yield subject.hit("session_fixation", store.node, taints)
        else:
            taints = tuple(
                taint
                for taint in store.value.from_(REMOTE, Label.NAME)
                if len(taint.cleared) < len(Label) - 2
            )
            holder = store.scope.node
            if taints and not (isinstance(holder, FunctionNode) and _checks(holder)):
                yield subject.hit("trust_boundary", store.node, taints)
    for call in subject.facts.calls:
        if call.method == "set_cookie" and re.search(r"sess|sid", call.arg(0, "key").string, re.IGNORECASE):
            taints = call.arg(1, "value").from_(REMOTE)
            if taints:
                yield subject.hit("session_fixation", call.node, taints)


def _checks(function: FunctionNode) -> bool:
    """A login that compares or looks something up before it keeps the name is no unchecked data."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and re.search(
            r"check|verify|valid|authenticate|query|execute|find|filter|get_user|login|compare|hash",
            ast.unparse(node.func),
            re.IGNORECASE,
        ):
            return True
        if isinstance(node, ast.If) and re.search(
            r"password|passwd|pwd|users|\bin\b|valid|isinstance", ast.unparse(node.test)
        ):
            return True
    return False


def settings(subject: Subject) -> Iterator[Hit]:
    """Settings and paths that requests choose."""
    for store in subject.facts.stores:
        if isinstance(store.target, ast.Subscript):
            base = subject.tree.text(store.target.value)
            if base == "os.environ" or base.endswith((".config", "settings", "CONFIG")) or base == "config":
                taints = store.value.from_(
                    REMOTE | {Kind.LOCAL} if "environ" in base else REMOTE
                ) or store.key.from_(REMOTE)
                if taints:
                    yield subject.hit("external_setting", store.node, taints)
        elif isinstance(store.target, ast.Attribute) and re.search(
            r"(?:^|\.)(?:settings|config|app)$", subject.tree.text(store.target.value)
        ):
            taints = store.value.from_(REMOTE)
            if taints:
                yield subject.hit("external_setting", store.node, taints)
        elif (
            isinstance(store.target, ast.Name)
            and isinstance(store.scope.node, FunctionNode)
            and _is_global(store.scope.node, store.target.id)
        ):
            taints = store.value.from_(OUTSIDE)
            if taints:
                yield subject.hit("external_setting", store.node, taints)
    for call in subject.facts.calls:
        if call.name in {"sys.path.append", "sys.path.insert", "site.addsitedir"}:
            taints = tuple(taint for value in call.args for taint in value.from_(OUTSIDE))
            if taints:
                yield subject.hit("search_path", call.node, taints)
        elif call.name in {"os.putenv", "locale.setlocale", "socket.sethostname", "os.environ.update"}:
            taints = tuple(taint for value in call.args for taint in value.from_(OUTSIDE))
            if taints:
                yield subject.hit("external_setting", call.node, taints)


def _is_global(function: FunctionNode, name: str) -> bool:
    return any(isinstance(node, ast.Global) and name in node.names for node in ast.walk(function))


def destinations(subject: Subject) -> Iterator[Hit]:
    """Messages that go where the request, or whoever wrote last, says."""
    for call in subject.facts.calls:
        if call.method == "sendto" and len(call.args) > 1:
            target = call.args[-1]
            echoed = any(taint.kind is Kind.NETWORK for taint in target.taints)
            if echoed:
                yield subject.hit("amplification", call.node, target.taints)
            elif target.from_(OUTSIDE, Label.URL):
                yield subject.hit("untrusted_destination", call.node, target.from_(OUTSIDE, Label.URL))
        elif call.method in {"sendmail", "send_mail", "send_message"}:
            receivers = (
                call.arg(1, "to_addrs") if call.method == "sendmail" else call.arg(3, "recipient_list")
            )
            taints = receivers.from_(REMOTE, Label.URL)
            if taints:
                yield subject.hit("untrusted_destination", call.node, taints)
    for base in subject.tree.all(ast.ClassDef):
        if any(
            re.search(r"DatagramRequestHandler|UDPServer|BaseRequestHandler", subject.tree.text(part))
            for part in base.bases
        ):
            for node in ast.walk(base):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr == "sendto"
                    and "client_address" in subject.tree.text(node)
                ):
                    yield subject.hit("amplification", node)


def conversions(subject: Subject) -> Iterator[Hit]:
    """Texts that are taken for numbers without an answer for those that are none."""
    for call in subject.facts.calls:
        if (
            call.name in {"int", "float"}
            and call.arg(0).from_(OUTSIDE, Label.SQL)
            and subject.tree.enclosing(call.node, ast.Try) is None
        ):
            yield subject.hit("type_conversion", call.node, call.arg(0).from_(OUTSIDE, Label.SQL))


def ownership(subject: Subject) -> Iterator[Hit]:
    """Private records that are found by a number from the request alone."""
    for call in subject.facts.calls:
        if (
            call.method not in {"get", "get_object_or_404", "get_or_404", "filter_by", "get_object", "filter"}
            or not call.scope.is_route
        ):
            continue
        if not re.search(
            r"(?:^|[._])(?:\w*(?:message|invoice|medical|patient|salary|payment|statement|bankaccount|private|prescription|paycheck|mail)\w*)",
            call.name + " ".join(value.origin for value in call.args[:1]),
            re.IGNORECASE,
        ):
            continue
        taints = tuple(
            taint
            for value in (*call.args, *call.keywords.values())
            for taint in value.taints
            if taint.kind is Kind.HTTP
        )
        holder = call.scope.node
        if (
            taints
            and isinstance(holder, FunctionNode)
            and not re.search(
                r"request\.user|current_user|session|owner|is_authenticated|has_perm|permission|get_jwt",
                subject.tree.text(holder),
            )
        ):
            yield subject.hit("idor", call.node, taints)


CHECKS: Final[tuple[Check, ...]] = (
    reflection,
    decisions,
    sessions,
    settings,
    destinations,
    conversions,
    ownership,
)

"""Secrets and internal detail that reach a log, a caller, a store or the network."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.engines.python_taint.markup import _RESPONSES, is_log
from services.tools.code.engines.python_taint.queries import SQL
from services.tools.code.model import Hit
from services.tools.code.python.sources import WEB, is_secret_name
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.values import Kind, Taint, Value, skeleton

_SECRET: Final = frozenset({Kind.SECRET})
_EXCEPTION: Final = frozenset({Kind.EXCEPTION})
_JSON: Final = re.compile(
    r"(?:^|\.)(?:jsonify|JsonResponse|JSONResponse|json_response|Response|HTTPException|abort|make_response|HttpResponseServerError|HttpResponse\w*|render_template|render)$"
)
_HASHING: Final = re.compile(
    r"hash|bcrypt|scrypt|argon|pbkdf|encrypt|crypt|set_password|fernet|make_password|digest", re.IGNORECASE
)
_STORE_METHODS: Final = frozenset(
    {"insert_one", "insert", "insert_many", "save", "create", "add", "setex", "hset"}
)


def errors(subject: Subject) -> Iterator[Hit]:
    """Exceptions and tracebacks that callers see."""
    for returned in subject.facts.returns:
        taints = returned.value.from_(_EXCEPTION)
        if taints and (
            returned.scope.is_route
            or returned.scope.name in {"handle_error", "errorhandler"}
            or any(
                "errorhandler" in name or "exception_handler" in name for name in returned.scope.decorators
            )
        ):
            yield subject.hit("error_detail", returned.node, taints)
    for call in subject.facts.calls:
        if subject.facts.imports_any(*WEB) and (_RESPONSES.match(call.name) or _JSON.search(call.name)):
            taints = tuple(
                taint for value in (*call.args, *call.keywords.values()) for taint in value.from_(_EXCEPTION)
            )
            if taints:
                yield subject.hit("error_detail", call.node, taints)
        elif (
            call.method in {"send_error", "sendall", "send"}
            and subject.facts.imports_any("socket", "http", "socketserver")
            and call.receiver.origin.startswith(("self", "socket"))
        ):
            taints = tuple(taint for value in call.args for taint in value.from_(_EXCEPTION))
            if taints:
                yield subject.hit("error_detail", call.node, taints)
        elif call.name == "traceback.print_exc" and call.scope.is_route and "file" not in call.keywords:
            continue


def logged(subject: Subject) -> Iterator[Hit]:
    """Secrets in logs and on screens."""
    for call in subject.facts.calls:
        if is_log(call) or call.name == "print":
            taints = tuple(taint for value in call.args for taint in value.from_(_SECRET))
            if taints and not (call.name == "print" and _prints_new(subject, call.args)):
                yield subject.hit("secret_in_log", call.node, taints)


def _prints_new(subject: Subject, values: tuple[Value, ...]) -> bool:
    """A program that makes a password shows it to whoever asked for it."""
    return not subject.facts.imports_any("flask", "django", "fastapi", "logging") and not any(
        taint.kind in {Kind.HTTP, Kind.LOCAL, Kind.PARAMETER} for value in values for taint in value.taints
    )


def answered(subject: Subject) -> Iterator[Hit]:
    """Secrets in responses and cookies."""
    for returned in subject.facts.returns:
        taints = _private(returned.value)
        if returned.scope.is_route and taints and _shows(returned.value):
            yield subject.hit("secret_in_response", returned.node, taints)
    for call in subject.facts.calls:
        if _JSON.search(call.name) and call.scope.is_route:
            spelled = [value for name, value in call.keywords.items() if is_secret_name(name)]
            shown = tuple(
                taint
                for value in (*call.args, *spelled)
                if _shows(value) or value in spelled
                for taint in _private(value)
            )
            if shown and call.method not in {"render", "render_template", "abort", "HTTPException"}:
                yield subject.hit("secret_in_response", call.node, shown)
        elif call.method == "set_cookie":
            value = call.arg(1, "value")
            taints = value.from_(_SECRET)
            named = re.search(r"pass|pwd|credit|ssn|card|secret", call.arg(0, "key").string, re.IGNORECASE)
            if [
                taint
                for taint in taints
                if re.search(r"pass|pwd|credit|ssn|card|secret", taint.steps[0][1], re.IGNORECASE)
            ] or (named and value.taints):
                yield subject.hit("secret_in_cookie", call.node, taints or value.taints)


def _private(value: Value) -> tuple[Taint, ...]:
    """Secrets but tokens: these are given to whom they belong."""
    return tuple(
        taint for taint in value.from_(_SECRET) if not re.search(r"token", taint.steps[0][1], re.IGNORECASE)
    )


def _shows(value: Value) -> bool:
    return value.built or bool(value.keys)


def stored(subject: Subject) -> Iterator[Hit]:
    """Passwords that are stored as they are."""
    for call in subject.facts.calls:
        if (
            call.method in {"execute", "executemany"}
            and re.search(r"\b(?:insert|update|replace)\b", skeleton(call.arg(0)), re.IGNORECASE)
            and SQL.search(skeleton(call.arg(0)))
        ):
            taints = _passwords(*call.args)
            if taints:
                yield subject.hit("secret_in_store", call.node, taints)
        elif call.method in _STORE_METHODS and re.search(
            r"objects|collection|\bdb\b|users?\b|redis|mongo|\.insert", call.name, re.IGNORECASE
        ):
            taints = _passwords(*call.args, *call.keywords.values())
            if taints:
                yield subject.hit("secret_in_store", call.node, taints)
        elif call.method in {
            "write",
            "writelines",
            "dump",
            "writerow",
            "write_text",
        } and not call.name.startswith(("self.wfile", "sys.", "self.write", "self.finish")):
            taints = _passwords(*call.args)
            if taints and not call.receiver.origin.startswith(("self", "cryptography")):
                yield subject.hit("secret_in_store", call.node, taints)
        elif (
            call.name[:1].isupper()
            and ("password" in call.keywords or "passwd" in call.keywords)
            and re.search(r"User|Account|Member|Customer", call.name)
        ):
            taints = _passwords(call.keywords.get("password", call.keywords.get("passwd", Value())))
            if taints and _persists(subject):
                yield subject.hit("secret_in_store", call.node, taints)
    for store in subject.facts.stores:
        if (
            isinstance(store.target, ast.Attribute)
            and re.search(r"user|account|self\.user|member", subject.tree.text(store.target.value))
            and re.fullmatch(r"password|passwd|pwd", store.target.attr)
        ):
            taints = [
                taint
                for taint in store.value.from_(_SECRET)
                if any(t.kind in {Kind.HTTP, Kind.PARAMETER, Kind.LOCAL} for t in store.value.taints)
            ]
            if taints and _persists(subject) and not _HASHING.search(subject.tree.text(store.node)):
                yield subject.hit("secret_in_store", store.node, taints)
        elif isinstance(store.target, ast.Subscript) and re.search(
            r"users|accounts|passwords|credentials|database|\bdb\b",
            subject.tree.text(store.target.value),
            re.IGNORECASE,
        ):
            taints = _passwords(store.value)
            if taints and not re.search(r"\.config\b|environ", subject.tree.text(store.target.value)):
                yield subject.hit("secret_in_store", store.node, taints)


def _passwords(*values: Value) -> list[Taint]:
    """Passwords that came from someone; a hash of one is none any more, since hashing passes nothing on."""
    return [
        taint
        for value in values
        if any(other.kind in {Kind.HTTP, Kind.LOCAL, Kind.PARAMETER} for other in value.taints)
        for taint in value.from_(_SECRET)
        if re.search(r"pass|pwd|credit|card|ssn|cvv|getpass", taint.steps[0][1], re.IGNORECASE)
    ]


def _persists(subject: Subject) -> bool:
    """A class that is no model of a database keeps nothing; a model that hashes in its constructor is one of those."""
    text = subject.source.text
    if _HASHING.search(text):
        return False
    return bool(
        re.search(r"\.Model\b|db\.session|models\.Model|\.save\(\)|declarative_base|session\.add", text)
    )


def sent(subject: Subject) -> Iterator[Hit]:
    """Secrets in addresses, and over connections without encryption."""
    for node, value, _scope in subject.facts.texts:
        taints = value.from_(_SECRET)
        if taints and re.search(
            r"https?://[^\s]*[?&](?:pass|pwd|token|secret|api_?key|key|ssn)\w*=\x00",
            skeleton(value),
            re.IGNORECASE,
        ):
            yield subject.hit("secret_in_url", node, taints)
    for call in subject.facts.calls:
        if re.search(r"request\.(?:args|GET|query_params)\.get$", call.name) and re.fullmatch(
            r"password|passwd|pwd|credit_card|card_number|ssn", call.arg(0).string, re.IGNORECASE
        ):
            yield subject.hit("secret_in_url", call.node)
        first = skeleton(call.arg(0, "url"))
        if (
            re.match(r"(?:requests|httpx|urllib\.request)\.", call.name)
            and first.startswith("http://")
            and not re.match(r"http://(?:localhost|127\.|0\.0\.0\.0|\[::1)", first)
        ):
            taints = tuple(
                taint for value in (*call.args, *call.keywords.values()) for taint in value.from_(_SECRET)
            )
            if taints:
                yield subject.hit("secret_in_clear", call.node, taints)
        elif (
            call.method in {"send", "sendall", "sendto"}
            and "socket.socket()" in call.name
            and "ssl" not in " ".join(subject.facts.imports)
        ):
            taints = tuple(taint for value in call.args for taint in value.from_(_SECRET))
            if taints:
                yield subject.hit("secret_in_clear", call.node, taints)


CHECKS: Final[tuple[Check, ...]] = (errors, logged, answered, stored, sent)

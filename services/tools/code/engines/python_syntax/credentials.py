"""Credentials that stand in the source, and passwords that are handled carelessly."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.sources import is_secret_name
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.tree import FunctionNode
from services.tools.code.python.values import Kind, Value

# What examples put where a secret belongs; nobody is protected by these, and nobody is exposed.
_PLACEHOLDER: Final = re.compile(
    r"^(?:|\W+|x+|\*+|\.+|none|null|changeme|change_me|change-me|todo|fixme|test|testing|example|sample|dummy|default|password|passwd|pwd|pass|secret|token|key|api_?key|root|user|username|admin|guest|localhost|postgres|mysql|string|text|value|bearer|basic|hidden)$"
    r"|your|<.*>|\{.*\}|\$\{|%\(|\benv\b|placeholder|replace|insert[ _-]|enter[ _-]|_here|my[_-]?(?:secret|password|key|token|api|pass|db)|(?:secret|password|passwd|api|token|access|private)[_ -]?key|db_?pass|change[_ -]?(?:me|this)|\bhere\b|redacted|sk-\.\.\.|^(?:super)?secret(?:_?key)?$",
    re.IGNORECASE,
)
_LOGINS: Final = frozenset(
    {
        "connect",
        "login",
        "auth",
        "Connection",
        "MongoClient",
        "Redis",
        "StrictRedis",
        "SMTP",
        "create_connection",
        "ConnectionPool",
        "authenticate",
        "FTP",
        "simple_bind_s",
        "HTTPBasicAuth",
        "PooledDB",
        "Database",
    }
)
_KEY_NAMES: Final = re.compile(
    r"(?:secret|encrypt\w*|aes|private|signing|jwt|hmac|crypt\w*|cipher|des|master)_?key$|^key$|jwt_?secret|^secret$",
    re.IGNORECASE,
)
_KEY_CALLS: Final = re.compile(
    r"(?:AES|DES3?|ARC4|Blowfish|ChaCha20)\.new$|Fernet$|^hmac\.new$|^hmac\.HMAC$|(?:^|\.)jwt\.(?:encode|decode)$|algorithms\.(?:AES|TripleDES|ChaCha20|Blowfish)$|AESGCM$|ChaCha20Poly1305$|URLSafe(?:Timed)?Serializer$|jose\.jwt\.(?:encode|decode)$|RSA\.import_key$|load_pem_private_key$|pyDes\.des$"
)
_DB_URL: Final = re.compile(r"^[a-z][a-z0-9+]*://[^:/\s@{}<\x00]+:([^@/\s{}<\x00]+)@")
_MIN_PASSWORD: Final = 8


def is_placeholder(text: str) -> bool:
    """Tell whether a text stands where a secret will be put."""
    return bool(_PLACEHOLDER.search(text)) or len(set(text)) <= 2


def hardcoded(subject: Subject) -> Iterator[Hit]:
    """Passwords and keys as literals."""
    for store in subject.facts.stores:
        name = store.key.string or (
            store.target.attr
            if isinstance(store.target, ast.Attribute)
            else store.target.id
            if isinstance(store.target, ast.Name)
            else ""
        )
        yield from _named(subject, name, store.value, store.node)
        if store.value.keys and store.name.islower() is not None:
            yield from _dictionary(subject, store.value)
    for call in subject.facts.calls:
        for name, value in call.keywords.items():
            if isinstance(value.node, ast.Constant) and not re.search(
                r"input|getpass|Field|Column|argument|option|render|print", call.name
            ):
                yield from _named(subject, name, value, call.node)
        if call.method in _LOGINS:
            for value in call.args[1:]:
                if (
                    isinstance(value.node, ast.Constant)
                    and isinstance(value.const, str)
                    and value is call.args[-1]
                    and call.method in {"login", "auth", "authenticate", "HTTPBasicAuth", "simple_bind_s"}
                    and not is_placeholder(value.const)
                ):
                    yield subject.hit("hardcoded_password", call.node)
        if _KEY_CALLS.search(call.name):
            key = call.arg(1, "key") if re.search(r"jwt\.|jose", call.name) else call.arg(0, "key")
            if (
                isinstance(key.const, str | bytes)
                and key.const
                and not (
                    isinstance(key.const, str)
                    and re.search(r"your|<|placeholder|change", key.const, re.IGNORECASE)
                )
            ):
                yield subject.hit("hardcoded_key", call.node)
    for node in subject.tree.all(ast.Constant):
        if (
            isinstance(node.value, str)
            and (match := _DB_URL.match(node.value))
            and not is_placeholder(match[1])
        ):
            yield subject.hit("hardcoded_password", node)


def _named(subject: Subject, name: str, value: Value, node: ast.AST) -> Iterator[Hit]:
    text = value.const.decode("latin-1") if isinstance(value.const, bytes) else value.string
    if (
        not text
        or not isinstance(value.node, ast.Constant)
        or len(text) > 512
        or " " in text.strip()
        or is_placeholder(text)
        or len(text) < 4
    ):
        return
    if re.search(r"://|^/|^\.|\.(?:txt|json|pem|key|html|py|env|ya?ml)$", text) or (
        re.search(r"^[A-Z][A-Z0-9_]+$", text) and "_" in text
    ):
        return
    if _KEY_NAMES.search(name) and (
        (name.lower() != "key" and name.lower() != "secret") or _looks_random(text)
    ):
        yield subject.hit("hardcoded_key", node)
    elif (
        is_secret_name(name)
        and text.lower() != name.lower()
        and not ("_" in name and name.lower() in text.lower())
    ):
        yield subject.hit("hardcoded_password", node)


def _looks_random(text: str) -> bool:
    classes = sum(bool(re.search(pattern, text)) for pattern in (r"[a-z]", r"[A-Z]", r"\d", r"[^\w\s]"))
    return len(text) >= 8 and classes >= 2


def _dictionary(subject: Subject, value: Value) -> Iterator[Hit]:
    """Settings of a connection, and tables of users with their passwords."""
    for key, item in zip(value.keys, value.items, strict=False):
        if isinstance(key, str) and item.node is not None:
            yield from _named(subject, key, item, item.node)
            if item.keys:
                yield from _dictionary(subject, item)


def compared(subject: Subject) -> Iterator[Hit]:
    """Secrets that are compared with a literal, in varying time, or in clear text."""
    for compare in subject.facts.compares:
        if not isinstance(compare.operator, ast.Eq | ast.NotEq):
            continue
        for one, other in ((compare.left, compare.right), (compare.right, compare.left)):
            secret = next((taint for taint in one.taints if taint.kind is Kind.SECRET), None)
            if secret is None or other.node is None:
                continue
            if (
                isinstance(other.const, str | bytes)
                and other.const
                and len(other.const) >= 3
                and not re.search(r"^(?:[yn]|yes|no|exit|quit|q)$", str(other.const))
            ):
                yield subject.hit("hardcoded_decision", compare.node)
                break
    for node in subject.tree.all(ast.Compare):
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Eq | ast.NotEq):
            continue
        sides = [subject.tree.text(node.left), subject.tree.text(node.comparators[0])]
        if any(
            re.search(
                r"hexdigest\(\)|\.digest\(\)|hmac|signature|\bmac\b|expected_(?:hash|token|sig)|computed_|csrf_token|api_?key\b|auth_?token|_token\b|_hash\b|\bdigest\b|_signature\b",
                side,
                re.IGNORECASE,
            )
            for side in sides
        ) and not any(isinstance(part, ast.Constant) for part in (node.left, *node.comparators)):
            if (
                re.search(r"hmac|hexdigest\(\)|signature|api_?key|token", " ".join(sides), re.IGNORECASE)
                and subject.tree.function_around(node) is not None
                and (
                    subject.facts.imports_any("hmac", "hashlib", "jwt")
                    or re.search(r"token|api_?key", " ".join(sides))
                )
            ):
                yield subject.hit("timing_comparison", node)
        elif all(
            re.search(r"passw(?:or)?d|\bpwd\b", side, re.IGNORECASE) for side in sides
        ) and not re.search(
            r"confirm|repeat|again|retype|2\b|verify|hash|new|old|digest|crypt",
            " ".join(sides),
            re.IGNORECASE,
        ):
            yield subject.hit("plaintext_comparison", node)


def rules_for_passwords(subject: Subject) -> Iterator[Hit]:
    """Passwords that are accepted however short they are."""
    text = subject.source.text
    for compare in subject.facts.compares:
        size = compare.right.const
        left = subject.tree.text(compare.node.left)
        if (
            isinstance(size, int)
            and re.match(r"len\(.*pass", left, re.IGNORECASE)
            and isinstance(compare.operator, ast.Lt | ast.GtE | ast.LtE | ast.Gt)
        ):
            least = size + (1 if isinstance(compare.operator, ast.LtE | ast.Gt) else 0)
            if 0 <= least < _MIN_PASSWORD:
                yield subject.hit("weak_password_rule", compare.node)
    for call in subject.facts.calls:
        length = call.arg(-1, "min_length" if "min_length" in call.keywords else "min").number
        if (
            0 <= length < _MIN_PASSWORD
            and re.search(
                r"pass",
                subject.tree.text(subject.tree.enclosing(call.node, ast.stmt) or call.node),
                re.IGNORECASE,
            )
            and not re.search(r"max\(|min\(", call.name)
        ):
            yield subject.hit("weak_password_rule", call.node)
    if re.search(
        r"len\(|re\.|validate|min_length|Length\(|strength|policy|isdigit|any\(|zxcvbn|complex", text
    ):
        return
    for scope in subject.facts.scopes:
        node = scope.node
        if isinstance(node, FunctionNode) and re.search(
            r"^(?:register|sign_?up|create_(?:user|account)|add_user|new_user|set_password|change_password|update_password|reset_password|user_registration|registration)",
            scope.name,
            re.IGNORECASE,
        ):
            if re.search(r"passw(?:or)?d|\bpwd\b", subject.tree.text(node), re.IGNORECASE) and (
                scope.is_route or re.search(r"password", " ".join(a.arg for a in node.args.args))
            ):
                yield subject.hit("weak_password_rule", node)


CHECKS: Final[tuple[Check, ...]] = (hardcoded, compared, rules_for_passwords)

"""Text from outside that becomes part of a query, a pattern or a format."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Confidence, Hit
from services.tools.code.python.facts import Call
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.values import ANYONE, HOLE, OUTSIDE, REMOTE, Label, Taint, skeleton

SQL: Final = re.compile(
    r"\b(?:select\b.+\bfrom|insert\s+into|update\b.+\bset|delete\s+from|create\s+(?:table|database|user)|drop\s+(?:table|database)|alter\s+table"
    r"|exec(?:ute)?\s|union\s+select|replace\s+into|truncate\s+table|grant\s|where\s|order\s+by|call\s)",
    re.IGNORECASE | re.DOTALL,
)
_SQL_METHODS: Final = frozenset(
    [
        "execute",
        "executemany",
        "executescript",
        "raw",
        "query",
        "run_query",
        "read_sql",
        "read_sql_query",
        "execute_query",
        "executeQuery",
        "mogrify",
        "fetch",
        "fetchrow",
        "fetchval",
        "exec_driver_sql",
        "run",
        "extra",
    ]
)
_SQL_ONLY: Final = frozenset(
    {
        "execute",
        "executemany",
        "executescript",
        "raw",
        "exec_driver_sql",
        "read_sql",
        "read_sql_query",
        "mogrify",
    }
)
_REGEX: Final = frozenset(
    {
        "re.compile",
        "re.search",
        "re.match",
        "re.fullmatch",
        "re.findall",
        "re.finditer",
        "re.sub",
        "re.subn",
        "re.split",
    }
)
_XPATH_METHODS: Final = frozenset({"xpath", "find", "findall", "findtext", "iterfind"})
_XPATH: Final = re.compile(r"//|^\.?/|\[@|\[\w+\s*=|\btext\(\)")
_LDAP_METHODS: Final = frozenset(
    {
        "search",
        "search_s",
        "search_st",
        "search_ext",
        "search_ext_s",
        "simple_bind_s",
        "bind_s",
        "simple_bind",
        "modify_s",
        "add_s",
        "delete_s",
        "paged_search",
    }
)
_LDAP: Final = re.compile(r"\(\s*[&|!]?\s*\(?\s*[\w.;-]+\s*[~<>]?=|\b(?:cn|uid|ou|dc)=", re.IGNORECASE)
_NOSQL_METHODS: Final = frozenset(
    [
        "find",
        "find_one",
        "find_one_and_update",
        "find_one_and_delete",
        "update_one",
        "update_many",
        "delete_one",
        "delete_many",
        "count_documents",
        "aggregate",
        "remove",
        "update",
        "find_and_modify",
        "distinct",
    ]
)


def sql(subject: Subject) -> Iterator[Hit]:
    """Queries put together from text."""
    for call in subject.facts.calls:
        if call.method not in _SQL_METHODS and call.name not in {
            "sqlalchemy.text",
            "sqlalchemy.sql.text",
            "django.db.models.expressions.RawSQL",
        }:
            continue
        query = (
            call.arg(0, "sql")
            if "sql" in call.keywords
            else call.arg(0, "statement")
            if call.method != "extra"
            else call.arg(0, "where")
        )
        query = next((call.keywords[key] for key in ("query", "operation") if key in call.keywords), query)
        taints = query.from_(ANYONE, Label.SQL)
        text = skeleton(query)
        if (
            not query.taints
            and query.built
            and call.method in _SQL_ONLY
            and SQL.search(text.replace(HOLE, " x "))
            and _has_unknown(subject, text)
        ):
            yield subject.hit("sql_injection", call.node, confidence=Confidence.LOW)
            continue
        if not taints or (HOLE not in text and query.text is not None):
            continue
        remote = query.from_(OUTSIDE, Label.SQL)
        if query.built and SQL.search(text.replace(HOLE, " x ")):
            yield subject.hit("sql_injection", call.node, remote or taints)
        elif remote and not query.built and call.method in _SQL_ONLY and _is_database(call):
            yield subject.hit("sql_injection", call.node, remote)


def _has_unknown(subject: Subject, text: str) -> bool:
    """Whether a value of unknown origin, no constant and no placeholder, was put into a text."""
    for _, value, _scope in subject.facts.texts:
        if value.text == text:
            for item in value.items:
                name = item.origin.rpartition(".")[2]
                unknown = not item.known and (item.text is None or (HOLE in item.text and item.built))
                if (
                    unknown
                    and name
                    and not name.isupper()
                    and not name.endswith(("()", "[]"))
                    and not re.search(r"table|column|placeholder|field|schema", name, re.IGNORECASE)
                ):
                    return True
    return False


def _is_database(call: Call) -> bool:
    return bool(
        re.search(r"cursor|conn|connect|\bdb\b|session|engine|\bcur\b|objects|sql", call.name, re.IGNORECASE)
    )


def ldap(subject: Subject) -> Iterator[Hit]:
    """Directory filters and names put together from text."""
    if not subject.facts.imports_any("ldap", "ldap3"):
        return
    for call in subject.facts.calls:
        if call.method not in _LDAP_METHODS:
            continue
        for value in (*call.args, *call.keywords.values()):
            taints = value.from_(ANYONE, Label.LDAP)
            if taints and (
                (value.built and _LDAP.search(skeleton(value)))
                or (not value.built and value.from_(REMOTE, Label.LDAP) and call.method.startswith("search"))
            ):
                yield subject.hit("ldap_injection", call.node, taints)
                break


def xpath(subject: Subject) -> Iterator[Hit]:
    """XPath and XQuery expressions put together from text."""
    for call in subject.facts.calls:
        if call.method not in _XPATH_METHODS and call.name not in {
            "lxml.etree.XPath",
            "lxml.etree.XPathEvaluator()",
            "elementpath.select",
        }:
            continue
        for value in call.args[:2]:
            taints = value.from_(ANYONE, Label.XML)
            is_path = value.built and _XPATH.search(skeleton(value))
            if taints and (
                is_path or (call.method in {"xpath", "XPath"} and value.from_(OUTSIDE, Label.XML))
            ):
                yield subject.hit("xpath_injection", call.node, taints)
                break


def nosql(subject: Subject) -> Iterator[Hit]:
    """Documents of queries that a caller can shape."""
    if not subject.facts.imports_any(
        "pymongo", "flask_pymongo", "mongoengine", "motor", "bson", "couchdb", "tinydb"
    ):
        return
    for call in subject.facts.calls:
        if call.method not in _NOSQL_METHODS:
            continue
        for value in (*call.args[:1], *(call.keywords[k] for k in ("filter", "query") if k in call.keywords)):
            where = "$where" in value.keys
            taints = value.from_(ANYONE) if where else value.from_(OUTSIDE, Label.NOSQL)
            parsed = [taint for taint in taints if where or not _from_path(taint)]
            if parsed:
                yield subject.hit("nosql_injection", call.node, parsed)


def _from_path(taint: Taint) -> bool:
    """A part of a path is a text and holds no operators."""
    return isinstance(taint.steps[0][0], ast.arg)


def patterns(subject: Subject) -> Iterator[Hit]:
    """Regular expressions and format texts from outside."""
    for call in subject.facts.calls:
        if call.name in _REGEX:
            taints = call.arg(0, "pattern").from_(OUTSIDE, Label.REGEX)
            if taints:
                yield subject.hit("regex_injection", call.node, taints)
        elif (
            call.method in {"format", "format_map"} and not call.receiver.built and call.receiver.text is None
        ):
            taints = call.receiver.from_(OUTSIDE, Label.CODE)
            if taints:
                yield subject.hit("format_string", call.node, taints)
        elif call.method in {"format", "format_map"} and call.receiver.built:
            taints = call.receiver.from_(REMOTE, Label.CODE)
            if taints and call.args + tuple(call.keywords.values()):
                yield subject.hit("format_string", call.node, taints)


CHECKS: Final[tuple[Check, ...]] = (sql, ldap, xpath, nosql, patterns)

"""What a condition proves of data, and whether a block leaves its function."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from services.tools.code.engines.javascript.known import operator
from services.tools.code.engines.javascript.values import Value
from services.tools.code.grammar import Node

ALL: Final = frozenset({"*"})
_PLACES: Final = frozenset({"path_traversal"})
_ADDRESSES: Final = frozenset({"request_forgery", "open_redirect", "origin_echo"})
_KEYS: Final = frozenset({"prototype_pollution"})
_JUDGES: Final = re.compile(r"^(?:is|has|valid|allow|check|verify|safe|assert|matches|can)", re.IGNORECASE)
_MAX_ATOMS: Final = 64


def leaves(node: Node) -> bool:
    """Whether a block ends with a way out."""
    last = node
    while last.kind in {"statement_block", "else_clause"} and last.children:
        last = [each for each in last.children if each.kind != "comment"][-1:][0] if last.children else last
        if last.kind == "comment":
            return False
    return last.kind in {"return_statement", "throw_statement", "continue_statement", "break_statement"} or (
        last.kind == "expression_statement"
        and re.match(r"process\.exit|(?:return )?next\(|reject\(", last.text) is not None
    )


def proved(condition: Node, value: Callable[[Node], Value]) -> dict[str, frozenset[str]]:
    """Which rules a condition clears, by the origin of the data that it looks at."""
    found: dict[str, frozenset[str]] = {}

    def clear(node: Node, rules: frozenset[str]) -> None:
        taint = value(node).taint
        if taint is not None and taint.origin and not taint.origin.endswith(".protocol"):
            # A host that is proved proves its address.
            origin = re.sub(r"\.(?:host(?:name)?|origin)$", "", taint.origin)
            found[origin] = found.get(origin, frozenset()) | rules

    atoms = [node for node in condition.walk() if node.kind in {"call_expression", "binary_expression"}]
    for node in atoms[:_MAX_ATOMS]:
        if node.kind == "call_expression":
            _call(node, value, clear)
        elif "left" in node.fields and "right" in node.fields:
            _comparison(node, value, clear)
    return found


def _call(node: Node, value: Callable[[Node], Value], clear: Callable[[Node, frozenset[str]], None]) -> None:
    callee, arguments = node.fields.get("function"), node.fields.get("arguments")
    if callee is None or arguments is None:
        return
    first = arguments.children[0] if arguments.children else None
    of, method = callee.fields.get("object"), callee.fields.get("property")
    if of is None or method is None:
        if first is not None and _JUDGES.search(callee.text):
            clear(first, ALL)
        return
    name = method.text
    if name == "test" and first is not None:
        if of.kind != "regex" or re.match(r"/\^.*\$/", of.text):
            clear(first, ALL)
        elif "<" in of.text or ".." in of.text.replace("\\", ""):
            clear(first, frozenset({"path_traversal"}))
    elif name in {"includes", "has", "hasOwnProperty", "hasOwn", "indexOf", "call"} and first is not None:
        if value(of).taint is None:
            clear(arguments.children[-1], ALL)
        elif ".." in value(first).constant:
            clear(of, _PLACES)
    elif name == "startsWith" and first is not None:
        prefix = value(first)
        if prefix.constant:
            if re.match(r"https?://[^/]+/", prefix.constant):
                clear(of, _ADDRESSES)
        else:
            clear(of, _PLACES)
    elif name == "match" and first is not None and re.match(r"/\^.*\$/", first.text):
        clear(of, ALL)
    elif _JUDGES.search(name) and first is not None:
        clear(first, ALL)


def _comparison(
    node: Node, value: Callable[[Node], Value], clear: Callable[[Node, frozenset[str]], None]
) -> None:
    left, right = node.fields["left"], node.fields["right"]
    sign = operator(node)
    if sign in {"===", "==", "!==", "!="}:
        for one, other in ((left, right), (right, left)):
            if "__proto__" in other.text:
                clear(one, _KEYS)
            elif one.kind == "unary_expression" and one.text.startswith("typeof") and one.children:
                clear(one.children[0], frozenset({"nosql_injection"}))
            elif (other.kind == "string" and len(other.text) > 2) or (
                re.search(r"\.(?:host(?:name)?|origin)$", one.text) and value(other).taint is None
            ):
                clear(one, ALL)
    elif sign == "in":
        clear(left, ALL)

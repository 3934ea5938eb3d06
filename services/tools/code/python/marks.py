"""Taints that a value has by its name alone: where it comes from, and that it must stay secret."""

from __future__ import annotations

import ast
from dataclasses import replace

from services.tools.code.python.sources import is_request, is_secret_name, kind_of_path
from services.tools.code.python.values import Kind, Taint, Value, merge


def sourced(value: Value, node: ast.expr, origin: str, bases: tuple[str, ...]) -> Value:
    """Mark a value whose path says that it comes from outside."""
    kind = kind_of_path(origin, bases)
    if kind is None or any(taint.kind is kind for taint in value.taints):
        return value
    taint = Taint(kind, (node.lineno, node.col_offset), ((node, f"{origin} holds {kind.value}"),))
    return replace(value, taints=merge(value.taints, (taint,)))


def secret(value: Value, node: ast.expr, name: str) -> Value:
    """Mark a value whose name says that it must stay secret; what a call makes of it later is no secret any more."""
    if (
        not is_secret_name(name)
        or any(taint.kind is Kind.SECRET for taint in value.taints)
        or is_request(value.origin)
    ):
        return value
    if value.origin.endswith("()") and not value.taints and not value.built:
        return value
    taint = Taint(Kind.SECRET, (node.lineno, node.col_offset), ((node, f"{name} is a secret by its name"),))
    return replace(value, taints=merge(value.taints, (taint,)))

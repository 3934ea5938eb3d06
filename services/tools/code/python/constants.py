"""What can be worked out of literals: the pieces of format texts, and small numbers.  Pure."""

from __future__ import annotations

import ast

from services.tools.code.python.values import NOTHING, UNKNOWN, Value


def interleave(pattern: str, mark: str, values: list[Value]) -> list[Value]:
    """Cut a format text at its fields and put values, or unknowns, between the pieces."""
    pieces: list[Value] = []
    literal = ""
    index, used = 0, 0
    while index < len(pattern):
        if pattern[index] != mark or index + 1 >= len(pattern) or pattern[index + 1] == mark:
            literal += pattern[index]
            index += 2 if pattern[index : index + 2] == mark * 2 else 1
            continue
        pieces.extend((Value(const=literal, text=literal), values[used] if used < len(values) else UNKNOWN))
        literal = ""
        used += 1
        index = _field_end(pattern, index, mark)
    pieces.append(Value(const=literal, text=literal))
    return pieces


def _field_end(pattern: str, index: int, mark: str) -> int:
    if mark == "{":
        end = pattern.find("}", index)
        return len(pattern) if end < 0 else end + 1
    index += 1
    if pattern[index : index + 1] == "(":
        index = max(pattern.find(")", index), index) + 1
    while index < len(pattern) and not pattern[index].isalpha():
        index += 1
    return index + 1


def arithmetic(operator: ast.operator, left: object, right: object) -> object:
    """Work out small whole numbers; anything else stays unknown."""
    if not (type(left) is int and type(right) is int and abs(left) < 2**40 and abs(right) < 2**40):
        return NOTHING
    if isinstance(operator, ast.Mult):
        return left * right
    if isinstance(operator, ast.Sub):
        return left - right
    if isinstance(operator, ast.FloorDiv) and right:
        return left // right
    if isinstance(operator, ast.BitOr):
        return left | right
    return NOTHING

"""Texts that a program puts together: pieces of literals with expressions between them, and literals written anew."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Final

import libcst as cst

from services.tools.code.repair.model import DeclinedError
from services.tools.code.repair.tree import Tree

Part = str | cst.BaseExpression

_FIELD: Final = re.compile(r"\{(\d*|[A-Za-z_]\w*)\}")


@dataclass(slots=True)
class Piece:
    """One literal of a text with the expressions in it, and how it is quoted."""

    parts: list[Part]
    # Without f; "r", "" or so.
    prefix: str
    quote: str
    # Whitespace between this literal and the next, where literals stand side by side.
    after: str = ""


def pieces_of(  # noqa: PLR0911 - one branch per way to put a text together
    tree: Tree,
    node: cst.BaseExpression,
) -> list[Piece] | None:
    """Take an expression apart: f-strings, %, format, + and literals side by side; None for anything else."""
    match node:
        case cst.SimpleString():
            return None if "b" in node.prefix else [_simple(node)]
        case cst.FormattedString():
            return [_formatted(node)]
        case cst.ConcatenatedString():
            return _side_by_side(tree, node)
        case cst.BinaryOperation(operator=cst.Add()):
            return _added(tree, node)
        case cst.BinaryOperation(operator=cst.Modulo()):
            return _percent(tree, node)
        case cst.Call(func=cst.Attribute(value=value, attr=cst.Name(value="format"))):
            return _format(tree, node, value)
        case _:
            return None


def has_expression(pieces: list[Piece]) -> bool:
    """Tell whether anything but literals is in it."""
    return any(not isinstance(part, str) for piece in pieces for part in piece.parts)


def literal(text: str, piece: Piece) -> str:
    """Write a text as a Python literal, quoted as the piece was where that can be."""
    quote = piece.quote
    if len(quote) > 1:
        is_plain = "\\" not in text and quote not in text and not text.endswith(quote[0]) and "\r" not in text
        if is_plain:
            return f"{quote}{text}{quote}"
        quote = quote[0]
    if quote == '"' and '"' not in text:
        return f'"{repr(chr(39) + text)[2:-1]}"'
    return repr(text)


def _simple(node: cst.SimpleString) -> Piece:
    value = node.evaluated_value
    return Piece([value if isinstance(value, str) else ""], node.prefix, node.quote)


def _formatted(node: cst.FormattedString) -> Piece:
    prefix = node.prefix.lower().replace("f", "")
    quote = node.end
    parts: list[Part] = []
    for part in node.parts:
        if isinstance(part, cst.FormattedStringText):
            raw = part.value.replace("{{", "{").replace("}}", "}")
            parts.append(_evaluated(f"{prefix}{quote}{raw}{quote}"))
        elif isinstance(part, cst.FormattedStringExpression):
            if part.conversion is not None or part.format_spec is not None or part.equal is not None:
                raise DeclinedError("a value is formatted on its way into the text")
            parts.append(part.expression)
    return Piece(parts, prefix, quote)


def _evaluated(source: str) -> str:
    try:
        value = ast.literal_eval(source)
    except (SyntaxError, ValueError):
        raise DeclinedError("a part of the text cannot be read") from None
    return value if isinstance(value, str) else ""


def _side_by_side(tree: Tree, node: cst.ConcatenatedString) -> list[Piece] | None:
    left, right = pieces_of(tree, node.left), pieces_of(tree, node.right)
    if left is None or right is None:
        return None
    left[-1].after = tree.between(node.left, node.right)
    return [*left, *right]


def _added(tree: Tree, node: cst.BinaryOperation) -> list[Piece] | None:
    """`"a" + x + "b"`: all that is no literal is a value; one literal at least."""
    operands: list[cst.BaseExpression] = []
    rest: cst.BaseExpression = node
    while isinstance(rest, cst.BinaryOperation) and isinstance(rest.operator, cst.Add):
        operands.append(rest.right)
        rest = rest.left
    operands.append(rest)
    parts: list[Part] = []
    shape: Piece | None = None
    for operand in reversed(operands):
        pieces = pieces_of(tree, operand)
        if pieces is None:
            parts.append(_unwrapped(operand))
            continue
        shape = shape or pieces[0]
        parts.extend(part for piece in pieces for part in piece.parts)
    if shape is None:
        return None
    return [Piece(parts, shape.prefix, shape.quote[0])]


def _unwrapped(operand: cst.BaseExpression) -> cst.BaseExpression:
    """`str(x)` puts x into a text as `{x}` does."""
    match operand:
        case cst.Call(func=cst.Name(value="str"), args=[cst.Arg(keyword=None, star="", value=value)]):
            return value
        case _:
            return operand


def _percent(  # noqa: C901 - one branch per kind of place
    tree: Tree,
    node: cst.BinaryOperation,
) -> list[Piece] | None:
    template = pieces_of(tree, node.left)
    if template is None or has_expression(template):
        return None
    values = (
        [element.value for element in node.right.elements]
        if isinstance(node.right, cst.Tuple)
        else [node.right]
    )
    if isinstance(node.right, cst.Dict):
        raise DeclinedError("the values come from a dictionary")
    filled = 0
    for piece in template:
        parts: list[Part] = []
        for text in re.split(r"(%.)", "".join(map(str, piece.parts)), flags=re.DOTALL):
            if text == "%%":
                parts.append("%")
            elif text in {"%s", "%d", "%i"}:
                if filled >= len(values):
                    raise DeclinedError("the text has more places than values")
                parts.append(values[filled])
                filled += 1
            elif text.startswith("%"):
                raise DeclinedError(f"{text} formats a value on its way into the text")
            elif text:
                parts.append(text)
        piece.parts = parts
    if filled != len(values):
        raise DeclinedError("the text has fewer places than values")
    return template


def _format(tree: Tree, call: cst.Call, value: cst.BaseExpression) -> list[Piece] | None:
    template = pieces_of(tree, value)
    if template is None or has_expression(template) or any(arg.star for arg in call.args):
        return None
    ordered = [arg.value for arg in call.args if arg.keyword is None]
    named = {arg.keyword.value: arg.value for arg in call.args if arg.keyword is not None}
    count = 0
    for piece in template:
        parts: list[Part] = []
        text = "".join(map(str, piece.parts))
        for chunk in re.split(r"(\{\{|\}\}|\{[^{}]*\})", text):
            if chunk in {"{{", "}}"}:
                parts.append(chunk[0])
            elif chunk.startswith("{"):
                match = _FIELD.fullmatch(chunk)
                if match is None:
                    raise DeclinedError(f"{chunk} formats a value on its way into the text")
                key = match[1]
                if not key:
                    key, count = str(count), count + 1
                found = named.get(key) if not key.isdigit() else _nth(ordered, int(key))
                if found is None:
                    raise DeclinedError(f"there is no value for {chunk}")
                parts.append(found)
            elif chunk:
                parts.append(chunk)
        piece.parts = parts
    return template


def _nth(values: list[cst.BaseExpression], index: int) -> cst.BaseExpression | None:
    return values[index] if index < len(values) else None

"""From a text with values in it to a text with placeholders and a list of values.  Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import libcst as cst

from services.tools.code.repair.model import DeclinedError
from services.tools.code.repair.texts import Piece, literal

# Where a value may stand. Names of tables and columns, conditions, directions of sorting cannot be placeholders.
_BEFORE_VALUE: Final = re.compile(
    r"(?:[=<>+]|\|\||\b(?:like|ilike|glob|regexp|between|limit|offset|then|else)\b|\bbetween\s+\S+\s+and\b)\s*$",
    re.IGNORECASE,
)
_VALUE_LIST: Final = re.compile(r"\b(values|in)\s*(?:\([^()]*\)\s*,\s*)*\((?:[^()]*,)?\s*$", re.IGNORECASE)
_QUOTE: Final = "'"


@dataclass(frozen=True, slots=True)
class Parameterised:
    """A query as Python source, and its values as Python source."""

    query: str
    values: tuple[str, ...]


def parameterised(
    pieces: list[Piece], *, placeholder: str, code: Callable[[cst.CSTNode], str]
) -> Parameterised:
    """Put placeholders where values stand; DeclinedError where one stands for something else."""
    reader = _Reader(placeholder, code)
    sources: list[str] = []
    for piece in pieces:
        text = reader.piece(piece)
        sources.append(piece.prefix.replace("r", "").replace("R", "") + literal(text, piece) + piece.after)
    return Parameterised("".join(sources), reader.end())


class _Reader:
    def __init__(self, placeholder: str, code: Callable[[cst.CSTNode], str]) -> None:
        self._placeholder = placeholder
        self._code = code
        self._before = ""
        self._quoted: list[str | cst.BaseExpression] | None = None
        self._values: list[str] = []
        # Whether a value without quotes has just been put where a whole list may have stood.
        self._may_be_list = False
        self._is_open = False

    def piece(self, piece: Piece) -> str:
        written = ""
        for part in piece.parts:
            if isinstance(part, str):
                for character in part:
                    written += self._character(character)
            elif self._quoted is not None:
                self._quoted.append(part)
            else:
                self._require_value_place(is_quoted=False)
                written += self._hole(self._code(part))
                self._is_open = True
        if self._quoted is not None:
            raise DeclinedError("a quoted value goes over several literals or has no end")
        return written

    def end(self) -> tuple[str, ...]:
        self._require_end_of_value(")")
        if "--" in self._before or "/*" in self._before or "''" in self._before or '"' in self._before:
            raise DeclinedError("the query holds comments or quotes that cannot be followed")
        return tuple(self._values)

    def _character(self, character: str) -> str:
        self._require_end_of_value(character)
        if self._quoted is None:
            if character == _QUOTE:
                self._quoted = []
                return ""
            return self._write(character)
        if character != _QUOTE:
            self._quoted.append(character)
            return ""
        inside, self._quoted = self._quoted, None
        if all(isinstance(part, str) for part in inside):
            return self._write(f"'{''.join(map(str, inside))}'")
        self._require_value_place(is_quoted=True)
        return self._hole(self._quoted_value(inside))

    def _quoted_value(self, inside: list[str | cst.BaseExpression]) -> str:
        """`'%{q}%'` is one value that is put together."""
        if len(inside) == 1 and not isinstance(inside[0], str):
            return self._code(inside[0])
        text = ""
        for part in inside:
            if isinstance(part, str):
                text += {"{": "{{", "}": "}}"}.get(part, part)
                continue
            source = self._code(part)
            if any(character in source for character in "\"'\\{}!\n"):
                raise DeclinedError("a value is too intricate to be put into another text")
            text += f"{{{source}}}"
        if any(character in text for character in '"\\\n'):
            raise DeclinedError("a value is too intricate to be put into another text")
        return f'f"{text}"'

    def _hole(self, value: str) -> str:
        self._values.append(value)
        self._before += " ? "
        return self._placeholder

    def _write(self, text: str) -> str:
        self._before += text
        return text.replace("%", "%%") if self._placeholder == "%s" else text

    def _require_value_place(self, *, is_quoted: bool) -> None:
        self._require_end_of_value("x")
        values = _VALUE_LIST.search(self._before)
        if values is None and not _BEFORE_VALUE.search(self._before):
            raise DeclinedError(
                "a value stands where no placeholder may (the name of a table or column, say); "
                "choose among known names instead"
            )
        if values is None or is_quoted:
            return
        if values[1].lower() == "in":
            raise DeclinedError("a value may hold a whole list; give one placeholder for each of its items")
        self._may_be_list = self._before.rstrip().endswith("(")

    def _require_end_of_value(self, following: str) -> None:
        """What comes right behind a value must not go on with it, as in `{table}.id`."""
        if self._is_open and (following.isalnum() or following in "_.(:"):
            raise DeclinedError("a value is a part of a longer name or number")
        self._is_open = False
        if self._may_be_list and not following.isspace():
            self._may_be_list = False
            if following == ")":
                raise DeclinedError(
                    "a value may hold a whole list; give one placeholder for each of its items"
                )

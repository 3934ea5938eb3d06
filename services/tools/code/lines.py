"""Where characters, bytes, lines and columns of a text meet."""

from __future__ import annotations

import bisect
import re
from typing import Final

# What Python's tokenizer and most editors take for the end of a line; str.splitlines knows more.
_NEWLINE: Final = re.compile(r"\r\n|\n|\r")


class Lines:
    """The lines of one text; lines and columns count from 1, offsets from 0."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]
        self._ascii = text.isascii()

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def longest(self) -> int:
        """The length of the longest line, with its end."""
        ends = [*self._starts[1:], len(self._text)]
        return max(end - start for start, end in zip(self._starts, ends, strict=True))

    def line(self, number: int) -> str:
        """Give one line without its end; empty outside of the text."""
        if not 1 <= number <= len(self._starts):
            return ""
        end = self._starts[number] if number < len(self._starts) else len(self._text)
        return self._text[self._starts[number - 1] : end].rstrip("\r\n")

    def offset(self, line: int, column: int) -> int:
        """Give the character offset of a place; a place outside of the text is moved to its nearest end."""
        if line < 1:
            return 0
        if line > len(self._starts):
            return len(self._text)
        return min(self._starts[line - 1] + max(column, 1) - 1, len(self._text))

    def place(self, offset: int) -> tuple[int, int]:
        """Give line and column of a character offset."""
        line = bisect.bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def byte_offset(self, offset: int) -> int:
        """Give the place in the UTF-8 text of a character offset."""
        return offset if self._ascii else len(self._text[:offset].encode("utf-8", "surrogatepass"))

    def column_of_byte(self, line: int, byte_column: int) -> int:
        """Give the column of a byte of a line, counted from 0 as Python's syntax tree does."""
        if self._ascii:
            return byte_column + 1
        prefix = self.line(line).encode("utf-8", "surrogatepass")[:byte_column]
        return len(prefix.decode("utf-8", "ignore")) + 1

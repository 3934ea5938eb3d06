"""Rows of JSON Lines or of one JSON array, each with its number, read with bounds."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO, Final

from services.trainer.datasets.problems import (
    EMPTY,
    FILE_EMPTY,
    NOT_JSON,
    NOT_UTF8,
    TOO_LONG,
    FileError,
    RowError,
)

MAX_ROW_BYTES: Final = 1024 * 1024
"""Longest row: several books' pages; a longer line is a file that is no JSON Lines."""
_CHUNK: Final = 256 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_SPACES: Final = " \t\n\r"


def json_rows(stream: BinaryIO) -> Iterator[tuple[int, object]]:
    """Yields each row with its number from 1; where a line cannot be parsed, a RowError takes its place.

    An array has no lines: what is wrong in it is a FileError, after the rows before it.
    """
    seen = 0
    for number, (line, whole) in enumerate(_lines(stream), start=1):
        if not seen and line.lstrip().startswith(b"["):
            yield from _Array(line, stream).rows()
            return
        if whole and not line.strip():
            yield number, RowError(EMPTY, "the line is empty")
            continue
        seen += 1
        yield number, _parsed(line if whole else None)
    if not seen:
        raise FileError(FILE_EMPTY, "the file holds no row")


def _lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yields lines and whether they are whole; of one that is longer than a row may be, only its beginning."""
    mark = _BOM
    while line := stream.readline(MAX_ROW_BYTES):
        whole = len(line) < MAX_ROW_BYTES or line.endswith(b"\n")
        yield line.removeprefix(mark), whole
        mark = b""
        while not whole:
            rest = stream.readline(MAX_ROW_BYTES)
            whole = not rest or rest.endswith(b"\n")


def _parsed(line: bytes | None) -> object:
    if line is None:
        return RowError(TOO_LONG, f"the line has more than {MAX_ROW_BYTES:,} bytes")
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowError(NOT_UTF8, f"byte {error.start + 1} of the line is not UTF-8")
    except RecursionError:
        return RowError(NOT_JSON, "it is nested too deeply")
    except ValueError as error:
        return RowError(NOT_JSON, f"{error}"[:160])


class _Array:
    """Reads one JSON array row by row: memory holds a row and a chunk, however long the array is."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._taken = 0
        self._text = ""
        self._at = 0
        self._take(start)

    def rows(self) -> Iterator[tuple[int, object]]:
        """Yields each row with its number; raises FileError where the array is none."""
        number, mark = 0, self._mark("[")
        while mark != "]":
            if not number and self._peek() == "]":
                raise FileError(FILE_EMPTY, "the file holds no row")
            number += 1
            yield number, self._value(number)
            mark = self._mark(",]")
        if self._peek():
            raise FileError(
                NOT_JSON, "something follows the array; a row a line is JSON Lines without brackets"
            )

    def _value(self, number: int) -> object:
        self._peek()
        while True:
            value, problem, end = None, "", 0
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except RecursionError:
                problem = "it is nested too deeply"
            except ValueError as error:
                problem = getattr(error, "msg", "") or f"{error}"
            # What looks wrong, and a number at the very end, may only be cut.
            if (problem or end == len(self._text)) and self._more():
                continue
            if problem:
                raise FileError(NOT_JSON, f"row {number} of the array is no JSON: {problem}"[:200])
            self._at = end
            return value

    def _mark(self, expected: str) -> str:
        found = self._peek()
        if not found or found not in expected:
            raise FileError(NOT_JSON, f"the array is no JSON: {' or '.join(expected)} is missing after a row")
        self._at += 1
        return found

    def _peek(self) -> str:
        """Returns the next character that is no space, without taking it; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACES:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Says whether there was more to read; raises FileError for a row longer than one may be."""
        self._text, self._at = self._text[self._at :], 0
        if len(self._text) > MAX_ROW_BYTES:
            raise FileError(TOO_LONG, f"a row of the array has more than {MAX_ROW_BYTES:,} bytes")
        return self._take(self._stream.read(_CHUNK))

    def _take(self, data: bytes) -> bool:
        kept = len(self._decoder.getstate()[0])
        try:
            self._text += self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            place = self._taken - kept + error.start + 1
            raise FileError(NOT_UTF8, f"byte {place} of the file is not UTF-8") from error
        self._taken += len(data)
        return bool(data)

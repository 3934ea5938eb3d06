"""Rows of JSON Lines or of one JSON array, each with its number, read with bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO, Final

from services.trainer.datasets.problems import (
    EMPTY,
    FILE_DAMAGED,
    FILE_EMPTY,
    NOT_JSON,
    NOT_UTF8,
    TOO_LONG,
    FileError,
    RowError,
)

MAX_ROW_BYTES: Final = 1024 * 1024
"""Longest row: several books' pages; a longer line is a file that is no JSON Lines."""
MAX_ARRAY_BYTES: Final = 256 * 1024 * 1024
"""A JSON array is parsed as a whole; JSON Lines has no bound."""
_BOM: Final = b"\xef\xbb\xbf"


def json_rows(stream: BinaryIO) -> Iterator[tuple[int, object]]:
    """Yields each row with its number from 1; where a row cannot be parsed, a RowError takes its place."""
    first = stream.read(len(_BOM))
    rest = b"" if first == _BOM else first
    seen = 0
    for number, line in enumerate(_lines(stream, rest), start=1):
        if seen == 0 and line is not None and line.lstrip().startswith(b"["):
            yield from _array(line, stream)
            return
        if line is not None and not line.strip():
            yield number, RowError(EMPTY, "the line is empty")
            continue
        seen += 1
        yield number, _parsed(line)
    if not seen:
        raise FileError(FILE_EMPTY, "the file holds no row")


def _lines(stream: BinaryIO, start: bytes) -> Iterator[bytes | None]:
    """Yields lines; None for one that is longer than a row may be."""
    line = start if start.endswith(b"\n") else start + stream.readline(MAX_ROW_BYTES)
    while line:
        if len(line) < MAX_ROW_BYTES or line.endswith(b"\n"):
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_ROW_BYTES)
            yield None
        line = stream.readline(MAX_ROW_BYTES)


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


def _array(start: bytes, stream: BinaryIO) -> Iterator[tuple[int, object]]:
    data = start + stream.read(MAX_ARRAY_BYTES)
    if len(data) > MAX_ARRAY_BYTES:
        raise FileError(FILE_DAMAGED, f"a JSON array may have {MAX_ARRAY_BYTES:,} bytes; use JSON Lines")
    values = _parsed_whole(data)
    if not values:
        raise FileError(FILE_EMPTY, "the file holds no row")
    yield from enumerate(values, start=1)


def _parsed_whole(data: bytes) -> list[object]:
    try:
        values: object = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FileError(NOT_UTF8, f"byte {error.start + 1} of the file is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise FileError(NOT_JSON, f"the array is no JSON: {error}"[:200]) from error
    return values if isinstance(values, list) else []

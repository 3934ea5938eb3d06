"""A reader of newline-delimited JSON: bytes in any cut, whole lines out.  Pure.

It works on bytes, so a cut inside a UTF-8 character does no harm.
"""

from __future__ import annotations

from typing import Final

MAX_LINE_BYTES: Final = 8 * 1024 * 1024
"""Longer than any real line, which holds one token or a tool call; stops an endless one."""


class LineTooLongError(ValueError):
    """One line is longer than MAX_LINE_BYTES."""


class LineReader:
    """Collects lines over reads; for one stream."""

    __slots__ = ("_size", "_tail")

    def __init__(self) -> None:
        self._tail: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Give the lines that end in this chunk, without blank ones; raises LineTooLongError."""
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._tail, lines[0]))
            self._tail.clear()
            self._size = 0
        self._tail.append(rest)
        self._size += len(rest)
        if self._size > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            raise LineTooLongError(f"a line is longer than {MAX_LINE_BYTES} bytes")
        return [line for line in lines if line.strip()]

    def finish(self) -> list[bytes]:
        """Give the line that the end of the stream left open, if any."""
        line = b"".join(self._tail)
        self._tail.clear()
        self._size = 0
        return [line] if line.strip() else []

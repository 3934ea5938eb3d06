"""A tolerant reader of server-sent events: bytes in any cut, data payloads out.  Pure.

Follows the WHATWG event stream format, section "Interpreting an event stream", with what servers really send: comments
as keep-alive, lines that end in LF, CRLF or CR, and a last event without its blank line.  It works on bytes, so a cut
inside a UTF-8 character does no harm.
"""

from __future__ import annotations

from typing import Final

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""Longer than any real chunk, which holds one token or a short answer's log probabilities; stops an endless line."""


class EventTooLongError(ValueError):
    """One event is longer than MAX_EVENT_BYTES."""


class SseReader:
    """Collects events over reads; for one stream."""

    __slots__ = ("_data", "_event", "_has_data", "_size", "_skip_lf", "_tail")

    def __init__(self) -> None:
        self._tail: list[bytes] = []
        self._size = 0
        self._data: list[bytes] = []
        self._event = b""
        self._has_data = False
        self._skip_lf = False

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """Give the (event type, data) pairs that end in this chunk; raises EventTooLongError."""
        if self._skip_lf and chunk:
            # A CR ended the line in the read before; the LF of a CRLF may come with this one.
            chunk = chunk.removeprefix(b"\n")
            self._skip_lf = False
        if b"\n" not in chunk and b"\r" not in chunk:
            self._keep(chunk)
            return []
        if b"\r" in chunk:
            self._skip_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = chunk.split(b"\n")
        if self._tail:
            self._size -= sum(map(len, self._tail))
            lines[0] = b"".join((*self._tail, lines[0]))
            self._tail.clear()
        events: list[tuple[bytes, bytes]] = []
        for line in lines:
            self._take(line, events)
        if rest:
            self._keep(rest)
        return events

    def finish(self) -> list[tuple[bytes, bytes]]:
        """Give the event that the end of the stream left open, if any."""
        events: list[tuple[bytes, bytes]] = []
        if self._tail:
            line = b"".join(self._tail)
            self._tail.clear()
            self._take(line, events)
        self._take(b"", events)
        return events

    def _keep(self, piece: bytes) -> None:
        self._tail.append(piece)
        self._count(len(piece))

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_EVENT_BYTES:
            raise EventTooLongError(f"an event is longer than {MAX_EVENT_BYTES} bytes")

    def _take(self, line: bytes, events: list[tuple[bytes, bytes]]) -> None:
        if not line:
            if self._has_data:
                events.append((self._event, b"\n".join(self._data)))
            self._data.clear()
            self._event, self._has_data, self._size = b"", False, 0
        elif line.startswith(b"data:"):
            data = line[6:] if line.startswith(b"data: ") else line[5:]
            self._data.append(data)
            self._has_data = True
            # With its line end, so that lines without data do not pile up unseen.
            self._count(len(data) + 1)
        elif line.startswith(b"event:"):
            self._event = line[6:].strip()
        # Anything else is a comment, an id, a retry hint or a field that we do not know: ignored, as the format says.

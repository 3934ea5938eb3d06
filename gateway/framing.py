"""How a stream of messages travels over HTTP: a JSON object per line, or server-sent events.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.errors import google_body
from kala.errors import KalaError

EVENT_STREAM: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Framing:
    """One of the two forms."""

    content_type: str
    is_events: bool

    def write(self, value: dict[str, Any]) -> bytes:  # Any: JSON
        """Write one message."""
        data = orjson.dumps(value)
        return b"data: " + data + b"\n\n" if self.is_events else data + b"\n"

    def fail(self, error: KalaError) -> bytes:
        """Write the error that ends a stream, told apart from messages by its only key, `error`."""
        data = orjson.dumps(google_body(error))
        return b"event: error\ndata: " + data + b"\n\n" if self.is_events else data + b"\n"

    def write_all(self, values: Iterable[dict[str, Any]]) -> bytes:  # Any: JSON
        """Write several messages."""
        return b"".join(map(self.write, values))


def framing_for(accept: str) -> Framing:
    """Choose by the Accept header: events where they are named, lines otherwise."""
    is_events = EVENT_STREAM in accept.lower()
    return Framing(EVENT_STREAM if is_events else NDJSON, is_events)

"""Answers recorded from real servers (tests/fixtures/backends), replayed byte for byte in their bodies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fakes.model_server import Scripted

FIXTURES: Final = Path(__file__).parents[1] / "fixtures" / "backends"

# What frames a body on the wire is made anew by the fake server; the recordings hold the body after de-chunking.
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive"})


@dataclass(frozen=True, slots=True)
class Recording:
    """One exchange with a real server."""

    method: str
    path: str
    request_body: bytes
    status: int
    headers: dict[str, str]
    body: bytes

    def scripted(self, *, piece_bytes: int | None = None) -> Scripted:
        """Replay the answer, the body cut into pieces of this many bytes (None: whole)."""
        step = piece_bytes or max(1, len(self.body))
        pieces = [self.body[start : start + step] for start in range(0, len(self.body), step)]
        return Scripted(pieces, self.status, self.headers, framing="chunked")


def recording(server: str, case: str) -> Recording:
    """Load tests/fixtures/backends/<server>/<case>.txt."""
    raw = (FIXTURES / server / f"{case}.txt").read_bytes()
    intro, _, answer = raw.partition(b"# RESPONSE:\n")
    method, path, request_body = "GET", "/", b""
    for line in intro.split(b"\n"):
        if line.startswith(b"# REQUEST: "):
            method, path = line[11:].decode().split(" ", 1)
        elif line.startswith(b"# BODY: "):
            request_body = line[8:]
    head, _, body = answer.partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    pairs = (line.partition(":") for line in lines)
    all_headers = {name.lower(): value.strip() for name, _, value in pairs}
    # The recorder ended each file with a newline of its own.
    body = (
        body[: int(all_headers["content-length"])]
        if "content-length" in all_headers
        else body.removesuffix(b"\n")
    )
    headers = {name: value for name, value in all_headers.items() if name not in _FRAMING}
    return Recording(method, path, request_body, int(first.split(" ")[1]), headers, body)

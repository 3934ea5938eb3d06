"""A dataset hub in a thread: lists one commit of repositories and serves their files, redirected as a hub's are."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeDatasetHub:
    """What the thread serves."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)


@contextlib.contextmanager
def fake_dataset_hub() -> Iterator[FakeDatasetHub]:
    """Serve on a free port for the length of a `with` block."""
    hub = FakeDatasetHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeDatasetHub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "stored":
            self._send(200, self.state.repositories["/".join(parts[1:3])]["/".join(parts[3:])])
            return
        api = parts[0] == "api"
        name = "/".join(parts[2:4] if api else parts[1:3])
        commit = parts[5] if api else parts[4]
        if name in self.state.gated:
            self._send(403, b"gated")
        elif name not in self.state.repositories or commit != COMMIT:
            self._send(404, b"none")
        elif api:
            siblings = [{"rfilename": each} for each in self.state.repositories[name]]
            self._send(200, json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
        else:
            self.send_response(302)
            self.send_header("location", f"/stored/{name}/{'/'.join(parts[5:])}")
            self.send_header("content-length", "0")
            self.end_headers()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

"""A hub of the Hugging Face kind in a thread: lists repositories with digests, serves files, and can fail as hubs do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE_BYTES = 64 * 1024


@dataclass
class FakeHub:
    """What the thread serves, and what it saw."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    instead: dict[str, bytes] = field(default_factory=dict)
    """What is sent for a file in place of what is listed."""
    commit: str = COMMIT
    got: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    held: str = ""
    """A file that is sent half and then held until `gate` is set."""
    holding: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve on a free port for the length of a `with` block."""
    hub = FakeHub()

    class Handler(_Handler):
        hub_state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub_state: FakeHub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        hub, parts = self.hub_state, urlsplit(self.path).path.strip("/").split("/")
        hub.tokens.append(self.headers.get("authorization"))
        is_listing = parts[:2] == ["api", "models"]
        if is_listing:
            parts = parts[2:]
        repository = "/".join(parts[:2])
        if repository in hub.gated:
            self._refuse(403, "GatedRepo", "Access to this model is restricted.")
        elif repository not in hub.repositories:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif is_listing and len(parts) > 3 and parts[3] not in {"main", hub.commit}:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif is_listing:
            self._send(json.dumps(self._listing(repository)).encode(), is_head=is_head)
        else:
            self._file(repository, parts[-1], is_head=is_head)

    def _listing(self, repository: str) -> dict[str, object]:
        siblings = [
            _sibling(name, content) for name, content in self.hub_state.repositories[repository].items()
        ]
        return {
            "id": repository,
            "sha": self.hub_state.commit,
            "siblings": siblings,
            "tags": [],
            "private": False,
        }

    def _file(self, repository: str, name: str, *, is_head: bool) -> None:
        hub = self.hub_state
        content = hub.repositories[repository].get(name)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        if not is_head:
            hub.got.append(name)
        self._send(hub.instead.get(name, content), is_head=is_head, is_held=name == hub.held)

    def _send(self, body: bytes, *, is_head: bool, is_held: bool = False) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("etag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("x-repo-commit", self.hub_state.commit)
        self.end_headers()
        if is_head:
            return
        half = len(body) // 2 if is_held else len(body)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body[:half])
            if is_held:
                self.wfile.flush()
                self.hub_state.holding.set()
                self.hub_state.gate.wait(60)
                self.wfile.write(body[half:])

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        self.send_header("x-error-code", code)
        self.send_header("x-error-message", message)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _sibling(name: str, content: bytes) -> dict[str, object]:
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    sibling: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git}
    if name.endswith((".safetensors", ".gguf", ".bin")):
        sibling["lfs"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 130,
        }
    return sibling

"""The witness over HTTP/1.1: `POST /add-checkpoint` and nothing else, with bounds on everything a stranger may send."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import SHUT_WR, socket
from typing import Any, Final, cast

import structlog

from kala.errors import FailedPreconditionError
from services.audit.witness.add_checkpoint import Reply
from services.common.addresses import TcpAddress
from services.common.bounded_threads import BoundedThreads

ADD_CHECKPOINT: Final = "/add-checkpoint"
# 63 hashes and a checkpoint with 64 signatures, all of them ML-DSA-44, fit.
MAX_BODY_BYTES: Final = 256 * 1024
# Logs keep one connection each; more than these wait in the kernel's queue.
MAX_CONNECTIONS: Final = 64
# An idle connection is closed after this.
IDLE_SECONDS: Final = 30.0
# One that is older is closed after its next answer, and cut after another `IDLE_SECONDS`: strangers take turns.
CONNECTION_SECONDS: Final = 60.0

# How much of a body that was refused is read and dropped, so that its sender hears why.
LINGER_SECONDS: Final = 1.0
LINGER_BYTES: Final = 4 * MAX_BODY_BYTES
LINGER_PART_BYTES: Final = 64 * 1024

_DIGITS: Final = frozenset("0123456789")


class _Server(BoundedThreads, HTTPServer):
    def __init__(self, address: TcpAddress, answer: Callable[[bytes], Reply]) -> None:
        self.answer = answer
        super().__init__(
            (address.host, address.port),
            _Handler,
            places=MAX_CONNECTIONS,
            longest_seconds=CONNECTION_SECONDS + IDLE_SECONDS,
        )


class _TlsServer(_Server):
    def __init__(
        self, address: TcpAddress, answer: Callable[[bytes], Reply], context: ssl.SSLContext
    ) -> None:
        self._context = context
        super().__init__(address, answer)

    def finish_request(self, request: Any, client_address: Any) -> None:  # Any: as above
        # In the connection's own thread: a client that never shakes hands delays nobody else.
        request.settimeout(IDLE_SECONDS)
        with self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as wrapped:
            self.read_from(request, wrapped)
            wrapped.do_handshake()
            super().finish_request(wrapped, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Begin a connection."""
        super().setup()
        self.connection.settimeout(IDLE_SECONDS)
        self._due_at = time.monotonic() + CONNECTION_SECONDS

    def do_POST(self) -> None:
        """Answer `add-checkpoint`."""
        length = self.headers.get("Content-Length", "")
        if self.path != ADD_CHECKPOINT:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is only POST {ADD_CHECKPOINT}")
        elif not length or not _DIGITS.issuperset(length) or "Transfer-Encoding" in self.headers:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "say the length of the body")
        elif len(length) > len(str(MAX_BODY_BYTES)) or int(length) > MAX_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BODY_BYTES} bytes")
        else:
            self._answer(self.rfile.read(int(length)))

    def do_GET(self) -> None:
        """Say what there is."""
        self._refuse(HTTPStatus.NOT_FOUND, f"there is only POST {ADD_CHECKPOINT}")

    def _answer(self, body: bytes) -> None:
        try:
            # The only server that makes this handler.
            reply = cast("_Server", self.server).answer(body)
        except Exception:  # noqa: BLE001 - the edge of a thread: the traceback is for us, not for the stranger
            structlog.get_logger().exception("the witness met a bug")
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")
        else:
            self._send(reply)

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        # What follows on this connection may be the rest of a body.
        self.close_connection = True
        self._send(Reply(status, f"{words}\n"))
        # Closed with something unread, the connection would be reset and the answer lost.
        with contextlib.suppress(OSError):
            self.connection.shutdown(SHUT_WR)
            self.connection.settimeout(LINGER_SECONDS)
            left = LINGER_BYTES
            while left > 0 and (part := self.connection.recv(LINGER_PART_BYTES)):
                left -= len(part)

    def _send(self, reply: Reply) -> None:
        body = reply.body.encode()
        self.close_connection = self.close_connection or time.monotonic() >= self._due_at
        self.send_response(reply.status.value)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        structlog.get_logger().info("add-checkpoint", status=reply.status.value, peer=self.client_address[0])

    def version_string(self) -> str:
        """Name no versions."""
        return "kala-witness"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Write nothing: `_send` does."""


@contextmanager
def serving_witness(
    address: TcpAddress, answer: Callable[[bytes], Reply], *, tls: tuple[Path, Path] | None = None
) -> Iterator[int]:
    """Serve in threads until the context is left; gives the port. `tls` names a certificate chain and its key."""
    try:
        server = _Server(address, answer) if tls is None else _TlsServer(address, answer, _context(*tls))
    except OSError as error:
        raise FailedPreconditionError(f"the witness cannot listen on {address}: {error.strerror}") from error
    thread = threading.Thread(target=server.serve_forever, name="witness", daemon=True)
    thread.start()
    try:
        yield _port(server.socket)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _port(listener: socket) -> int:
    return int(listener.getsockname()[1])


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise FailedPreconditionError(f"{certificate} and {key} are no TLS certificate and key") from error
    return context

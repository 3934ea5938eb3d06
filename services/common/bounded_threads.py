"""A small server with a thread for each connection, in bounds that strangers cannot lift."""

from __future__ import annotations

import contextlib
import threading
import time
from socket import AF_INET, AF_INET6, SHUT_RDWR, socket
from socketserver import BaseRequestHandler, TCPServer, ThreadingMixIn
from typing import Any, Final

import structlog

# While all places are taken, how often it is looked whether one is due or the server stops.
PLACE_SECONDS: Final = 0.1


class BoundedThreads(ThreadingMixIn, TCPServer):
    """So many connections at once, each for so long; more wait in the kernel's queue. Handlers set their own timeouts."""

    daemon_threads = True
    # A stop waits for nobody.
    block_on_close = False

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseRequestHandler],
        *,
        places: int,
        longest_seconds: float,
    ) -> None:
        """A connection is cut `longest_seconds` after it was opened, whatever happens on it."""
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self._room = threading.BoundedSemaphore(places)
        self._longest_seconds = longest_seconds
        self._stopping = threading.Event()
        # By what was accepted: what is read from, and since when it is open.
        self._open: dict[socket, tuple[socket, float]] = {}
        super().__init__(address, handler)

    def shutdown(self) -> None:
        """Stop, also while every place is taken."""
        self._stopping.set()
        super().shutdown()

    def process_request(self, request: Any, client_address: Any) -> None:  # Any: as the base class has it
        while not self._room.acquire(timeout=PLACE_SECONDS):
            self.service_actions()
            if self._stopping.is_set():
                self.shutdown_request(request)
                return
        self._open[request] = (request, time.monotonic())
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # Any: as above
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def read_from(self, request: socket, connection: socket) -> None:
        """What was accepted is read through this from now on, as TLS wants it."""
        self._open[request] = (connection, self._open[request][1])

    def service_actions(self) -> None:
        """Cut the connections that are too old; the base class calls it again and again."""
        cut_before = time.monotonic() - self._longest_seconds
        for connection, opened_at in list(self._open.values()):
            if opened_at < cut_before:
                with contextlib.suppress(OSError):
                    # Not that of TLS, which its own thread is using.
                    socket.shutdown(connection, SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # Any: as above
        """A connection that broke or was cut is its client's affair, and what a handler does wrong is the handler's."""
        del request, client_address
        structlog.get_logger().debug("a connection ended with an error", exc_info=True)

    def _leave(self, request: socket) -> None:
        self._open.pop(request, None)
        self._room.release()

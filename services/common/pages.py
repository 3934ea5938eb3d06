"""Pages that a process serves on its metrics port beside /metrics, each below a path of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from services.common.bounded_threads import BoundedThreads

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication


METRICS: Final = "metrics"
# Connections at once; one more waits. A page is asked for by a few scrapers and mirrors, yet may be open to the world.
PLACES: Final = 32
# A silent connection is closed after this, and any after `LONGEST_SECONDS`, in which a slow reader gets 16 MB.
IDLE_SECONDS: Final = 30.0
LONGEST_SECONDS: Final = 120.0


class Pages:
    """WSGI applications by the first segment of their paths; they run in threads, several at once."""

    def __init__(self) -> None:
        self._applications: dict[str, WSGIApplication] = {}

    def mount(self, segment: str, application: WSGIApplication) -> None:
        """Serve `/<segment>` and all below it from now on."""
        self._applications[segment] = application

    def beside(self, metrics: WSGIApplication) -> WSGIApplication:
        """One application of these pages and `/metrics`; nothing is found at any other path, nor before it is mounted."""

        # Any: WSGI's own open dictionary.
        def serve(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
            segment = str(environ.get("PATH_INFO", "")).removeprefix("/").partition("/")[0]
            application = metrics if segment == METRICS else self._applications.get(segment, _not_found)
            return application(environ, start_response)

        return serve


class _Server(BoundedThreads, WSGIServer):
    def __init__(self, address: tuple[str, int], application: WSGIApplication) -> None:
        super().__init__(address, _Handler, places=PLACES, longest_seconds=LONGEST_SECONDS)
        self.set_app(application)


class _Handler(WSGIRequestHandler):
    def setup(self) -> None:
        """Begin a connection."""
        super().setup()
        self.connection.settimeout(IDLE_SECONDS)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Write nothing."""


# Any: WSGI's own open dictionary.
def _not_found(_environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Cache-Control", "no-store")])
    return [b"there is no such page\n"]


@contextmanager
def serving_pages(application: WSGIApplication, *, host: str, port: int) -> Iterator[int]:
    """Serve it in threads until the context is left; gives the port, of which 0 takes a free one. Raises OSError."""
    server = _Server((host, port), application)
    thread = threading.Thread(target=server.serve_forever, name="pages", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

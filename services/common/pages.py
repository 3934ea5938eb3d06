"""Pages that a process serves on its metrics port beside /metrics, each below a path of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication


class Pages:
    """WSGI applications by the first segment of their paths; they run in threads, several at once."""

    def __init__(self) -> None:
        self._applications: dict[str, WSGIApplication] = {}

    def mount(self, segment: str, application: WSGIApplication) -> None:
        """Serve `/<segment>` and all below it from now on."""
        self._applications[segment] = application

    def beside(self, others: WSGIApplication) -> WSGIApplication:
        """One application of these pages, with `others` for every other path."""

        # Any: WSGI's own open dictionary.
        def serve(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
            segment = str(environ.get("PATH_INFO", "")).removeprefix("/").partition("/")[0]
            return self._applications.get(segment, others)(environ, start_response)

        return serve

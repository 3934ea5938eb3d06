"""Runs uvicorn inside our own event loop: our signals, our socket, our drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from gateway.cors import Cors
from gateway.http_guard import guarded_protocol
from kala.errors import FailedPreconditionError, UnavailableError

if TYPE_CHECKING:
    from gateway.config import GatewaySettings

BACKLOG: Final = 2048


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signals as they are."""
        yield


@contextlib.asynccontextmanager
async def serving_http(app: Any, settings: GatewaySettings) -> AsyncIterator[str]:  # Any: an ASGI application
    """Serve an application, give its URL, and drain on leaving."""
    listener = _listen(settings.host, settings.port)
    server = _Server(_configuration(app, settings))
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if task.done():
                task.result()
                raise UnavailableError("the HTTP server ended before it listened")
            await asyncio.sleep(0.001)
        url = _url(settings, listener)
        with _published(url, settings.url_file):
            yield url
    finally:
        server.should_exit = True
        await task
        listener.close()


def _configuration(app: Any, settings: GatewaySettings) -> uvicorn.Config:  # Any: as above
    return uvicorn.Config(
        Cors(app, settings.cors_origins) if settings.cors_origins else app,
        http=guarded_protocol(settings.connection_limits),
        loop="none",
        # Else an installed `websockets` takes upgraded connections over, past this connection's limits.
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=settings.http_cert_file,
        ssl_keyfile=settings.http_key_file,
        timeout_keep_alive=max(1, round(settings.idle_timeout_seconds)),
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio sends at once (TCP_NODELAY) only on sockets that say they are TCP. Otherwise the end of
    # every small answer waits 40 ms for the client's delayed acknowledgement of its beginning.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise FailedPreconditionError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _url(settings: GatewaySettings, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def _published(url: str, path: Path | None) -> Iterator[None]:
    """Write the URL where the starter looks for it, whole or not at all, and take it away at the end."""
    if path is None:
        yield
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(url + "\n")
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)

"""Where a mirrored log is read from: a directory of tiles, or the address of a tile API (c2sp.org/tlog-tiles).

A source is never trusted: what it gives is held against the log's signature. It tells apart what is not there, which
is None, from what cannot be asked for, which is `UnverifiableError`.
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from kala.audit.report import TILE_WIDTH, UnverifiableError

# 256 entries of 65,535 bytes, each with its length before it.
MAX_BUNDLE_BYTES: Final = TILE_WIDTH * (2 + 65_535)
CONNECT_SECONDS: Final = 10.0
"""Also the longest silence while a tile is read."""
ANSWER_SECONDS: Final = 300.0
"""The longest that one file is waited for, with all tries: the largest comes over 0.5 Mbit/s."""
CONNECTIONS: Final = 4
"""A log far away is bound by the network's delay; more at once would look like an attack."""
TRIES: Final = 5
LONGEST_PAUSE_SECONDS: Final = 20.0
FIRST_PAUSE_SECONDS: Final = 0.25

_RETRIED: Final = frozenset({429, 502, 503, 504})
_DENIED: Final = frozenset({401, 403})
_ABSENT: Final = frozenset({404, 410})


class TileSource(Protocol):
    """Gives the files of a mirrored log by their paths."""

    def read(self, path: str) -> bytes | None:
        """The file at this path, None when it is not there; raises `UnverifiableError` when that cannot be told."""
        ...

    def expect(self, path: str) -> None:
        """Says that this file will be read soon; a source may fetch it meanwhile."""
        ...


class DirectorySource:
    """A log mirrored into a directory."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UnverifiableError(f"{root} is not a directory")
        self._root = root

    def read(self, path: str) -> bytes | None:
        """The file at this path; one that is too large to be a part of a log is read no further."""
        try:
            # A pipe that lies among the files is not waited for.
            descriptor = os.open(self._root / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return None
                return file.read(MAX_BUNDLE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise UnverifiableError(f"{self._root / path} cannot be read: {error.strerror}") from error

    def expect(self, path: str) -> None:
        """Does nothing: a disk is quick."""


class HttpSource:
    """A log behind an HTTP address, read over a few connections that are kept open; close it, or use it in `closing`.

    It follows no redirects and asks no proxy: a token goes to the host that was named and nowhere else.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        connections: int = CONNECTIONS,
        answer_seconds: float = ANSWER_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UnverifiableError(f"{url} is not an address: {error}") from error
        if parts.scheme not in {"http", "https"} or not self._host or parts.query or parts.fragment:
            raise UnverifiableError(
                f"{url} is not an address of a log: http:// or https://, a host and a path"
            )
        self._is_tls = parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._headers = {"accept": "*/*", "accept-encoding": "identity", **(headers or {})}
        if parts.password is not None:
            user = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
            self._headers["authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{self._prefix}"
        self._answer_seconds = answer_seconds
        self._sleep = sleep
        self._is_closed = False
        # Each thread has a connection of its own.
        self._threads = ThreadPoolExecutor(connections, "tiles")
        self._local = threading.local()
        self._open: list[http.client.HTTPConnection] = []
        self._coming: dict[str, Future[bytes | None]] = {}

    def close(self) -> None:
        """Gives up what was expected and not read, and closes the connections."""
        self._is_closed = True
        for connection in list(self._open):
            # Wakes a thread that waits for an answer without end.
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
        self._threads.shutdown(cancel_futures=True)
        for connection in self._open:
            connection.close()

    def expect(self, path: str) -> None:
        """Begins to fetch a file that will be read soon; whoever expects many bounds how many."""
        if path not in self._coming:
            self._coming[path] = self._threads.submit(self._fetch, path)

    def read(self, path: str) -> bytes | None:
        """The file at this path; waits and asks again while the server says that it is busy, and not for ever."""
        self.expect(path)
        try:
            return self._coming.pop(path).result(self._answer_seconds)
        except TimeoutError as error:
            raise UnverifiableError(
                f"{self._shown}/{path} cannot be read: no whole answer in {self._answer_seconds:.0f} s"
            ) from error

    def _fetch(self, path: str) -> bytes | None:
        problem = ""
        for attempt in range(TRIES):
            asked = None
            if self._is_closed:
                break
            try:
                status, body, asked = self._once(f"{self._prefix}/{path}")
            except (OSError, http.client.HTTPException) as error:
                # A kept connection may have been closed meanwhile: the next try opens a new one.
                self._connection().close()
                problem = str(error) or type(error).__name__
            else:
                if status == http.HTTPStatus.OK:
                    return body
                if status in _ABSENT:
                    return None
                if status in _DENIED:
                    raise UnverifiableError(
                        f"{self._shown}/{path} may not be read ({status}): give the token of the log's tiles"
                    )
                problem = f"the server answers {status}"
                if status not in _RETRIED:
                    break
            if attempt + 1 < TRIES:
                self._sleep(min(_pause(asked, attempt), LONGEST_PAUSE_SECONDS))
        raise UnverifiableError(f"{self._shown}/{path} cannot be read: {problem}")

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if found is None:
            made = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
            found = self._local.connection = made(self._host, self._port, timeout=CONNECT_SECONDS)
            self._open.append(found)
        return found

    def _once(self, path: str) -> tuple[int, bytes, str | None]:
        connection = self._connection()
        connection.request("GET", path, headers=self._headers)
        response = connection.getresponse()
        body = response.read(MAX_BUNDLE_BYTES + 1)
        if not response.isclosed():
            connection.close()
        return response.status, body, response.getheader("retry-after")


def _pause(asked: str | None, attempt: int) -> float:
    if asked is not None and asked.isdecimal():
        return float(asked)
    return FIRST_PAUSE_SECONDS * (1 << attempt)

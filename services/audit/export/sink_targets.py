"""Where a sink's lines go: a file that is appended to, or a collector over HTTP. Blocking.

A target returns only when its receiver has taken everything; what fails is delivered again, whole, so a receiver may see
an entry twice and never misses one. Entries carry their receipt's id to tell repeats by.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import httpx
import orjson

from kala.errors import KalaError
from services.audit.export.sink_settings import SinkSettings

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 15.0
"""Also the longest that an answer's body is read."""
# Enough to say what was rejected, and why. A collector that goes on talking is not listened to.
MAX_ANSWER_BYTES: Final = 64 * 1024
# Longer than any line: an OTLP request of the most entries that it may hold.
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
_TAIL_BYTES: Final = 64 * 1024
_CONTENT_TYPES: Final = {
    "jsonl": "application/x-ndjson",
    "ocsf": "application/x-ndjson",
    "cef": "text/plain; charset=utf-8",
    "otlp": "application/json",
}


class SinkFailedError(KalaError):
    """The receiver has not taken the lines; `is_too_large` when fewer at once may help."""

    def __init__(self, message: str, *, is_too_large: bool = False) -> None:
        super().__init__(message)
        self.is_too_large = is_too_large


class Target(Protocol):
    """Takes lines for good, or raises `SinkFailedError`."""

    def deliver(self, lines: Sequence[bytes]) -> int:
        """Delivers lines without their newlines; returns how many entries the receiver says it will never take."""
        ...

    def close(self) -> None:
        """Frees what is held."""
        ...


class FileTarget:
    """Appends to a file and returns when the disk has it.

    The file is opened anew each time, so that it may be rotated by renaming it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def deliver(self, lines: Sequence[bytes]) -> int:
        """Appends the lines; what an earlier crash left of an unfinished line is taken away first."""
        try:
            is_new = not self._path.exists()
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._append(descriptor, b"\n".join(lines) + b"\n")
            finally:
                os.close(descriptor)
            if is_new:
                _sync_directory(self._path.parent)
        except OSError as error:
            raise SinkFailedError(f"{self._path} cannot be written: {error.strerror}") from error
        return 0

    def close(self) -> None:
        """Nothing is held between deliveries."""

    def _append(self, descriptor: int, data: bytes) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SinkFailedError(f"{self._path} is not a file")
        whole = self._end_of_lines(descriptor, status.st_size)
        if whole != status.st_size:
            os.ftruncate(descriptor, whole)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            # No half of a line may stand before the lines that come next.
            os.ftruncate(descriptor, whole)
            raise

    def _end_of_lines(self, descriptor: int, size: int) -> int:
        """Where the last whole line ends."""
        end = size
        while end > 0:
            start = max(0, end - _TAIL_BYTES)
            found = os.pread(descriptor, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
            if size - end > MAX_LINE_BYTES:
                raise SinkFailedError(f"{self._path} is no file of lines")
        return 0


class HttpTarget:
    """Posts lines to a collector; any 2xx answer takes them."""

    def __init__(self, settings: SinkSettings, *, transport: httpx.BaseTransport | None = None) -> None:
        self._settings = settings
        self._client = httpx.Client(
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            trust_env=False,
            transport=transport,
        )

    def deliver(self, lines: Sequence[bytes]) -> int:
        """Posts all lines in one request; OTLP's one by one, each being a request."""
        if self._settings.format != "otlp":
            self._post(b"\n".join(lines) + b"\n")
            return 0
        return sum(_rejected(self._post(line)) for line in lines)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _post(self, body: bytes) -> bytes:
        # Compressed answers are not asked for: a small one could unpack to more than there is memory.
        fixed = {"content-type": _CONTENT_TYPES[self._settings.format], "accept-encoding": "identity"}
        headers = {**fixed, **self._headers()}
        try:
            with self._client.stream("POST", self._settings.url, content=body, headers=headers) as response:
                answer = _bounded(response)
        except httpx.HTTPError as error:
            # Its class only: httpx puts the URL, which may hold a password, into some of its messages.
            raise SinkFailedError(f"the collector does not answer: {type(error).__name__}") from error
        if not response.is_success:
            raise SinkFailedError(
                f"the collector answers {response.status_code}",
                is_too_large=response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE,
            )
        return answer

    def _headers(self) -> dict[str, str]:
        path = self._settings.header_file
        if path is None:
            return {}
        try:
            lines = [line for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise SinkFailedError(f"{path} cannot be read as headers") from error
        pairs = [line.partition(":") for line in lines]
        if not all(colon and name.strip() for name, colon, _ in pairs):
            raise SinkFailedError(f"{path} must hold lines of the form Name: value")
        return {name.strip(): value.strip() for name, _, value in pairs}


def target_of(settings: SinkSettings) -> Target:
    """The target that these settings name."""
    path = settings.path
    return HttpTarget(settings) if path is None else FileTarget(path)


def _bounded(response: httpx.Response) -> bytes:
    """The body as it comes; empty when it is too long, or takes too long: the status alone says what counts."""
    body, deadline = b"", time.monotonic() + ANSWER_SECONDS
    for piece in response.iter_raw():
        body += piece
        if len(body) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
            return b""
    return body


def _rejected(answer: bytes) -> int:
    """How many records an OTLP collector says it dropped for good; its protocol forbids to send them again."""
    try:
        partial = orjson.loads(answer or b"{}").get("partialSuccess") or {}
        # A counter takes no less than nothing.
        return max(0, int(partial.get("rejectedLogRecords") or 0))
    except (ValueError, AttributeError, TypeError, OverflowError):
        return 0


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

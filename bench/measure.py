"""Times requests from a client that does as little as possible, so that what is measured is the server."""

from __future__ import annotations

import http.client
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

# As wide as what takes its place, so that every body is of one length.
NUMBER: Final = b"NNNNN"

Request = Callable[[], float]
"""Sends one request and returns its seconds."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One measured server: medians of its rounds, in milliseconds."""

    name: str
    round_medians_ms: tuple[float, ...]
    all_ms: tuple[float, ...]

    @classmethod
    def of_rounds(cls, name: str, rounds: Sequence[Sequence[float]]) -> Arm:
        """The arm whose rounds took these times, in milliseconds."""
        return cls(
            name,
            tuple(statistics.median(taken) for taken in rounds),
            tuple(value for taken in rounds for value in taken),
        )

    @property
    def p50_ms(self) -> float:
        """Median of the rounds' medians: one bad round does not move it."""
        return statistics.median(self.round_medians_ms)

    @property
    def p95_ms(self) -> float:
        """95th percentile of all requests."""
        return self._of_all(0.95)

    @property
    def p99_ms(self) -> float:
        """99th percentile of all requests."""
        return self._of_all(0.99)

    def _of_all(self, share: float) -> float:
        return sorted(self.all_ms)[max(0, int(len(self.all_ms) * share) - 1)]


class KeepAliveClient:
    """One connection that posts again and again; `number` in `body` is a new number each time, so no cache helps."""

    def __init__(self, url: str, body: bytes, headers: Mapping[str, str], *, number: bytes = NUMBER) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=60)
        self._path = parts.path
        self._body = body
        self._number = number
        self._sent = 0
        self._headers = {"content-type": "application/json", **headers}

    def whole(self) -> float:
        """Seconds from sending to the last byte of the answer."""
        started = time.perf_counter()
        self._send().read()
        return time.perf_counter() - started

    def first_token(self) -> float:
        """Seconds from sending to the first SSE line that carries text."""
        started = time.perf_counter()
        response = self._send()
        seconds = 0.0
        while line := response.readline():
            if (
                not seconds
                and b'"content":"' in line.replace(b'": "', b'":"')
                and b'"content":""' not in line
            ):
                seconds = time.perf_counter() - started
        response.read()  # closes the response, so that the connection takes the next request
        return seconds

    def _send(self) -> http.client.HTTPResponse:
        self._sent += 1
        body = self._body.replace(self._number, b"%05d" % (self._sent % 100_000))
        self._connection.request("POST", self._path, body, self._headers)
        response = self._connection.getresponse()
        if response.status != http.client.OK:
            message = f"{self._path}: {response.status} {response.read()[:300]!r}"
            raise RuntimeError(message)
        return response


def interleaved(arms: Mapping[str, Request], *, rounds: int, requests: int, warm_up: int = 20) -> list[Arm]:
    """Measures every arm in every round, in turn, so that the machine's moods fall on all alike."""
    for request in arms.values():
        for _ in range(warm_up):
            request()
    samples: dict[str, list[list[float]]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, request in arms.items():
            samples[name].append([request() * 1000 for _ in range(requests)])
    return [Arm.of_rounds(name, by_round) for name, by_round in samples.items()]

"""A client of many connections that costs little, so that the server is what is measured: HTTP/1.1 over bare sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Self
from urllib.parse import urlsplit

from bench.measure import NUMBER

CRLF: Final = b"\r\n"
DONE: Final = b"data: [DONE]"
CONTENT: Final = (b'"content":"', b'"content": "')
NOTHING: Final = (b'"content":""', b'"content": ""')
MAX_LINE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Call:
    """What a connection sends: a new number in every body, so that no cache helps."""

    url: str
    body: bytes
    headers: Mapping[str, str]
    _numbers: Iterator[int] = field(default_factory=count)

    def next(self) -> bytes:
        """One more request, as it goes over the wire."""
        parts = urlsplit(self.url)
        body = self.body.replace(NUMBER, b"%05d" % (next(self._numbers) % 100_000))
        head = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body


@dataclass(frozen=True, slots=True)
class Stream:
    """One streamed answer as its reader saw it, in seconds."""

    first_seconds: float
    longest_gap_seconds: float
    is_whole: bool


class Connection:
    """One connection that is kept alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, url: str) -> Self:
        """Connect to the URL's server."""
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, limit=MAX_LINE_BYTES))

    async def post(self, request: bytes) -> None:
        """Send a request and read its answer to the end; RuntimeError unless it is 200."""
        self._writer.write(request)
        async for _ in self._body():
            pass

    async def get(self, path: str) -> float:
        """Seconds that a GET takes."""
        began = time.perf_counter()
        await self.post(f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
        return time.perf_counter() - began

    async def stream(self, request: bytes) -> Stream:
        """Send a request and time the words of its stream."""
        began = last = time.perf_counter()
        first = longest = 0.0
        is_whole = False
        self._writer.write(request)
        async for piece in self._body():
            now = time.perf_counter()
            is_whole = is_whole or DONE in piece
            if not any(mark in piece for mark in CONTENT) or (
                any(mark in piece for mark in NOTHING) and piece.count(b'"content"') == 1
            ):
                continue
            if first:
                longest = max(longest, now - last)
            first = first or now - began
            last = now
        return Stream(first, longest, is_whole)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def _body(self) -> AsyncIterator[bytes]:
        head = (await self._reader.readuntil(CRLF + CRLF)).lower()
        if b"transfer-encoding: chunked" in head:
            pieces = self._chunks()
        else:
            pieces = self._counted(int(head.partition(b"content-length:")[2].partition(CRLF)[0]))
        if not head.startswith(b"http/1.1 200"):
            answer = b"".join([piece async for piece in pieces])
            raise RuntimeError(f"{head[:40]!r}: {answer[:300]!r}")
        async for piece in pieces:
            yield piece

    async def _counted(self, length: int) -> AsyncIterator[bytes]:
        yield await self._reader.readexactly(length)

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readuntil(CRLF), 16):
            yield (await self._reader.readexactly(size + len(CRLF)))[: -len(CRLF)]
        await self._reader.readexactly(len(CRLF))


async def rate(call: Call, *, connections: int, requests: int) -> float:
    """Answers a second over so many connections that never pause."""
    opened = [await Connection.to(call.url) for _ in range(connections)]
    left = iter(range(requests))

    async def caller(connection: Connection) -> None:
        for _ in left:
            await connection.post(call.next())

    began = time.perf_counter()
    await _all(caller, opened)
    seconds = time.perf_counter() - began
    for connection in opened:
        connection.close()
    return requests / seconds


async def one_by_one(call: Call, requests: int) -> list[float]:
    """Milliseconds of each of so many requests on one connection."""
    connection = await Connection.to(call.url)
    taken = []
    for _ in range(requests):
        request = call.next()
        began = time.perf_counter()
        await connection.post(request)
        taken.append((time.perf_counter() - began) * 1000)
    connection.close()
    return taken


async def streams(call: Call, number: int) -> list[Stream]:
    """So many streams, one after the other."""
    connection = await Connection.to(call.url)
    found = [await connection.stream(call.next()) for _ in range(number)]
    connection.close()
    return found


async def _all(caller: Callable[[Connection], Awaitable[None]], connections: list[Connection]) -> None:
    await asyncio.gather(*(caller(connection) for connection in connections))

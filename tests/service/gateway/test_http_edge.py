"""The HTTP edge against hostile clients: smuggled, endless and slow requests, readers that do not read, and web pages."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import ValidationError

from gateway.config import GatewaySettings
from tests.fakes.gateway_suite import Suite, running_suite
from tests.fakes.scripted_inference import finish, route, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = "https://chat.example.org"
SECONDS = 10
"""For what must come; it comes at once or not at all."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    """A gateway that is short of patience."""
    directory: Path = tmp_path_factory.mktemp("edge")
    async with running_suite(
        directory,
        header_timeout_seconds=0.5,
        write_timeout_seconds=0.2,
        body_timeout_seconds=0.5,
        idle_timeout_seconds=1.0,
        max_header_bytes=4096,
        max_connections=20,
        cors_origins=(PAGE,),
    ) as running:
        yield running


class Wire:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> bytes:
        """All until the gateway closes."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def head(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self.reader.readuntil(b"\r\n\r\n")


@asynccontextmanager
async def wire(suite: Suite) -> AsyncIterator[Wire]:
    host, _, port = suite.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def request(
    suite: Suite, *headers: str, path: str = "/v1/models", method: str = "GET", body: bytes = b""
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {suite.key}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def answer(suite: Suite, data: bytes) -> tuple[int, bytes]:
    async with wire(suite) as connection:
        await connection.send(data)
        whole = await connection.rest()
    status = int(whole.split(b" ", 2)[1]) if whole else 0
    return status, whole


SMUGGLED = {
    "two lengths": ["Content-Length: 2", "Content-Length: 2"],
    "length and chunks": ["Content-Length: 2", "Transfer-Encoding: chunked"],
    "chunks and length": ["Transfer-Encoding: chunked", "Content-Length: 2"],
    "chunks twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "another encoding": ["Transfer-Encoding: identity"],
    "a list of lengths": ["Content-Length: 2, 2"],
    "a signed length": ["Content-Length: +2"],
    "a folded header": ["X-A: b", " Content-Length: 2"],
    "a space before the colon": ["Content-Length : 2"],
    "a bare return": ["X-A: b\rContent-Length: 2"],
    "a bare newline": ["X-A: b\nContent-Length: 2"],
    "a NUL": ["X-A: b\0c"],
    "two keys": ["Authorization: Bearer kala_x"],
    "two hosts": ["Host: y"],
    "two providers": ["X-Kala-Provider: openai", "x-kala-provider: pythia"],
}


@pytest.mark.parametrize("headers", SMUGGLED.values(), ids=SMUGGLED)
async def test_what_two_readers_may_read_in_two_ways_is_refused(edge: Suite, headers: list[str]) -> None:
    status, whole = await answer(
        edge, request(edge, *headers, path="/v1/chat/completions", method="POST", body=b"{}")
    )
    assert status == 400
    assert whole.count(b"HTTP/1.1 ") == 1
    error = json.loads(whole.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "invalid_request_error"
    assert b"connection: close" in whole.lower()


@pytest.mark.parametrize(
    "data",
    [b"GET /healthz\r\n\r\n", b"GET /healthz HTTP/1.1\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00"],
    ids=["HTTP/0.9", "no host", "a tunnel", "HTTP/2", "a path of no ASCII", "TLS"],
)  # fmt: skip
async def test_what_is_not_http_1_1_is_refused(edge: Suite, data: bytes) -> None:
    assert (await answer(edge, data))[0] == 400


async def test_a_key_behind_the_body_is_nobodys(edge: Suite) -> None:
    body = b"2\r\n{}\r\n0\r\nAuthorization: Bearer " + edge.key.encode() + b"\r\n\r\n"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    first = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    # Behind another request, so that it is whole before it is looked at.
    async with wire(edge) as connection:
        await connection.send(first + head + b"Connection: close\r\n\r\n" + body)
        whole = await connection.rest()
    assert b"HTTP/1.1 401" in whole


@pytest.mark.parametrize("is_endless", [True, False])
async def test_a_large_head_is_431(edge: Suite, is_endless: bool) -> None:
    data = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 5000 + (b"" if is_endless else b"\r\n\r\n")
    status, whole = await answer(edge, data)
    assert status == 431
    assert b"4096 bytes" in whole


async def test_a_hundred_headers_are_too_many(edge: Suite) -> None:
    assert (await answer(edge, request(edge, *(f"X-{number}: 1" for number in range(100)))))[0] == 431


async def test_a_head_that_does_not_end_is_408(edge: Suite) -> None:
    async with wire(edge) as connection:
        await connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        assert b"408" in (await connection.rest()).split(b"\r\n")[0]


@pytest.mark.parametrize("data", [b"", b"\r\n\r\n"], ids=["silence", "empty lines"])
async def test_a_connection_that_asks_nothing_is_closed(edge: Suite, data: bytes) -> None:
    async with wire(edge) as connection:
        await connection.send(data)
        assert b"200" not in await connection.rest()
    async with wire(edge) as connection:
        await connection.send(request(edge, path="/healthz"))
        assert b"200" in await connection.head()
        await connection.send(data)
        await connection.rest()


async def test_a_body_that_does_not_come_is_504_and_ends_the_connection(edge: Suite) -> None:
    data = request(edge, "Content-Length: 100", path="/v1/chat/completions", method="POST", body=b"{")
    status, whole = await answer(edge, data)
    assert status == 504
    assert b"body_timeout" in whole


async def test_a_body_that_nobody_reads_does_not_keep_a_connection(edge: Suite) -> None:
    status, _ = await answer(edge, request(edge, "Content-Length: 100", path="/healthz"))
    assert status == 200


async def test_a_reader_that_does_not_read_is_left_and_its_generation_ends(edge: Suite) -> None:
    await edge.reset()
    never = asyncio.Event()
    flood = [text("word " * 2000) for _ in range(400)]
    edge.inference.script = lambda _: [route(), *flood, never, finish()]
    body = json.dumps(
        {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    ).encode()
    async with wire(edge) as connection:
        raw: Any = connection.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport too
        head = f"Content-Length: {len(body)}"
        await connection.send(request(edge, head, path="/v1/chat/completions", method="POST", body=body))
        async with asyncio.timeout(SECONDS):
            await edge.inference.cancelled.wait()


async def test_connections_over_the_limit_are_turned_away_and_the_others_served(edge: Suite) -> None:
    async with wire(edge) as kept:
        await kept.send(b"GET /healthz HTTP/1.1\r\n")
        more = [await asyncio.open_connection(*_address(edge)) for _ in range(25)]
        turned_away = 0
        for reader, _ in more:
            try:
                async with asyncio.timeout(SECONDS):
                    turned_away += (await reader.read()).startswith(b"HTTP/1.1 503")
            except ConnectionResetError:
                turned_away += 1
        assert turned_away >= 5
        for _, writer in more:
            writer.close()
    assert (await edge.get("/v1/models")).status_code == 200


async def test_only_the_named_page_may_read_answers(edge: Suite) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    granted = await edge.http.options("/v1/chat/completions", headers={"origin": PAGE, **asked})
    assert granted.status_code == 204
    assert granted.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in granted.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in granted.headers
    answered = await edge.get("/v1/models", headers={"origin": PAGE})
    assert answered.headers["access-control-allow-origin"] == PAGE
    assert "x-kala-receipt" in answered.headers["access-control-expose-headers"]
    for stranger in ("https://evil.example", PAGE + ".evil.example", "http://chat.example.org", "null"):
        denied = await edge.http.options("/v1/chat/completions", headers={"origin": stranger, **asked})
        assert denied.status_code == 403
        assert "access-control-allow-origin" not in denied.headers
        read = await edge.get("/v1/models", headers={"origin": stranger})
        assert "access-control-allow-origin" not in read.headers
        assert read.headers["vary"] == "origin"


async def test_without_origins_no_page_may(suite: Suite) -> None:
    answered = await suite.get("/v1/models", headers={"origin": PAGE})
    assert "access-control-allow-origin" not in answered.headers
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    assert (await suite.http.options("/v1/models", headers=asked)).status_code == 405


@pytest.mark.parametrize(
    "origin", ["*", "null", "chat.example.org", PAGE + "/", "https://u@x", "https://*.x"]
)
async def test_an_inexact_origin_stops_the_process(origin: str) -> None:
    with pytest.raises(ValidationError, match="exact origin"):
        GatewaySettings(cors_origins=(origin,))


async def test_answers_tell_browsers_to_keep_and_run_nothing(suite: Suite) -> None:
    for answered in (await suite.get("/v1/models"), await suite.get("/nothing"), await suite.chat()):
        headers = answered.headers
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
        assert "strict-transport-security" not in headers


def _address(suite: Suite) -> tuple[str, int]:
    host, _, port = suite.url.removeprefix("http://").partition(":")
    return host, int(port)

"""Probes: ready only when the part itself says so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from kala.suite.readiness import grpc_probe, http_probe, wait_until_ready


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"", False),
        (b"\r\n", False),
        (b"x" * 10_000, False),
    ],
    ids=["ready", "not ready", "closed", "empty line", "endless line"],
)
async def test_only_a_200_is_ready(answer: bytes, ready: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await http_probe("127.0.0.1", port)() is ready


async def test_nobody_there_is_not_ready_and_no_error() -> None:
    assert not await http_probe("127.0.0.1", 9)()


@pytest.fixture
def servicer(tmp_path: Path) -> Iterator[health.HealthServicer]:
    found = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(found, server)
    server.add_insecure_port(f"unix:{tmp_path / 'part.sock'}")
    server.start()
    yield found
    server.stop(None).wait()


async def test_a_service_is_ready_when_its_health_says_serving(
    servicer: health.HealthServicer, tmp_path: Path
) -> None:
    probe = grpc_probe(tmp_path / "part.sock")
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not await probe()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    assert await probe()


async def test_a_socket_that_nobody_made_or_holds_is_not_ready(tmp_path: Path) -> None:
    assert not await grpc_probe(tmp_path / "none.sock")()
    (tmp_path / "stale.sock").touch()
    assert not await grpc_probe(tmp_path / "stale.sock")()


async def test_waiting_ends_with_the_first_yes() -> None:
    answers = iter([False, False, True])

    async def probe() -> bool:
        return next(answers)

    await asyncio.wait_for(wait_until_ready(probe), 5)

"""Whether a part answers: gRPC health over its socket, `/readyz` of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

Probe = Callable[[], Awaitable[bool]]
"""Asks a part once; True when it is ready. Never raises for a part that is merely not there yet."""

_PROBE_SECONDS: Final = 2.0
_FIRST_PAUSE_SECONDS: Final = 0.03
_PAUSE_GROWTH: Final = 1.2
_LONGEST_PAUSE_SECONDS: Final = 0.25
"""A part is up within a second or two; one that is not gets asked less often, for it logs each question."""

_HTTP_OK: Final = b"200"
_MAX_STATUS_LINE: Final = 4096


async def wait_until_ready(probe: Probe) -> None:
    """Ask until the part is ready; the caller bounds the time by cancelling."""
    pause = _FIRST_PAUSE_SECONDS
    while not await probe():
        await asyncio.sleep(pause)
        pause = min(pause * _PAUSE_GROWTH, _LONGEST_PAUSE_SECONDS)


def http_probe(host: str, port: int, path: str = "/readyz") -> Probe:
    """Ready when a plain GET answers 200."""

    async def probe() -> bool:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return await _status(host, port, path) == _HTTP_OK
        except (OSError, TimeoutError, IndexError, ValueError):
            return False

    return probe


async def _status(host: str, port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, limit=_MAX_STATUS_LINE)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        await writer.drain()
        return (await reader.readline()).split()[1]
    finally:
        writer.close()


def grpc_probe(socket_path: Path) -> Probe:
    """Ready when the service's gRPC health says SERVING over this unix socket."""

    async def probe() -> bool:
        return await asyncio.to_thread(_serving, socket_path)

    return probe


def _serving(socket_path: Path) -> bool:
    # Until the socket exists there is nothing to dial.
    if not socket_path.exists():
        return False
    import grpc
    from grpc_health.v1 import health_pb2

    with grpc.insecure_channel(f"unix:{socket_path}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            reply = check(
                health_pb2.HealthCheckRequest(), timeout=_PROBE_SECONDS, metadata=(("kala-peer", "cli"),)
            )
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

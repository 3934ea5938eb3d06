"""The listener of the HTTP side."""

from __future__ import annotations

import asyncio
import socket

from gateway.config import GatewaySettings
from gateway.http_server import _configuration, _listen


async def test_connections_send_small_writes_at_once() -> None:
    # Head and body are two writes: with Nagle's algorithm on, every small answer once waited 40 ms for an acknowledgement.
    accepted: asyncio.Queue[int] = asyncio.Queue()

    async def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        accepted.put_nowait(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    server = await asyncio.start_server(look, sock=_listen("127.0.0.1", 0))
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.close()
        assert await asyncio.wait_for(accepted.get(), 10) == 1


def test_nothing_takes_a_connection_over() -> None:
    # An installed `websockets` would, and with it come heads and bodies without our bounds.
    assert _configuration(object(), GatewaySettings()).ws == "none"

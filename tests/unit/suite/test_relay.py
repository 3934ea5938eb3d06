"""A socket that leads to another: bytes both ways, an end when either side ends, a file for its owner alone."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from kala.suite.relay import relays


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data.upper())
        await writer.drain()
    writer.close()


async def test_bytes_go_there_and_back_and_the_socket_is_its_owners(tmp_path: Path) -> None:
    far, near = tmp_path / "far.sock", tmp_path / "near.sock"
    server = await asyncio.start_unix_server(echo, str(far))
    async with server, relays({near: far}, owner=os.getuid()):
        assert stat.S_IMODE(near.stat().st_mode) == 0o600
        reader, writer = await asyncio.open_unix_connection(str(near))
        writer.write(b"x" * 1_000_000)
        assert await asyncio.wait_for(reader.readexactly(1_000_000), 30) == b"X" * 1_000_000
        writer.close()
    assert not near.exists()


async def test_a_peer_that_is_not_there_ends_the_connection(tmp_path: Path) -> None:
    near = tmp_path / "near.sock"
    async with relays({near: tmp_path / "nobody.sock"}, owner=os.getuid()):
        reader, writer = await asyncio.open_unix_connection(str(near))
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_open_connections_end_with_the_relay(tmp_path: Path) -> None:
    far, near = tmp_path / "far.sock", tmp_path / "near.sock"
    server = await asyncio.start_unix_server(echo, str(far))
    async with server:
        async with relays({near: far}, owner=os.getuid()):
            reader, writer = await asyncio.open_unix_connection(str(near))
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.read(5), 10) == b"HELLO"
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        with pytest.raises(OSError, match="No such file"):
            await asyncio.open_unix_connection(str(near))

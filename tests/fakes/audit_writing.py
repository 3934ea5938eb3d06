"""Records for a log, a writer of them, and what the log then holds."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from kala.audit.v1 import audit_pb2
from services.common.audit_client import AuditWriter
from services.common.channel import open_channel
from services.common.spool import Spool

KEY = b"k" * 32


def event(note: str = "") -> audit_pb2.Record:
    made = audit_pb2.Record(type="service.event", tenant="default")
    made.attributes.add(key="note", value=note)
    return made


@asynccontextmanager
async def writing(address: str, spool: Spool | None = None, **options: float) -> AsyncIterator[AuditWriter]:
    async with (
        open_channel(address, peer_name="gateway") as channel,
        AuditWriter(channel, producer_id="gateway-0", spool=spool, **options) as writer,  # type: ignore[arg-type] # numbers
    ):
        yield writer


def sequences(path: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(path)) as database:
        return [
            (bytes(boot).hex(), number)
            for boot, number in database.execute("SELECT boot, sequence FROM entry ORDER BY idx")
        ]


async def until(condition: object) -> None:
    async with asyncio.timeout(20):
        while not condition():  # type: ignore[operator] # a predicate  # noqa: ASYNC110
            await asyncio.sleep(0.005)

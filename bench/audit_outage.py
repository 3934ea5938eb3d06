"""What producers feel while the log is away: their appends from the writer that every service has, before and during."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from bench.audit_load import Service, service
from kala.audit.v1 import audit_pb2
from services.common.audit_client import AppendStatus, AuditWriter, Payload
from services.common.channel import open_channel
from services.common.spool import Spool

PRODUCERS: Final = 16
PAUSE_SECONDS: Final = 0.005
PHASE_SECONDS: Final = 5.0
SPOOLED_BYTES: Final = 1_000
KEY: Final = b"k" * 32


def measure(folder: Path) -> float:
    """The p99 of an append while the log is dead over the p99 before plus that of the spool's own write."""
    with service(folder / "served") as running, closing(Spool(folder / "alone", KEY)) as alone:
        alone_ms = []
        for _ in range(300):
            began = time.perf_counter()
            alone.append([b"x" * SPOOLED_BYTES])
            alone_ms.append((time.perf_counter() - began) * 1000)
        before, during = asyncio.run(_produce(folder, running))
    return _p99(during) / (_p99(before) + _p99(alone_ms))


async def _produce(folder: Path, running: Service) -> tuple[list[float], list[float]]:
    with closing(Spool(folder / "spool", KEY)) as spool:
        async with (
            open_channel(running.address, peer_name="gateway") as channel,
            AuditWriter(channel, producer_id="gateway-0", spool=spool, deadline_seconds=2.0) as writer,
        ):
            before = await _phase(writer, AppendStatus.LOGGED)
            os.kill(running.pid, signal.SIGKILL)
            return before, await _phase(writer, AppendStatus.SPOOLED)


async def _phase(writer: AuditWriter, status: AppendStatus) -> list[float]:
    """Milliseconds of each append of a phase that ended as it should."""
    taken: list[float] = []
    end = time.perf_counter() + PHASE_SECONDS

    async def produce() -> None:
        while time.perf_counter() < end:
            record = audit_pb2.Record(type="service.event", tenant="default")
            began = time.perf_counter()
            done = await writer.append(record, payloads=[Payload("request", b"x" * 500)])
            taken.append((time.perf_counter() - began) * 1000)
            if done.status is not status:
                raise RuntimeError(f"an append ended {done.status.value}")
            await asyncio.sleep(PAUSE_SECONDS)

    await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
    return taken


def _p99(values: list[float]) -> float:
    return sorted(values)[max(0, int(len(values) * 0.99) - 1)]

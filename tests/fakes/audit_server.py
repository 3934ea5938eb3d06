"""The audit service in this process, over a real database, behind a real gRPC server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from kala.audit.note import Verifier
from kala.audit.v1 import audit_pb2_grpc
from services.audit.config import AuditSettings
from services.audit.log import Log
from services.audit.own_records import OwnRecords
from services.audit.pipelines import Pipelines
from services.audit.read_servicer import AuditReadServicer
from services.audit.reading import LogReading
from services.audit.servicer import AuditServicer, may_call
from services.audit.sqlite_store import LOG_ID, SqliteReader
from services.common.channel import open_channel
from services.common.database import connectable
from services.common.interceptors import CallPolicy
from services.common.server import serving
from tests.fakes.audit_log import NOW, LogFile


@dataclass
class ServedLog:
    """A log that answers at `address`; `file` is the log itself, `channel` a client's."""

    file: LogFile
    log: Log
    address: str
    channel: grpc.aio.Channel
    verifier: Verifier

    @property
    def append(self) -> audit_pb2_grpc.AuditServiceAsyncStub:
        return audit_pb2_grpc.AuditServiceStub(self.channel)

    @property
    def read(self) -> audit_pb2_grpc.AuditReadServiceAsyncStub:
        return audit_pb2_grpc.AuditReadServiceStub(self.channel)


@asynccontextmanager
async def served_log(
    path: Path, *, max_pending: int = 4_096, address: str = "127.0.0.1:0"
) -> AsyncIterator[ServedLog]:
    """Serves the log at `path` until the context is left."""
    file = LogFile(path)
    reader = SqliteReader(path)
    engine = connectable(str(path), variable="KALA_AUDIT_DATABASE")
    log = Log(file.batches, max_pending=max_pending)
    log.start()
    reads = AuditReadServicer(
        LogReading(reader),
        pipelines=Pipelines(engine, LOG_ID),
        vkey=str(file.signer.verifier),
        clock=lambda: NOW + 10_000_000,
    )  # type: ignore[abstract] # as the service does
    registrations = [
        partial(audit_pb2_grpc.add_AuditServiceServicer_to_server, AuditServicer(log)),
        partial(audit_pb2_grpc.add_AuditReadServiceServicer_to_server, reads),
    ]
    own = OwnRecords(log, clock=lambda: NOW)
    settings = AuditSettings(address=address, metrics_port=None, drain_seconds=0.2)
    async with (
        serving(
            settings, registrations, policy=CallPolicy(may_call=may_call, on_denied=own.denied)
        ) as server,
        open_channel(server.address, peer_name="gateway") as channel,
    ):
        await server.set_serving()
        yield ServedLog(file, log, server.address, channel, file.signer.verifier)
    await log.stop()
    await reads.close()
    reader.close()
    engine.dispose()
    file.close()

"""The audit service in this process, over a real database, behind a real gRPC server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from kala.audit.note import Verifier
from kala.audit.v1 import audit_pb2_grpc
from services.audit.config import AuditSettings
from services.audit.log import Log
from services.audit.own_records import OwnRecords
from services.audit.payloads import KeyEncryptionKey
from services.audit.reading.pipelines import Pipelines
from services.audit.reading.servicer import reads_of
from services.audit.servicer import AuditServicer, may_call
from services.common.channel import open_channel
from services.common.interceptors import CallPolicy
from services.common.server import serving
from tests.fakes.audit_log import KEK, NOW, LogFile


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
    path: Path | str, *, max_pending: int = 4_096, address: str = "127.0.0.1:0"
) -> AsyncIterator[ServedLog]:
    """Serves the log at `path` until the context is left."""
    file = LogFile(path)
    engine = file.open_engine()
    log = Log(file.batches, max_pending=max_pending)
    log.start()
    own = OwnRecords(log, clock=lambda: NOW)
    readers = ExitStack()
    reads = reads_of(
        lambda: readers.enter_context(closing(file.open_reader())),
        pipelines=Pipelines(engine, file.log_id),
        own=own,
        signer=file.signer,
        kek=KeyEncryptionKey(KEK),
        clock=lambda: NOW + 10_000_000,
    )
    registrations = [
        partial(audit_pb2_grpc.add_AuditServiceServicer_to_server, AuditServicer(log)),
        partial(audit_pb2_grpc.add_AuditReadServiceServicer_to_server, reads),
    ]
    settings = AuditSettings(address=address, metrics_port=None, drain_seconds=0.2)
    async with (
        serving(
            settings, registrations, policy=CallPolicy(may_call=may_call, on_denied=own.denied)
        ) as server,
        open_channel(server.address, peer_name="gateway") as channel,
    ):
        await server.set_serving()
        yield ServedLog(file, log, server.address, channel, file.signer.verifier)
        await reads.stop_watches()
    await log.stop()
    await reads.close()
    readers.close()
    engine.dispose()
    file.close()

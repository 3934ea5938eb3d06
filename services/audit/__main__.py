"""Runs the audit service: `python -m services.audit`."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, closing
from functools import partial

from kala.audit.v1 import audit_pb2_grpc
from services.audit.batch import BatchWriter
from services.audit.config import SECTION, AuditSettings
from services.audit.keys import load_signer
from services.audit.log import Log, system_clock
from services.audit.own_records import OwnRecords
from services.audit.payloads import KeyEncryptionKey
from services.audit.read_servicer import AuditReadServicer
from services.audit.reading import LogReading
from services.audit.servicer import AuditServicer, may_call
from services.audit.stores import open_log_store
from services.common.event_loop import run
from services.common.interceptors import CallPolicy
from services.common.secret_keys import load_secret_key
from services.common.server import serving
from services.common.settings import load
from services.common.telemetry import process_telemetry


async def main() -> None:
    """Opens the log, serves it until SIGTERM, then writes what waits and closes it."""
    settings = load(AuditSettings, section=SECTION)
    signer = load_signer(settings.log_key_file)
    kek = KeyEncryptionKey(load_secret_key(settings.kek_file))
    vkey = str(signer.verifier)
    async with AsyncExitStack() as stack:
        telemetry = stack.enter_context(process_telemetry(SECTION, settings))
        store = stack.enter_context(closing(open_log_store(settings, signer)))
        batches = BatchWriter(
            writer=store.writer, reader=store.open_reader(), signer=signer, kek=kek, clock=system_clock
        )
        log = Log(batches, max_pending=settings.max_pending_records)
        log.start()
        stack.push_async_callback(log.stop)
        reads = AuditReadServicer(LogReading(store.open_reader()), vkey=vkey, clock=system_clock)  # type: ignore[abstract] # the rest is UNIMPLEMENTED
        stack.push_async_callback(reads.close)
        registrations = [
            partial(audit_pb2_grpc.add_AuditServiceServicer_to_server, AuditServicer(log)),
            partial(audit_pb2_grpc.add_AuditReadServiceServicer_to_server, reads),
            # Answers UNIMPLEMENTED, so that a caller learns that this release has no erasure yet.
            partial(
                audit_pb2_grpc.add_AuditPrivacyServiceServicer_to_server,
                audit_pb2_grpc.AuditPrivacyServiceServicer(),  # type: ignore[abstract] # as said above
            ),
        ]
        own = OwnRecords(log, clock=system_clock)
        await own.started()
        policy = CallPolicy(may_call=may_call, on_denied=own.denied)
        server = await stack.enter_async_context(
            serving(settings, registrations, policy=policy, telemetry=telemetry.rpc)
        )
        await server.set_serving()
        await server.run_until_signalled()


if __name__ == "__main__":
    sys.exit(run(main()))

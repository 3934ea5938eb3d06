"""Runs the audit service: `python -m services.audit`."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, closing
from functools import partial

from kala.audit.v1 import audit_pb2_grpc
from services.audit.batch import BatchWriter
from services.audit.config import SECTION, AuditSettings
from services.audit.export.sink_cursors import SinkCursors
from services.audit.export.sinks import feeding
from services.audit.keys import load_signer
from services.audit.log import Log, system_clock
from services.audit.own_records import OwnRecords
from services.audit.payloads import KeyEncryptionKey
from services.audit.privacy.parts import keeping_private
from services.audit.publishing.parts import publishing, say_key_change
from services.audit.reading.pipelines import Pipelines
from services.audit.reading.reconciler import Reconciler, reconciling
from services.audit.reading.servicer import reads_of
from services.audit.servicer import AuditServicer, may_call
from services.audit.storage.stores import open_log_store
from services.common.event_loop import run
from services.common.interceptors import CallPolicy
from services.common.secret_keys import load_secret_key
from services.common.server import serving
from services.common.settings import load
from services.common.telemetry import process_telemetry


async def main() -> None:
    """Opens the log, serves it until SIGTERM, then writes what waits and closes it."""
    settings = load(AuditSettings, section=SECTION)
    signer = load_signer(settings.log_key_file, settings.next_log_key_file)
    kek = KeyEncryptionKey(load_secret_key(settings.kek_file))
    async with AsyncExitStack() as stack:
        telemetry = stack.enter_context(process_telemetry(SECTION, settings))
        store = stack.enter_context(closing(open_log_store(settings, signer)))
        batches = BatchWriter(
            writer=store.writer, reader=store.open_reader(), signer=signer, kek=kek, clock=system_clock
        )
        log = Log(batches, max_pending=settings.max_pending_records)
        log.start()
        stack.push_async_callback(log.stop)
        own = OwnRecords(log, clock=system_clock)
        pipelines = Pipelines(store.engine, store.log_id)
        reads = reads_of(
            store.open_reader, pipelines=pipelines, own=own, signer=signer, kek=kek, clock=system_clock
        )
        stack.push_async_callback(reads.close)
        await say_key_change(store, own, signer)
        await own.started()
        private = await stack.enter_async_context(keeping_private(settings, store, own, signer))
        writes = AuditServicer(log, late=private.late, finder=private.finder)
        registrations = [
            partial(audit_pb2_grpc.add_AuditServiceServicer_to_server, writes),
            partial(audit_pb2_grpc.add_AuditReadServiceServicer_to_server, reads),
            partial(audit_pb2_grpc.add_AuditPrivacyServiceServicer_to_server, private.servicer),
        ]
        reads.show(await stack.enter_async_context(publishing(settings, store, own, signer, telemetry)))
        cursors = SinkCursors(store.engine, store.log_id, clock=system_clock)
        await stack.enter_async_context(
            feeding(
                settings.sinks,
                open_reader=store.open_reader,
                cursors=cursors,
                own=own,
                registry=telemetry.registry,
                origin=signer.verifier.name,
            )
        )
        reconciler = Reconciler(store.engine, store.log_id, registry=telemetry.registry, clock=system_clock)
        await stack.enter_async_context(reconciling(reconciler))
        policy = CallPolicy(may_call=may_call, on_denied=own.denied)
        server = await stack.enter_async_context(
            serving(settings, registrations, policy=policy, telemetry=telemetry.rpc)
        )
        # Before the server drains: a watch would use the whole drain.
        stack.push_async_callback(reads.stop_watches)
        await server.set_serving()
        await server.run_until_signalled()


if __name__ == "__main__":
    sys.exit(run(main()))

"""Runs the audit service: `python -m services.audit`."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, closing
from functools import partial

from kala.audit.v1 import audit_pb2_grpc
from services.audit.batch import BatchWriter
from services.audit.config import SECTION, AuditSettings
from services.audit.keys import load_signer
from services.audit.late_content import LateContent
from services.audit.log import Log, system_clock
from services.audit.once import OnceRecords
from services.audit.own_records import OwnRecords
from services.audit.payloads import KeyEncryptionKey
from services.audit.pipelines import Pipelines
from services.audit.privacy import Privacy
from services.audit.privacy_servicer import AuditPrivacyServicer
from services.audit.privacy_store import PrivacyStore
from services.audit.publishing import publishing, say_key_change
from services.audit.read_servicer import reads_of
from services.audit.reading import LogReading
from services.audit.reconciler import Reconciler, reconciling
from services.audit.redaction import PersonalDataFinder
from services.audit.retention import Clocks, Retention, retaining
from services.audit.retention_store import RetentionStore
from services.audit.servicer import AuditServicer, may_call
from services.audit.sink_cursors import SinkCursors
from services.audit.sinks import feeding
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
        kept = PrivacyStore(store.engine, store.log_id, clock=system_clock)
        once = OnceRecords(own, LogReading(store.open_reader()))
        stack.push_async_callback(once.close)
        privacy = Privacy(kept, once, signer)
        stack.push_async_callback(privacy.close)
        clocks = Clocks(settings.payload_retention_days, settings.entry_retention_days)
        expiring = RetentionStore(store.engine, store.log_id, clock=system_clock)
        retention = Retention(expiring, once, clocks, clock=system_clock)
        late = LateContent(kept, clock=system_clock)
        writes = AuditServicer(log, late=late, finder=_finder(settings))
        registrations = [
            partial(audit_pb2_grpc.add_AuditServiceServicer_to_server, writes),
            partial(audit_pb2_grpc.add_AuditReadServiceServicer_to_server, reads),
            partial(audit_pb2_grpc.add_AuditPrivacyServiceServicer_to_server, AuditPrivacyServicer(privacy)),
        ]
        await say_key_change(store, own, signer)
        await own.started()
        await stack.enter_async_context(retaining(retention))
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


def _finder(settings: AuditSettings) -> PersonalDataFinder | None:
    if not settings.redact_pii:
        return None
    # Seconds of importing, and an extra of its own.
    from services.audit.presidio_finder import PresidioFinder

    return PresidioFinder()


if __name__ == "__main__":
    sys.exit(run(main()))

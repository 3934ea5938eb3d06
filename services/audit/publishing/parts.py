"""Puts together what the log shows to the world: its HTTP, its witnesses, and what it says of its own key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from prometheus_client import Gauge

from kala.audit.cosignature import CosignatureKind, Cosigner
from kala.audit.note import Signer
from kala.audit.v1 import audit_pb2
from kala.errors import FailedPreconditionError, VerificationError
from services.audit.keys import key_change
from services.audit.publishing.cosignature_store import CosignatureStore
from services.audit.publishing.published import PublishedLog
from services.audit.publishing.tile_api import TileApi, load_token
from services.audit.publishing.tile_reads import PublishedReads, TileReads
from services.audit.publishing.witness_policy import parse_witnesses
from services.audit.publishing.witnessing import Witnessing
from services.common.secret_keys import read_private_file
from services.common.telemetry import LABEL_WITNESS, METRICS, WITNESSED_SIZE

if TYPE_CHECKING:
    from services.audit.config import AuditSettings
    from services.audit.own_records import OwnRecords
    from services.audit.storage.stores import LogStore
    from services.common.telemetry import Telemetry


async def say_key_change(store: LogStore, own: OwnRecords, signer: Signer) -> None:
    """Logs that another key of the log begins or ceased to sign; call it before anything else is appended."""
    newest = store.open_reader().note(None)
    change = key_change(signer, None if newest is None else newest[1])
    if change is None:
        return
    record = audit_pb2.Record(type="service.event")
    record.action.rpc = change.rpc
    record.result.status = "ok"
    await own.append(record, change.facts)


@asynccontextmanager
async def publishing(
    settings: AuditSettings, store: LogStore, own: OwnRecords, signer: Signer, telemetry: Telemetry
) -> AsyncIterator[PublishedReads]:
    """Serves `/checkpoint` and `/tile` beside the metrics and asks the witnesses, until the context is left.

    Gives what the RPCs show of it.
    """
    witnesses = parse_witnesses(settings.witnesses, settings.witnesses_required)
    second = _second_key(settings.log_ml_dsa_key_file, signer)
    cosigned = CosignatureStore(
        store.engine,
        store.log_id,
        policy=[witness.keys for witness in witnesses],
        required=settings.witnesses_required,
    )
    token = None if settings.tile_token_file is None else load_token(settings.tile_token_file)
    reads = TileReads(own)
    api = TileApi(
        PublishedLog(store.open_reader(), cosigned), token=token, note_reader=reads.note_from_thread
    )
    telemetry.pages.mount("checkpoint", api)
    telemetry.pages.mount("tile", api)
    gauge = Gauge(WITNESSED_SIZE, METRICS[WITNESSED_SIZE], [LABEL_WITNESS], registry=telemetry.registry)
    async with contextlib.AsyncExitStack() as stack:
        if witnesses or second is not None:
            # No proxy and no netrc of the environment: the settings say whom the log speaks to.
            client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
            witnessing = Witnessing(
                reader=store.open_reader(),
                store=cosigned,
                witnesses=witnesses,
                client=client,
                own=second,
                show=lambda name, size: gauge.labels(name).set(size),
            )
            await stack.enter_async_context(_running(witnessing, settings.witness_interval_seconds))
        published = PublishedReads(PublishedLog(store.open_reader(), cosigned), reads)
        stack.push_async_callback(published.close)
        yield published


@asynccontextmanager
async def _running(witnessing: Witnessing, interval_seconds: float) -> AsyncIterator[None]:
    task = asyncio.create_task(witnessing.run(interval_seconds))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _second_key(path: Path | None, signer: Signer) -> Cosigner | None:
    """The log's ML-DSA-44 key; raises `FailedPreconditionError` naming the file."""
    if path is None:
        return None
    try:
        second = Cosigner.parse(read_private_file(path).decode("ascii").strip())
    except (VerificationError, UnicodeDecodeError) as error:
        raise FailedPreconditionError(f"{path} holds no ML-DSA-44 key of a log") from error
    if second.witness.kind is not CosignatureKind.ML_DSA_44 or second.witness.name != signer.verifier.name:
        raise FailedPreconditionError(f"{path} must hold an ML-DSA-44 key of the name {signer.verifier.name}")
    return second

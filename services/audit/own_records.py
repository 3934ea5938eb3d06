"""What the log writes about itself: that it started, whom it turned away, what it erased and held."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from kala.audit.v1 import audit_pb2
from kala.errors import KalaError
from services.audit.batch import Logged
from services.audit.log import Log
from services.audit.records import BOOT_BYTES, KEY_BYTES, entry_of
from services.common.peers import AUDIT, Peer

# The tenant of a service's own events.
TENANT: Final = "kala"

log = structlog.get_logger()


class OwnRecords:
    """Appends the audit service's own records, straight to its queue; `clock` gives microseconds since 1970."""

    def __init__(
        self, target: Log, *, clock: Callable[[], int], random: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._target = target
        self._clock = clock
        self._random = random
        self._boot = random(BOOT_BYTES)
        self._sequence = 0

    async def started(self) -> None:
        """Logs the start. A log so never is empty, and its first checkpoint exists before its first client."""
        record = audit_pb2.Record(type="service.event")
        record.action.rpc = f"/{AUDIT}/start"
        record.result.status = "ok"
        await self.append(record, {})

    async def denied(self, method: str, peer: Peer | None, error: KalaError) -> None:
        """Logs a call that was turned away; the call fails either way, so a full queue does not matter to it."""
        record = audit_pb2.Record(type="rpc.denied")
        record.action.rpc = method
        record.result.status = "refused"
        record.result.code = error.reason
        try:
            await self.append(record, {"peer": "unknown" if peer is None else peer.name})
        except KalaError as failure:
            log.warning("a denied call was not recorded", method=method, problem=failure.message)

    async def append(
        self,
        record: audit_pb2.Record,
        facts: Mapping[str, str],
        *,
        key: bytes | None = None,
        with_proof: bool = False,
    ) -> Logged:
        """Logs one record with these attributes; its tenant is the service's own unless it names one.

        A `key` that the caller derives makes the record happen once: `AlreadyExistsError` when it is logged already.
        """
        record.tenant = record.tenant or TENANT
        record.idempotency_key = key or self._random(KEY_BYTES)
        record.producer.id, record.producer.boot = AUDIT, self._boot
        record.producer.sequence = self._sequence + 1
        record.occurred_at.FromMicroseconds(self._clock())
        for name, value in facts.items():
            record.attributes.add(key=name, value=value)
        waiting = self._target.submit([entry_of(record, AUDIT)], with_proof=with_proof)
        # A number that no record got would show as a hole: a full queue takes none.
        self._sequence += 1
        (logged,) = await waiting
        return logged

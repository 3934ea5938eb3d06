"""What inference itself writes into the transparency log: calls that it turned away, and administrative ones.

The record of a chat is the gateway's, which alone knows what was asked and what was released.
"""

from __future__ import annotations

from typing import Final, Protocol

import structlog

from kala.audit.v1 import audit_pb2
from kala.common.v1 import options_pb2
from kala.errors import KalaError, UnavailableError
from kala.inference.v1 import inference_pb2
from services.common.audit_client import Appended, AuditPolicy
from services.common.clearance import method_name
from services.common.peers import Peer

TENANT: Final = "kala"
"""The tenant of a service's own events."""

ADMINISTRATIVE: Final = frozenset(
    method_name(method)
    for service in inference_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.GetOptions().Extensions[options_pb2.scope] == options_pb2.SCOPE_ADMIN
)

log: Final = structlog.get_logger()


class Writer(Protocol):
    """What is needed of the audit writer."""

    async def append(self, record: audit_pb2.Record, *, policy: AuditPolicy) -> Appended:
        """Make the record durable or raise UnavailableError."""
        ...


class Records:
    """Writes inference's own records; without a writer there is no log to write to."""

    def __init__(self, writer: Writer | None) -> None:
        self._writer = writer

    async def denied(self, method: str, peer: Peer | None, error: KalaError) -> None:
        """Log a call that was turned away; it fails either way, so a log that is away does not matter to it."""
        record = _record("rpc.denied", method, peer)
        record.result.status = "refused"
        record.result.code = error.reason
        try:
            await self._append(record, AuditPolicy.SPOOL)
        except UnavailableError as failure:
            log.warning("denial_not_recorded", method=method, problem=failure.message)

    async def administrative(self, method: str, peer: Peer, ok: bool) -> None:  # noqa: FBT001 - called by position
        """Log an administrative call; raises UnavailableError where it cannot, and then the call fails."""
        record = _record("admin", method, peer)
        record.result.status = "ok" if ok else "error"
        # Administration fails closed: a record that only waits in the spool is not enough.
        await self._append(record, AuditPolicy.FAIL_CLOSED)

    async def _append(self, record: audit_pb2.Record, policy: AuditPolicy) -> None:
        if self._writer is not None:
            await self._writer.append(record, policy=policy)


def _record(kind: str, method: str, peer: Peer | None) -> audit_pb2.Record:
    record = audit_pb2.Record(type=kind, tenant=TENANT)
    record.action.rpc = method
    record.attributes.add(key="peer", value="unknown" if peer is None else peer.name)
    return record

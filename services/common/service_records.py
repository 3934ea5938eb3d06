"""What a service itself writes into the transparency log: denials, administration, and what cleared work came to.

Nothing here may wait in a spool but a denial: without the log nothing acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol

import structlog

from kala.audit.v1 import audit_pb2
from kala.common.v1 import decision_pb2, options_pb2
from kala.common.v1.clearance_pb2 import ClearanceClaims
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import AlreadyExistsError, ClearanceError, KalaError, UnavailableError
from services.common.audit_client import Appended, AuditPolicy
from services.common.clearance import method_name
from services.common.peers import Peer
from services.common.sealing import action_digest

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.protobuf.descriptor import FileDescriptor

TENANT: Final = "kala"
"""The tenant of a service's own events."""

EXECUTION_ID_BYTES: Final = 16
MAX_REFERENCES: Final = 2_048
"""As many files as a run may name, and as many artifacts as any policy allows."""

MAX_ATTRIBUTE_CHARS: Final = 1_024

RecordStatus = Literal["ok", "refused", "cancelled", "error"]

log: Final = structlog.get_logger()


class Writer(Protocol):
    """What is needed of the audit writer."""

    async def append(
        self, record: audit_pb2.Record, *, key: bytes | None = None, policy: AuditPolicy
    ) -> Appended:
        """Make the record durable or raise UnavailableError."""
        ...


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a piece of work at its end; never content."""

    status: RecordStatus
    code: str = ""
    duration_seconds: float = 0.0
    attributes: Mapping[str, str] = field(default_factory=dict)
    references: Sequence[ContentReference] = ()


class ServiceRecords:
    """Writes a service's own records; without a writer there is no log to write to."""

    def __init__(self, writer: Writer | None) -> None:
        self._log_writer = writer

    async def denied(self, method: str, peer: Peer | None, error: KalaError) -> None:
        """Log a call that was turned away; it fails either way, so a log that is away does not matter to it."""
        record = _own_record("rpc.denied", method, peer)
        record.result.status = "refused"
        record.result.code = error.reason
        try:
            await self._append(record, AuditPolicy.SPOOL)
        except UnavailableError as failure:
            log.warning("denial_not_recorded", method=method, problem=failure.message)

    async def administrative(self, method: str, peer: Peer, ok: bool) -> None:  # noqa: FBT001 - called by position
        """Log an administrative call; raises UnavailableError where it cannot, and then the call fails."""
        record = _own_record("admin", method, peer)
        record.result.status = "ok" if ok else "error"
        await self._append(record, AuditPolicy.FAIL_CLOSED)

    async def _append(self, record: audit_pb2.Record, policy: AuditPolicy) -> None:
        if self._log_writer is not None:
            await self._log_writer.append(record, policy=policy)


def rpcs_of_scopes(file: FileDescriptor, *scopes: options_pb2.Scope.ValueType) -> frozenset[str]:
    """The full names of a contract's RPCs that have one of these scopes."""
    return frozenset(
        method_name(method)
        for service in file.services_by_name.values()
        for method in service.methods
        if method.GetOptions().Extensions[options_pb2.scope] in scopes
    )


def cleared_record(
    kind: str, claims: ClearanceClaims, action: AnyMessage, *, rpc: str, execution_id: bytes
) -> audit_pb2.Record:
    """Begin a record of work that ethics cleared: for whom, what exactly, and by which decision."""
    record = audit_pb2.Record(
        type=kind,
        tenant=claims.principal.tenant,
        subject_key_id=claims.principal.subject,
        execution_id=execution_id,
    )
    record.action.rpc = rpc
    record.action.digest = action_digest(action)
    record.decision.id = claims.decision_id
    record.decision.outcome = decision_pb2.OUTCOME_ALLOW
    record.decision.constitution_digest = claims.constitution_digest
    return record


def fill(record: audit_pb2.Record, facts: Facts) -> None:
    """Write down what work came to."""
    record.result.status = facts.status
    record.result.code = facts.code
    record.result.duration_ms = max(0, round(facts.duration_seconds * 1000))
    add_attributes(record, facts.attributes)
    record.references.extend(facts.references[:MAX_REFERENCES])


def add_attributes(record: audit_pb2.Record, attributes: Mapping[str, str]) -> None:
    """Add further facts, each cut to what the log takes."""
    for key, value in attributes.items():
        record.attributes.add(key=key, value=value[:MAX_ATTRIBUTE_CHARS])


async def claim_nonce(writer: Writer, record: audit_pb2.Record, nonce: bytes) -> None:
    """Log that work begins under its clearance's nonce, before anything happens: over all replicas, once.

    Raises ClearanceError when something else has used the clearance, UnavailableError when the log is away.
    """
    try:
        created = (await writer.append(record, key=nonce, policy=AuditPolicy.FAIL_CLOSED)).created
    except AlreadyExistsError:
        created = False
    if not created:
        raise ClearanceError(
            "the clearance was used before, on this replica or another; ask for a new one",
            reason="CLEARANCE_REPLAYED",
        )


def _own_record(kind: str, method: str, peer: Peer | None) -> audit_pb2.Record:
    record = audit_pb2.Record(type=kind, tenant=TENANT)
    record.action.rpc = method
    record.attributes.add(key="peer", value="unknown" if peer is None else peer.name)
    return record

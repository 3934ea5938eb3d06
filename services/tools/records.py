"""What tools itself writes into the transparency log: each execution's claim and its facts, denials, administration.

Intent and outcome of a tool call are the gateway's, which alone knows what was asked and what was released. Nothing here
may wait in a spool but a denial: without the log nothing acts.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import structlog

from kala.audit.v1 import audit_pb2
from kala.common.v1 import decision_pb2, options_pb2
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import AlreadyExistsError, ClearanceError, KalaError, UnavailableError
from kala.tools.v1 import tools_pb2
from services.common.audit_client import Appended, AuditPolicy
from services.common.clearance import VerifiedClearance, method_name
from services.common.peers import Peer
from services.common.sealing import action_digest

TENANT: Final = "kala"
"""The tenant of a service's own events."""

EXECUTION_ID_BYTES: Final = 16
MAX_REFERENCES: Final = 2_048
"""As many files as a run may name, and as many artifacts as any policy allows."""

ADMINISTRATIVE: Final = frozenset(
    method_name(method)
    for service in tools_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.GetOptions().Extensions[options_pb2.scope] == options_pb2.SCOPE_ADMIN
)

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
    """What is known of an execution at its end; never content."""

    status: RecordStatus
    code: str = ""
    duration_seconds: float = 0.0
    attributes: Mapping[str, str] = field(default_factory=dict)
    references: Sequence[ContentReference] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A clearance's nonce, claimed by one execution and by no other."""

    clearance: VerifiedClearance
    execution_id: bytes
    rpc: str
    tool: str
    key: bytes


class Records:
    """Writes this service's records."""

    def __init__(self, writer: Writer, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._writer = writer
        self._random = random

    async def claim(self, clearance: VerifiedClearance, *, rpc: str, tool: str = "") -> Claim:
        """Claim the clearance's nonce in the log, before anything happens: over all replicas, once.

        Raises ClearanceError when another execution has it, UnavailableError when the log is away.
        """
        claim = Claim(clearance, self._random(EXECUTION_ID_BYTES), rpc, tool, clearance.claims.nonce)
        record = _record_of(claim, "tools.claim")
        try:
            appended = await self._writer.append(record, key=claim.key, policy=AuditPolicy.FAIL_CLOSED)
        except AlreadyExistsError:
            raise _replayed() from None
        if not appended.created:
            raise _replayed()
        return claim

    async def ended(self, claim: Claim, facts: Facts) -> None:
        """Log what an execution came to; raises UnavailableError where that cannot be, and then it has no answer."""
        record = _record_of(claim, "tools.result")
        record.intent = claim.key
        record.result.status = facts.status
        record.result.code = facts.code
        record.result.duration_ms = max(0, round(facts.duration_seconds * 1000))
        for key, value in facts.attributes.items():
            record.attributes.add(key=key, value=value[:1024])
        record.references.extend(facts.references[:MAX_REFERENCES])
        await self._writer.append(record, policy=AuditPolicy.FAIL_CLOSED)

    async def event(self, name: str, facts: Mapping[str, str]) -> None:
        """Log an event of the service itself, e.g. which isolation it found."""
        record = audit_pb2.Record(type="service.event", tenant=TENANT)
        record.attributes.add(key="event", value=name)
        for key, value in facts.items():
            record.attributes.add(key=key, value=value[:1024])
        await self._writer.append(record, policy=AuditPolicy.FAIL_CLOSED)

    async def denied(self, method: str, peer: Peer | None, error: KalaError) -> None:
        """Log a call that was turned away; it fails either way, so a log that is away does not matter to it."""
        record = _own_record("rpc.denied", method, peer)
        record.result.status = "refused"
        record.result.code = error.reason
        try:
            await self._writer.append(record, policy=AuditPolicy.SPOOL)
        except UnavailableError as failure:
            log.warning("denial_not_recorded", method=method, problem=failure.message)

    async def administrative(self, method: str, peer: Peer, ok: bool) -> None:  # noqa: FBT001 - called by position
        """Log an administrative call; raises UnavailableError where it cannot, and then the call fails."""
        record = _own_record("admin", method, peer)
        record.result.status = "ok" if ok else "error"
        await self._writer.append(record, policy=AuditPolicy.FAIL_CLOSED)


def _replayed() -> ClearanceError:
    return ClearanceError(
        "the clearance was used before, on this replica or another; ask for a new one",
        reason="CLEARANCE_REPLAYED",
    )


def _record_of(claim: Claim, kind: str) -> audit_pb2.Record:
    claims = claim.clearance.claims
    record = audit_pb2.Record(
        type=kind,
        tenant=claims.principal.tenant,
        subject_key_id=claims.principal.subject,
        execution_id=claim.execution_id,
    )
    record.action.rpc = claim.rpc
    record.action.digest = action_digest(claim.clearance.action)
    record.action.tool = claim.tool
    record.decision.id = claims.decision_id
    record.decision.outcome = decision_pb2.OUTCOME_ALLOW
    record.decision.constitution_digest = claims.constitution_digest
    return record


def _own_record(kind: str, method: str, peer: Peer | None) -> audit_pb2.Record:
    record = audit_pb2.Record(type=kind, tenant=TENANT)
    record.action.rpc = method
    record.attributes.add(key="peer", value="unknown" if peer is None else peer.name)
    return record

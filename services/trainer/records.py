"""What the trainer writes into the transparency log: the beginning and the end of all work, denials, administration.

The record that a piece of work begins claims its clearance's nonce, so that no clearance starts anything twice. Nothing
here may wait in a spool but a denial: no record, no work.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import structlog

from kala.audit.v1 import audit_pb2
from kala.common.v1 import decision_pb2, options_pb2
from kala.common.v1.clearance_pb2 import ClearanceClaims, SealedAction
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import AlreadyExistsError, ClearanceError, KalaError, UnavailableError
from kala.trainer.v1 import trainer_pb2
from services.common.audit_client import Appended, AuditPolicy, receipt_id
from services.common.clearance import VerifiedClearance, method_name
from services.common.peers import Peer
from services.common.sealing import action_digest

TENANT: Final = "kala"
"""The tenant of a service's own events."""

EXECUTION_ID_BYTES: Final = 16
MAX_REFERENCES: Final = 2_048

TRAINING_STARTED: Final = "training.started"
DATASET_STARTED: Final = "dataset.started"
EVALUATION_STARTED: Final = "evaluation.started"
ADAPTER_PROMOTING: Final = "adapter.promoting"

_ENDS: Final[Mapping[str, str]] = {
    TRAINING_STARTED: "training.ended",
    DATASET_STARTED: "dataset.ended",
    EVALUATION_STARTED: "evaluation.ended",
    ADAPTER_PROMOTING: "adapter.promoted",
}

ADMINISTRATIVE: Final = frozenset(
    method_name(method)
    for service in trainer_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.GetOptions().Extensions[options_pb2.scope]
    in (options_pb2.SCOPE_ADMIN, options_pb2.SCOPE_INTERNAL)
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
class Cleared:
    """A guarded call: what ethics signed, as it came, and as it was verified."""

    sealed: SealedAction
    verified: VerifiedClearance


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a piece of work at its end; never content."""

    status: RecordStatus
    code: str = ""
    duration_seconds: float = 0.0
    attributes: Mapping[str, str] = field(default_factory=dict)
    references: Sequence[ContentReference] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A clearance's nonce, claimed by one piece of work and by no other; made again from what a restart finds."""

    claims: ClearanceClaims
    sealed: SealedAction
    kind: str
    """One of the STARTED kinds."""
    execution_id: bytes
    key: bytes

    @property
    def receipt_id(self) -> str:
        """Receipt id of the record that the work began, "rcpt_<32 hex>"."""
        return receipt_id(self.key)


class Records:
    """Writes this service's records."""

    def __init__(self, writer: Writer, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._writer = writer
        self._random = random

    async def claim(
        self, cleared: Cleared, *, kind: str, attributes: Mapping[str, str] | None = None
    ) -> Claim:
        """Log that the work begins and claim its clearance's nonce with that, before anything happens.

        Raises ClearanceError when something else has used the clearance, UnavailableError when the log is away.
        """
        claims = cleared.verified.claims
        claim = Claim(claims, cleared.sealed, kind, self._random(EXECUTION_ID_BYTES), claims.nonce)
        record = _record_of(claim, kind)
        for key, value in (attributes or {}).items():
            record.attributes.add(key=key, value=value[:1024])
        try:
            appended = await self._writer.append(record, key=claim.key, policy=AuditPolicy.FAIL_CLOSED)
        except AlreadyExistsError:
            raise _replayed() from None
        if not appended.created:
            raise _replayed()
        return claim

    async def ended(self, claim: Claim, facts: Facts) -> Appended:
        """Log what the work came to; raises UnavailableError where that cannot be."""
        record = _record_of(claim, _ENDS[claim.kind])
        record.intent = claim.key
        _fill(record, facts)
        return await self._writer.append(record, policy=AuditPolicy.FAIL_CLOSED)

    async def event(
        self,
        name: str,
        facts: Facts,
        *,
        tenant: str = TENANT,
        subject: str = "",
        claim: Claim | None = None,
        gate: audit_pb2.RecordGate | None = None,
    ) -> Appended:
        """Log something else of this service, e.g. a gate's result, a revocation or an export.

        With a claim the record belongs to that work: it carries its action, decision and intent.
        """
        if claim is None:
            record = audit_pb2.Record(type=name, tenant=tenant, subject_key_id=subject)
        else:
            record = _record_of(claim, name)
            record.intent = claim.key
        _fill(record, facts)
        if gate is not None:
            record.gate.CopyFrom(gate)
        return await self._writer.append(record, policy=AuditPolicy.FAIL_CLOSED)

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


def claim_of(sealed: SealedAction, *, kind: str, execution_id: bytes, key: bytes) -> Claim:
    """Make a claim again that was logged before this service was started again."""
    return Claim(ClearanceClaims.FromString(sealed.clearance.claims), sealed, kind, execution_id, key)


def _replayed() -> ClearanceError:
    return ClearanceError(
        "the clearance was used before, on this replica or another; ask for a new one",
        reason="CLEARANCE_REPLAYED",
    )


def _record_of(claim: Claim, kind: str) -> audit_pb2.Record:
    claims = claim.claims
    record = audit_pb2.Record(
        type=kind,
        tenant=claims.principal.tenant,
        subject_key_id=claims.principal.subject,
        execution_id=claim.execution_id,
    )
    record.action.rpc = claims.audience
    record.action.digest = action_digest(claim.sealed.action)
    record.decision.id = claims.decision_id
    record.decision.outcome = decision_pb2.OUTCOME_ALLOW
    record.decision.constitution_digest = claims.constitution_digest
    return record


def _fill(record: audit_pb2.Record, facts: Facts) -> None:
    record.result.status = facts.status
    record.result.code = facts.code
    record.result.duration_ms = max(0, round(facts.duration_seconds * 1000))
    for key, value in facts.attributes.items():
        record.attributes.add(key=key, value=value[:1024])
    record.references.extend(facts.references[:MAX_REFERENCES])


def _own_record(kind: str, method: str, peer: Peer | None) -> audit_pb2.Record:
    record = audit_pb2.Record(type=kind, tenant=TENANT)
    record.action.rpc = method
    record.attributes.add(key="peer", value="unknown" if peer is None else peer.name)
    return record

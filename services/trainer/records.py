"""What the trainer writes into the transparency log: the beginning and the end of all work, denials, administration.

The record that a piece of work begins claims its clearance's nonce, so that no clearance starts anything twice. Nothing
here may wait in a spool but a denial: no record, no work.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from kala.audit.v1 import audit_pb2
from kala.common.v1 import options_pb2
from kala.common.v1.clearance_pb2 import ClearanceClaims, SealedAction
from kala.trainer.v1 import trainer_pb2
from services.common.audit_client import Appended, AuditPolicy, receipt_id
from services.common.clearance import VerifiedClearance
from services.common.service_records import (
    EXECUTION_ID_BYTES,
    TENANT,
    Facts,
    ServiceRecords,
    Writer,
    add_attributes,
    claim_nonce,
    cleared_record,
    fill,
    rpcs_of_scopes,
)

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

ADMINISTRATIVE: Final = rpcs_of_scopes(
    trainer_pb2.DESCRIPTOR, options_pb2.SCOPE_ADMIN, options_pb2.SCOPE_INTERNAL
)


@dataclass(frozen=True, slots=True)
class Cleared:
    """A guarded call: what ethics signed, as it came, and as it was verified."""

    sealed: SealedAction
    verified: VerifiedClearance


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


class Records(ServiceRecords):
    """Writes this service's records."""

    def __init__(self, writer: Writer, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        super().__init__(writer)
        self._writer = writer
        self._random = random

    async def claim(
        self, cleared: Cleared, *, kind: str, attributes: Mapping[str, str] | None = None
    ) -> Claim:
        """Log that the work begins and claim its clearance's nonce with that; raises as `claim_nonce`."""
        claims = cleared.verified.claims
        claim = Claim(claims, cleared.sealed, kind, self._random(EXECUTION_ID_BYTES), claims.nonce)
        record = _record_of(claim, kind)
        add_attributes(record, attributes or {})
        await claim_nonce(self._writer, record, claim.key)
        return claim

    async def ended(self, claim: Claim, facts: Facts) -> Appended:
        """Log what the work came to; raises UnavailableError where that cannot be."""
        record = _record_of(claim, _ENDS[claim.kind])
        record.intent = claim.key
        fill(record, facts)
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
        fill(record, facts)
        if gate is not None:
            record.gate.CopyFrom(gate)
        return await self._writer.append(record, policy=AuditPolicy.FAIL_CLOSED)


def claim_of(sealed: SealedAction, *, kind: str, execution_id: bytes, key: bytes) -> Claim:
    """Make a claim again that was logged before this service was started again."""
    return Claim(ClearanceClaims.FromString(sealed.clearance.claims), sealed, kind, execution_id, key)


def _record_of(claim: Claim, kind: str) -> audit_pb2.Record:
    claims = claim.claims
    return cleared_record(
        kind, claims, claim.sealed.action, rpc=claims.audience, execution_id=claim.execution_id
    )

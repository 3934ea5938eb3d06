"""What tools itself writes into the transparency log: each execution's claim and its facts, denials, administration.

Intent and outcome of a tool call are the gateway's, which alone knows what was asked and what was released.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from kala.audit.v1 import audit_pb2
from kala.common.v1 import options_pb2
from kala.tools.v1 import tools_pb2
from services.common.audit_client import AuditPolicy
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

ADMINISTRATIVE: Final = rpcs_of_scopes(tools_pb2.DESCRIPTOR, options_pb2.SCOPE_ADMIN)


@dataclass(frozen=True, slots=True)
class Claim:
    """A clearance's nonce, claimed by one execution and by no other."""

    clearance: VerifiedClearance
    execution_id: bytes
    rpc: str
    tool: str
    key: bytes


class Records(ServiceRecords):
    """Writes this service's records."""

    def __init__(self, writer: Writer, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        super().__init__(writer)
        self._writer = writer
        self._random = random

    async def claim(self, clearance: VerifiedClearance, *, rpc: str, tool: str = "") -> Claim:
        """Claim the clearance's nonce in the log; raises as `claim_nonce`."""
        claim = Claim(clearance, self._random(EXECUTION_ID_BYTES), rpc, tool, clearance.claims.nonce)
        await claim_nonce(self._writer, _record_of(claim, "tools.claim"), claim.key)
        return claim

    async def ended(self, claim: Claim, facts: Facts) -> None:
        """Log what an execution came to; raises UnavailableError where that cannot be, and then it has no answer."""
        record = _record_of(claim, "tools.result")
        record.intent = claim.key
        fill(record, facts)
        await self._writer.append(record, policy=AuditPolicy.FAIL_CLOSED)

    async def event(self, name: str, facts: Mapping[str, str]) -> None:
        """Log an event of the service itself, e.g. which isolation it found."""
        record = audit_pb2.Record(type="service.event", tenant=TENANT)
        add_attributes(record, {"event": name, **facts})
        await self._writer.append(record, policy=AuditPolicy.FAIL_CLOSED)


def _record_of(claim: Claim, kind: str) -> audit_pb2.Record:
    sealed = claim.clearance
    record = cleared_record(
        kind, sealed.claims, sealed.action, rpc=claim.rpc, execution_id=claim.execution_id
    )
    record.action.tool = claim.tool
    return record

"""That somebody reads the log is itself an entry: one per query, export, watch or payload, durable before the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kala.audit.v1 import audit_pb2
from services.audit.own_records import TENANT, OwnRecords
from services.common.audit_types import receipt_id
from services.common.peers import AUDIT, Context, peer_of
from services.common.principals import PRINCIPAL_METADATA_KEY, principal_of
from services.common.tracing import current_trace

QUERY: Final = "audit.query"
WATCH: Final = "audit.watch"
EXPORT: Final = "audit.export"
PAYLOAD_READ: Final = "audit.payload_read"
# What a live feed would answer itself with.
_HIDDEN: Final = frozenset({QUERY, WATCH})
_SERVICE: Final = "/kala.audit.v1.AuditReadService/"


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads: the peer that asks, and the tenant and pseudonym of whom it asks for, empty for a part itself."""

    peer: str
    tenant: str = TENANT
    actor: str = ""

    def caused(self, leaf: Mapping[str, Any]) -> bool:
        """Whether an entry is this reader's own query or watch, which its live feed does not show."""
        # `Any`: the values of a leaf, as `kala.audit.leaf` describes them.
        if leaf["type"] not in _HIDDEN or leaf["producer"]["id"] != AUDIT:
            return False
        return (leaf["actor"] or "") == self.actor and ["peer", self.peer] in leaf["attributes"]


def reader_of(context: Context) -> Reader:
    """Who makes this call and for whom; `UnauthenticatedError` when it names somebody malformed."""
    peer = peer_of(context).name
    if not is_for_someone(context):
        return Reader(peer)
    principal = principal_of(context)
    return Reader(peer, principal.tenant, principal.subject)


def is_for_someone(context: Context) -> bool:
    """Whether the call is made for a principal, not for a part's own needs."""
    return any(key == PRINCIPAL_METADATA_KEY for key, _ in context.invocation_metadata() or ())


async def log_read(own: OwnRecords, kind: str, rpc: str, reader: Reader, facts: Mapping[str, str]) -> str:
    """Logs a reading of this kind by an RPC of AuditReadService, and returns the receipt's id.

    Raises `UnavailableError` or `ResourceExhaustedError` when it cannot be logged: then nothing may be answered.
    """
    record = audit_pb2.Record(type=kind, tenant=reader.tenant, actor=reader.actor)
    trace = current_trace()
    record.trace_id = "" if trace is None else trace.trace_id
    record.action.rpc = _SERVICE + rpc
    record.result.status = "ok"
    logged = await own.append(record, {**facts, "peer": reader.peer})
    return receipt_id(logged.key)

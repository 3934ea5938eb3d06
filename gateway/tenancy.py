"""Keeps callers inside their tenant when they read the log; only administrators read across tenants.  Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from gateway.identity import Caller
from kala.audit.receipt import Receipt
from kala.audit.v1 import audit_pb2
from kala.common.v1 import options_pb2
from kala.errors import NotFoundError, PermissionDeniedError

if TYPE_CHECKING:
    from google.protobuf.message import Message

GET_ENTRY: Final = "/kala.audit.v1.AuditReadService/GetEntry"


def confine(message: Message, caller: Caller) -> None:
    """Narrow a request's filter to the caller's tenant; raises PermissionDeniedError when it names another."""
    if caller.has_scope(options_pb2.SCOPE_ADMIN) or "filter" not in message.DESCRIPTOR.fields_by_name:
        return
    entries = getattr(message, "filter")  # noqa: B009 - the field exists only on some messages
    if not isinstance(entries, audit_pb2.EntryFilter):
        return
    if entries.tenant not in {"", caller.tenant}:
        raise PermissionDeniedError(
            f"the API key belongs to tenant {caller.tenant!r} and may not read another's entries"
        )
    entries.tenant = caller.tenant


def require_own(response: Message, caller: Caller) -> None:
    """Hide an entry of another tenant, as if it did not exist."""
    leaf = _leaf_of(response)
    if leaf is None or caller.has_scope(options_pb2.SCOPE_ADMIN):
        return
    if json.loads(leaf).get("tenant") != caller.tenant:
        raise NotFoundError("there is no such entry in your tenant")


def entry_of_payload(message: Message) -> audit_pb2.GetEntryRequest | None:
    """Give the request for the entry whose payload is asked for, when one is."""
    if not isinstance(message, audit_pb2.ReadPayloadRequest):
        return None
    return audit_pb2.GetEntryRequest(name=message.name.partition("/payloads/")[0])


def _leaf_of(response: Message) -> bytes | None:
    if isinstance(response, audit_pb2.GetEntryResponse):
        return response.entry.leaf
    if isinstance(response, audit_pb2.GetReceiptResponse) and response.receipt.proof:
        return Receipt.parse(response.receipt.proof).leaf
    return None

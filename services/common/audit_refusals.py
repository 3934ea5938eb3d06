"""What becomes of a record that the log will never take, and of a waiting one whose subject is erased.

A refused record blocks no other: it is kept aside, and a record of type `record.refused` in the log names it, so that
the hole it leaves (in its producer's numbers, or beside its intent) has a reason that anyone can look up.
"""

from __future__ import annotations

import re
from datetime import datetime
from hashlib import sha256
from typing import Final

from kala.audit.v1 import audit_pb2
from kala.errors import (
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    KalaError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from services.common.audit_types import KEY_BYTES, receipt_id

REFUSED_TYPE: Final = "record.refused"
# The log's reason for an answer that is about this record alone, whatever class the error has.
RECORD_REFUSED: Final = "AUDIT_RECORD_REFUSED"
QUEUE_FULL: Final = "AUDIT_QUEUE_FULL"
# Attribute of a record whose content was erased while it waited.
ERASED_ATTRIBUTE: Final = "content_erased"
MAX_ATTRIBUTES: Final = 64
MAX_TENANT_CHARS: Final = 64
MAX_TEXT_CHARS: Final = 1_024
# The tenant of a notice whose record names none that the log takes.
_OWN_TENANT: Final = "kala"
_LABEL: Final = b"kala.audit.refused.v1\0"
_BOOT_BYTES: Final = 8
_NAME: Final = re.compile(r"[a-z0-9_.]{1,64}")
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_HEX32: Final = re.compile(r"[0-9a-f]{32}")
# The service looked at the record and will never take it.
_PERMANENT: Final = (AlreadyExistsError, InvalidArgumentError)
# About the way to the log or about this writer, never about one record.
_ABOUT_THE_WAY: Final = (
    UnavailableError,
    DeadlineExceededError,
    CancelledError,
    UnauthenticatedError,
    PermissionDeniedError,
    UnimplementedError,
)


def is_refusal(error: KalaError) -> bool:
    """Whether the log says of this very record that it will never take it."""
    return isinstance(error, _PERMANENT) or error.reason == RECORD_REFUSED


def may_be_refusal(error: KalaError) -> bool:
    """Whether the answer may be about the record alone; if the log takes another record then, it is."""
    return is_refusal(error) or not (isinstance(error, _ABOUT_THE_WAY) or error.reason == QUEUE_FULL)


def notice_of(refused: audit_pb2.Record, error: KalaError, at: datetime) -> audit_pb2.Record:
    """The record that names a refused one, by values that the log takes whatever the refused one holds.

    Its key and boot are derived from the refused key, so that there is one notice however often it is written.
    """
    digest = sha256(_LABEL + refused.idempotency_key).digest()
    notice = audit_pb2.Record(type=REFUSED_TYPE, idempotency_key=digest[:KEY_BYTES])
    notice.producer.id = refused.producer.id
    notice.producer.boot = digest[KEY_BYTES:][:_BOOT_BYTES]
    notice.producer.sequence = 1
    notice.occurred_at.FromDatetime(at)
    notice.tenant = refused.tenant if 1 <= len(refused.tenant) <= MAX_TENANT_CHARS else _OWN_TENANT
    notice.actor = refused.actor if _HEX64.fullmatch(refused.actor) else ""
    notice.trace_id = refused.trace_id if _HEX32.fullmatch(refused.trace_id) else ""
    notice.intent = refused.intent if len(refused.intent) == KEY_BYTES else b""
    rpc = refused.action.rpc
    notice.action.rpc = rpc if 1 <= len(rpc) <= MAX_TEXT_CHARS else f"/{refused.producer.id}/append"
    notice.result.status, notice.result.code = "error", error.reason
    facts = {
        "refused.receipt": receipt_id(refused.idempotency_key)[:MAX_TEXT_CHARS],
        "refused.type": refused.type if _NAME.fullmatch(refused.type) else "",
        "refused.boot": refused.producer.boot.hex()[:MAX_TEXT_CHARS],
        "refused.sequence": str(refused.producer.sequence),
        "refused.field": error.field[:MAX_TEXT_CHARS] if isinstance(error, InvalidArgumentError) else "",
    }
    for key, value in facts.items():
        if value:
            notice.attributes.add(key=key, value=value)
    return notice


def without_content_of(data: bytes, subject_key_id: str, tenant: str) -> bytes:
    """A waiting record as it may be delivered after its subject was erased: unchanged if it is another's.

    Of the subject's own, payloads are taken out, so that the log can neither seal nor commit to them.
    """
    record = audit_pb2.Record.FromString(data)
    if (record.subject_key_id, record.tenant) != (subject_key_id, tenant) or not record.payloads:
        return data
    del record.payloads[:]
    if len(record.attributes) < MAX_ATTRIBUTES:
        record.attributes.add(key=ERASED_ATTRIBUTE, value="true")
    return record.SerializeToString()

"""The privacy RPCs: whom to erase, what to hold, and for whom the gateway asks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeVar

from kala.audit.canonical import MAX_INTEGER
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.common.v1 import options_pb2
from kala.errors import InvalidArgumentError, PermissionDeniedError
from services.audit.once import LoggedOnce
from services.audit.privacy.erasures import StoreReport
from services.audit.privacy.steps import Asker, ErasureOrder, Privacy
from services.audit.records import KEY_BYTES
from services.common.peers import Context
from services.common.principals import principal_of

_T = TypeVar("_T")

MIN_REASON_CHARS: Final = 8
MAX_REASON_CHARS: Final = 1_024
MAX_STORES: Final = 32
MAX_REMAINING: Final = 256
MAX_NAME_CHARS: Final = 256
_SUBJECT: Final = re.compile(r"subjects/([0-9a-f]{64})")
_HOLD: Final = re.compile(r"holds/([0-9a-f]{32})")
_STORE: Final = re.compile(r"[a-z0-9_.]{1,48}")
# What the log erases itself; nobody else can report it.
_OWN_STORES: Final = "audit."


class AuditPrivacyServicer(audit_pb2_grpc.AuditPrivacyServiceServicer):
    """Serves erasures and holds to the gateway, for principals who hold the scope audit.erase."""

    def __init__(self, privacy: Privacy) -> None:
        self._privacy = privacy

    async def EraseSubject(
        self, request: audit_pb2.EraseSubjectRequest, context: Context
    ) -> audit_pb2.EraseSubjectResponse:
        """Destroys a subject's keys; with nothing awaited, certifies it."""
        order = ErasureOrder(
            _match("name", request.name, _SUBJECT),
            _reason(request.reason),
            _request_id(request.request_id),
            _reports(request.elsewhere),
            [_name("awaited", name) for name in _at_most(MAX_STORES, "awaited", request.awaited)],
        )
        erased = await self._privacy.erase(order, _asker(context))
        return audit_pb2.EraseSubjectResponse(
            certificate=erased.certificate,
            signature=erased.signature,
            stores=[
                audit_pb2.ErasedStore(store=one.store, items=one.items, remaining=one.remaining)
                for one in erased.stores
            ],
            receipt=None if erased.entry is None else _receipt(erased.entry),
        )

    async def PlaceHold(
        self, request: audit_pb2.PlaceHoldRequest, context: Context
    ) -> audit_pb2.PlaceHoldResponse:
        """Holds a subject's content."""
        subject = _match("name", request.name, _SUBJECT)
        hold_id, entry = await self._privacy.place_hold(subject, _reason(request.reason), _asker(context))
        return audit_pb2.PlaceHoldResponse(hold=f"holds/{hold_id}", receipt=_receipt(entry))

    async def ReleaseHold(
        self, request: audit_pb2.ReleaseHoldRequest, context: Context
    ) -> audit_pb2.ReleaseHoldResponse:
        """Ends a hold."""
        hold_id = _match("name", request.name, _HOLD)
        entry = await self._privacy.release_hold(hold_id, _reason(request.reason), _asker(context))
        return audit_pb2.ReleaseHoldResponse(hold=request.name, receipt=_receipt(entry))


def _asker(context: Context) -> Asker:
    principal = principal_of(context)
    if options_pb2.SCOPE_AUDIT_ERASE not in principal.scopes:
        raise PermissionDeniedError(
            "the principal does not hold the scope audit.erase", reason="SCOPE_MISSING"
        )
    return Asker(principal.id, principal.tenant)


def _receipt(entry: LoggedOnce) -> audit_pb2.Receipt:
    return audit_pb2.Receipt(
        name=f"receipts/rcpt_{entry.key.hex()}",
        index=entry.index,
        leaf_hash=entry.leaf_hash,
        proof=entry.proof,
        created=entry.created,
    )


def _reports(stores: Iterable[audit_pb2.ErasedStore]) -> list[StoreReport]:
    reports = []
    for one in _at_most(MAX_STORES, "elsewhere", stores):
        if _STORE.fullmatch(one.store) is None or one.store.startswith(_OWN_STORES):
            raise InvalidArgumentError(
                "elsewhere.store", f"must match {_STORE.pattern} and not begin with audit."
            )
        if one.items > MAX_INTEGER:
            raise InvalidArgumentError("elsewhere.items", f"must be at most {MAX_INTEGER}")
        names = _at_most(MAX_REMAINING, "elsewhere.remaining", one.remaining)
        reports.append(
            StoreReport(one.store, one.items, [_name("elsewhere.remaining", name) for name in names])
        )
    return reports


def _at_most(limit: int, field: str, values: Iterable[_T]) -> list[_T]:
    listed = list(values)
    if len(listed) > limit:
        raise InvalidArgumentError(field, f"at most {limit}")
    return listed


def _name(field: str, name: str) -> str:
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise InvalidArgumentError(field, f"must each have 1 to {MAX_NAME_CHARS} characters")
    return name


def _reason(reason: str) -> str:
    if not MIN_REASON_CHARS <= len(reason.strip()) <= len(reason) <= MAX_REASON_CHARS:
        raise InvalidArgumentError("reason", f"must have {MIN_REASON_CHARS} to {MAX_REASON_CHARS} characters")
    return reason


def _request_id(request_id: bytes) -> bytes:
    if len(request_id) != KEY_BYTES:
        raise InvalidArgumentError("request_id", f"must be {KEY_BYTES} bytes")
    return request_id


def _match(field: str, text: str, pattern: re.Pattern[str]) -> str:
    found = pattern.fullmatch(text)
    if found is None:
        raise InvalidArgumentError(field, f"must match {pattern.pattern}")
    return found[1]

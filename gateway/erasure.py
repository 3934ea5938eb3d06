"""One erasure over all parts: the log destroys its keys, then every part is asked, and only then the log certifies.

Each part's report is in the log's database before the next part is asked, so that a repeat after a crash goes on with
the same request_id. A part that cannot be asked leaves the erasure unfinished, named, and without a certificate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import grpc

from gateway.edge import Exchange
from gateway.identity import Caller, Pseudonyms
from kala.audit.v1 import audit_pb2
from kala.errors import InvalidArgumentError, KalaError, UnavailableError
from kala.gateway.v1 import gateway_pb2
from services.common.audit_client import AuditWriter
from services.common.principals import principal_metadata
from services.common.status import from_error, translated

if TYPE_CHECKING:
    from gateway.bridge import LocalHandler
    from kala.audit.v1.audit_pb2_grpc import AuditPrivacyServiceAsyncStub

ERASE: Final = "/kala.audit.v1.AuditPrivacyService/EraseSubject"
NAME: Final = "/kala.gateway.v1.SubjectsService/NameSubject"

LOG_SECONDS: Final = 60.0
"""For one step of the log: a hundred thousand payloads are emptied in seconds."""

MAX_PERSON_CHARS: Final = 512
SUBJECTS: Final = "subjects/"
KEYS: Final = "keys/"
RETRY_SECONDS: Final = 5.0

Eraser = Callable[[str, str], Awaitable[Sequence[audit_pb2.ErasedStore]]]
"""Erases what a part holds of a subject (64 hex) in a tenant, and tells what that was."""


class Erasures:
    """Serves EraseSubject for the log, and the names of persons."""

    def __init__(
        self, privacy: AuditPrivacyServiceAsyncStub, pseudonyms: Pseudonyms, parts: Mapping[str, Eraser]
    ) -> None:
        """`parts` are asked in their order, after the log."""
        self._privacy = privacy
        self._pseudonyms = pseudonyms
        self._parts = parts

    @property
    def handlers(self) -> dict[str, LocalHandler]:
        """Give the RPCs by name, for the bridge."""
        return {ERASE: self.erase, NAME: self.name}

    async def erase(
        self, request: audit_pb2.EraseSubjectRequest, caller: Caller, _exchange: Exchange
    ) -> audit_pb2.EraseSubjectResponse:
        """Erase a person everywhere; UnavailableError, reason ERASURE_UNFINISHED, names the parts that failed."""
        if request.elsewhere or request.awaited:
            field = "elsewhere" if request.elsewhere else "awaited"
            raise InvalidArgumentError(field, "is set by the gateway, from what the parts answer")
        waiting = list(self._parts)
        # Checks the hold, logs the intent and destroys the keys; a finished erasure is answered again.
        response = await self._tell(request, caller, [], waiting)
        failed: dict[str, KalaError] = {}
        for part, erase in self._parts.items() if not response.certificate else ():
            try:
                erased = await erase(request.name.removeprefix(SUBJECTS), caller.tenant)
            except (grpc.RpcError, KalaError) as error:
                failed[part] = from_error(error) if isinstance(error, grpc.RpcError) else error
                continue
            waiting.remove(part)
            response = await self._tell(request, caller, erased, waiting)
        if failed:
            raise _unfinished(request, failed)
        if not response.certificate:
            # No part is deployed beside the log.
            response = await self._tell(request, caller, [], [])
        return response

    async def name(
        self, request: gateway_pb2.NameSubjectRequest, caller: Caller, _exchange: Exchange
    ) -> gateway_pb2.NameSubjectResponse:
        """Give the name of a person of the caller's tenant."""
        match request.WhichOneof("who"):
            case "person" if 1 <= len(request.person) <= MAX_PERSON_CHARS:
                subject = self._pseudonyms.person(caller.tenant, request.person)
            case "key" if request.key.startswith(KEYS) and len(request.key) > len(KEYS):
                subject = self._pseudonyms.key(caller.tenant, request.key.removeprefix(KEYS))
            case None:
                raise InvalidArgumentError("who", "needs `person` or `key`")
            case field:
                raise InvalidArgumentError(
                    field, f"must be 1 to {MAX_PERSON_CHARS} characters, a key spelled {KEYS}<id>"
                )
        return gateway_pb2.NameSubjectResponse(name=SUBJECTS + subject)

    async def _tell(
        self,
        request: audit_pb2.EraseSubjectRequest,
        caller: Caller,
        erased: Sequence[audit_pb2.ErasedStore],
        waiting: Sequence[str],
    ) -> audit_pb2.EraseSubjectResponse:
        step = audit_pb2.EraseSubjectRequest(
            name=request.name,
            reason=request.reason,
            request_id=request.request_id,
            elsewhere=erased,
            awaited=waiting,
        )
        with translated():
            return await self._privacy.EraseSubject(
                step, timeout=LOG_SECONDS, metadata=principal_metadata(caller.principal)
            )


def spool_eraser(writer: AuditWriter) -> Eraser:
    """Erases the content of records that wait in this gateway's spool."""

    async def erase(subject: str, tenant: str) -> Sequence[audit_pb2.ErasedStore]:
        return [
            audit_pb2.ErasedStore(store="gateway.spool", items=await writer.erase_subject(subject, tenant))
        ]

    return erase


def _unfinished(request: audit_pb2.EraseSubjectRequest, failed: Mapping[str, KalaError]) -> UnavailableError:
    parts = "; ".join(f"{part}: {error.reason}, {error.message}" for part, error in failed.items())
    return UnavailableError(
        f"the erasure is not finished and has no certificate; repeat it with request_id {request.request_id.hex()}. "
        f"Not erased: {parts}",
        reason="ERASURE_UNFINISHED",
        retry_after_seconds=RETRY_SECONDS,
    )

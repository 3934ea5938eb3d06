"""Erasing a person's content and holding it: the order of steps, so that a kill between any two loses and doubles nothing.

An erasure is logged before anything is destroyed (`erasure.intent`) and when all is done (`erasure.outcome`, whose leaf
refers to the certificate); one that never ends stays an intent without outcome, which gaps name. The same request_id
goes on where the last call stopped. Whoever asks is named by the gateway and confined to its tenant here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, ParamSpec, TypeVar

from kala.audit.erasure import SCHEMA, certificate_of, parse_certificate, sign_certificate
from kala.audit.note import Signer
from kala.audit.times import format_time
from kala.audit.v1 import audit_pb2
from kala.errors import AlreadyExistsError, KalaError, NotFoundError
from services.audit.once import LoggedOnce, OnceRecords, key_of
from services.audit.privacy.erasures import ErasureRow, Progress, StoreReport
from services.audit.privacy.store import PrivacyStore

HOLD_BYTES: Final = 16
ERASE_RPC: Final = "/kala.audit.v1.AuditPrivacyService/EraseSubject"
PLACE_RPC: Final = "/kala.audit.v1.AuditPrivacyService/PlaceHold"
RELEASE_RPC: Final = "/kala.audit.v1.AuditPrivacyService/ReleaseHold"

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Asker:
    """On whose behalf: the id of an API key and its tenant."""

    id: str
    tenant: str


@dataclass(frozen=True, slots=True)
class ErasureOrder:
    """What to erase, what was erased elsewhere since the last call, and which parts are still to come."""

    subject: str
    reason: str
    request_id: bytes
    elsewhere: Sequence[StoreReport] = ()
    awaited: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Erased:
    """How far an erasure is; certificate, signature and entry only when it is finished."""

    stores: Sequence[StoreReport]
    certificate: bytes = b""
    signature: str = ""
    entry: LoggedOnce | None = None


class Privacy:
    """Erasures and holds of one log; the databases work in a thread of their own."""

    def __init__(
        self,
        store: PrivacyStore,
        once: OnceRecords,
        signer: Signer,
        *,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._once = once
        self._signer = signer
        self._random = random
        self._thread = ThreadPoolExecutor(1, "audit-privacy")
        # One erasure at a time: the steps of two with one id would take turns.
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Waits for the step that runs."""
        await asyncio.to_thread(self._thread.shutdown)

    async def erase(self, order: ErasureOrder, asker: Asker) -> Erased:
        """Destroys the subject's keys and, when nothing is awaited, certifies it.

        `FailedPreconditionError` names a legal hold; `NotFoundError` for a subject of another tenant;
        `AlreadyExistsError` when the request_id is another subject's.
        """
        async with self._turn:
            row = await self._run(self._store.erasure, order.request_id)
            if row is None or row.signature is None:
                row = await self._destroy(order, asker)
                if row.signature is None and order.awaited:
                    return Erased(_reports(row.progress))
                if row.signature is None:
                    row = await self._seal(row)
            return await self._finish(row, order, asker)

    async def place_hold(self, subject: str, reason: str, asker: Asker) -> tuple[str, LoggedOnce]:
        """Forbids erasure and expiry of the subject's content; the hold's id and its entry."""
        await self._run(self._require_own, subject, asker)
        hold_id = self._random(HOLD_BYTES).hex()
        # In force before it is logged: what must be kept is kept even if the log is away a moment later.
        await self._run(self._store.place_hold, hold_id, subject)
        try:
            entry = await self._log_once(
                "hold.placed", PLACE_RPC, hold_id.encode(), subject, asker, reason, hold_id
            )
        except KalaError:
            await self._run(self._store.release_hold, hold_id)
            raise
        return hold_id, entry

    async def release_hold(self, hold_id: str, reason: str, asker: Asker) -> LoggedOnce:
        """Ends a hold, once it is logged that it ends; again, it gives the same entry."""
        hold = await self._run(self._store.hold, hold_id)
        if hold is None:
            raise NotFoundError(f"there is no holds/{hold_id}")
        await self._run(self._require_own, hold.subject, asker)
        await self._require_placed_by(hold_id, asker.tenant)
        entry = await self._log_once(
            "hold.released", RELEASE_RPC, hold_id.encode(), hold.subject, asker, reason, hold_id
        )
        await self._run(self._store.release_hold, hold_id)
        return entry

    async def _destroy(self, order: ErasureOrder, asker: Asker) -> ErasureRow:
        await self._run(self._require_own, order.subject, asker)
        # Asked before it is logged, so that what is refused leaves no intent; and again when the key is destroyed.
        await self._run(self._store.require_free, order.subject)
        row = await self._run(self._store.begin, order.request_id, order.subject, asker.tenant)
        _require_same(row, order, asker)
        if row.signature is None:
            record = _record("erasure.intent", ERASE_RPC, order.subject, asker)
            facts = {**_facts(asker, order.reason), "request_id": order.request_id.hex()}
            await self._once.append(record, facts, key_of("erasure.intent", order.request_id))
            row = await self._run(self._store.destroy, order.request_id, order.elsewhere)
        if row.signature is None:
            await self._run(self._store.empty_ciphertexts, row.progress.keys)
            await self._run(self._store.scrub)
        return row

    async def _seal(self, row: ErasureRow) -> ErasureRow:
        progress = row.progress
        certificate = certificate_of(
            {
                "schema": SCHEMA,
                "log": self._signer.verifier.name,
                "request_id": row.request_id.hex(),
                "subject": row.subject,
                "tenant": progress.tenant,
                "erased_at": format_time(progress.erased_at),
                "covers_entries_below": progress.covers,
                "stores": [
                    {"store": one.store, "items": one.items, "remaining": list(one.remaining)}
                    for one in _reports(progress)
                ],
                "receipt": f"rcpt_{key_of('erasure.outcome', row.request_id).hex()}",
            }
        )
        signature = sign_certificate(certificate, self._signer)
        return await self._run(self._store.seal, row.request_id, certificate, signature)

    async def _finish(self, row: ErasureRow, order: ErasureOrder, asker: Asker) -> Erased:
        """Logs a sealed erasure; only then may its certificate be given."""
        _require_same(row, order, asker)
        value = parse_certificate(row.certificate)
        stores = [StoreReport(one["store"], one["items"], one["remaining"]) for one in value["stores"]]
        record = _record("erasure.outcome", ERASE_RPC, row.subject, asker)
        record.intent = key_of("erasure.intent", row.request_id)
        name = f"certificates/{row.request_id.hex()}"
        digest = sha256(row.certificate).digest()
        record.references.add(name=name, sha256=digest, bytes=len(row.certificate))
        facts = {"by": asker.id, "request_id": row.request_id.hex()}
        facts.update({f"items.{one.store}": str(one.items) for one in stores})
        entry = await self._once.append(record, facts, key_of("erasure.outcome", row.request_id))
        if row.index is None:
            await self._run(self._store.finish, row.request_id, entry.index)
        return Erased(stores, row.certificate, row.signature or "", entry)

    async def _log_once(
        self, kind: str, rpc: str, name: bytes, subject: str, asker: Asker, reason: str, hold_id: str
    ) -> LoggedOnce:
        facts = {**_facts(asker, reason), "hold": f"holds/{hold_id}"}
        return await self._once.append(_record(kind, rpc, subject, asker), facts, key_of(kind, name))

    async def _require_placed_by(self, hold_id: str, tenant: str) -> None:
        """Raises `NotFoundError` for a hold of another tenant: its entry says whose it is."""
        # One that was killed before it was logged may be ended by anybody who knows its id.
        placed = await self._once.find(key_of("hold.placed", hold_id.encode()), "hold.placed")
        if placed is not None and placed.leaf["tenant"] != tenant:
            raise NotFoundError(f"there is no holds/{hold_id}")

    def _require_own(self, subject: str, asker: Asker) -> None:
        """Raises `NotFoundError` when the subject's content is another tenant's, as if it did not exist."""
        tenant = self._store.tenant_of(subject)
        if tenant not in {None, asker.tenant}:
            raise NotFoundError("there is no such subject in your tenant")

    async def _run(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))


def _require_same(row: ErasureRow, order: ErasureOrder, asker: Asker) -> None:
    tenant = row.progress.tenant if row.signature is None else parse_certificate(row.certificate)["tenant"]
    if row.subject != order.subject or tenant != asker.tenant:
        raise AlreadyExistsError(
            f"request_id {order.request_id.hex()} is taken by another erasure", reason="REQUEST_ID_TAKEN"
        )


def _record(kind: str, rpc: str, subject: str, asker: Asker) -> audit_pb2.Record:
    record = audit_pb2.Record(type=kind, tenant=asker.tenant, subject_key_id=subject)
    record.action.rpc = rpc
    record.result.status = "ok"
    return record


def _facts(asker: Asker, reason: str) -> dict[str, str]:
    return {"by": asker.id, "reason": reason}


def _reports(progress: Progress) -> list[StoreReport]:
    return [
        StoreReport(store, items, progress.remaining.get(store, ()))
        for store, items in sorted(progress.items.items())
    ]

"""What ethics itself writes into the transparency log: which constitution came into force, and whom it turned away."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog

from kala.audit.v1 import audit_pb2
from kala.errors import KalaError, UnavailableError
from kala.ethics.constitution import VerifiedConstitution
from services.common.audit_client import Appended
from services.common.peers import ETHICS, Peer

TENANT: Final = "kala"
"""The tenant of a service's own events."""

FIRST_RETRY_SECONDS: Final = 0.5
LAST_RETRY_SECONDS: Final = 30.0
REMINDER_SECONDS: Final = 86_400.0
"""Once a day: often enough to be met, seldom enough not to be filtered away."""

LISTED_KEYS: Final = 32
"""Key ids that fit into one attribute of a record; the number of signers beside them is exact."""

log = structlog.get_logger()


class Writer(Protocol):
    """What is needed of the audit writer."""

    async def append(self, record: audit_pb2.Record) -> Appended:
        """Make the record durable or raise UnavailableError."""
        ...


class Announcements:
    """Writes ethics' own records; without a writer it only logs."""

    def __init__(
        self,
        writer: Writer | None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        today: Callable[[], dt.date] = lambda: dt.datetime.now(dt.UTC).date(),
    ) -> None:
        self._writer = writer
        self._sleep = sleep
        self._today = today

    async def in_force(self, verified: VerifiedConstitution) -> None:
        """Log which constitution judges from now on; retries until the record is durable."""
        manifest = verified.manifest
        facts = {
            "constitution.digest": verified.digest.hex(),
            "constitution.keys": _listed(verified.key_ids),
            "constitution.previous": "none" if manifest.previous is None else manifest.previous.hex(),
            "constitution.review": "due" if manifest.review_problem(self._today()) else "not due",
            "constitution.review_by": "none"
            if manifest.review_by is None
            else manifest.review_by.isoformat(),
            "constitution.signers": str(len(verified.key_ids)),
            "constitution.threshold": str(verified.threshold),
            "constitution.trust": "development" if verified.development else "pinned",
            "constitution.trusted_keys": str(verified.trusted_keys),
            "constitution.version": verified.version,
            "reason": verified.banner or "the constitution was verified at start",
        }
        report = log.warning if verified.development else log.info
        report("constitution in force", **{name.replace(".", "_"): value for name, value in facts.items()})
        record = audit_pb2.Record(type="service.event", tenant=TENANT)
        record.action.rpc = f"/{ETHICS}/start"
        record.result.status = "ok"
        for key, value in facts.items():
            record.attributes.add(key=key, value=value)
        await self._append_at_last(record)

    async def remind_of_review(self, verified: VerifiedConstitution) -> None:
        """Return never; warn once a day while people should look at the laws again. It stops nothing: see decision 6."""
        while True:
            problem = verified.manifest.review_problem(self._today())
            if problem is not None:
                log.warning("the constitution is due for review", problem=problem)
            await self._sleep(REMINDER_SECONDS)

    async def denied(self, method: str, peer: Peer | None, error: KalaError) -> None:
        """Log a call that was turned away; the call fails either way, so a log that is away does not matter to it."""
        if self._writer is None:
            return
        record = audit_pb2.Record(type="rpc.denied", tenant=TENANT)
        record.action.rpc = method
        record.result.status = "refused"
        record.result.code = error.reason
        record.attributes.add(key="peer", value="unknown" if peer is None else peer.name)
        try:
            await self._writer.append(record)
        except UnavailableError as failure:
            log.warning("a denied call was not recorded", method=method, problem=failure.message)

    async def _append_at_last(self, record: audit_pb2.Record) -> None:
        wait = FIRST_RETRY_SECONDS
        while self._writer is not None:
            try:
                await self._writer.append(record)
            except UnavailableError:
                await self._sleep(wait)
                wait = min(2 * wait, LAST_RETRY_SECONDS)
            else:
                return


def _listed(key_ids: Sequence[str]) -> str:
    return " ".join(key_ids[:LISTED_KEYS])

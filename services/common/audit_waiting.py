"""A record that waits in its writer for an answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from kala.audit.v1 import audit_pb2
from kala.errors import KalaError, UnavailableError
from services.common.audit_types import Appended, AppendStatus, AuditPolicy

UNAVAILABLE_REASON: Final = "AUDIT_UNAVAILABLE"


@dataclass(slots=True, eq=False)
class Waiting:
    """A stamped record, what may become of it, and the future that its caller waits for; the first answer holds."""

    record: audit_pb2.Record
    policy: AuditPolicy
    future: asyncio.Future[Appended]
    size: int
    # The caller was told that the record is not durable; one that is not sent yet need not be sent any more.
    is_expired: bool = False

    def log(self, receipt: audit_pb2.Receipt) -> None:
        """The log has it."""
        openings = {opening.kind: opening.salt for opening in receipt.openings}
        self._resolve(
            Appended(
                self.record.idempotency_key,
                AppendStatus.LOGGED,
                receipt.created,
                receipt.index,
                receipt.proof,
                openings,
                receipt.leaf_hash,
            )
        )

    def spool(self) -> None:
        """The spool has it."""
        self._resolve(Appended(self.record.idempotency_key, AppendStatus.SPOOLED))

    def fail(self, error: KalaError) -> None:
        """It is durable nowhere, as far as the writer knows."""
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self, seconds: float) -> None:
        """The time of its caller is over."""
        self.is_expired = True
        self.fail(UnavailableError(f"the log did not answer within {seconds} s", reason=UNAVAILABLE_REASON))

    def _resolve(self, appended: Appended) -> None:
        if not self.future.done():
            self.future.set_result(appended)

"""Keeps the newest checkpoint that this process was shown, outside the log, so that a log that is cut or forked is noticed.

A log can prove that nothing before its head changed; only somebody who remembers a later head can prove that the end is
missing. The pin moves forward over consistency proofs alone: a log that shrank or forked leaves it where it was.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.note import Verifier
from kala.audit.proof import verify_consistency
from kala.audit.v1 import audit_pb2
from kala.errors import FailedPreconditionError, KalaError, VerificationError
from services.common.status import translated

if TYPE_CHECKING:
    from kala.audit.v1.audit_pb2_grpc import AuditReadServiceAsyncStub

INTERVAL_SECONDS: Final = 1.0
"""What a thief of the log's end may take unnoticed: one second of entries whose receipts nobody kept."""

TIMEOUT_SECONDS: Final = 5.0


class CheckpointPin:
    """One file with one signed checkpoint, as `kala audit verify` reads it."""

    def __init__(
        self,
        path: Path,
        *,
        trusted: Sequence[Verifier],
        log: AuditReadServiceAsyncStub,
        seen: Callable[[], str | None],
    ) -> None:
        """`seen` gives the newest checkpoint that came with a receipt, or None before the first."""
        self._path = path
        self._trusted = trusted
        self._log = log
        self._seen = seen
        self._pinned = ""

    async def follow(self) -> None:
        """Move the pin forward until cancelled; what it cannot move over is logged as an error."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                await self.advance()
            except VerificationError as error:
                structlog.get_logger().error(
                    "the log does not follow from what it was", problem=error.message
                )
            except (KalaError, OSError) as error:
                structlog.get_logger().warning("the checkpoint was not pinned", problem=str(error))

    async def advance(self) -> None:
        """Pin the newest checkpoint; raises VerificationError when it does not follow from the pinned one."""
        note = self._seen()
        if note is None or note == self._pinned:
            return
        new = open_checkpoint(note, self._trusted)
        old = self._read()
        if old is not None and new.size != old.size:
            await self._require_growth(old, new)
        elif old is not None and new.root != old.root:
            raise VerificationError(f"two different logs of size {new.size} are signed")
        self._write(note)
        self._pinned = note

    async def _require_growth(self, old: Checkpoint, new: Checkpoint) -> None:
        if new.size < old.size:
            raise VerificationError(f"the log had {old.size} entries and now has {new.size}")
        request = audit_pb2.GetConsistencyProofRequest(old_size=old.size, new_size=new.size)
        with translated():
            proof = await self._log.GetConsistencyProof(request, timeout=TIMEOUT_SECONDS)
        verify_consistency(old.size, new.size, list(proof.hashes), old.root, new.root)

    def _read(self) -> Checkpoint | None:
        if not self._path.exists():
            return None
        return open_checkpoint(self._path.read_text(), self._trusted)

    def _write(self, note: str) -> None:
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(note)
        fresh.replace(self._path)


def load_verifiers(path: Path) -> list[Verifier]:
    """Read a log's public keys, one vkey line each; raises FailedPreconditionError naming the file."""
    try:
        lines = path.read_text().split()
        return [Verifier.parse(line) for line in lines]
    except (OSError, UnicodeDecodeError, VerificationError) as error:
        raise FailedPreconditionError(f"{path} holds no verifier key of a log: {error}") from error

"""The signed list of adapters that may no longer serve: a file that only grows, which inference reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.adapter_pb2 import Revocation, RevocationList, SignedRevocationList
from kala.errors import FailedPreconditionError, VerificationError
from services.common.adapter_manifest import (
    MAX_REVOCATIONS_BYTES,
    SCHEMA,
    sign_revocations,
    verify_revocations,
)
from services.common.signatures import PublicKeys
from services.common.strict_parsing import parse_signed

MAX_REVOCATIONS: Final = 100_000
MAX_REASON_CHARS: Final = 512


class Revocations:
    """All revocations of this trainer, on disk and in memory; raises at its start where the file does not hold."""

    def __init__(
        self,
        path: Path,
        private_key: Ed25519PrivateKey,
        trusted: PublicKeys,
        *,
        now: Callable[[], Timestamp],
        stored: SignedRevocationList | None = None,
    ) -> None:
        """`trusted` are this trainer's public keys, an earlier one's included; `stored` is the list in the database."""
        self._path = path
        self._private_key = private_key
        self._now = now
        if path.exists():
            self._list, self._signed = _read(path, trusted)
        elif stored is None:
            # An empty list: inference tells "nothing is revoked" from "the list is gone".
            self._list = RevocationList(schema=SCHEMA, serial=1, signed_at=now())
            self._signed = sign_revocations(self._list, private_key)
            self._write(self._signed)
        if stored is not None:
            self._take_newer(stored, trusted)

    @property
    def signed(self) -> SignedRevocationList:
        """The list as it stands."""
        return self._signed

    @property
    def serial(self) -> int:
        """The list's number."""
        return self._list.serial

    @property
    def revoked(self) -> frozenset[bytes]:
        """The digests of revoked adapters."""
        return frozenset(item.adapter_digest for item in self._list.revocations)

    def add(self, reasons: Mapping[bytes, str]) -> SignedRevocationList:
        """Revokes adapters by digest, each for a reason, and gives the new list; those that are revoked stay as they are.

        The list is on disk when this returns. Blocks; callers take turns.
        """
        fresh = {digest: reason for digest, reason in reasons.items() if digest not in self.revoked}
        if not fresh:
            return self._signed
        if len(self._list.revocations) + len(fresh) > MAX_REVOCATIONS:
            raise FailedPreconditionError(
                f"the list holds {MAX_REVOCATIONS} revocations; change the trainer's key, which ends all old adapters"
            )
        grown = RevocationList()
        grown.CopyFrom(self._list)
        now = self._now()
        for digest, reason in fresh.items():
            grown.revocations.append(
                Revocation(adapter_digest=digest, reason=reason[:MAX_REASON_CHARS], revoked_at=now)
            )
        grown.serial += 1
        grown.signed_at.CopyFrom(now)
        signed = sign_revocations(grown, self._private_key)
        self._write(signed)
        self._list, self._signed = grown, signed
        return signed

    def _take_newer(self, stored: SignedRevocationList, trusted: PublicKeys) -> None:
        """A file that was lost or put back from an older copy must not let revoked adapters serve again."""
        known = _verified("revocation list in the database", stored, trusted)
        if not self._path.exists() or known.serial > self._list.serial:
            self._list, self._signed = known, stored
            self._write(stored)

    def _write(self, signed: SignedRevocationList) -> None:
        draft = self._path.with_name(f".{self._path.name}.new")
        with draft.open("wb") as file:
            file.write(signed.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        descriptor = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path, trusted: PublicKeys) -> tuple[RevocationList, SignedRevocationList]:
    what = f"revocation list {path}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FailedPreconditionError(f"{what} cannot be read: {error.strerror}") from error
    try:
        signed = parse_signed(what, data, SignedRevocationList, max_bytes=2 * MAX_REVOCATIONS_BYTES)
    except VerificationError as error:
        raise _damaged(error) from error
    return _verified(what, signed, trusted), signed


def _verified(what: str, signed: SignedRevocationList, trusted: PublicKeys) -> RevocationList:
    try:
        return verify_revocations(signed, trusted)
    except VerificationError as error:
        raise _damaged(VerificationError(f"{what}: {error.message}")) from error


def _damaged(error: VerificationError) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{error.message}; restore it from a backup, never start with an empty one: revoked adapters would "
        "serve again",
        reason="REVOCATIONS_DAMAGED",
    )

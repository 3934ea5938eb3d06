"""What this process trusts of adapters, read from the files that the operator pinned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kala.audit.note import Verifier
from kala.common.v1.adapter_pb2 import SignedRevocationList
from kala.common.v1.measurement_pb2 import MEASURER_ETHICS, MEASURER_TOOLS
from kala.errors import FailedPreconditionError, KalaError
from services.common.adapter_manifest import (
    MAX_REVOCATIONS_BYTES,
    AdapterTrust,
    ServingPolicy,
    verify_revocations,
)
from services.common.gate_profile import Profile, read_profile
from services.common.gates import GateTrust
from services.common.keys import load_public_keys
from services.common.signatures import PublicKeys
from services.common.strict_parsing import parse_signed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrustFiles:
    """Where the operator pinned what adapters are held against."""

    trainer_keys: tuple[Path, ...] = ()
    ethics_keys: tuple[Path, ...] = ()
    tools_keys: tuple[Path, ...] = ()
    log_key: Path | None = None
    profiles: tuple[Path, ...] = ()
    revocations: Path | None = None
    allows_demo_profiles: bool = False


class Trust:
    """The pinned keys and profiles, read once, and the revocations, read again whenever their file changed."""

    def __init__(self, files: TrustFiles) -> None:
        self._files = files
        self._trainer: PublicKeys = load_public_keys(files.trainer_keys)
        self._profiles: Mapping[bytes, Profile] = _profiles(files.profiles)
        self._keys = AdapterTrust(
            self._trainer,
            GateTrust(
                () if files.log_key is None else _log_keys(files.log_key),
                {
                    MEASURER_ETHICS: load_public_keys(files.ethics_keys),
                    MEASURER_TOOLS: load_public_keys(files.tools_keys),
                },
            ),
        )
        self._revocations = _Revocations(files.revocations, self._trainer)
        # A list that cannot be read stops the process at its start rather than the first request.
        self._revocations.current()

    def keys(self) -> AdapterTrust:
        """Give the keys; raises FailedPreconditionError naming the settings without which no adapter can be verified."""
        missing = [
            name
            for name, value in (
                ("TRAINER_PUBLIC_KEYS", self._files.trainer_keys),
                ("AUDIT_VKEY_FILE", self._files.log_key),
                ("GATE_PROFILES", self._files.profiles),
            )
            if not value
        ]
        if missing:
            names = ", ".join(f"KALA_INFERENCE_{name}" for name in missing)
            raise FailedPreconditionError(
                f"no adapter can be verified here: set {names}", reason="ADAPTERS_NOT_CONFIGURED"
            )
        return self._keys

    def policy(self, *, base_digest: bytes, constitution_digest: bytes) -> ServingPolicy:
        """Say what may serve on this base under the constitution that is in force now."""
        return ServingPolicy(
            base_digest=base_digest,
            profiles=self._profiles,
            constitution_digests=frozenset({constitution_digest}),
            revoked=self.revoked(),
            demo_allowed=self._files.allows_demo_profiles,
        )

    def revoked(self) -> frozenset[bytes]:
        """Give the digests of adapters that may no longer serve; raises KalaError where the list does not hold."""
        return self._revocations.current()


@dataclass(slots=True)
class _Revocations:
    """A signed list in a file; a list older than one seen before is refused."""

    path: Path | None
    trusted: PublicKeys
    _seen: tuple[int, int, int] | None = None
    _serial: int = 0
    _revoked: frozenset[bytes] = field(default_factory=frozenset)

    def current(self) -> frozenset[bytes]:
        if self.path is None:
            return self._revoked
        try:
            found = self.path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self._seen:
                self._read(self.path)
                self._seen = stamp
        except OSError as error:
            raise FailedPreconditionError(
                f"revocation list {self.path} cannot be read: {error.strerror}",
                reason="REVOCATIONS_UNREADABLE",
            ) from error
        return self._revoked

    def _read(self, path: Path) -> None:
        with path.open("rb") as file:
            data = file.read(2 * MAX_REVOCATIONS_BYTES + 1)
        signed = parse_signed(
            "revocation list", data, SignedRevocationList, max_bytes=2 * MAX_REVOCATIONS_BYTES
        )
        revocations = verify_revocations(signed, self.trusted, min_serial=self._serial)
        self._serial = revocations.serial
        self._revoked = frozenset(item.adapter_digest for item in revocations.revocations)


def _profiles(paths: Sequence[Path]) -> dict[bytes, Profile]:
    profiles = [_parsed(path, "a gate profile", read_profile) for path in paths]
    return {profile.digest: profile for profile in profiles}


def _log_keys(path: Path) -> list[Verifier]:
    """Read a log's public keys, one vkey line each."""
    return _parsed(
        path, "verifier keys of a log", lambda data: [Verifier.parse(line) for line in data.decode().split()]
    )


def _parsed(path: Path, what: str, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error.strerror}") from error
    except (KalaError, ValueError) as error:
        raise FailedPreconditionError(f"{path} does not hold {what}: {error}") from error

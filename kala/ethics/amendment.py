"""Make a new version of the constitution: a manifest that names the version it amends, then one signature after another.

The steps are apart because people are: whoever edits prepares, each maintainer reads the difference and signs on a machine
of their own, and an operator's pinned keys decide whether it is enough. Nothing here touches a running service; a
restart brings the new version into force.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from kala.errors import ConstitutionError, InvalidArgumentError
from kala.ethics.amendment_diff import FileChange, LawChange, file_changes, law_changes
from kala.ethics.constitution import (
    VerifiedConstitution,
    check_promises,
    read_manifest,
    read_unverified,
)
from kala.ethics.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    build_manifest,
    key_id,
    parse_manifest,
)
from kala.ethics.signatures import (
    Standing,
    TrustPolicy,
    parse_signatures,
    sign_manifest,
    standings_of,
)


@dataclass(frozen=True, slots=True)
class Amendment:
    """A version that waits for signatures, and what it changes."""

    manifest: Manifest
    laws: tuple[LawChange, ...]
    files: tuple[FileChange, ...]


@dataclass(frozen=True, slots=True)
class Signing:
    """How far a version is on its way to being signed; `policy` unset means that nobody said whose signatures count."""

    manifest: Manifest
    standings: dict[str, Standing]
    policy: TrustPolicy | None

    @property
    def missing(self) -> int:
        """How many signatures of trusted keys it still takes."""
        if self.policy is None:
            return 0
        return max(0, self.policy.threshold - list(self.standings.values()).count(Standing.HOLDS))

    @property
    def holds(self) -> bool:
        """Whether ethics would accept its signatures: enough of them, and none broken."""
        return self.policy is not None and not self.missing and Standing.BROKEN not in self.standings.values()


def prepare(
    old: VerifiedConstitution,
    directory: Path,
    *,
    version: str,
    review_by: dt.date,
    today: dt.date,
) -> Amendment:
    """Write the manifest of the edited copy in `directory` as an amendment of `old`, unsigned, and say what it changes."""
    if version == old.version:
        raise InvalidArgumentError("version", f"must differ from the version that is amended, {old.version}")
    if review_by <= today:
        raise InvalidArgumentError("review_by", f"must be later than today, {today.isoformat()}")
    files = read_unverified(directory)
    # First what can fail: nothing is written for a version that cannot be read.
    laws, changed = law_changes(old.files, files), file_changes(old.files, files)
    manifest = write_manifest(directory, version, files, review_by=review_by, previous=old.digest)
    return Amendment(manifest, tuple(laws), tuple(changed))


def compare(old: VerifiedConstitution, directory: Path) -> Amendment:
    """What a prepared version in `directory` changes; ConstitutionError if it amends another one than `old`."""
    manifest = parse_manifest(read_manifest(directory)[0])
    check_promises(directory, manifest)
    if manifest.previous != old.digest:
        amends = "none" if manifest.previous is None else manifest.previous.hex()[:16]
        raise ConstitutionError(
            f"{MANIFEST_NAME}: version {manifest.version} amends {amends},"
            f" not version {old.version} ({old.digest.hex()[:16]})"
        )
    files = read_unverified(directory)
    return Amendment(manifest, tuple(law_changes(old.files, files)), tuple(file_changes(old.files, files)))


def write_manifest(
    directory: Path,
    version: str,
    files: dict[str, bytes],
    *,
    review_by: dt.date | None,
    previous: bytes | None,
) -> Manifest:
    """Write the manifest of these files and an empty signature file: what was signed before is signed no longer."""
    raw = build_manifest(files, version, review_by=review_by, previous=previous)
    manifest = parse_manifest(raw)
    # First the signatures go: a stop in between leaves an unsigned version, never a broken one.
    _write(directory / SIGNATURE_NAME, b"")
    _write(directory / MANIFEST_NAME, raw)
    return manifest


def sign(directory: Path, key: Ed25519PrivateKey) -> Manifest:
    """Add one key's signature, or renew it; ConstitutionError if the files are not those of the manifest."""
    raw, signatures = read_manifest(directory)
    manifest = parse_manifest(raw)
    check_promises(directory, manifest)
    line, signer = sign_manifest(raw, key), key_id(key.public_key())
    others = b"".join(
        other + b"\n"
        for other, (name, _) in zip(signatures.splitlines(), parse_signatures(signatures), strict=True)
        if name != signer
    )
    _write(directory / SIGNATURE_NAME, others + line)
    return manifest


def signing_of(directory: Path, policy: TrustPolicy | None) -> Signing:
    """Who has signed what is in `directory`; ConstitutionError if the files are not those of the manifest."""
    raw, signatures = read_manifest(directory)
    manifest = parse_manifest(raw)
    check_promises(directory, manifest)
    return Signing(manifest, standings_of(raw, signatures, policy or TrustPolicy({}, 1)), policy)


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 private key in a PEM file (PKCS 8, no password); ConstitutionError names the file otherwise."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConstitutionError(f"{path}: not a readable private key without a password: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConstitutionError(f"{path}: not an Ed25519 private key")
    return key


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConstitutionError(f"{path}: cannot be written: {error}") from error

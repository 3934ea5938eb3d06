"""Load a constitution only if every byte of it is what a key trusted from outside its directory has signed.

Trust never comes from the protected directory: in `pinned` mode it is the operator's own key files, in
`development` mode the one public key written below. So replacing laws, manifest, signature and the public
key shipped beside them, all together, still stops the load. Pure but for reading files: stdlib + cryptography.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from kala.errors import ConstitutionError
from kala.ethics.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    check_file,
    key_id,
    parse_manifest,
    verify_signatures,
)

# The public half of constitution/dev/development.key, pinned here so that a changed directory cannot bring its own.
DEVELOPMENT_PUBLIC_KEY: Final = bytes.fromhex(
    "88897cb2480d2a3957b8bbe104fb4fb9e405af6cee03d559c2f8a6af479010be"
)
# The repository keeps the development key here; it is no part of the constitution and in no wheel or image.
DEVELOPMENT_DIRECTORY: Final = "dev"
# No law is this long; the limit keeps a hostile directory from filling the memory before it is refused.
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
DEVELOPMENT_BANNER: Final = (
    "DEVELOPMENT CONSTITUTION: the laws are signed by a key that is public. Anyone could have signed them. "
    "For production sign them with your own key and set trust = pinned."
)


class TrustMode(enum.Enum):
    """Where the keys that may sign the constitution come from."""

    DEVELOPMENT = "development"
    PINNED = "pinned"


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose signature counts; build it with `development()` or `pinned()`."""

    mode: TrustMode
    key_files: tuple[Path, ...] = ()

    @classmethod
    def development(cls) -> Trust:
        """Accept only the public development key; whoever shows the result must show its banner too."""
        return cls(TrustMode.DEVELOPMENT)

    @classmethod
    def pinned(cls, *key_files: Path) -> Trust:
        """Accept only these public keys (PEM, Ed25519), kept outside the constitution's directory."""
        return cls(TrustMode.PINNED, key_files)


@dataclass(frozen=True, slots=True)
class VerifiedConstitution:
    """The exact bytes that were verified: use these and never read the directory again."""

    manifest: Manifest
    files: Mapping[str, bytes]
    key_ids: tuple[str, ...]
    development: bool

    @property
    def version(self) -> str:
        """The version that its signers gave it."""
        return self.manifest.version

    @property
    def digest(self) -> bytes:
        """SHA-256 of the manifest's bytes; names this constitution in decisions, clearances and records."""
        return self.manifest.digest

    @property
    def banner(self) -> str | None:
        """The warning to show at every start, or None when the operator's own keys signed."""
        return DEVELOPMENT_BANNER if self.development else None


def verify_constitution(directory: Path, trust: Trust) -> VerifiedConstitution:
    """The verified constitution in `directory`; ConstitutionError names the first file that is wrong.

    Every file is read once and judged by those bytes. Missing, unexpected, oversized and linked files are errors.
    """
    if not directory.is_dir():
        raise ConstitutionError(f"{directory}: there is no constitution here")
    trusted = _trusted_keys(directory, trust)
    found = dict(_read_all(directory))
    manifest_bytes = _take(found, MANIFEST_NAME)
    key_ids = verify_signatures(manifest_bytes, _take(found, SIGNATURE_NAME), trusted)
    manifest = parse_manifest(manifest_bytes)
    for path in sorted(manifest.files.keys() - found.keys()):
        raise ConstitutionError(f"{path}: missing; {MANIFEST_NAME} lists it")
    for path, content in found.items():
        if path not in manifest.files:
            raise ConstitutionError(f"{path}: unexpected; {MANIFEST_NAME} does not list it")
        check_file(path, content, manifest.files[path])
    files = types.MappingProxyType(found)
    return VerifiedConstitution(manifest, files, key_ids, trust.mode is TrustMode.DEVELOPMENT)


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The Ed25519 public key in a PEM file; ConstitutionError names the file if it holds anything else."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConstitutionError(f"{path}: not a readable public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConstitutionError(f"{path}: not an Ed25519 public key")
    return key


def _trusted_keys(directory: Path, trust: Trust) -> dict[str, Ed25519PublicKey]:
    if trust.mode is TrustMode.DEVELOPMENT:
        key = Ed25519PublicKey.from_public_bytes(DEVELOPMENT_PUBLIC_KEY)
        return {key_id(key): key}
    if not trust.key_files:
        raise ConstitutionError(
            "trusted_key_files: none given; with trust = pinned, name the public keys that may sign the constitution"
        )
    return dict(_pinned_key(directory, path) for path in trust.key_files)


def _pinned_key(directory: Path, path: Path) -> tuple[str, Ed25519PublicKey]:
    if path.resolve().is_relative_to(directory.resolve()):
        raise ConstitutionError(f"{path}: a trusted key must not come from the directory it protects")
    key = load_public_key(path)
    if key.public_bytes_raw() == DEVELOPMENT_PUBLIC_KEY:
        raise ConstitutionError(f"{path}: this is the public development key, which trust = pinned refuses")
    return key_id(key), key


def _read_all(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below the directory but the development key's folder, by its path with forward slashes."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name.split("/")[0] == DEVELOPMENT_DIRECTORY or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink() or not path.is_file():
            raise ConstitutionError(f"{name}: neither a plain file nor a folder")
        yield name, _read(path, name)


def _read(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConstitutionError(f"{name}: cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConstitutionError(f"{name}: larger than {MAX_FILE_BYTES} bytes")
    return content


def _take(files: dict[str, bytes], name: str) -> bytes:
    if name not in files:
        raise ConstitutionError(f"{name}: missing")
    return files.pop(name)

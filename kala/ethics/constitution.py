"""Load a constitution only if every byte of it is what enough keys trusted from outside its directory have signed.

Trust never comes from the protected directory: in `pinned` mode it is the operator's own key files and how many of them
it takes, in `development` mode the one public key written below. So replacing laws, manifest, signature and the public
keys shipped beside them, all together, still stops the load. Pure but for reading files: stdlib + cryptography.
"""

from __future__ import annotations

import enum
import hashlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from kala.errors import ConstitutionError
from kala.ethics.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    FileDigest,
    Manifest,
    check_file,
    key_id,
    parse_manifest,
)
from kala.ethics.signatures import TrustPolicy, verify_signatures

# The public half of constitution/dev/development.key, pinned here so that a changed directory cannot bring its own.
DEVELOPMENT_PUBLIC_KEY: Final = bytes.fromhex(
    "88897cb2480d2a3957b8bbe104fb4fb9e405af6cee03d559c2f8a6af479010be"
)
# The repository keeps the development key here; it is no part of the constitution and in no wheel or image.
DEVELOPMENT_DIRECTORY: Final = "dev"
# No law is this long; the limits keep a hostile directory from filling the memory before it is refused.
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
# The classifier's weights, the one file that needs more: a release ships at most 40 MB of them.
WEIGHTS_NAME: Final = "classifier/model.onnx"
MAX_WEIGHTS_BYTES: Final = 40 * 1024 * 1024
# Some 1,500 files, and some 600 signers.
MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_SIGNATURES_BYTES: Final = 64 * 1024
# Files are read in pieces of this size, so that hashing one takes no more memory than this.
PIECE_BYTES: Final = 1024 * 1024
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
    """Whose signatures count, and how many it takes; build it with `development()` or `pinned()`."""

    mode: TrustMode
    key_files: tuple[Path, ...] = ()
    threshold: int | None = None

    @classmethod
    def development(cls) -> Trust:
        """Accept only the public development key; whoever shows the result must show its banner too."""
        return cls(TrustMode.DEVELOPMENT)

    @classmethod
    def pinned(cls, *key_files: Path, threshold: int | None = None) -> Trust:
        """Accept only these public keys (PEM, Ed25519), kept outside the constitution's directory.

        `threshold` of them must have signed; None means `majority`. One key in several files counts once.
        """
        return cls(TrustMode.PINNED, key_files, threshold)


def majority(keys: int) -> int:
    """How many of so many keys must sign when nobody says: one stolen key of several changes no law, one lost of three stops none."""
    return keys // 2 + 1


@dataclass(frozen=True, slots=True)
class VerifiedConstitution:
    """The exact bytes that were verified: use these and never read the directory again."""

    manifest: Manifest
    files: Mapping[str, bytes]
    key_ids: tuple[str, ...]
    development: bool
    threshold: int = 1
    trusted_keys: int = 1

    def without_files(self) -> VerifiedConstitution:
        """All facts about it, without the bytes, which are megabytes once there are weights among them."""
        return replace(self, files=types.MappingProxyType({}))

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
    manifest, policy, key_ids = _verify_manifest(directory, trust)
    files = {
        name: _read_promised(path, name, promised)
        for name, path, promised in _promised_files(directory, manifest)
    }
    return VerifiedConstitution(
        manifest,
        types.MappingProxyType(files),
        key_ids,
        trust.mode is TrustMode.DEVELOPMENT,
        threshold=policy.threshold,
        trusted_keys=len(policy.keys),
    )


def recheck_constitution(directory: Path, trust: Trust) -> Manifest:
    """Verify exactly as `verify_constitution` does, but keep no file: it takes one piece of memory, whatever the sizes."""
    manifest, _, _ = _verify_manifest(directory, trust)
    check_promises(directory, manifest)
    return manifest


def check_promises(directory: Path, manifest: Manifest) -> None:
    """Raise ConstitutionError naming the first file that is not what this manifest promises; says nothing of signatures."""
    for name, path, promised in _promised_files(directory, manifest):
        digest, size = hashlib.sha256(), 0
        for piece in _pieces(path, name):
            digest.update(piece)
            size += len(piece)
        check_file(name, FileDigest(digest.digest(), size), promised)


def read_manifest(directory: Path) -> tuple[bytes, bytes]:
    """The bytes of `manifest.json` and `manifest.sig`, unverified; ConstitutionError names the one that is missing."""
    found = dict(_plain_files(directory))
    return _read_named(found, MANIFEST_NAME), _read_named(found, SIGNATURE_NAME)


def read_unverified(directory: Path) -> dict[str, bytes]:
    """The files that a manifest of `directory` lists, by name, whatever is in them: for whoever is about to sign them."""
    return {name: b"".join(_pieces(path, name)) for name, path in _listed(directory)}


def trust_policy(directory: Path, trust: Trust) -> TrustPolicy:
    """The keys that may sign what is in `directory`, and how many it takes; ConstitutionError names what is wrong with them."""
    if trust.mode is TrustMode.DEVELOPMENT:
        key = Ed25519PublicKey.from_public_bytes(DEVELOPMENT_PUBLIC_KEY)
        return TrustPolicy({key_id(key): key}, threshold=1)
    if not trust.key_files:
        raise ConstitutionError(
            "trusted_key_files: none given; with trust = pinned, name the public keys that may sign the constitution"
        )
    keys = dict(_pinned_key(directory, path) for path in trust.key_files)
    threshold = majority(len(keys)) if trust.threshold is None else trust.threshold
    if not 1 <= threshold <= len(keys):
        raise ConstitutionError(
            f"trusted_key_threshold: must be 1 to {len(keys)}, as many as there are different trusted keys, not {threshold}"
        )
    return TrustPolicy(keys, threshold)


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The Ed25519 public key in a PEM file; ConstitutionError names the file if it holds anything else."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConstitutionError(f"{path}: not a readable public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConstitutionError(f"{path}: not an Ed25519 public key")
    return key


def _verify_manifest(directory: Path, trust: Trust) -> tuple[Manifest, TrustPolicy, tuple[str, ...]]:
    """The manifest once enough trusted keys are found to have signed it; nothing else is read before."""
    policy = trust_policy(directory, trust)
    manifest, signatures = read_manifest(directory)
    key_ids = verify_signatures(manifest, signatures, policy)
    return parse_manifest(manifest), policy, key_ids


def _pinned_key(directory: Path, path: Path) -> tuple[str, Ed25519PublicKey]:
    if path.resolve().is_relative_to(directory.resolve()):
        raise ConstitutionError(f"{path}: a trusted key must not come from the directory it protects")
    key = load_public_key(path)
    if key.public_bytes_raw() == DEVELOPMENT_PUBLIC_KEY:
        raise ConstitutionError(f"{path}: this is the public development key, which trust = pinned refuses")
    return key_id(key), key


def _promised_files(directory: Path, manifest: Manifest) -> Iterator[tuple[str, Path, FileDigest]]:
    """Every listed file with its place and what was promised of it, once no file is missing and none is unexpected."""
    found = dict(_listed(directory))
    for name in sorted(manifest.files.keys() - found.keys()):
        raise ConstitutionError(f"{name}: missing; {MANIFEST_NAME} lists it")
    for name in sorted(found.keys() - manifest.files.keys()):
        raise ConstitutionError(f"{name}: unexpected; {MANIFEST_NAME} does not list it")
    for name, path in found.items():
        yield name, path, manifest.files[name]


def _listed(directory: Path) -> Iterator[tuple[str, Path]]:
    return (item for item in _plain_files(directory) if item[0] not in {MANIFEST_NAME, SIGNATURE_NAME})


def _plain_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Every file below the directory but the development key's folder, by its path with forward slashes."""
    if not directory.is_dir():
        raise ConstitutionError(f"{directory}: there is no constitution here")
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name.split("/")[0] == DEVELOPMENT_DIRECTORY or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink() or not path.is_file():
            raise ConstitutionError(f"{name}: neither a plain file nor a folder")
        yield name, path


def _read_promised(path: Path, name: str, promised: FileDigest) -> bytes:
    content = b"".join(_pieces(path, name))
    check_file(name, FileDigest.of(content), promised)
    return content


def _read_named(files: Mapping[str, Path], name: str) -> bytes:
    if name not in files:
        raise ConstitutionError(f"{name}: missing")
    return b"".join(_pieces(files[name], name))


def _pieces(path: Path, name: str) -> Iterator[bytes]:
    """The bytes of a file, piece by piece; ConstitutionError as soon as there are more than its kind may have."""
    size = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                size += len(piece)
                if size > max_bytes(name):
                    raise ConstitutionError(f"{name}: larger than {max_bytes(name)} bytes")
                yield piece
    except OSError as error:
        raise ConstitutionError(f"{name}: cannot be read: {error}") from error


def max_bytes(name: str) -> int:
    """How large a file of the constitution may be."""
    special = {
        WEIGHTS_NAME: MAX_WEIGHTS_BYTES,
        MANIFEST_NAME: MAX_MANIFEST_BYTES,
        SIGNATURE_NAME: MAX_SIGNATURES_BYTES,
    }
    return special.get(name, MAX_FILE_BYTES)

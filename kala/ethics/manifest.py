r"""The signed manifest of the constitution: its bytes, what they promise, and the signatures over them.

Format v1: `manifest.json` is UTF-8 JSON `{"files": {path: {"sha256": hex, "size": bytes}}, "format", "version"}`;
`manifest.sig` has one line `<key id> <base64 signature>` per signer. A signature is Ed25519 (RFC 8032) over
`"kala-constitution-v1\0" + manifest bytes`. This module touches no files and knows nothing of trust.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kala.errors import ConstitutionError

V = TypeVar("V")

MANIFEST_NAME: Final = "manifest.json"
SIGNATURE_NAME: Final = "manifest.sig"
MANIFEST_FORMAT: Final = "kala-constitution-v1"
# The prefix separates this use of a key from every other, so that no other signed thing can pass as a manifest.
SIGNATURE_CONTEXT: Final = MANIFEST_FORMAT.encode() + b"\0"
KEY_ID_HEX_DIGITS: Final = 16
MAX_VERSION_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What the manifest promises of one file."""

    sha256: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest; `digest` is the SHA-256 of its exact bytes and names the constitution everywhere."""

    version: str
    files: Mapping[str, FileDigest]
    digest: bytes


def key_id(key: Ed25519PublicKey) -> str:
    """The short name of a key: the first 16 hex digits of the SHA-256 of its 32 raw bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:KEY_ID_HEX_DIGITS]


def build_manifest(files: Mapping[str, bytes], version: str) -> bytes:
    """The manifest bytes for these files; equal files and version always give equal bytes."""
    entries = {
        path: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for path, content in sorted(files.items())
    }
    document = {"files": entries, "format": MANIFEST_FORMAT, "version": version}
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def parse_manifest(raw: bytes) -> Manifest:
    """Read manifest bytes strictly; ConstitutionError names the manifest for anything unexpected in it."""
    try:
        version, files = _parse_document(
            json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConstitutionError(f"{MANIFEST_NAME}: not a manifest: {error}") from error
    return Manifest(version, files, hashlib.sha256(raw).digest())


def check_file(path: str, content: bytes, promised: FileDigest) -> None:
    """Raise ConstitutionError naming the file unless its bytes are the promised ones."""
    if len(content) != promised.size_bytes or hashlib.sha256(content).digest() != promised.sha256:
        raise ConstitutionError(f"{path}: its bytes are not the ones that were signed in {MANIFEST_NAME}")


def sign_manifest(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """One line of `manifest.sig` for this key."""
    signature = base64.b64encode(key.sign(SIGNATURE_CONTEXT + manifest))
    return key_id(key.public_key()).encode() + b" " + signature + b"\n"


def verify_signatures(
    manifest: bytes, signatures: bytes, trusted: Mapping[str, Ed25519PublicKey]
) -> tuple[str, ...]:
    """The ids of the trusted keys that signed; ConstitutionError if there is none or one does not hold.

    Lines of unknown keys are skipped: a constitution may be signed by more people than this operator trusts.
    A line that claims a trusted key and fails is an error, since it can only be damage or forgery.
    """
    signers = _parse_signatures(signatures)
    for signer, signature in signers.items():
        if signer in trusted:
            _verify_one(manifest, signature, signer, trusted[signer])
    valid = tuple(signer for signer in signers if signer in trusted)
    if not valid:
        raise ConstitutionError(
            f"{SIGNATURE_NAME}: signed by {', '.join(signers) or 'nobody'}, and none of these is a trusted key"
            f" ({', '.join(trusted)})"
        )
    return valid


def _verify_one(manifest: bytes, signature: bytes, signer: str, key: Ed25519PublicKey) -> None:
    try:
        key.verify(signature, SIGNATURE_CONTEXT + manifest)
    except InvalidSignature as error:
        raise ConstitutionError(f"{MANIFEST_NAME}: the signature of key {signer} does not hold") from error


def _parse_signatures(raw: bytes) -> dict[str, bytes]:
    try:
        lines = [line.partition(" ") for line in raw.decode("ascii").splitlines()]
        return _without_duplicates(
            [(signer, base64.b64decode(encoded, validate=True)) for signer, _, encoded in lines]
        )
    except (ValueError, binascii.Error) as error:
        raise ConstitutionError(f"{SIGNATURE_NAME}: not a signature file: {error}") from error


def _parse_document(document: Mapping[str, Any]) -> tuple[str, dict[str, FileDigest]]:  # Any: unchecked JSON
    if set(document) != {"files", "format", "version"} or document["format"] != MANIFEST_FORMAT:
        raise ValueError(f"expected exactly files, format and version, with format {MANIFEST_FORMAT}")
    version = document["version"]
    if not isinstance(version, str) or not 0 < len(version) <= MAX_VERSION_CHARS:
        raise ValueError(f"version must be a text of 1 to {MAX_VERSION_CHARS} characters")
    return version, {path: _parse_entry(path, entry) for path, entry in document["files"].items()}


def _parse_entry(path: str, entry: Mapping[str, object]) -> FileDigest:
    digest, size = entry["sha256"], entry["size"]
    if set(entry) != {"sha256", "size"} or not isinstance(digest, str) or not isinstance(size, int):
        raise ValueError(f"entry {path} is not a digest and a size")
    return FileDigest(bytes.fromhex(digest), size)


def _without_duplicates(pairs: list[tuple[str, V]]) -> dict[str, V]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name occurs twice")
    return document

"""The manifest of the constitution: its bytes and what they promise.

Format v1: `manifest.json` is UTF-8 JSON `{"files": {path: {"sha256": hex, "size": bytes}}, "format", "version"}` and,
where they apply, `"review_by"` (RFC 3339 date by which people should look at the laws again), `"previous"` (digest of
the version that this one amends) and `"sources"` (SHA-256 of what the files were generated from; for information).
This module touches no files and knows nothing of signatures (`signatures.py`) or trust (`constitution.py`).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kala.errors import ConstitutionError

V = TypeVar("V")

MANIFEST_NAME: Final = "manifest.json"
SIGNATURE_NAME: Final = "manifest.sig"
MANIFEST_FORMAT: Final = "kala-constitution-v1"
KEY_ID_HEX_DIGITS: Final = 16
MAX_VERSION_CHARS: Final = 64
REQUIRED_KEYS: Final = frozenset({"files", "format", "version"})
OPTIONAL_KEYS: Final = frozenset({"review_by", "previous", "sources"})
DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What the manifest promises of one file."""

    sha256: bytes
    size_bytes: int

    @classmethod
    def of(cls, content: bytes) -> Self:
        """The digest of these bytes."""
        return cls(hashlib.sha256(content).digest(), len(content))


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest; `digest` is the SHA-256 of its exact bytes and names the constitution everywhere.

    `review_by` is the last day on which the version needs no review, in UTC; `previous` is unset for a first version.
    """

    version: str
    files: Mapping[str, FileDigest]
    digest: bytes
    review_by: dt.date | None = None
    previous: bytes | None = None
    sources: bytes | None = None

    def review_problem(self, today: dt.date) -> str | None:
        """Why people should look at this version again by now, in words; None when they need not yet."""
        if self.review_by is None:
            return f"constitution {self.version} names no date by which it is to be reviewed"
        if self.review_by < today:
            return f"constitution {self.version} was to be reviewed by {self.review_by.isoformat()}"
        return None


def key_id(key: Ed25519PublicKey) -> str:
    """The short name of a key: the first 16 hex digits of the SHA-256 of its 32 raw bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:KEY_ID_HEX_DIGITS]


def build_manifest(
    files: Mapping[str, bytes],
    version: str,
    *,
    review_by: dt.date | None = None,
    previous: bytes | None = None,
    sources: bytes | None = None,
) -> bytes:
    """The manifest bytes for these files; equal arguments always give equal bytes."""
    entries = {
        path: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for path, content in sorted(files.items())
    }
    document: dict[str, object] = {"files": entries, "format": MANIFEST_FORMAT, "version": version}
    if review_by is not None:
        document["review_by"] = review_by.isoformat()
    if previous is not None:
        document["previous"] = previous.hex()
    if sources is not None:
        document["sources"] = sources.hex()
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def parse_manifest(raw: bytes) -> Manifest:
    """Read manifest bytes strictly; ConstitutionError names the manifest for anything unexpected in it."""
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
        return _parse_document(document, hashlib.sha256(raw).digest())
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ConstitutionError(f"{MANIFEST_NAME}: not a manifest: {error}") from error


def check_file(path: str, found: FileDigest, promised: FileDigest) -> None:
    """Raise ConstitutionError naming the file unless its bytes are the promised ones."""
    if found != promised:
        raise ConstitutionError(f"{path}: its bytes are not the ones that were signed in {MANIFEST_NAME}")


def _parse_document(document: Mapping[str, Any], digest: bytes) -> Manifest:  # Any: unchecked JSON
    keys = set(document)
    if not REQUIRED_KEYS <= keys <= REQUIRED_KEYS | OPTIONAL_KEYS or document["format"] != MANIFEST_FORMAT:
        raise ValueError(
            f"expected {', '.join(sorted(REQUIRED_KEYS))}, with format {MANIFEST_FORMAT},"
            f" and at most {', '.join(sorted(OPTIONAL_KEYS))}"
        )
    version = document["version"]
    if not isinstance(version, str) or not 0 < len(version) <= MAX_VERSION_CHARS:
        raise ValueError(f"version must be a text of 1 to {MAX_VERSION_CHARS} characters")
    if not version.isprintable():
        raise ValueError("version must be printable")
    return Manifest(
        version,
        {path: _parse_entry(path, entry) for path, entry in document["files"].items()},
        digest,
        review_by=_parse_date(document["review_by"]) if "review_by" in keys else None,
        previous=_parse_digest("previous", document["previous"]) if "previous" in keys else None,
        sources=_parse_digest("sources", document["sources"]) if "sources" in keys else None,
    )


def _parse_date(text: str) -> dt.date:
    date = dt.date.fromisoformat(text)
    if date.isoformat() != text:
        raise ValueError("review_by must be a date such as 2027-01-31")
    return date


def _parse_digest(name: str, text: str) -> bytes:
    digest = bytes.fromhex(text)
    if digest.hex() != text or len(digest) != DIGEST_BYTES:
        raise ValueError(f"{name} must be {2 * DIGEST_BYTES} hexadecimal digits")
    return digest


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

r"""The maintainers' signatures over a manifest: k of n trusted Ed25519 keys must have signed the same bytes.

`manifest.sig` has one line `<key id> <base64 signature>` per signer, each ended by a line feed. A signature is Ed25519
(RFC 8032) over `"kala-constitution-v1\0" + manifest bytes`. Lines are read strictly: one signature has one spelling, so
that no changed byte goes unnoticed. This module touches no files.
"""

from __future__ import annotations

import base64
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kala.errors import ConstitutionError
from kala.ethics.manifest import KEY_ID_HEX_DIGITS, MANIFEST_FORMAT, MANIFEST_NAME, SIGNATURE_NAME, key_id

# The prefix separates this use of a key from every other, so that no other signed thing can pass as a manifest.
SIGNATURE_CONTEXT: Final = MANIFEST_FORMAT.encode() + b"\0"
SIGNATURE_BYTES: Final = 64
_LINE: Final = re.compile(rf"([0-9a-f]{{{KEY_ID_HEX_DIGITS}}}) ([A-Za-z0-9+/]+={{0,2}})", re.ASCII)


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """Whose signatures count, by key id, and how many different ones it takes."""

    keys: Mapping[str, Ed25519PublicKey]
    threshold: int


class Standing(enum.Enum):
    """What one signer's line is worth."""

    HOLDS = "holds"
    BROKEN = "does not hold"
    STRANGER = "not a trusted key"


def sign_manifest(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """One line of `manifest.sig` for this key."""
    return _line(key_id(key.public_key()), key.sign(SIGNATURE_CONTEXT + manifest)).encode() + b"\n"


def verify_signatures(manifest: bytes, signatures: bytes, policy: TrustPolicy) -> tuple[str, ...]:
    """The ids of the trusted keys that signed, each once; ConstitutionError if these are fewer than the threshold.

    Lines of unknown keys are skipped: a constitution may be signed by more people than this operator trusts.
    A line that claims a trusted key and fails is an error, since it can only be damage or forgery.
    """
    standings = standings_of(manifest, signatures, policy)
    for signer, standing in standings.items():
        if standing is Standing.BROKEN:
            raise ConstitutionError(f"{MANIFEST_NAME}: the signature of key {signer} does not hold")
    valid = tuple(signer for signer, standing in standings.items() if standing is Standing.HOLDS)
    if len(valid) < policy.threshold:
        count = f"{len(valid)} of the {policy.threshold} signatures that it takes"
        raise ConstitutionError(
            f"{SIGNATURE_NAME}: signed by {', '.join(standings) or 'nobody'}"
            f"{'' if valid else ', and none of these is a trusted key'}:"
            f" {count} from {len(policy.keys)} trusted keys ({', '.join(policy.keys)})"
        )
    return valid


def standings_of(manifest: bytes, signatures: bytes, policy: TrustPolicy) -> dict[str, Standing]:
    """Every signer with what its signature is worth; a key that signed twice counts once, and by its worst line."""
    standings: dict[str, Standing] = {}
    for signer, signature in parse_signatures(signatures):
        if standings.get(signer) is not Standing.BROKEN:
            standings[signer] = _standing(manifest, signature, policy.keys.get(signer))
    return standings


def parse_signatures(raw: bytes) -> list[tuple[str, bytes]]:
    """Signers with their signatures, in the order of the lines; ConstitutionError for any other spelling."""
    try:
        *lines, rest = raw.decode("ascii").split("\n")
        signatures = [_parse_line(line) for line in lines]
    except ValueError as error:
        raise ConstitutionError(f"{SIGNATURE_NAME}: not a signature file: {error}") from error
    if rest:
        raise ConstitutionError(f"{SIGNATURE_NAME}: not a signature file: its last line has no end")
    return signatures


def _standing(manifest: bytes, signature: bytes, key: Ed25519PublicKey | None) -> Standing:
    if key is None:
        return Standing.STRANGER
    try:
        key.verify(signature, SIGNATURE_CONTEXT + manifest)
    except InvalidSignature:
        return Standing.BROKEN
    return Standing.HOLDS


def _parse_line(line: str) -> tuple[str, bytes]:
    parts = _LINE.fullmatch(line)
    if parts is None:
        raise ValueError("a line is not a key id and a signature")
    signer, signature = parts[1], base64.b64decode(parts[2], validate=True)
    # Base64 has spare bits in its last letter: other letters there would decode to the same bytes.
    if len(signature) != SIGNATURE_BYTES or _line(signer, signature) != line:
        raise ValueError(f"the signature of {signer} is not {SIGNATURE_BYTES} bytes in canonical base64")
    return signer, signature


def _line(signer: str, signature: bytes) -> str:
    return f"{signer} {base64.b64encode(signature).decode()}"

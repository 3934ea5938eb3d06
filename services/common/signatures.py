"""Detached Ed25519 signatures over bytes kept verbatim, each kind under its own domain so that none passes for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kala.common.v1.adapter_pb2 import ManifestSignature
from kala.errors import VerificationError
from services.common.keys import key_id

# A rotation needs two and a co-signer or two more; the rest is room.
MAX_SIGNATURES: Final = 16

PublicKeys = Mapping[str, Ed25519PublicKey]
"""Trusted keys by key id."""


def sign(domain: bytes, data: bytes, private_key: Ed25519PrivateKey) -> ManifestSignature:
    """Signs `domain` followed by `data`."""
    return ManifestSignature(
        key_id=key_id(private_key.public_key()), signature=private_key.sign(domain + data)
    )


def verify_one(what: str, domain: bytes, data: bytes, signature: bytes, key: Ed25519PublicKey) -> bytes:
    """Returns `data` when `signature` is this key's, or raises VerificationError that begins with `what`."""
    try:
        key.verify(signature, domain + data)
    except InvalidSignature as error:
        raise VerificationError(f"{what}: the signature of key {key_id(key)} does not hold") from error
    return data


def verify_any(
    what: str, domain: bytes, data: bytes, signatures: Sequence[ManifestSignature], trusted: PublicKeys
) -> bytes:
    """Returns `data` when a trusted key signed it and no trusted key's signature is wrong.

    Unknown keys are ignored, so that keys can be rotated. Raises VerificationError that begins with `what`.
    """
    if not 1 <= len(signatures) <= MAX_SIGNATURES:
        raise VerificationError(f"{what}: has {len(signatures)} signatures, not 1 to {MAX_SIGNATURES}")
    known = [(item, trusted[item.key_id]) for item in signatures if item.key_id in trusted]
    if not known:
        names = ", ".join(item.key_id[:16] for item in signatures)
        raise VerificationError(f"{what}: no trusted key signed it (signed by {names})")
    for item, key in known:
        verify_one(what, domain, data, item.signature, key)
    return data

"""Deletion certificates: what was erased of a person, where, and under which of the log's own entries.

A certificate is canonical JSON; its signature is a C2SP signed note of the log's key over the certificate's SHA-256.
The note's first line keeps it apart from a checkpoint: no log's origin is spelled like it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

from kala.audit import canonical, shapes
from kala.audit.note import Signer, Verifier, open_note
from kala.errors import VerificationError

SCHEMA: Final = "kala.audit.erasure.v1"
_FIELDS: Final[Mapping[str, shapes.Check]] = {
    "schema": shapes.one_of(frozenset({SCHEMA})),
    "log": shapes.filled,
    "request_id": shapes.hex16,
    "subject": shapes.hex32,
    "tenant": shapes.filled,
    # When the last of its keys was destroyed, by the log's clock.
    "erased_at": shapes.is_time,
    # Entries from here on are not covered: the person may have come back.
    "covers_entries_below": shapes.integer_up_to(),
    "stores": shapes.unique_by(
        "store",
        shapes.object_of(
            {
                "store": shapes.filled,
                "items": shapes.integer_up_to(),
                "remaining": shapes.list_of(shapes.filled),
            }
        ),
    ),
    # The log's entry of the erasure; its leaf refers to this certificate by SHA-256.
    "receipt": shapes.filled,
}


def certificate_of(value: Mapping[str, Any]) -> bytes:
    """The certificate that spells these values; raises `VerificationError` naming the wrong field."""
    data = canonical.encode(dict(value))
    parse_certificate(data)
    return data


def parse_certificate(data: bytes) -> Mapping[str, Any]:
    """The values of a certificate; they mean nothing until `verify_certificate` has checked its signature."""
    value = canonical.decode(data)
    if not isinstance(value, dict) or value.keys() != _FIELDS.keys():
        raise VerificationError("the deletion certificate has missing or unknown fields")
    for name, check in _FIELDS.items():
        if not check(value[name]):
            raise VerificationError(f"the deletion certificate's field {name} is malformed")
    return value


def sign_certificate(certificate: bytes, signer: Signer) -> str:
    """The signed note over a certificate."""
    return signer.sign(_text_of(certificate))


def verify_certificate(certificate: bytes, signature: str, trusted: Iterable[Verifier]) -> Mapping[str, Any]:
    """The values of a certificate that the log it names has signed, or `VerificationError`."""
    value = parse_certificate(certificate)
    if open_note(signature, trusted, signed_by=value["log"]) != _text_of(certificate):
        raise VerificationError("the signature is over another certificate")
    return value


def _text_of(certificate: bytes) -> str:
    return f"{SCHEMA}\n{sha256(certificate).hexdigest()}\n"

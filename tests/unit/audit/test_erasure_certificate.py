"""Deletion certificates: whatever is changed in one, or in its signature, it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.erasure import SCHEMA, certificate_of, parse_certificate, sign_certificate, verify_certificate
from kala.audit.note import Signer
from kala.errors import VerificationError

LOG = Signer.of("kala.test/audit", b"s" * 32)
OTHER = Signer.of("kala.test/audit", b"o" * 32)
VALUE: dict[str, Any] = {
    "schema": SCHEMA,
    "log": "kala.test/audit",
    "request_id": "0" * 32,
    "subject": "a" * 64,
    "tenant": "default",
    "erased_at": "2026-11-21T23:00:00.000000Z",
    "covers_entries_below": 7,
    "stores": [{"store": "audit.keys", "items": 1, "remaining": []}],
    "receipt": "rcpt_" + "1" * 32,
}
TRUSTED = [LOG.verifier]


def test_a_signed_certificate_gives_its_values() -> None:
    certificate = certificate_of(VALUE)
    assert verify_certificate(certificate, sign_certificate(certificate, LOG), TRUSTED) == VALUE


def test_every_changed_bit_is_refused() -> None:
    certificate = certificate_of(VALUE)
    signature = sign_certificate(certificate, LOG)
    for place in range(len(certificate)):
        changed = bytearray(certificate)
        changed[place] ^= 1 << place % 8
        with pytest.raises(VerificationError):
            verify_certificate(bytes(changed), signature, TRUSTED)


def test_another_key_and_another_log_are_refused() -> None:
    certificate = certificate_of(VALUE)
    for signer, trusted in ((OTHER, TRUSTED), (LOG, [OTHER.verifier])):
        with pytest.raises(VerificationError):
            verify_certificate(certificate, sign_certificate(certificate, signer), trusted)
    elsewhere = certificate_of({**VALUE, "log": "kala.test/another"})
    with pytest.raises(VerificationError, match="not signed by"):
        verify_certificate(elsewhere, sign_certificate(elsewhere, LOG), TRUSTED)


def test_a_checkpoint_is_no_certificate_and_a_certificate_no_checkpoint() -> None:
    certificate = certificate_of(VALUE)
    checkpoint = LOG.sign(Checkpoint("kala.test/audit", 7, b"r" * 32).text())
    with pytest.raises(VerificationError, match="another certificate"):
        verify_certificate(certificate, checkpoint, TRUSTED)
    with pytest.raises(VerificationError):
        open_checkpoint(sign_certificate(certificate, LOG), TRUSTED)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "kala.audit.erasure.v2"},
        {"subject": "alice"},
        {"request_id": None},
        {"erased_at": "yesterday"},
        {"covers_entries_below": -1},
        {"stores": VALUE["stores"] * 2},
        {"stores": [{"store": "x", "items": 1}]},
        {"note": "more"},
    ],
)
def test_a_malformed_certificate_is_neither_made_nor_read(change: dict[str, Any]) -> None:
    value = {**VALUE, **change}
    with pytest.raises(VerificationError):
        certificate_of(value)
    with pytest.raises(VerificationError):
        parse_certificate(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def test_a_certificate_has_one_spelling() -> None:
    with pytest.raises(VerificationError, match="canonical"):
        parse_certificate(json.dumps(VALUE, indent=1).encode())

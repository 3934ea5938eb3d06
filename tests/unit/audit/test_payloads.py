"""Payload encryption: sealed to one entry and kind, committed with a salt, and gone with its key."""

from __future__ import annotations

import hashlib

import pytest

from kala.errors import DataLossError, FailedPreconditionError, NotFoundError
from services.audit.payloads import (
    HEADER_BYTES,
    KeyEncryptionKey,
    PayloadSealer,
    WrappedKey,
    commit,
    is_kept,
    open_payload,
)

KEK = KeyEncryptionKey(b"k" * 32)
ENTRY = b"e" * 16


def sealer(found: WrappedKey | None = None) -> PayloadSealer:
    return PayloadSealer(KEK, lambda _: found)


def test_a_sealed_payload_opens_with_its_key_and_proves_its_commitment() -> None:
    seals = sealer()
    sealed = seals.seal("alice", ENTRY, "request", b"hello", store=True)
    (row,) = seals.new_keys()
    salt, plaintext = open_payload(KEK.unwrap(row), ENTRY, "request", sealed.ciphertext)
    assert (salt, plaintext, is_kept(sealed.ciphertext)) == (sealed.salt, b"hello", True)
    assert commit(salt, plaintext) == sealed.commitment
    assert sealed.leaf_value() == {
        "kind": "request",
        "hmac": sealed.commitment,
        "ciphertext_sha256": hashlib.sha256(sealed.ciphertext).hexdigest(),
        "bytes": 5,
    }


def test_a_payload_that_is_not_kept_leaves_only_its_salt() -> None:
    seals = sealer()
    sealed = seals.seal("alice", ENTRY, "derived", b"x" * 1_000, store=False)
    salt, plaintext = open_payload(KEK.unwrap(seals.new_keys()[0]), ENTRY, "derived", sealed.ciphertext)
    assert (salt, plaintext, is_kept(sealed.ciphertext), is_kept(None)) == (sealed.salt, b"", False, False)
    assert commit(salt, b"x" * 1_000) == sealed.commitment
    assert len(sealed.ciphertext) < 100


def test_the_same_words_twice_cannot_be_linked() -> None:
    seals = sealer()
    first, second = (seals.seal("alice", ENTRY, "request", b"yes", store=True) for _ in range(2))
    assert first.commitment != second.commitment
    assert first.ciphertext[HEADER_BYTES:] != second.ciphertext[HEADER_BYTES:]


@pytest.mark.parametrize(("entry", "kind"), [(b"f" * 16, "request"), (ENTRY, "released")])
def test_a_ciphertext_belongs_to_one_entry_and_kind(entry: bytes, kind: str) -> None:
    seals = sealer()
    sealed = seals.seal("alice", ENTRY, "request", b"hello", store=True)
    with pytest.raises(DataLossError, match="damaged"):
        open_payload(KEK.unwrap(seals.new_keys()[0]), entry, kind, sealed.ciphertext)


def test_a_changed_byte_anywhere_is_noticed() -> None:
    seals = sealer()
    sealed = seals.seal("alice", ENTRY, "request", b"hello", store=True)
    key = KEK.unwrap(seals.new_keys()[0])
    for place in range(len(sealed.ciphertext)):
        changed = bytearray(sealed.ciphertext)
        changed[place] ^= 1
        with pytest.raises(DataLossError):
            open_payload(key, ENTRY, "request", bytes(changed))
    with pytest.raises(DataLossError):
        open_payload(key, ENTRY, "request", b"")


def test_each_subject_has_one_key_that_is_made_once() -> None:
    seals = sealer()
    sealed = [seals.seal(subject, ENTRY, "request", b"x", store=True).key_id for subject in ("a", "b", "a")]
    assert sealed[0] == sealed[2] != sealed[1]
    assert [key.subject for key in seals.new_keys()] == ["a", "b"]
    seals.settle()
    assert (seals.new_keys(), seals.seal("a", ENTRY, "x", b"", store=True).key_id) == ((), sealed[0])
    seals.forget()
    assert seals.seal("a", ENTRY, "x", b"", store=True).key_id != sealed[0]


def test_a_full_cache_forgets_no_key_that_is_not_stored_yet() -> None:
    """A second key for one subject would break the transaction that stores both."""
    seals = PayloadSealer(KEK, lambda _: None, max_cached=2)
    subjects = [f"s{number % 5}" for number in range(20)]
    ids = [(subject, seals.seal(subject, ENTRY, "request", b"x", store=True).key_id) for subject in subjects]
    assert len(set(ids)) == len(seals.new_keys()) == 5
    seals.settle()
    seals.seal("another", ENTRY, "request", b"x", store=True)
    assert len(seals._live) == 1


def test_a_stored_key_is_used_again() -> None:
    row, _ = KEK.create("alice")
    seals = sealer(row)
    assert seals.seal("alice", ENTRY, "request", b"x", store=True).key_id == row.key_id
    assert seals.new_keys() == ()


def test_a_destroyed_key_opens_nothing() -> None:
    row, _ = KEK.create("alice")
    with pytest.raises(NotFoundError, match="destroyed"):
        KEK.unwrap(WrappedKey(row.key_id, row.subject, row.kek_id, None))


def test_a_key_is_bound_to_its_subject_and_wrapping_key() -> None:
    row, _ = KEK.create("alice")
    with pytest.raises(DataLossError, match="damaged"):
        KEK.unwrap(WrappedKey(row.key_id, "bob", row.kek_id, row.wrapped))
    with pytest.raises(FailedPreconditionError, match="is wrapped by key"):
        KeyEncryptionKey(b"o" * 32).unwrap(row)
    with pytest.raises(FailedPreconditionError, match="32 bytes"):
        KeyEncryptionKey(b"short")

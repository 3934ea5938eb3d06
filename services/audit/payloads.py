"""Payload encryption: one data key per subject, wrapped by a key-encryption key that lives in a file of its own.

A stored ciphertext is one flag byte (1 when the plaintext is kept, 0 when only its salt is), the 16-byte id of the
data key, a nonce, and AES-256-GCM of the 32-byte salt and the plaintext; its SHA-256 stands in the leaf beside
HMAC-SHA256(salt, plaintext). Destroying a subject's data key destroys content and salts at once, and leaves unlinkable
bytes in the tree. No plaintext and no unwrapped key is ever written to the database.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kala.audit.report import PAYLOAD_KEY_ID_BYTES
from kala.errors import DataLossError, FailedPreconditionError, NotFoundError

KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
NONCE_BYTES: Final = 12  # NIST SP 800-38D section 8.2: 96 bits
STORED_FLAG: Final = b"\x01"
SALT_FLAG: Final = b"\x00"
HEADER_BYTES: Final = 1 + PAYLOAD_KEY_ID_BYTES
_WRAP_LABEL: Final = b"kala.audit.subject-key.v1\0"
_PAYLOAD_LABEL: Final = b"kala.audit.payload.v1\0"
# Active subjects of a busy hour; an evicted key is unwrapped again in 3 us.
MAX_CACHED_KEYS: Final = 4_096

Random = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as stored; `wrapped` is None once it was destroyed."""

    key_id: str
    subject: str
    kek_id: str
    wrapped: bytes | None


class SealedPayload(NamedTuple):
    """A payload as stored, with what its leaf says about it and the salt for its producer."""

    kind: str
    key_id: str
    ciphertext: bytes
    commitment: str
    plaintext_bytes: int
    salt: bytes

    def leaf_value(self) -> dict[str, str | int | None]:
        """The entry in the leaf's `commitments`."""
        return {
            "kind": self.kind,
            "hmac": self.commitment,
            "ciphertext_sha256": sha256(self.ciphertext).hexdigest(),
            "bytes": self.plaintext_bytes,
        }


class KeyEncryptionKey:
    """Wraps and unwraps data keys; its id tells which key file a row needs."""

    def __init__(self, key: bytes, random: Random = secrets.token_bytes) -> None:
        if len(key) != KEY_BYTES:
            raise FailedPreconditionError(f"the key-encryption key must have {KEY_BYTES} bytes")
        self._aead = AESGCM(key)
        self._random = random
        self.kek_id = sha256(_WRAP_LABEL + key).hexdigest()[:16]
        # Every replica of a log has this key, so each continues the pages that another began.
        self.page_key = hmac.digest(key, b"kala.audit.page-token.v1", "sha256")

    def create(self, subject: str) -> tuple[WrappedKey, bytes]:
        """A new data key for `subject`, wrapped and bare."""
        key, key_id = self._random(KEY_BYTES), self._random(PAYLOAD_KEY_ID_BYTES).hex()
        nonce = self._random(NONCE_BYTES)
        wrapped = nonce + self._aead.encrypt(nonce, key, self._label(key_id, subject))
        return WrappedKey(key_id, subject, self.kek_id, wrapped), key

    def unwrap(self, row: WrappedKey) -> bytes:
        """The bare data key; raises `NotFoundError` after erasure and `DataLossError` for damage."""
        if row.wrapped is None:
            raise NotFoundError("the subject's key was destroyed", reason="SUBJECT_ERASED")
        if row.kek_id != self.kek_id:
            raise FailedPreconditionError(
                f"data key {row.key_id} is wrapped by key {row.kek_id}, not {self.kek_id}"
            )
        nonce, sealed = row.wrapped[:NONCE_BYTES], row.wrapped[NONCE_BYTES:]
        try:
            return self._aead.decrypt(nonce, sealed, self._label(row.key_id, row.subject))
        except InvalidTag as error:
            raise DataLossError(f"data key {row.key_id} is damaged") from error

    @staticmethod
    def _label(key_id: str, subject: str) -> bytes:
        return _WRAP_LABEL + key_id.encode() + b"\0" + subject.encode()


class PayloadSealer:
    """Seals payloads under their subject's key, making the key on first use.

    Not thread-safe: the log's writer owns it. Keys made since `settle` must be stored with the payloads they seal.
    """

    def __init__(
        self,
        kek: KeyEncryptionKey,
        find_live: Callable[[str], WrappedKey | None],
        random: Random = secrets.token_bytes,
        max_cached: int = MAX_CACHED_KEYS,
    ) -> None:
        self._kek = kek
        self._max_cached = max_cached
        self._find_live = find_live
        self._random = random
        self._live: dict[str, tuple[str, bytes, AESGCM]] = {}
        self._new: list[WrappedKey] = []

    def seal(self, subject: str, entry_key: bytes, kind: str, data: bytes, *, store: bool) -> SealedPayload:
        """Encrypts and commits to one payload; with `store` false the ciphertext holds the salt alone."""
        key_id, raw_id, aead = self._live.get(subject) or self._open(subject)
        drawn = self._random(SALT_BYTES + NONCE_BYTES)
        salt, nonce = drawn[:SALT_BYTES], drawn[SALT_BYTES:]
        plaintext = salt + data if store else salt
        header = (STORED_FLAG if store else SALT_FLAG) + raw_id
        label = _PAYLOAD_LABEL + header + entry_key + kind.encode()
        ciphertext = header + nonce + aead.encrypt(nonce, plaintext, label)
        return SealedPayload(kind, key_id, ciphertext, commit(salt, data), len(data), salt)

    def new_keys(self) -> Sequence[WrappedKey]:
        """The keys made since the last `settle` or `forget`."""
        return tuple(self._new)

    def settle(self) -> None:
        """The new keys are stored."""
        self._new.clear()

    def forget(self) -> None:
        """The new keys were not stored, or a key was destroyed: nothing is remembered."""
        self._new.clear()
        self._live.clear()

    def _open(self, subject: str) -> tuple[str, bytes, AESGCM]:
        row = self._find_live(subject)
        if row is None:
            row, key = self._kek.create(subject)
            self._new.append(row)
        else:
            key = self._kek.unwrap(row)
        if len(self._live) >= self._max_cached:
            # A key that is not stored yet must stay known: the subject would get a second one.
            unsettled = {new.subject for new in self._new}
            self._live = {name: opened for name, opened in self._live.items() if name in unsettled}
        opened = self._live[subject] = (row.key_id, bytes.fromhex(row.key_id), AESGCM(key))
        return opened


def commit(salt: bytes, data: bytes) -> str:
    """The commitment of a leaf: HMAC-SHA256(salt, plaintext), hex."""
    return hmac.digest(salt, data, "sha256").hex()


def open_payload(key: bytes, entry_key: bytes, kind: str, ciphertext: bytes) -> tuple[bytes, bytes]:
    """The salt and the plaintext (empty where it was not kept); raises `DataLossError` for damage."""
    header, rest = ciphertext[:HEADER_BYTES], ciphertext[HEADER_BYTES:]
    label = _PAYLOAD_LABEL + header + entry_key + kind.encode()
    try:
        opened = AESGCM(key).decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], label)
    except (InvalidTag, ValueError) as error:
        raise DataLossError(f"the payload {kind} is damaged") from error
    return opened[:SALT_BYTES], opened[SALT_BYTES:]


def is_kept(ciphertext: bytes | None) -> bool:
    """Whether the plaintext itself, not only its salt, is still there."""
    return ciphertext is not None and ciphertext[:1] == STORED_FLAG

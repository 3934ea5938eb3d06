"""C2SP cosignatures: a witness's dated word that a checkpoint follows from all it saw before (c2sp.org/tlog-cosignature).

Both kinds are here: Ed25519 (type 4) and ML-DSA-44 (type 6), which stays good against quantum computers.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from kala.audit.checkpoint import Checkpoint
from kala.audit.note import (
    KEY_ID_BYTES,
    MAX_TREE_SIZE,
    PRIVATE_MARK,
    SIGNATURE_MARK,
    decode_base64,
    require_key_name,
)
from kala.errors import VerificationError

SEED_BYTES: Final = 32
TIMESTAMP_BYTES: Final = 8
# The label fills 12 bytes with its final zero byte, as the structure `cosigned_message` wants it.
SUBTREE_LABEL: Final = b"subtree/v1\n\0"
MAX_NAME_BYTES: Final = 255


class CosignatureKind(Enum):
    """The kinds of cosignature, by the byte that names them in keys."""

    ED25519 = 0x04
    ML_DSA_44 = 0x06

    @property
    def key_bytes(self) -> int:
        """How long a public key is."""
        return 32 if self is CosignatureKind.ED25519 else 1_312

    @property
    def signature_bytes(self) -> int:
        """How long a signature is, without its time."""
        return 64 if self is CosignatureKind.ED25519 else 2_420


@dataclass(frozen=True, slots=True)
class Witness:
    """The public key of one witness; `str()` gives its vkey line."""

    name: str
    kind: CosignatureKind
    public: bytes
    _key: Ed25519PublicKey | MLDSA44PublicKey = field(repr=False, compare=False)

    @classmethod
    def of(cls, name: str, kind: CosignatureKind, public: bytes) -> Witness:
        """The witness of a raw public key."""
        try:
            key = (
                Ed25519PublicKey.from_public_bytes(public)
                if kind is CosignatureKind.ED25519
                else MLDSA44PublicKey.from_public_bytes(public)
            )
        except (ValueError, UnsupportedAlgorithm) as error:
            raise VerificationError(f"the key of {name} cannot be used: {error}") from error
        return cls(_require_name(name), kind, public, key)

    @classmethod
    def parse(cls, vkey: str) -> Witness:
        """Reads `<name>+<key id>+<base64>` of a key of type 4 or 6."""
        name, identifier, kind, public = _split(vkey, "the witness's key")
        if len(public) != kind.key_bytes:
            raise VerificationError(f"the witness's key {name} has a wrong length")
        witness = cls.of(name, kind, public)
        if witness.key_id.hex() != identifier:
            raise VerificationError("the witness's key id does not match its name and key")
        return witness

    @property
    def key_id(self) -> bytes:
        """The four bytes that name this key in a signature."""
        return sha256(self.name.encode() + b"\n" + bytes([self.kind.value]) + self.public).digest()[
            :KEY_ID_BYTES
        ]

    def verify(self, text: str, signature: bytes) -> int:
        """Returns the time, in seconds since 1970, at which this witness cosigned the checkpoint with this text."""
        timestamp = int.from_bytes(signature[:TIMESTAMP_BYTES], "big")
        if len(signature) != TIMESTAMP_BYTES + self.kind.signature_bytes or timestamp > MAX_TREE_SIZE:
            raise VerificationError(f"the cosignature of {self.name} is malformed")
        try:
            self._key.verify(signature[TIMESTAMP_BYTES:], _message(self.kind, self.name, text, timestamp))
        except InvalidSignature as error:
            raise VerificationError(f"the cosignature of {self.name} does not hold") from error
        return timestamp

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{_encode(self.kind, self.public)}"


@dataclass(frozen=True, slots=True)
class Cosigner:
    """One private key of a witness with its name; never printed."""

    witness: Witness
    _seed: bytes = field(repr=False, compare=False)

    @classmethod
    def of(cls, name: str, kind: CosignatureKind, seed: bytes) -> Cosigner:
        """The cosigner of a 32-byte seed; raises `VerificationError` where the kind is not supported."""
        try:
            public = _private_key(kind, seed).public_key().public_bytes_raw()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise VerificationError(f"the signing key of {name} cannot be used: {error}") from error
        return cls(Witness.of(name, kind, public), seed)

    @classmethod
    def parse(cls, text: str) -> Cosigner:
        """Reads `PRIVATE+KEY+<name>+<key id>+<base64>` with the kind's byte before the seed."""
        if not text.startswith(PRIVATE_MARK):
            raise VerificationError(f"a signing key begins with {PRIVATE_MARK}")
        name, identifier, kind, seed = _split(text.removeprefix(PRIVATE_MARK), "the witness's signing key")
        cosigner = cls.of(name, kind, seed)
        if cosigner.witness.key_id.hex() != identifier:
            raise VerificationError("the witness's signing key does not match its id and name")
        return cosigner

    def private_text(self) -> str:
        """The line that `parse` reads; a secret."""
        witness = self.witness
        secret = _encode(witness.kind, self._seed)
        return f"{PRIVATE_MARK}{witness.name}+{witness.key_id.hex()}+{secret}"

    def line(self, text: str, timestamp: int) -> str:
        """The note's line that cosigns the checkpoint with this text, at a time in seconds since 1970."""
        witness = self.witness
        message = _message(witness.kind, witness.name, text, timestamp)
        signature = _private_key(witness.kind, self._seed).sign(message)
        data = witness.key_id + timestamp.to_bytes(TIMESTAMP_BYTES, "big") + signature
        return f"{SIGNATURE_MARK}{witness.name} {base64.b64encode(data).decode()}\n"


def cosignatures(note: str, witnesses: Iterable[Witness]) -> Mapping[Witness, int]:
    """The witnesses that cosigned this checkpoint, with the time of each in seconds since 1970.

    Lines of unknown keys are passed over; one bad line of a known witness raises `VerificationError`.
    The log's own signature is `open_checkpoint`'s to verify.
    """
    text, separator, tail = note.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise VerificationError("this is not a signed note")
    known = {(witness.name, witness.key_id): witness for witness in witnesses}
    found: dict[Witness, int] = {}
    for line in tail[:-1].split("\n"):
        name, _, encoded = line.removeprefix(SIGNATURE_MARK).partition(" ")
        data = decode_base64(encoded, "a signature of the note")
        witness = known.get((name, data[:KEY_ID_BYTES]))
        if witness is not None:
            found[witness] = witness.verify(f"{text}\n", data[KEY_ID_BYTES:])
    return found


def _message(kind: CosignatureKind, name: str, text: str, timestamp: int) -> bytes:
    """What a cosignature signs."""
    if kind is CosignatureKind.ED25519:
        return f"cosignature/v1\ntime {timestamp}\n{text}".encode()
    checkpoint = Checkpoint.parse(text)
    return b"".join(
        (
            SUBTREE_LABEL,
            _short(name),
            timestamp.to_bytes(TIMESTAMP_BYTES, "big"),
            _short(checkpoint.origin),
            (0).to_bytes(8, "big"),
            checkpoint.size.to_bytes(8, "big"),
            checkpoint.root,
        )
    )


def _short(text: str) -> bytes:
    """A vector of 1 to 255 bytes as TLS spells it (RFC 8446 section 3.4)."""
    data = text.encode()
    if not 1 <= len(data) <= MAX_NAME_BYTES:
        raise VerificationError(f"a name that is cosigned has 1 to {MAX_NAME_BYTES} bytes")
    return bytes([len(data)]) + data


def _require_name(name: str) -> str:
    _short(name)
    return require_key_name(name)


def _private_key(kind: CosignatureKind, seed: bytes) -> Ed25519PrivateKey | MLDSA44PrivateKey:
    if kind is CosignatureKind.ED25519:
        return Ed25519PrivateKey.from_private_bytes(seed)
    return MLDSA44PrivateKey.from_seed_bytes(seed)


def _encode(kind: CosignatureKind, key: bytes) -> str:
    return base64.b64encode(bytes([kind.value]) + key).decode()


def _split(text: str, what: str) -> tuple[str, str, CosignatureKind, bytes]:
    """The name, key id, kind and key of `<name>+<key id>+<base64>`; the base64 may itself hold plus signs."""
    name, first, rest = text.strip().partition("+")
    identifier, second, encoded = rest.partition("+")
    if not first or not second:
        raise VerificationError(f"{what} is not <name>+<key id>+<base64>")
    data = decode_base64(encoded, what)
    try:
        kind = CosignatureKind(data[0])
    except (IndexError, ValueError):
        raise VerificationError(f"{what} is neither of type 4 (Ed25519) nor 6 (ML-DSA-44)") from None
    return name, identifier, kind, data[1:]

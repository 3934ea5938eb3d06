"""C2SP signed notes: parse, sign and verify with Ed25519 (c2sp.org/signed-note).

The text of a note means nothing until `open_note` has verified it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kala.errors import VerificationError

ED25519_TYPE: Final = b"\x01"
KEY_ID_BYTES: Final = 4
KEY_BYTES: Final = 32
SIGNATURE_MARK: Final = "\u2014 "
PRIVATE_MARK: Final = "PRIVATE+KEY+"
# The specification asks for at least 16 signatures and for some limit; witnesses of one log are far fewer.
MAX_SIGNATURES: Final = 64
# Sizes are 63-bit in every implementation that this log meets.
MAX_TREE_SIZE: Final = (1 << 63) - 1
# Control characters, and lone surrogates, which are not UTF-8.
_FORBIDDEN: Final = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}")


def decode_base64(text: str, what: str) -> bytes:
    """Strict standard base64 (RFC 4648 section 4), one spelling per value; errors name `what`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise VerificationError(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise VerificationError(f"{what} is not canonical base64")
    return data


def parse_decimal(text: str, what: str) -> int:
    """An ASCII decimal below 2^63 without leading zeroes; errors name `what`."""
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_TREE_SIZE:
        raise VerificationError(f"{what} is not a decimal number below 2^63 without leading zeroes")
    return int(text)


def require_key_name(name: str) -> str:
    """Returns a name that may stand in a signature line: not empty, no spaces, no plus, no control characters."""
    if not name or "+" in name or any(c.isspace() for c in name) or _FORBIDDEN.search(name):
        raise VerificationError(f"{name!r} is not a key name: it must hold no space and no plus")
    return name


def key_id(name: str, public: bytes) -> bytes:
    """The first four bytes of SHA-256(name, newline, algorithm, public key)."""
    return sha256(name.encode() + b"\n" + ED25519_TYPE + public).digest()[:KEY_ID_BYTES]


@dataclass(frozen=True, slots=True)
class Verifier:
    """One trusted Ed25519 key; `str()` gives its vkey line."""

    name: str
    public: bytes
    _key: Ed25519PublicKey = field(repr=False, compare=False)

    @classmethod
    def of(cls, name: str, public: bytes) -> Verifier:
        """The verifier of a 32-byte public key."""
        return cls(require_key_name(name), public, Ed25519PublicKey.from_public_bytes(public))

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """Reads `<name>+<key id>+<base64>`; the base64 may itself hold plus signs."""
        name, identifier, key = _split_key(vkey.strip(), "the verification key")
        verifier = cls.of(name, key)
        if verifier.key_id.hex() != identifier:
            raise VerificationError("the verification key's id does not match its name and key")
        return verifier

    @property
    def key_id(self) -> bytes:
        """The four bytes that name this key in a signature."""
        return key_id(self.name, self.public)

    def verify(self, text: bytes, signature: bytes) -> bytes:
        """Returns `text` when `signature` is this key's, or raises `VerificationError`."""
        try:
            self._key.verify(signature, text)
        except InvalidSignature as error:
            raise VerificationError(f"the signature of {self.name} does not hold") from error
        return text

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(ED25519_TYPE + self.public).decode()}"


@dataclass(frozen=True, slots=True)
class Signer:
    """One Ed25519 private key with its name; never printed.

    `following` is the key that signs beside it while a log's key is being replaced: every note then carries both lines.
    """

    verifier: Verifier
    _key: Ed25519PrivateKey = field(repr=False, compare=False)
    following: Signer | None = None

    @classmethod
    def of(cls, name: str, seed: bytes) -> Signer:
        """The signer of a 32-byte seed."""
        key = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(Verifier.of(name, key.public_key().public_bytes_raw()), key)

    @classmethod
    def parse(cls, text: str) -> Signer:
        """Reads `PRIVATE+KEY+<name>+<key id>+<base64>`, the private form that Go's note package uses."""
        if not text.startswith(PRIVATE_MARK):
            raise VerificationError(f"a signing key begins with {PRIVATE_MARK}")
        name, identifier, key = _split_key(text.strip().removeprefix(PRIVATE_MARK), "the signing key")
        signer = cls.of(name, key)
        if signer.verifier.key_id.hex() != identifier:
            raise VerificationError("the signing key's id does not match its name and key")
        return signer

    def private_text(self) -> str:
        """The line that `parse` reads; a secret."""
        secret = base64.b64encode(ED25519_TYPE + self._key.private_bytes_raw()).decode()
        return f"{PRIVATE_MARK}{self.verifier.name}+{self.verifier.key_id.hex()}+{secret}"

    @property
    def verifiers(self) -> tuple[Verifier, ...]:
        """The keys by which a note of this signer may be known: its own, and the one that follows."""
        return (self.verifier,) if self.following is None else (self.verifier, self.following.verifier)

    def followed_by(self, following: Signer) -> Signer:
        """The signer that lets another key of the same name sign beside it; raises `VerificationError` for any other pair."""
        if following.verifier.name != self.verifier.name or following.verifier == self.verifier:
            raise VerificationError(
                f"the key that follows must be another one of the same name, {self.verifier.name}"
            )
        return replace(self, following=following)

    def sign(self, text: str) -> str:
        """The signed note over `text`, which must end in a newline."""
        following = "" if self.following is None else self.following.line(text)
        return f"{text}\n{self.line(text)}{following}"

    def line(self, text: str) -> str:
        """The one line of a note that is this key's own signature."""
        signature = base64.b64encode(self.verifier.key_id + self._key.sign(text.encode())).decode()
        return f"{SIGNATURE_MARK}{self.verifier.name} {signature}\n"


def _split_key(text: str, what: str) -> tuple[str, str, bytes]:
    """The name, key id and 32 bytes of `<name>+<key id>+<base64>`; errors name `what`."""
    name, first, rest = text.partition("+")
    identifier, second, encoded = rest.partition("+")
    if not first or not second:
        raise VerificationError(f"{what} is not <name>+<key id>+<base64>")
    data = decode_base64(encoded, what)
    if data[:1] != ED25519_TYPE or len(data) != 1 + KEY_BYTES:
        raise VerificationError(f"{what} is not Ed25519")
    return name, identifier, data[1:]


def open_note(note: str, trusted: Iterable[Verifier], signed_by: str | None = None) -> str:
    """Returns the text of a note that a trusted key signed; one bad signature of a trusted key rejects it whole.

    With `signed_by`, the trusted key of that name must be among the signers.
    """
    text, separator, tail = note.rpartition("\n\n")
    if not separator or not tail.endswith("\n") or _FORBIDDEN.search(note):
        raise VerificationError("this is not a signed note")
    text += "\n"
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise VerificationError(f"the note has more than {MAX_SIGNATURES} signatures")
    keys = {(verifier.name, verifier.key_id): verifier for verifier in trusted}
    signers = [_check_line(line, text, keys) for line in lines]
    if not any(signers) or (signed_by is not None and signed_by not in signers):
        raise VerificationError(
            f"the note is not signed by {signed_by or 'a trusted key'}{_of_another_key(lines, signed_by)}"
        )
    return text


def _of_another_key(lines: Iterable[str], name: str | None) -> str:
    """What to say when only unknown keys of this name signed: a log's key may have been replaced."""
    prefix = f"{SIGNATURE_MARK}{name} "
    ids = [
        decode_base64(line.removeprefix(prefix), "a signature of the note")[:KEY_ID_BYTES].hex()
        for line in lines
        if line.startswith(prefix)
    ]
    if name is None or not ids:
        return ""
    return f", but by another key of that name, {', '.join(ids)}: give that key too if this one replaced it"


def _check_line(line: str, text: str, keys: dict[tuple[str, bytes], Verifier]) -> str | None:
    """The trusted key whose good signature this line is; None for an unknown key; a bad signature raises."""
    name, space, encoded = line.removeprefix(SIGNATURE_MARK).partition(" ")
    if not line.startswith(SIGNATURE_MARK) or not space:
        raise VerificationError("a signature line of the note is malformed")
    require_key_name(name)
    data = decode_base64(encoded, "a signature of the note")
    if len(data) <= KEY_ID_BYTES:
        raise VerificationError("a signature of the note is too short")
    verifier = keys.get((name, data[:KEY_ID_BYTES]))
    if verifier is None:
        return None
    verifier.verify(text.encode(), data[KEY_ID_BYTES:])
    return verifier.name

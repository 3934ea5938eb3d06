"""Every secret of a suite, made once and never overwritten; the public halves lie apart, to be pinned elsewhere."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from kala.audit.note import Signer
from kala.errors import FailedPreconditionError
from kala.suite.layout import make_private_directory, write_private_file

SYMMETRIC_KEY_BYTES: Final = 32
"""AES-256 and HMAC-SHA-256 keys."""

LOG_NAME: Final = "kala.local/audit"
"""Origin of a log made by `kala up`; an operator gives another name with `kala keys init --log-name`."""

Randomness = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Keyring:
    """The key files of one suite."""

    private: Path
    """Folder of the secret files, each 0600."""
    public: Path
    """Folder of the public files."""

    @property
    def ethics_signing_key(self) -> Path:
        """Ed25519, PKCS 8 PEM: ethics signs clearances with it."""
        return self.private / "ethics.key"

    @property
    def ethics_public_key(self) -> Path:
        """Its public half, PEM: whoever acts on clearances pins it."""
        return self.public / "ethics.pub"

    @property
    def tools_signing_key(self) -> Path:
        """Ed25519, PKCS 8 PEM: tools signs measurements for evaluation gates with it."""
        return self.private / "tools.key"

    @property
    def tools_public_key(self) -> Path:
        """Its public half, PEM: whoever verifies a gate pins it."""
        return self.public / "tools.pub"

    @property
    def trainer_signing_key(self) -> Path:
        """Ed25519, PKCS 8 PEM: the trainer signs adapters and revocations with it."""
        return self.private / "trainer.key"

    @property
    def trainer_public_key(self) -> Path:
        """Its public half, PEM: whoever loads adapters pins it."""
        return self.public / "trainer.pub"

    @property
    def audit_log_key(self) -> Path:
        """A C2SP note signer: the log signs checkpoints with it."""
        return self.private / "audit-log.key"

    @property
    def audit_vkey(self) -> Path:
        """Its public half, a C2SP vkey line: receipts are verified with it."""
        return self.public / "audit.vkey"

    @property
    def next_audit_log_key(self) -> Path:
        """The signer that is to follow it; only there while the log's key is being replaced."""
        return self.private / "audit-log-next.key"

    @property
    def audit_tile_token(self) -> Path:
        """The token with which mirrors read the log's tiles."""
        return self.private / "audit-tiles.token"

    @property
    def audit_kek(self) -> Path:
        """32 bytes: wraps the keys of stored payloads."""
        return self.private / "audit-kek.key"

    @property
    def gateway_pepper(self) -> Path:
        """32 bytes: API keys are hashed and subjects are named with it."""
        return self.private / "gateway-pepper.key"

    @property
    def gateway_store(self) -> Path:
        """32 bytes: wraps the keys of stored conversations and files."""
        return self.private / "gateway-store.key"

    @property
    def cli_key(self) -> Path:
        """The plaintext API key of this machine's command line."""
        return self.private / "cli.key"

    def spool_key(self, part: str) -> Path:
        """32 bytes: encrypts the records that a part keeps while the audit service is away."""
        return self.private / f"{part}-spool.key"


SPOOLING_PARTS: Final = ("gateway", "ethics", "inference", "trainer")


def make_keyring(
    private: Path,
    public: Path,
    *,
    log_name: str = LOG_NAME,
    randomness: Randomness = secrets.token_bytes,
) -> tuple[Keyring, tuple[Path, ...]]:
    """Make every key that is missing; what exists is kept, so running this twice changes nothing.

    Returns the keyring and the files that were made.
    """
    make_private_directory(private)
    public.mkdir(mode=0o755, parents=True, exist_ok=True)
    keyring = Keyring(private, public)
    made = [
        *_make_signing_key(keyring.ethics_signing_key, keyring.ethics_public_key, randomness),
        *_make_signing_key(keyring.tools_signing_key, keyring.tools_public_key, randomness),
        *_make_signing_key(keyring.trainer_signing_key, keyring.trainer_public_key, randomness),
        *_make_log_keys(keyring, log_name, randomness),
    ]
    symmetric = [
        keyring.audit_kek,
        keyring.gateway_pepper,
        keyring.gateway_store,
        *(keyring.spool_key(part) for part in SPOOLING_PARTS),
    ]
    if not keyring.audit_tile_token.exists():
        token = base64.urlsafe_b64encode(randomness(SYMMETRIC_KEY_BYTES)).rstrip(b"=")
        write_private_file(keyring.audit_tile_token, token + b"\n")
        made.append(keyring.audit_tile_token)
    for path in symmetric:
        if not path.exists():
            write_private_file(path, randomness(SYMMETRIC_KEY_BYTES))
            made.append(path)
    return keyring, tuple(made)


def _make_signing_key(private_file: Path, public_file: Path, randomness: Randomness) -> list[Path]:
    made = []
    if not private_file.exists():
        key = Ed25519PrivateKey.from_private_bytes(randomness(SYMMETRIC_KEY_BYTES))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private_file(private_file, pem)
        made.append(private_file)
    public = (
        signing_key(private_file).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return made + _publish(public_file, public)


def signing_key(path: Path) -> Ed25519PrivateKey:
    """Read one of the keyring's Ed25519 keys."""
    key = load_pem_private_key(_read(path), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise FailedPreconditionError(f"{path} holds no Ed25519 key")
    return key


def _make_log_keys(keyring: Keyring, log_name: str, randomness: Randomness) -> list[Path]:
    made = []
    if not keyring.audit_log_key.exists():
        signer = Signer.of(log_name, randomness(SYMMETRIC_KEY_BYTES))
        write_private_file(keyring.audit_log_key, f"{signer.private_text()}\n".encode())
        made.append(keyring.audit_log_key)
    signer = Signer.parse(_read(keyring.audit_log_key).decode().strip())
    if not keyring.audit_vkey.exists():
        return made + _publish(keyring.audit_vkey, f"{signer.verifier}\n".encode())
    # Keys that were replaced stay: what they signed is verified with them.
    if str(signer.verifier) not in _read(keyring.audit_vkey).decode().split():
        raise _exchanged(keyring.audit_vkey)
    return made


def _publish(path: Path, content: bytes) -> list[Path]:
    """Write a public half; one that differs from its private half was exchanged, which no start may paper over."""
    if not path.exists():
        write_private_file(path, content, mode=0o644)
        return [path]
    if _read(path) != content:
        raise _exchanged(path)
    return []


def _exchanged(path: Path) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{path} does not belong to the private key beside it; restore the right one from your backup"
    )


def _read(path: Path) -> bytes:
    try:
        if os.stat(path).st_size > 64 * 1024:  # noqa: PTH116 - one call
            raise FailedPreconditionError(f"{path} is not a key file")
        return path.read_bytes()
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error.strerror}") from error

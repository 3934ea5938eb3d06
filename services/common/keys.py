"""Ed25519 keys as files: PEM, one owner, named by a key id that both sides can compute."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kala.errors import FailedPreconditionError
from kala.ethics.manifest import key_id
from services.common.secret_keys import read_private_file

__all__ = [
    "key_id",
    "load_private_key",
    "load_public_key",
    "load_public_keys",
    "raw_public_key",
    "write_private_key",
    "write_public_key",
]


def raw_public_key(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of the key (RFC 8032 section 5.1.5)."""
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Reads an unencrypted PKCS#8 PEM file that only its owner can read; raises FailedPreconditionError naming it."""
    data = read_private_file(path)
    key = _parse(path, lambda: serialization.load_pem_private_key(data, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise FailedPreconditionError(f"private key {path} is not an Ed25519 key")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Reads a SubjectPublicKeyInfo PEM file; raises FailedPreconditionError naming it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FailedPreconditionError(f"public key {path} cannot be read: {error.strerror}") from error
    key = _parse(path, lambda: serialization.load_pem_public_key(data))
    if not isinstance(key, Ed25519PublicKey):
        raise FailedPreconditionError(f"public key {path} is not an Ed25519 key")
    return key


def load_public_keys(paths: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    """Reads several public keys, by key id."""
    keys = [load_public_key(path) for path in paths]
    return {key_id(key): key for key in keys}


def write_private_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Writes a new private key with mode 0600 from its first moment; an existing file is an error, never overwritten."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)


def write_public_key(path: Path, key: Ed25519PublicKey) -> None:
    """Writes a public key as PEM."""
    path.write_bytes(
        key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _parse(path: Path, parse: Callable[[], object]) -> object:
    try:
        return parse()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FailedPreconditionError(f"{path} is not a PEM key file without a password") from error

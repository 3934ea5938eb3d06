"""Symmetric keys as files: 32 random bytes, raw, readable by their owner alone."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError

SECRET_KEY_BYTES: Final = 32


def load_secret_key(path: Path) -> bytes:
    """The key in this file; raises `FailedPreconditionError` naming the file when it is missing, open or malformed."""
    key = read_private_file(path)
    if len(key) != SECRET_KEY_BYTES:
        raise FailedPreconditionError(f"secret key {path} does not have {SECRET_KEY_BYTES} bytes")
    return key


def load_or_create_secret_key(path: Path) -> bytes:
    """The key in this file, made on first use; an existing file is never overwritten.

    Of processes that start at once all get the same key, and none finds one that is only half written.
    """
    if not path.exists():
        try:
            _create(path, secrets.token_bytes(SECRET_KEY_BYTES))
        except OSError as error:
            raise FailedPreconditionError(f"{path} cannot be made: {error.strerror}") from error
    return load_secret_key(path)


def _create(path: Path, key: bytes) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first
            os.link(draft, path)
    finally:
        draft.unlink()


def read_private_file(path: Path) -> bytes:
    """The content of a file that only its owner can read; raises `FailedPreconditionError` naming it."""
    try:
        with path.open("rb") as file:
            # Of the file that is open: another could come to lie at this path meanwhile.
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise FailedPreconditionError(f"{path} is readable by others: run `chmod 600 {path}`")
            return file.read()
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error.strerror}") from error

"""Frames and files of the spool: how a record lies in a segment, and how a file becomes durable."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from pathlib import Path
from typing import Final

from kala.errors import DataLossError, FailedPreconditionError

# A larger one fits into no message of 36 MiB, so it could never leave and would block all behind it.
MAX_RECORD_BYTES: Final = 36 * 1024 * 1024 - 4096
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
FRAME: Final = struct.Struct(">III")  # length of the body, CRC of that length, CRC of the body
_LENGTH_BYTES: Final = 4
_MAX_BODY_BYTES: Final = NONCE_BYTES + MAX_RECORD_BYTES + TAG_BYTES


def framed(body: bytes) -> bytes:
    """The frame that carries this body."""
    return FRAME.pack(len(body), _length_checksum(len(body)), zlib.crc32(body)) + body


def frame_at(path: Path, data: bytes, offset: int) -> bytes | None:
    """The whole frame at this place; None where none is, or where a crash left part of one.

    Raises `DataLossError` for a frame that is whole and not what was written: it may have been acknowledged.
    """
    start = offset + FRAME.size
    if start > len(data):
        return None
    length, length_checksum, checksum = FRAME.unpack_from(data, offset)
    if length > _MAX_BODY_BYTES or _length_checksum(length) != length_checksum:
        is_damaged = True
    elif start + length > len(data):
        return None
    else:
        is_damaged = zlib.crc32(data[start : start + length]) != checksum
    if not is_damaged:
        return data[offset : start + length]
    if not data[offset:][-TAG_BYTES:].strip(b"\0"):
        # A crash of the machine can leave zeros in the place of what was not yet written; no frame ends with them.
        return None
    raise DataLossError(f"{path} is damaged after byte {offset}; move it away to go on without its records")


def _length_checksum(length: int) -> int:
    return zlib.crc32(length.to_bytes(_LENGTH_BYTES))


def create(path: Path, header: bytes) -> int:
    """A new private file that begins with `header`; whatever fails, nothing of it stays open."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        written = os.write(descriptor, header)
    except OSError:
        os.close(descriptor)
        raise
    if written < len(header):
        os.close(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return descriptor


def write_all(file: int, data: bytes) -> None:
    """Writes every byte, however many the system takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def lock(path: Path) -> int:
    """Takes the file's lock, which the system frees at any death; raises `FailedPreconditionError` when another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise FailedPreconditionError(f"another process uses the spool {path.parent}") from error
    return descriptor


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

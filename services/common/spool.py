"""A durable queue in files: records wait here, encrypted and in order, while their destination is away.

Segment files hold frames of length, CRC-32 (zlib's), nonce and AES-256-GCM ciphertext. Each frame is sealed over the
hash of all frames before it in its segment, so none can be changed, moved or taken out unnoticed. `append` returns
after fsync; what a killed process left torn at the end was never acknowledged and is cut off. A segment is deleted
when all its records are dropped; after a crash some records of the oldest segment come again, so the destination
must recognise repeats. Not thread-safe.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kala.errors import DataLossError, FailedPreconditionError, UnavailableError

DEFAULT_MAX_BYTES: Final = 64 * 1024 * 1024
# Small enough that a crash repeats little, large enough that files are few.
SEGMENT_BYTES: Final = 1024 * 1024
# A record is a gRPC message of at most 36 MiB.
MAX_FRAME_BYTES: Final = 40 * 1024 * 1024
NONCE_BYTES: Final = 12
_FRAME: Final = struct.Struct(">II")
_MAGIC: Final = b"kala.spool.v1\0"
_SALT_BYTES: Final = 18  # makes the header 32 bytes
_HEADER_BYTES: Final = len(_MAGIC) + _SALT_BYTES


class SpoolFullError(UnavailableError):
    """The spool has no room; nothing was written."""

    default_reason = "AUDIT_UNAVAILABLE"


@dataclass(slots=True)
class _Segment:
    """One file: where its frames lie, and the hash that the next one is sealed over."""

    path: Path
    number: int
    chain: bytes
    size: int
    frames: deque[tuple[int, int, bytes]] = field(default_factory=deque)  # offset, length, hash before


class Spool:
    """The queue in one directory; a lock file keeps other processes out."""

    def __init__(
        self,
        directory: Path,
        key: bytes,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Opens the queue and reads what waits in it.

        Raises `FailedPreconditionError` when another process has it, `DataLossError` naming a damaged segment.
        """
        self._directory = directory
        self._key = key
        self._aead = AESGCM(key)
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._random = random
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(directory / "lock")
        self._file: int | None = None
        try:
            self._segments = self._recover()
        except BaseException:
            os.close(self._lock)
            raise
        self._count = sum(len(segment.frames) for segment in self._segments)

    def __len__(self) -> int:
        return self._count

    @property
    def bytes_used(self) -> int:
        """How much of the room is taken."""
        return sum(segment.size for segment in self._segments)

    @property
    def has_room(self) -> bool:
        """Whether another record of ordinary size fits."""
        return self.bytes_used + self._segment_bytes // 16 <= self._max_bytes

    def append(self, records: Sequence[bytes]) -> None:
        """Adds records at the end; all are on disk when this returns, or `SpoolFullError` and none is."""
        needed = sum(len(record) + 64 for record in records)
        if self.bytes_used + needed > self._max_bytes:
            raise SpoolFullError(f"the spool {self._directory} is full")
        segment = self._writable()
        chain, size, frames, data = segment.chain, segment.size, [], []
        for record in records:
            frame = self._seal(record, chain)
            frames.append((size, len(frame), chain))
            chain = sha256(chain + frame).digest()
            size += len(frame)
            data.append(frame)
        self._write(segment, b"".join(data))
        segment.chain, segment.size = chain, size
        segment.frames.extend(frames)
        self._count += len(frames)

    def peek(self, limit: int, max_bytes: int) -> list[bytes]:
        """The oldest records, at most `limit`, and of at most `max_bytes` together unless the first alone is larger."""
        records: list[bytes] = []
        total = 0
        for segment in self._segments:
            for offset, length, chain in islice(segment.frames, limit - len(records)):
                total += length
                if records and total > max_bytes:
                    return records
                records.append(self._read(segment, offset, length, chain))
        return records

    def drop(self, count: int) -> None:
        """Forgets the oldest `count` records and deletes the segments that are empty then."""
        for _ in range(count):
            self._segments[0].frames.popleft()
            self._count -= 1
            if not self._segments[0].frames:
                self._delete_first()

    def set_aside(self, record: bytes) -> None:
        """Keeps a record that its destination refuses in `rejected/` below the queue, for a person to look at."""
        aside = Spool(self._directory / "rejected", self._key, max_bytes=self._max_bytes, random=self._random)
        try:
            aside.append([record])
        finally:
            aside.close()

    def close(self) -> None:
        """Lets another process open the queue; what waits stays on disk."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        os.close(self._lock)

    def _seal(self, record: bytes, chain: bytes) -> bytes:
        nonce = self._random(NONCE_BYTES)
        body = nonce + self._aead.encrypt(nonce, record, chain)
        return _FRAME.pack(len(body), zlib.crc32(body)) + body

    def _read(self, segment: _Segment, offset: int, length: int, chain: bytes) -> bytes:
        with segment.path.open("rb") as file:
            file.seek(offset + _FRAME.size)
            body = file.read(length - _FRAME.size)
        return self._open(segment.path, body, chain)

    def _open(self, path: Path, body: bytes, chain: bytes) -> bytes:
        try:
            return self._aead.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], chain)
        except (InvalidTag, ValueError) as error:
            raise DataLossError(
                f"{path} is damaged, or the spool's key is not the one it was written with"
            ) from error

    def _writable(self) -> _Segment:
        """The segment to append to: the last one, if this process made it and it has room."""
        if self._file is not None and self._segments and self._segments[-1].size < self._segment_bytes:
            return self._segments[-1]
        if self._file is not None:
            os.close(self._file)
            self._file = None
        number = self._segments[-1].number + 1 if self._segments else 1
        path = self._directory / f"{number:012d}.spool"
        header = _MAGIC + self._random(_SALT_BYTES)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(self._file, header)
        _sync_directory(self._directory)
        self._segments.append(_Segment(path, number, sha256(header).digest(), len(header)))
        return self._segments[-1]

    def _write(self, segment: _Segment, data: bytes) -> None:
        if self._file is None:
            raise FailedPreconditionError("the spool is closed")
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            os.fdatasync(self._file)
        except OSError as error:
            # A partial frame would hide what follows it: cut back to the last acknowledged byte.
            os.ftruncate(self._file, segment.size)
            raise SpoolFullError(
                f"the spool {self._directory} cannot be written: {error.strerror}"
            ) from error

    def _delete_first(self) -> None:
        segment = self._segments.popleft()
        if not self._segments and self._file is not None:
            os.close(self._file)
            self._file = None
        segment.path.unlink()
        _sync_directory(self._directory)

    def _recover(self) -> deque[_Segment]:
        segments: deque[_Segment] = deque()
        paths = sorted(self._directory.glob("*.spool"))
        for path in paths:
            segment = self._scan(path, is_last=path == paths[-1])
            if segment.frames:
                segments.append(segment)
            else:
                path.unlink()
        return segments

    def _scan(self, path: Path, *, is_last: bool) -> _Segment:
        """Reads a segment's frames; a torn tail is cut off the last one, damage anywhere else is an error."""
        data = path.read_bytes()
        segment = _Segment(path, int(path.stem), sha256(data[:_HEADER_BYTES]).digest(), _HEADER_BYTES)
        if data[: len(_MAGIC)] != _MAGIC and not is_last:
            raise DataLossError(f"{path} is damaged")
        offset = _HEADER_BYTES
        while (frame := _frame_at(data, offset)) is not None:
            self._open(path, frame[_FRAME.size :], segment.chain)
            segment.frames.append((offset, len(frame), segment.chain))
            segment.chain = sha256(segment.chain + frame).digest()
            offset += len(frame)
        segment.size = offset
        if offset < len(data):
            if not is_last:
                raise DataLossError(f"{path} is damaged after byte {offset}")
            os.truncate(path, offset)
        return segment


def _frame_at(data: bytes, offset: int) -> bytes | None:
    """The whole frame at this place; None where none is, or only part of one."""
    if offset + _FRAME.size > len(data):
        return None
    length, checksum = _FRAME.unpack_from(data, offset)
    body = data[offset + _FRAME.size : offset + _FRAME.size + length]
    if length > MAX_FRAME_BYTES or len(body) != length or zlib.crc32(body) != checksum:
        return None
    return data[offset : offset + _FRAME.size + length]


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise FailedPreconditionError(f"another process uses the spool {path.parent}") from error
    return descriptor


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

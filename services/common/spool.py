"""A durable queue in files: records wait here, encrypted and in order, while their destination is away.

Segment files hold frames of length, the CRC-32 (zlib's) of length and body, nonce and AES-256-GCM ciphertext. Each
frame is sealed over the hash of all before it, and each segment begins with the hash that the one before ended with, so
none can be changed, moved or taken out of the middle unnoticed; whoever takes whole frames off the end, or segments off
the front, leaves only the hole in the records' own sequence numbers. `append` returns after fsync; what a killed
process left torn at the end was never acknowledged and is cut off. A segment is deleted when all its records are
dropped; after a crash some records of the oldest segment come again, so the destination must recognise repeats.
A segment other than the first that begins with no hash before it replaces all before it: `rewrite` writes one.
For one thread, but for `len`, `bytes_used` and `has_room`.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice, pairwise
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kala.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, UnavailableError
from services.common.spool_files import (
    FRAME,
    MAX_RECORD_BYTES,
    NONCE_BYTES,
    create,
    frame_at,
    framed,
    lock,
    sync_directory,
    write_all,
)

__all__ = ["MAX_RECORD_BYTES", "Spool", "SpoolFullError"]

DEFAULT_MAX_BYTES: Final = 64 * 1024 * 1024
# Small enough that a crash repeats little, large enough that files are few.
SEGMENT_BYTES: Final = 1024 * 1024
_MAGIC: Final = b"kala.spool.v1\0"
_HEADER: Final = struct.Struct(">14sQ32s10s")  # magic, the segment's number, hash of what is before it, salt
_SALT_BYTES: Final = 10
_NOTHING_BEFORE: Final = bytes(32)
_SEGMENT_NAMES: Final = "[0-9]" * 12 + ".spool"
_REJECTED: Final = "rejected"


class SpoolFullError(UnavailableError):
    """The spool has no room; nothing was written."""

    default_reason = "AUDIT_UNAVAILABLE"


@dataclass(slots=True)
class _Segment:
    """One file: where its frames lie, and the hash that the next one is sealed over."""

    path: Path
    number: int
    before: bytes
    chain: bytes
    size: int
    frames: deque[tuple[int, int, bytes]] = field(default_factory=deque)  # offset, length, hash before

    def add(self, frame: bytes) -> None:
        """Notes a frame that lies at the end of the file."""
        self.frames.append((self.size, len(frame), self.chain))
        self.chain = sha256(self.chain + frame).digest()
        self.size += len(frame)


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
        self._lock = lock(directory / "lock")
        self._file: int | None = None
        # True while a failed write's part of a frame may lie behind the last acknowledged byte.
        self._is_torn = False
        try:
            self._segments = self._recover()
        except BaseException:
            os.close(self._lock)
            raise
        # Counted, not summed when asked: others ask while this thread changes the segments.
        self._count = sum(len(segment.frames) for segment in self._segments)
        self._bytes_used = sum(segment.size for segment in self._segments)

    def __len__(self) -> int:
        return self._count

    @property
    def bytes_used(self) -> int:
        """How much of the room is taken."""
        return self._bytes_used

    @property
    def has_room(self) -> bool:
        """Whether another record of ordinary size fits."""
        return self.bytes_used + self._segment_bytes // 16 <= self._max_bytes

    def append(self, records: Sequence[bytes]) -> None:
        """Adds records at the end; all are on disk when this returns, or `SpoolFullError` and none is.

        Raises `InvalidArgumentError` for a record that no message could carry.
        """
        if any(len(record) > MAX_RECORD_BYTES for record in records):
            raise InvalidArgumentError("records", f"must each have at most {MAX_RECORD_BYTES} bytes")
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
        self._bytes_used += size - segment.size
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
        with closing(self._aside()) as aside:
            aside.append([record])

    def rewrite(self, change: Callable[[bytes], bytes]) -> int:
        """Replaces each record, those in `rejected/` too, by what `change` makes of it; tells how many it changed.

        No file holds a replaced record afterwards, nor one that was dropped before. A crash leaves all as they were or all
        replaced; `SpoolFullError` leaves them as they were.
        """
        changed = 0
        if (self._directory / _REJECTED).exists():
            with closing(self._aside()) as aside:
                changed += aside.rewrite(change)
        before = self.peek(self._count, self._bytes_used)  # all, also where the limit was lowered
        after = [change(record) for record in before]
        if before:
            self._replace(after)
        self._sweep()
        return changed + sum(old != new for old, new in zip(before, after, strict=True))

    def _aside(self) -> Spool:
        return Spool(self._directory / _REJECTED, self._key, max_bytes=self._max_bytes, random=self._random)

    def _replace(self, records: Sequence[bytes]) -> None:
        """Puts these records in the place of all, by one rename of a finished segment."""
        replaced = list(self._segments)
        number = replaced[-1].number + 1
        path = self._directory / f"{number:012d}.spool"
        header = _HEADER.pack(_MAGIC, number, _NOTHING_BEFORE, self._random(_SALT_BYTES))
        segment = _Segment(path, number, _NOTHING_BEFORE, sha256(header).digest(), len(header))
        unfinished = path.with_suffix(".next")
        unfinished.unlink(missing_ok=True)
        try:
            if self._file is not None and self._is_torn:
                self._cut_back(self._file, replaced[-1])
            file = create(unfinished, header)
            try:
                for record in records:
                    frame = self._seal(record, segment.chain)
                    write_all(file, frame)
                    segment.add(frame)
                os.fsync(file)
            finally:
                os.close(file)
            unfinished.rename(path)
            sync_directory(self._directory)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            raise self._unwritable(error) from error
        # Read by the next process only: this one begins a new segment behind it.
        if self._file is not None:
            os.close(self._file)
            self._file, self._is_torn = None, False
        self._segments = deque([segment])
        self._bytes_used = segment.size

    def _sweep(self) -> None:
        """Deletes what is no segment of the queue any more: replaced just now, or left when deleting failed before."""
        kept = {segment.path for segment in self._segments}
        try:
            for path in self._directory.glob(_SEGMENT_NAMES):
                if path not in kept:
                    path.unlink()
            sync_directory(self._directory)
        except OSError as error:
            raise UnavailableError(f"{self._directory} cannot be cleared: {error.strerror}") from error

    def close(self) -> None:
        """Lets another process open the queue; what waits stays on disk."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        os.close(self._lock)

    def _seal(self, record: bytes, chain: bytes) -> bytes:
        nonce = self._random(NONCE_BYTES)
        body = nonce + self._aead.encrypt(nonce, record, chain)
        return framed(body)

    def _read(self, segment: _Segment, offset: int, length: int, chain: bytes) -> bytes:
        try:
            with segment.path.open("rb") as file:
                file.seek(offset + FRAME.size)
                body = file.read(length - FRAME.size)
        except OSError as error:
            raise UnavailableError(f"{segment.path} cannot be read: {error.strerror}") from error
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
        before = self._segments[-1].chain if self._segments else _NOTHING_BEFORE
        path = self._directory / f"{number:012d}.spool"
        header = _HEADER.pack(_MAGIC, number, before, self._random(_SALT_BYTES))
        try:
            self._file = create(path, header)
            sync_directory(self._directory)
        except OSError as error:
            self._abandon(path)
            raise self._unwritable(error) from error
        self._segments.append(_Segment(path, number, before, sha256(header).digest(), len(header)))
        self._bytes_used += len(header)
        return self._segments[-1]

    def _abandon(self, path: Path) -> None:
        """Takes back a segment that could not be begun, so that the next try finds its name free."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> SpoolFullError:
        return SpoolFullError(f"the spool {self._directory} cannot be written: {error.strerror}")

    def _write(self, segment: _Segment, data: bytes) -> None:
        if self._file is None:
            raise FailedPreconditionError("the spool is closed")
        try:
            if self._is_torn:
                self._cut_back(self._file, segment)
            write_all(self._file, data)
            os.fdatasync(self._file)
        except OSError as error:
            # A partial frame would hide what follows it. A disk that fails may fail this too: then before the next write.
            self._is_torn = True
            with suppress(OSError):
                self._cut_back(self._file, segment)
            raise self._unwritable(error) from error

    def _cut_back(self, file: int, segment: _Segment) -> None:
        os.ftruncate(file, segment.size)
        self._is_torn = False

    def _delete_first(self) -> None:
        segment = self._segments.popleft()
        if not self._segments and self._file is not None:
            os.close(self._file)
            self._file, self._is_torn = None, False
        self._bytes_used -= segment.size
        try:
            segment.path.unlink()
            sync_directory(self._directory)
        except OSError as error:
            raise UnavailableError(f"{segment.path} cannot be deleted: {error.strerror}") from error

    def _recover(self) -> deque[_Segment]:
        for path in self._directory.glob("*.next"):
            path.unlink()
        paths = sorted(self._directory.glob(_SEGMENT_NAMES))
        segments: deque[_Segment] = deque()
        for place, path in reversed(list(enumerate(paths))):
            segment = self._scan(path, is_last=path == paths[-1])
            if not segment.frames:
                path.unlink()
                continue
            segments.appendleft(segment)
            if segment.before == _NOTHING_BEFORE:
                # The first, or one that was finished before those it replaces were deleted.
                for replaced in paths[:place]:
                    replaced.unlink()
                break
        for last, segment in pairwise(segments):
            if (segment.number, segment.before) != (last.number + 1, last.chain):
                raise DataLossError(
                    f"{last.path} is damaged, or what followed it is gone: {segment.path} is not its successor"
                )
        return segments

    def _scan(self, path: Path, *, is_last: bool) -> _Segment:
        """Reads a segment's frames; a torn tail is cut off the last one, damage anywhere is an error."""
        data = path.read_bytes()
        header = data[: _HEADER.size]
        if len(header) < _HEADER.size or not data.strip(b"\0"):
            if not is_last:
                raise DataLossError(f"{path} is damaged: it has no header")
            return _Segment(path, int(path.stem), _NOTHING_BEFORE, b"", 0)
        if not header.startswith(_MAGIC):
            raise DataLossError(f"{path} is damaged at its beginning")
        _, number, before, _ = _HEADER.unpack(header)
        if number != int(path.stem):
            raise DataLossError(f"{path} is damaged or renamed: it was written as segment {number}")
        segment = _Segment(path, number, before, sha256(header).digest(), _HEADER.size)
        while (frame := frame_at(path, data, segment.size)) is not None:
            self._open(path, frame[FRAME.size :], segment.chain)
            segment.add(frame)
        if segment.size < len(data):
            if not is_last:
                raise DataLossError(f"{path} is damaged after byte {segment.size}")
            os.truncate(path, segment.size)
        return segment

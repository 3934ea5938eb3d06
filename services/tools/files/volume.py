"""The files of one workspace on disk: read, written, deleted and listed under its quota and the policy's zones.

Blocking, and not for several threads at a time where it changes something.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from kala.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from services.tools.files.beneath import (
    closing,
    is_plain_file,
    open_directory,
    open_regular,
    status_beneath,
)
from services.tools.files.content import digest_of, pieces, write_all
from services.tools.files.failures import explained, no_such_file, not_regular
from services.tools.files.model import (
    FileInfo,
    FileKind,
    FilePart,
    Reference,
    Removed,
    Rights,
    WriteMode,
    Written,
)
from services.tools.files.paths import require_path, shown_path
from services.tools.files.tree import Entry, empty, walk
from services.tools.policy.model import RefusedByPolicyError

MAX_PART_BYTES: Final = 2 * 1024 * 1024
MAX_WRITE_BYTES: Final = 3 * 1024 * 1024
# Larger files are listed without a digest.
MAX_DIGEST_BYTES: Final = 64 * 1024 * 1024
MAX_LIST_DEPTH: Final = 64
SHA256_BYTES: Final = 32
HOST_DIRECTORY: Final = "host"


@dataclass(slots=True)
class Account:
    """What a workspace may hold and holds."""

    quota_bytes: int
    max_inodes: int
    used_bytes: int = 0
    inodes: int = 0

    def require(self, more_bytes: int, more_inodes: int) -> None:
        """Raise ResourceExhaustedError when so much more does not fit."""
        if more_bytes > 0 and self.used_bytes + more_bytes > self.quota_bytes:
            raise ResourceExhaustedError(
                f"the workspace would hold {self.used_bytes + more_bytes} bytes and its quota is "
                f"{self.quota_bytes}; delete files or make a workspace with a larger quota",
                reason="WORKSPACE_QUOTA",
            )
        if more_inodes > 0 and self.inodes + more_inodes > self.max_inodes:
            raise ResourceExhaustedError(
                f"the workspace would hold {self.inodes + more_inodes} files and directories and at most "
                f"{self.max_inodes} are allowed; delete some",
                reason="WORKSPACE_INODES",
            )

    def add(self, more_bytes: int, more_inodes: int) -> None:
        """Note a change that has happened."""
        self.used_bytes += more_bytes
        self.inodes += more_inodes


class Volume:
    """One workspace's files; the descriptors stay the caller's to close.

    `root` holds the files, `staging` what is not finished, `host` the host directory shown under "host/" or None.
    """

    def __init__(
        self, *, root: int, staging: int, account: Account, rights: Rights, host: int | None = None
    ) -> None:
        self.root = root
        self.account = account
        self.rights = rights
        self._staging = staging
        self._host = host

    def read(self, path: str, *, offset: int = 0, max_bytes: int = 0) -> FilePart:
        """A part of a regular file, with the digest when it is all of it."""
        require_path("path", path)
        if not 0 <= max_bytes <= MAX_PART_BYTES:
            raise InvalidArgumentError("max_bytes", f"must be 1 to {MAX_PART_BYTES}")
        if offset < 0:
            raise InvalidArgumentError("offset", "must not be negative")
        self._require(self.rights.may_read(path), "read", path)
        with self._opened(path) as (descriptor, status):
            data = b"".join(pieces(descriptor, offset=offset, most=max_bytes or MAX_PART_BYTES))
        end = offset + len(data)
        whole = offset == 0 and end >= status.st_size
        info = _info(path, status, sha256=hashlib.sha256(data).digest() if whole else b"")
        return FilePart(info, data, next_offset=end if end < status.st_size and data else None)

    def write(self, path: str, data: bytes, *, mode: WriteMode, expected_sha256: bytes = b"") -> Written:
        """Write a file whole and at once; missing directories are made."""
        require_path("path", path)
        if len(data) > MAX_WRITE_BYTES:
            raise InvalidArgumentError(
                "data", f"holds {len(data)} bytes, at most {MAX_WRITE_BYTES} are taken"
            )
        if len(expected_sha256) not in {0, SHA256_BYTES}:
            raise InvalidArgumentError("expected_sha256", f"must be empty or {SHA256_BYTES} bytes")
        self._require_changeable(path)
        self._require(self.rights.may_write(path), "write", path)
        with explained(path):
            before = status_beneath(self.root, path.encode())
        if before is not None and mode is WriteMode.CREATE:
            raise AlreadyExistsError(
                f"{path!r} is there already; write with REPLACE to change it", reason="FILE_EXISTS"
            )
        if before is not None and not is_plain_file(before):
            raise not_regular(path)
        if expected_sha256:
            self._require_digest(path, before, expected_sha256)
        kept: Iterable[bytes] = ()
        size = len(data)
        if before is not None and mode is WriteMode.APPEND:
            kept = self._content(path)
            size += before.st_size
        executable = before is not None and bool(before.st_mode & stat.S_IXUSR)
        sha256 = self.put(path, _joined(kept, data), size=size, executable=executable)
        with self._opened(path) as (_, status):
            return Written(_info(path, status, sha256=sha256), created=before is None)

    def put(self, path: str, content: Iterable[bytes], *, size: int, executable: bool = False) -> bytes:
        """Make or replace a regular file of exactly `size` bytes, and give its digest; rights were asked before."""
        with explained(path):
            before = status_beneath(self.root, path.encode())
        if before is not None and not is_plain_file(before):
            raise not_regular(path)
        old_bytes = 0 if before is None else before.st_size
        missing = self._missing_directories(path)
        self.account.require(size - old_bytes, len(missing) + (before is None))
        with (
            self._staged(path, content, size=size, executable=executable) as (staged, sha256),
            explained(path),
        ):
            for above in missing:
                self._make_directory(above)
            parent, _, name = path.rpartition("/")
            with closing(open_directory(self.root, parent.encode())) as directory:
                os.rename(staged, name.encode(), src_dir_fd=self._staging, dst_dir_fd=directory)
        self.account.add(size - old_bytes, int(before is None))
        return sha256

    def delete(self, path: str, *, recursive: bool = False) -> Removed:
        """Delete a name; a directory that is not empty only when `recursive`."""
        require_path("path", path)
        self._require_changeable(path)
        self._require(self.rights.may_delete(path), "delete", path)
        with explained(path):
            status = status_beneath(self.root, path.encode())
            if status is None:
                raise no_such_file(path)
            removed = self._delete_present(path, status, recursive=recursive)
        self.account.add(-removed.freed_bytes, -removed.inodes)
        return removed

    def entries(self, path: str = "", *, recursive: bool = False) -> list[Entry]:
        """The names in a directory that may be read, by path."""
        if path:
            require_path("path", path)
        self._require(self.rights.may_read(path), "list", path)
        root, inside, prefix = self._located(path)
        with explained(path):
            found = list(walk(root, inside, max_depth=MAX_LIST_DEPTH if recursive else 1))
        if prefix:
            found = [Entry(prefix + b"/" + entry.path, entry.status) for entry in found]
        if not path and self._host is not None:
            found.append(Entry(HOST_DIRECTORY.encode(), os.fstat(self._host)))
        allowed = [entry for entry in found if self.rights.may_read(shown_path(entry.path))]
        return sorted(allowed, key=lambda entry: entry.path)

    def info(self, entry: Entry, *, with_digest: bool) -> FileInfo:
        """What to say of an entry; without a digest where the file went away, is too large or is no regular one."""
        sha256 = b""
        if with_digest and entry.kind is FileKind.REGULAR and entry.size <= MAX_DIGEST_BYTES:
            root, inside, _ = self._located(os.fsdecode(entry.path))
            with suppress(OSError):
                descriptor, _ = open_regular(root, inside)
                with closing(descriptor):
                    sha256 = digest_of(descriptor)
        return FileInfo(shown_path(entry.path), entry.kind, entry.size, entry.status.st_mtime, sha256)

    def reference(self, path: str) -> Reference:
        """What a regular file holds now."""
        self._require(self.rights.may_read(path), "read", path)
        with self._opened(path) as (descriptor, _):
            digest, size = hashlib.sha256(), 0
            for piece in pieces(descriptor):
                digest.update(piece)
                size += len(piece)
        return Reference(path, digest.digest(), size)

    def _located(self, path: str) -> tuple[int, bytes, bytes]:
        """The descriptor to start from, the path from there, and what to put before paths found there."""
        raw = os.fsencode(path)
        host = HOST_DIRECTORY.encode()
        if self._host is not None and (raw == host or raw.startswith(host + b"/")):
            return self._host, raw[len(host) + 1 :], host
        return self.root, raw, b""

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int, os.stat_result]]:
        root, inside, _ = self._located(path)
        with explained(path):
            descriptor, status = open_regular(root, inside)
        with closing(descriptor):
            yield descriptor, status

    def _content(self, path: str) -> Iterator[bytes]:
        with self._opened(path) as (descriptor, _):
            yield from pieces(descriptor)

    @contextmanager
    def _staged(
        self, path: str, content: Iterable[bytes], *, size: int, executable: bool
    ) -> Iterator[tuple[str, bytes]]:
        """A finished file outside the tree, and its digest; it is gone at the end unless it was moved into the tree."""
        name = secrets.token_hex(16)
        digest = hashlib.sha256()
        written = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        mode = 0o700 if executable else 0o600
        try:
            with explained(path), closing(os.open(name, flags, mode, dir_fd=self._staging)) as descriptor:
                for piece in content:
                    write_all(descriptor, piece)
                    digest.update(piece)
                    written += len(piece)
                    if written > size:
                        break
            if written != size:
                raise FailedPreconditionError(
                    f"{path!r} changed while it was copied; try again", reason="FILE_CHANGED"
                )
            yield name, digest.digest()
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._staging)

    def _digest(self, path: str) -> bytes:
        with self._opened(path) as (descriptor, _):
            return digest_of(descriptor)

    def _missing_directories(self, path: str) -> list[str]:
        """The directories above the path that are not there, the topmost first; those that are were seen to be some."""
        segments = path.split("/")[:-1]
        above = ["/".join(segments[:count]) for count in range(1, len(segments) + 1)]
        for index, directory in enumerate(above):
            if status_beneath(self.root, directory.encode()) is None:
                return above[index:]
        return []

    def _make_directory(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        with closing(open_directory(self.root, parent.encode())) as directory:
            os.mkdir(name.encode(), 0o700, dir_fd=directory)
        self.account.add(0, 1)

    def _delete_present(self, path: str, status: os.stat_result, *, recursive: bool) -> Removed:
        parent, _, name = path.rpartition("/")
        with closing(open_directory(self.root, parent.encode())) as directory:
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(name.encode(), dir_fd=directory)
                return Removed(1, status.st_size)
            if not recursive:
                os.rmdir(name.encode(), dir_fd=directory)
                return Removed(1, 0)
            for entry in walk(self.root, path.encode()):
                self._require(
                    self.rights.may_delete(shown_path(entry.path)), "delete", shown_path(entry.path)
                )
            # One rename takes all of it away at once; what is then deleted nobody sees any more.
            trash = secrets.token_hex(16)
            os.mkdir(trash, 0o700, dir_fd=self._staging)
            with closing(open_directory(self._staging, trash.encode())) as waste:
                os.rename(name.encode(), b"0", src_dir_fd=directory, dst_dir_fd=waste)
                inodes, freed = empty(waste)
            os.rmdir(trash, dir_fd=self._staging)
        return Removed(inodes, freed)

    def _require_digest(self, path: str, before: os.stat_result | None, expected: bytes) -> None:
        if before is None or self._digest(path) != expected:
            raise FailedPreconditionError(
                f"{path!r} is not what `expected_sha256` says; read it again before you write",
                reason="FILE_CHANGED",
            )

    def _require_changeable(self, path: str) -> None:
        if self._host is not None and path.split("/", maxsplit=1)[0] == HOST_DIRECTORY:
            raise RefusedByPolicyError(
                f"{path!r} is in the host directory, which is shown read-only",
                reason="HOST_DIRECTORY_READ_ONLY",
            )

    @staticmethod
    def _require(allowed: bool, verb: str, path: str) -> None:  # noqa: FBT001 - the answer of a right, asked at once
        if not allowed:
            raise RefusedByPolicyError(
                f"the policy's zones give no right to {verb} {path or 'the top of the workspace'!r}",
                reason="ZONE_REFUSED",
            )


def _joined(kept: Iterable[bytes], data: bytes) -> Iterator[bytes]:
    yield from kept
    yield data


def _info(path: str, status: os.stat_result, *, sha256: bytes) -> FileInfo:
    return FileInfo(path, FileKind.REGULAR, status.st_size, status.st_mtime, sha256)

"""Between a workspace and a run: verified files in before it begins, its changes back after it has ended.

A run never sees the workspace itself, only copies; what it leaves is looked at when none of its processes lives.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from kala.errors import FailedPreconditionError, InvalidArgumentError, KalaError
from services.tools.files.beneath import closing, open_directory, open_regular, status_beneath
from services.tools.files.content import digest_of, pieces, write_all
from services.tools.files.failures import explained
from services.tools.files.model import Changes, FileKind, Reference, Skipped
from services.tools.files.paths import readable_path, require_path, shown_path
from services.tools.files.tree import Entry, walk
from services.tools.files.volume import HOST_DIRECTORY, Volume
from services.tools.policy.model import RefusedByPolicyError

MAX_REFERENCES: Final = 1024
MAX_SKIPPED: Final = 64
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID

# Which content a path had: (inode, time of change in ns, size) of the workspace's file.
Mark = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class CopiedIn:
    """What a run was given, and what the workspace held then."""

    # Each file that was copied, by path.
    given: Mapping[str, Reference] = field(default_factory=dict)
    # Path to mark of every file of the workspace, seen by the run or not.
    before: Mapping[str, Mark] = field(default_factory=dict)

    @property
    def known(self) -> dict[str, bytes]:
        """Path to SHA-256 of each file that was copied."""
        return {path: reference.sha256 for path, reference in self.given.items()}


@dataclass(slots=True)
class SkippedList:
    """Collects what was not taken, up to a bound; the rest is only counted."""

    _items: list[Skipped] = field(default_factory=list)
    _more: int = 0

    def add(self, path: bytes | str, reason: str) -> None:
        """Note one."""
        if len(self._items) < MAX_SKIPPED:
            self._items.append(Skipped(path if isinstance(path, str) else shown_path(path), reason))
        else:
            self._more += 1

    def done(self) -> tuple[Skipped, ...]:
        """All of it, by path."""
        items = sorted(self._items, key=lambda item: item.path)
        if self._more:
            items.append(Skipped("", f"and {self._more} more"))
        return tuple(items)


def require_references(field_name: str, references: Sequence[Reference]) -> None:
    """Raise InvalidArgumentError for too many files, one named twice, or a path that is none."""
    if len(references) > MAX_REFERENCES:
        raise InvalidArgumentError(field_name, f"names {len(references)} files, at most {MAX_REFERENCES}")
    seen: set[str] = set()
    for index, reference in enumerate(references):
        require_path(f"{field_name}[{index}].name", reference.path)
        if reference.path in seen:
            raise InvalidArgumentError(f"{field_name}[{index}].name", f"names {reference.path!r} again")
        seen.add(reference.path)


def copy_in(volume: Volume, references: Sequence[Reference], target: int) -> CopiedIn:
    """Copy the named files into the empty directory `target`; blocking.

    Raises FailedPreconditionError when one is not what it was cleared as, RefusedByPolicyError where it may not be read.
    """
    require_references("files", references)
    before = _marks(volume)
    for reference in references:
        if not volume.rights.may_read(reference.path):
            raise RefusedByPolicyError(
                f"the policy's zones give no right to read {reference.path!r}", reason="ZONE_REFUSED"
            )
        with explained(reference.path):
            source, status = open_regular(volume.root, reference.path.encode())
            with closing(source):
                content = pieces(source, most=reference.size + 1)
                mode = 0o700 if status.st_mode & stat.S_IXUSR else 0o600
                size, sha256 = _place(target, reference.path, content, mode)
        if (size, sha256) != (reference.size, reference.sha256):
            raise FailedPreconditionError(
                f"{reference.path!r} is not what was cleared; list the files again and ask anew",
                reason="FILE_CHANGED",
            )
    return CopiedIn({reference.path: reference for reference in references}, before)


def place(target: int, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files of the service's own making into the empty directory of a throw-away run; blocking."""
    for path, data in files:
        require_path("files", path)
        with explained(path):
            _place(target, path, [data], 0o600)


def take_back(volume: Volume, copied: CopiedIn, source: int) -> Changes:
    """Bring what a run made, changed and deleted back into the workspace; blocking.

    File by file, by path: one that may not be written, does not fit or was changed meanwhile by somebody else is skipped
    with its reason. Links, devices, pipes and set-id files never come back.
    """
    skipped = SkippedList()
    found = {entry.path: entry for entry in walk(source) if not _is_host(entry.path)}
    now = _marks(volume)
    deleted = _take_deletions(volume, copied, found, now, skipped)
    written = []
    for entry in sorted(found.values(), key=lambda entry: entry.path):
        reason = refusal_of(entry)
        path = readable_path(entry.path)
        if reason is not None or path is None:
            if entry.kind is not FileKind.DIRECTORY:
                skipped.add(entry.path, reason or "its name is not one that could be asked for")
            continue
        try:
            reference = _take_file(volume, copied, source, path, now)
        except (KalaError, OSError) as error:
            skipped.add(path, _words(error))
            continue
        if reference is not None:
            written.append(reference)
    return Changes(tuple(written), tuple(deleted), skipped.done())


def refusal_of(entry: Entry) -> str | None:
    """Why a name that a run left is never taken, or None when it may be."""
    if entry.kind is FileKind.DIRECTORY:
        return "a directory"
    if entry.kind is FileKind.OTHER:
        return "not a regular file with exactly one link"
    if entry.status.st_mode & _SET_ID:
        return "a set-id file"
    return None


def _take_deletions(
    volume: Volume,
    copied: CopiedIn,
    found: Mapping[bytes, Entry],
    now: Mapping[str, Mark],
    skipped: SkippedList,
) -> list[str]:
    deleted = []
    for path in sorted(copied.given):
        if path.encode() in found:
            continue
        if path in now and now[path] != copied.before.get(path):
            skipped.add(path, "deleted by the run, but changed meanwhile by somebody else")
        elif path in now:
            try:
                volume.delete(path)
            except (KalaError, OSError) as error:
                skipped.add(path, f"deleted by the run, but {_words(error)}")
            else:
                deleted.append(path)
    return deleted


def _take_file(
    volume: Volume, copied: CopiedIn, source: int, path: str, now: Mapping[str, Mark]
) -> Reference | None:
    """Bring one file back; None when it is as it was given."""
    descriptor, status = open_regular(source, path.encode())
    with closing(descriptor):
        given = copied.given.get(path)
        # Read only where it could be the same: a file of holes would take for ever.
        if given and given.size == status.st_size and given.sha256 == digest_of(descriptor):
            return None
        if not volume.rights.may_write(path):
            raise RefusedByPolicyError("the policy's zones give no right to write it", reason="ZONE_REFUSED")
        if now.get(path) != copied.before.get(path):
            raise FailedPreconditionError("changed meanwhile by somebody else", reason="FILE_CHANGED")
        executable = bool(status.st_mode & stat.S_IXUSR)
        sha256 = volume.put(path, pieces(descriptor), size=status.st_size, executable=executable)
    return Reference(path, sha256, status.st_size)


def _place(target: int, path: str, content: Iterable[bytes], mode: int) -> tuple[int, bytes]:
    """Make a new file beneath `target` with its directories; its size and digest."""
    parent, _, name = path.encode().rpartition(b"/")
    digest = hashlib.sha256()
    size = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    _make_directories(target, parent)
    with (
        closing(open_directory(target, parent)) as directory,
        closing(os.open(name, flags, mode, dir_fd=directory)) as descriptor,
    ):
        for piece in content:
            write_all(descriptor, piece)
            digest.update(piece)
            size += len(piece)
    return size, digest.digest()


def _make_directories(target: int, path: bytes) -> None:
    if not path or status_beneath(target, path) is not None:
        return
    made = b""
    for segment in path.split(b"/"):
        with closing(open_directory(target, made)) as directory, suppress(FileExistsError):
            os.mkdir(segment, 0o700, dir_fd=directory)
        made = made + b"/" + segment if made else segment


def _marks(volume: Volume) -> dict[str, Mark]:
    return {
        shown_path(entry.path): (entry.status.st_ino, entry.status.st_mtime_ns, entry.status.st_size)
        for entry in walk(volume.root)
        if entry.kind is not FileKind.DIRECTORY
    }


def _is_host(path: bytes) -> bool:
    host = HOST_DIRECTORY.encode()
    return path == host or path.startswith(host + b"/")


def _words(error: KalaError | OSError) -> str:
    return error.message if isinstance(error, KalaError) else (error.strerror or "cannot be read")

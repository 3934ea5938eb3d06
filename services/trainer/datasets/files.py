"""Opens a source's files: only where the operator allows it, and only what was cleared, held against digest and size."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import secrets
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, cast

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError, UnavailableError
from services.trainer.datasets.problems import FILE_CHANGED, FILE_DAMAGED, FileError

HUB_URL: Final = "https://huggingface.co"
SHA256_BYTES: Final = 32
MAX_NAME: Final = 1024
MAX_UNPACKED_BYTES: Final = 256 * 1024**3
"""What one compressed file may unpack to; a file that unpacks to more is taken for a bomb."""
_CHUNK: Final = 1024 * 1024
_GZIP: Final = b"\x1f\x8b"
# fsspec reads "s3://a::file:///b" as a file of this machine.
_CHAIN: Final = "::"


@dataclass(frozen=True, slots=True)
class Access:
    """What the operator allows."""

    data_dir: Path | None = None
    """Where relative names lie; None: no files."""
    schemes: frozenset[str] = frozenset()
    """Schemes of URLs that may be read, e.g. "s3"; "hub" allows the dataset hub."""
    hub_url: str = HUB_URL
    """Where the dataset hub is."""


class Measured(io.RawIOBase):
    """A stream that counts and hashes what is read, so that the bytes judged are the bytes used."""

    def __init__(self, source: BinaryIO, advance: Callable[[int], None]) -> None:
        super().__init__()
        self._source = source
        self._digest = hashlib.sha256()
        self._advance = advance
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytearray", buffer))  # BufferedReader passes a writable buffer
        data = self._source.read(len(view))
        view[: len(data)] = data
        self._digest.update(data)
        self.size += len(data)
        self._advance(len(data))
        return len(data)

    def digest(self) -> bytes:
        """Returns the SHA-256 of what was read so far."""
        return self._digest.digest()


@contextmanager
def opened(
    reference: ContentReference, access: Access, advance: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[BinaryIO, Callable[[], ContentReference]]]:
    """Yields the file's bytes, unpacked, and a function that reads to the end and returns what the file was.

    That function raises FileError when digest or size are not the reference's; an empty digest is not compared.
    """
    with _source(reference.name, access) as source:
        yield read_through(reference, source, advance)


def read_through(
    reference: ContentReference, source: BinaryIO, advance: Callable[[int], None]
) -> tuple[BinaryIO, Callable[[], ContentReference]]:
    """Returns what `opened` yields for bytes that come from elsewhere."""
    measured = Measured(source, advance)
    raw = io.BufferedReader(measured, _CHUNK)
    unpacked = cast("BinaryIO", _Unpacked(cast("BinaryIO", raw))) if raw.peek(2)[:2] == _GZIP else raw

    def finish() -> ContentReference:
        while raw.read(_CHUNK):
            pass
        return _held(reference, measured)

    return unpacked, finish


def _held(reference: ContentReference, measured: Measured) -> ContentReference:
    found = ContentReference(name=reference.name, sha256=measured.digest(), bytes=measured.size)
    if reference.sha256 and not secrets.compare_digest(reference.sha256, found.sha256):
        raise FileError(FILE_CHANGED, "its SHA-256 is not the one that was cleared; check the dataset anew")
    if reference.sha256 and reference.bytes != found.bytes:
        raise FileError(FILE_CHANGED, f"it has {found.bytes:,} bytes, not {reference.bytes:,}")
    return found


@contextmanager
def _source(name: str, access: Access) -> Iterator[BinaryIO]:
    scheme = scheme_of(name)
    if scheme:
        require_scheme(name, scheme, access)
        with _remote(name) as file:
            yield file
        return
    with _opened_below(local_path(name, access), access) as file:
        yield file


def _opened_below(path: Path, access: Access) -> BinaryIO:
    """Opens a resolved path without following any link: whoever writes there may have put one since it was resolved."""
    root = (access.data_dir or path.parent).resolve()
    *folders, last = path.relative_to(root).parts
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        # Not to wait for the other end of a pipe that stands there now.
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise NotFoundError(f"{path.name} is not a file in the data directory")
    return os.fdopen(file, "rb")


@contextmanager
def _remote(url: str) -> Iterator[BinaryIO]:
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            yield cast("BinaryIO", file)
    except ImportError as error:
        raise UnavailableError(f"{url}: reading it needs a package that is not installed: {error}") from error
    except FileNotFoundError as error:
        raise NotFoundError(f"{url} does not exist") from error


def scheme_of(name: str) -> str:
    """Returns the scheme of a URL in lower case; empty for a file name."""
    scheme, found, _ = name.partition("://")
    return scheme.lower() if found else ""


def require_scheme(name: str, scheme: str, access: Access) -> None:
    """Raises PermissionDeniedError unless the operator allows such URLs; one that wraps another is never allowed."""
    if _CHAIN in name:
        raise InvalidArgumentError(
            "files.name", f"{name[:80]!r} wraps one URL into another; name the file itself"
        )
    if scheme not in access.schemes:
        allowed = ", ".join(sorted(access.schemes)) or "none"
        raise PermissionDeniedError(
            f"{name}: {scheme} is not allowed here (allowed: {allowed}); the operator names schemes in "
            "KALA_TRAINER_REMOTE_DATA"
        )


def local_name(name: str, *, field: str = "files.name") -> PurePosixPath:
    """Returns a name relative to the data directory; raises InvalidArgumentError for one that leads elsewhere."""
    plain = PurePosixPath(name)
    parts = plain.parts
    if (
        not parts
        or len(name) > MAX_NAME
        or "\0" in name
        or "\\" in name
        or plain.is_absolute()
        or ".." in parts
    ):
        raise InvalidArgumentError(field, f"{name[:80]!r} is not a file name relative to the data directory")
    return plain


def local_path(name: str, access: Access) -> Path:
    """Returns the file's path inside the data directory; raises for names that lead elsewhere or to nothing."""
    plain = local_name(name)
    if access.data_dir is None:
        raise PermissionDeniedError(
            f"{name}: this trainer has no data directory; the operator names one in KALA_TRAINER_DATA_DIR"
        )
    root = access.data_dir.resolve()
    try:
        path = (root / plain).resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:
        # A loop of links, a name that is longer than the file system takes, a folder that may not be read.
        raise NotFoundError(f"{name[:80]} cannot be found in the data directory") from error
    if not path.is_relative_to(root):
        raise InvalidArgumentError("files.name", f"{name!r} leads out of the data directory")
    if not is_file:
        raise NotFoundError(f"{name} is not a file in the data directory")
    return path


class _Unpacked(io.BufferedIOBase):
    """Gzip with a bound, whose damage is told as a FileError."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self._file = gzip.GzipFile(fileobj=raw, mode="rb")
        self._left = MAX_UNPACKED_BYTES

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        return self._taken(lambda: self._file.read(-1 if size is None else size))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._taken(lambda: self._file.readline(-1 if size is None else size))

    def _taken(self, read: Callable[[], bytes]) -> bytes:
        try:
            data = read()
        except (OSError, EOFError, zlib.error) as error:
            raise FileError(FILE_DAMAGED, f"it cannot be unpacked: {error}") from error
        self._left -= len(data)
        if self._left < 0:
            raise FileError(FILE_DAMAGED, f"it unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
        return data

"""What travels between the service and a pod: files in, the workspace out, packed as a tar under zlib."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Final

from services.tools.sandbox.model import Limits

_MAX_PATH_BYTES: Final = 1024
_MAX_DEPTH: Final = 64
_PIECE_BYTES: Final = 1024 * 1024
# Headers and padding of one member of a tar, extended names included.
_MEMBER_BYTES: Final = 4096


class UnpackError(Exception):
    """What came back is more than was allowed, or no workspace at all."""


def pack(directory: Path) -> bytes:
    """Pack what the service laid out for a run; empty for nothing. It is the service's own tree, without links."""
    if not any(directory.iterdir()):
        return b""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(directory.rglob("*")):
            archive.add(path, arcname=str(path.relative_to(directory)), recursive=False)
    return zlib.compress(buffer.getvalue(), 6)


def unpack(packed: bytes, directory: Path, limits: Limits) -> None:
    """Lay out what came back of a workspace: plain files and directories only, within the run's limits.

    Raises:
        UnpackError: it is larger than the run was allowed to make it, or malformed.
    """
    if not packed:
        return
    with tempfile.TemporaryFile(dir=directory.parent) as plain:
        _inflate(packed, plain, limits.disk_bytes + (limits.inodes + 1) * _MEMBER_BYTES)
        plain.seek(0)
        try:
            with tarfile.open(fileobj=plain, mode="r:") as archive:
                _lay_out(archive, directory, limits)
        except (tarfile.TarError, ValueError, OSError) as error:
            raise UnpackError(f"the workspace that came back cannot be read: {error}") from error


def _inflate(packed: bytes, target: IO[bytes], limit: int) -> None:
    inflater, written = zlib.decompressobj(), 0
    try:
        while packed and not inflater.eof:
            piece = inflater.decompress(packed, _PIECE_BYTES)
            packed = inflater.unconsumed_tail
            written += len(piece)
            if written > limit:
                raise UnpackError("the workspace that came back is larger than the run's disk")
            target.write(piece)
    except zlib.error as error:
        raise UnpackError(f"the workspace that came back cannot be read: {error}") from error


def _lay_out(archive: tarfile.TarFile, directory: Path, limits: Limits) -> None:
    for number, member in enumerate(archive):
        if number >= limits.inodes:
            raise UnpackError("the workspace that came back has more files than the run was allowed")
        path = _safe(member.name)
        if path is None or not (member.isreg() or member.isdir()):
            continue
        target = directory / path
        if member.isdir():
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            continue
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = archive.extractfile(member)
        # Nothing but this function writes here, and it makes no links: an existing name is a repeated one.
        mode = 0o700 if member.mode & 0o100 else 0o600
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            while content is not None and (piece := content.read(_PIECE_BYTES)):
                file.write(piece)


def _safe(name: str) -> PurePosixPath | None:
    path = PurePosixPath(name)
    bad = path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name
    if bad or len(os.fsencode(name)) > _MAX_PATH_BYTES or len(path.parts) > _MAX_DEPTH:
        return None
    return path

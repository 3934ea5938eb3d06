"""Files of any size as bytes: small ones read, weights mapped, so that gigabytes are hashed without being held."""

from __future__ import annotations

import mmap
import os
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from kala.errors import VerificationError

MAPPED_SUFFIX: Final = ".safetensors"


def open_plain(path: Path) -> BufferedReader:
    """Opens a file for reading, never through a link; raises VerificationError."""
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise VerificationError(f"file {path.name}: cannot be read, or is a link") from error


def read_buffer(path: Path, limit: int) -> bytes:
    """Gives at most `limit` bytes of a file; weights as a mapping, of which only slices, length and hash are asked."""
    with open_plain(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if path.suffix != MAPPED_SUFFIX or not 0 < size <= limit:
                return file.read(min(limit, size + 1))
            mapped: Any = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)  # a buffer, as bytes are
        except OSError as error:
            raise VerificationError(f"file {path.name}: cannot be read") from error
    view: bytes = mapped
    return view

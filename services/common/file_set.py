"""The digest of a set of files: one number for a model, a dataset or an adapter's folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import VerificationError

DOMAIN: Final = b"kala-files-v1\n"
SHA256_BYTES: Final = 32
# Relative names with at most a few folders; no leading dot, no "..", nothing that a shell or file system could read twice.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}){0,7}")


def require_file_set(what: str, files: Sequence[ContentReference], *, max_files: int) -> None:
    """Raises VerificationError unless the files have plain names in strictly rising order and whole digests."""
    if not 1 <= len(files) <= max_files:
        raise VerificationError(f"{what}: names {len(files)} files, not 1 to {max_files}")
    for file in files:
        if not _NAME.fullmatch(file.name):
            raise VerificationError(f"{what}: {file.name!r} is not a plain relative file name")
        if len(file.sha256) != SHA256_BYTES:
            raise VerificationError(f"{what}: the digest of {file.name} is not 32 bytes long")
    names = [file.name for file in files]
    for before, after in pairwise(names):
        if before >= after:
            raise VerificationError(f"{what}: {after} does not come after {before} by name")


def file_set_digest(files: Sequence[ContentReference]) -> bytes:
    """SHA-256 over "kala-files-v1" and one line "<sha256 hex>  <size>  <name>" per file, sorted by name.

    Names must be plain (see `require_file_set`): a name with a line end would make two sets look alike.
    """
    digest = hashlib.sha256(DOMAIN)
    for file in sorted(files, key=lambda item: item.name):
        digest.update(f"{file.sha256.hex()}  {file.bytes}  {file.name}\n".encode())
    return digest.digest()

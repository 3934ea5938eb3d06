"""What is kept of a workspace beside its files, so that a restarted service knows it again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from typing import Final

from services.tools.files.beneath import closing, open_regular
from services.tools.files.content import pieces, write_all
from services.tools.files.model import Owner

RECORD: Final = b"record.json"
_DRAFT: Final = b"record.new"
_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """What the creator asked for, as asked: the same request_id must ask the same."""

    request_id: str = ""
    quota_bytes: int = 0
    ttl_seconds: float | None = None
    host_directory: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One workspace's own facts."""

    replica: str
    owner: Owner
    asked: Asked
    quota_bytes: int
    ttl_seconds: float
    created_at: float
    used_at: float
    # Without links on its way; empty almost always.
    host_directory: str = ""

    @property
    def expires_at(self) -> float:
        """When it ends unless it is used before."""
        return self.used_at + self.ttl_seconds

    def used(self, now: float) -> Record:
        """The same, just used."""
        return replace(self, used_at=now)


def save(directory: int, record: Record) -> None:
    """Write the record, whole and at once."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with closing(os.open(_DRAFT, flags, 0o600, dir_fd=directory)) as draft:
        write_all(draft, json.dumps(asdict(record)).encode())
    os.rename(_DRAFT, RECORD, src_dir_fd=directory, dst_dir_fd=directory)


def load(directory: int) -> Record:
    """Read the record; raises OSError or ValueError when there is none that is whole."""
    descriptor, _ = open_regular(directory, RECORD)
    with closing(descriptor):
        raw = json.loads(b"".join(pieces(descriptor, most=_MAX_BYTES)))
    try:
        return Record(**{**raw, "owner": Owner(**raw["owner"]), "asked": Asked(**raw["asked"])})
    except (KeyError, TypeError) as error:
        raise ValueError("not a workspace's record") from error

"""Between the contract's messages and this service's own words: workspaces and files."""

from __future__ import annotations

from typing import Final

from kala.errors import InvalidArgumentError
from kala.tools.v1 import tools_pb2 as pb
from services.tools import wire
from services.tools.files.model import FileInfo, FileKind, Workspace, WriteMode

KINDS: Final = {kind: pb.FileKind.Value(f"FILE_KIND_{kind.name}") for kind in FileKind}
MODES: Final = {mode: pb.WriteMode.Value(f"WRITE_MODE_{mode.name}") for mode in WriteMode}


def mode_of(number: int) -> WriteMode:
    """Read a write's mode; raises InvalidArgumentError for UNSPECIFIED."""
    found = next((mode for mode, value in MODES.items() if value == number), None)
    if found is None:
        raise InvalidArgumentError(
            "mode", "must be WRITE_MODE_CREATE, WRITE_MODE_REPLACE or WRITE_MODE_APPEND"
        )
    return found


def workspace(found: Workspace) -> pb.Workspace:
    """Write a workspace."""
    return pb.Workspace(
        name=found.name,
        tenant=found.owner.tenant,
        owner=found.owner.principal,
        quota_bytes=found.quota_bytes,
        used_bytes=found.used_bytes,
        inodes=found.inodes,
        ttl=wire.duration(found.ttl_seconds),
        created_at=wire.timestamp(found.created_at),
        expires_at=wire.timestamp(found.expires_at),
        host_directory=found.host_directory,
    )


def file(found: FileInfo) -> pb.FileInfo:
    """Write what a name is."""
    return pb.FileInfo(
        path=found.path,
        kind=KINDS[found.kind],
        bytes=found.size,
        modified_at=wire.timestamp(found.modified_at),
        sha256=found.sha256,
    )

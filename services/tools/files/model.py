"""The words of workspaces and files; sizes in bytes, spans in seconds, moments in Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose something is. The tenant and the principal may use it; by the subject it is erased."""

    tenant: str
    principal: str
    # Pseudonym of the person, as Principal.subject; empty for services.
    subject: str = ""

    def is_same(self, other: Owner) -> bool:
        """Whether it is the same principal of the same tenant; the subject of one request does not matter."""
        return (self.tenant, self.principal) == (other.tenant, other.principal)

    def concerns(self, tenant: str, subject: str) -> bool:
        """Whether it is about this person; services are about nobody."""
        return bool(subject) and (self.tenant, self.subject) == (tenant, subject)


class Rights(Protocol):
    """What the policy's zones allow; paths are relative to the workspace, "" is its top."""

    def may_read(self, path: str) -> bool:
        """Whether it may be read and listed."""
        ...

    def may_write(self, path: str) -> bool:
        """Whether it may be made and changed."""
        ...

    def may_delete(self, path: str) -> bool:
        """Whether it may be deleted."""
        ...


class FileKind(Enum):
    """What a name is; OTHER (a link, device, pipe, socket, or a file with several links) is listed, never opened."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    OTHER = "other"


class WriteMode(Enum):
    """What to do when the file is there."""

    CREATE = "create"
    REPLACE = "replace"
    APPEND = "append"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A name in a workspace; `path` has U+FFFD for bytes that are not UTF-8."""

    path: str
    kind: FileKind
    # 0 for directories.
    size: int
    modified_at: float
    # 32 bytes, or empty when it was not asked for or is not a regular file of at most 64 MiB.
    sha256: bytes = b""


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes of a file from `offset` on; `next_offset` is None at its end."""

    file: FileInfo
    data: bytes
    next_offset: int | None


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it is after a write, with its digest."""

    file: FileInfo
    created: bool


@dataclass(frozen=True, slots=True)
class Removed:
    """What a deletion took away; `runs` is how many runs it ended."""

    inodes: int = 0
    freed_bytes: int = 0
    runs: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """A file that a run is cleared for: `path` relative to the workspace, and what it must hold."""

    path: str
    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that a run left and that was not taken, with the reason in words."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What of a run's work went back into the workspace, by path."""

    written: tuple[Reference, ...] = ()
    deleted: tuple[str, ...] = ()
    # At most `MAX_SKIPPED`; how many more there were is in the last one's reason.
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a run left for its caller; `name` is "runs/<run>/artifacts/<number>"."""

    name: str
    path: str
    sha256: bytes
    size: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Collected:
    """Everything collected after a run, by path, and what was not, with reasons."""

    artifacts: tuple[Artifact, ...] = ()
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace as it is now."""

    # "workspaces/<replica>.<32 hex>".
    name: str
    owner: Owner
    quota_bytes: int
    used_bytes: int
    inodes: int
    ttl_seconds: float
    created_at: float
    expires_at: float
    # Shown read-only to its runs; empty almost always.
    host_directory: str = ""


@dataclass(frozen=True, slots=True)
class WorkspaceRules:
    """What the policy says of workspaces."""

    default_bytes: int
    max_bytes: int
    default_ttl_seconds: float
    max_ttl_seconds: float
    allow_host_directory: bool = False
    # Absolute paths that no host directory may hold or lie in: keys, sockets, state.
    protected: tuple[str, ...] = field(default=())

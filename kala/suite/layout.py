"""Where a suite keeps its things: one private directory with the same few folders in every installation."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError

DEFAULT_STATE: Final = Path("~/.local/state/kala")

PRIVATE_MODE: Final = 0o700
"""Sockets, keys and data are for one user; no sandbox and no other account may look in."""

MAX_SOCKET_PATH_BYTES: Final = 100
"""`sun_path` holds 108 bytes on Linux and 104 on macOS, with a final NUL; a little is kept in hand."""

_LONGEST_SOCKET_NAME: Final = "/inference.sock"


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The state directory of one suite; making the object touches nothing, `create` makes the folders."""

    root: Path

    @classmethod
    def at(cls, path: Path | None) -> StateLayout:
        """The layout below `path`, or below the default directory; always absolute."""
        return cls(Path(os.path.abspath((path or DEFAULT_STATE).expanduser())))  # noqa: PTH100 - keep links as named

    @property
    def run(self) -> Path:
        """Sockets and `suite.json`: worthless once the suite has stopped."""
        return self.root / "run"

    @property
    def keys(self) -> Path:
        """Private keys, each 0600."""
        return self.root / "keys"

    @property
    def data(self) -> Path:
        """The databases and the audit spool."""
        return self.root / "data"

    @property
    def trust(self) -> Path:
        """Public keys and the last checkpoint seen: what a verifier pins."""
        return self.root / "trust"

    @property
    def logs(self) -> Path:
        """One log per part."""
        return self.root / "logs"

    @property
    def backups(self) -> Path:
        """Copies of the databases from before each migration."""
        return self.root / "backups"

    @property
    def record_file(self) -> Path:
        """What is running; see `record.py`."""
        return self.run / "suite.json"

    @property
    def lock_file(self) -> Path:
        """Held by the supervisor for as long as the suite runs."""
        return self.run / "suite.lock"

    @property
    def audit_database(self) -> Path:
        """The transparency log."""
        return self.data / "audit.db"

    @property
    def gateway_database(self) -> Path:
        """API keys, as hashes."""
        return self.data / "gateway.db"

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint that somebody saw, outside the log: `kala audit verify` holds the log to it."""
        return self.trust / "last_checkpoint"

    @property
    def vkey_file(self) -> Path:
        """The log's public key, by which receipts are verified offline."""
        return self.trust / "audit.vkey"

    @property
    def cli_key_file(self) -> Path:
        """The API key with which the command line talks to its own suite."""
        return self.keys / "cli.key"

    def log_file(self, part: str) -> Path:
        """Where a part's standard output and error go."""
        return self.logs / f"{part}.log"

    def create(self) -> None:
        """Make every folder, private to this user; FailedPreconditionError when that is not possible."""
        for path in (self.root, self.run, self.keys, self.data, self.trust, self.logs, self.backups):
            make_private_directory(path)

    def sockets(self) -> Path:
        """The folder for sockets: `run`, or a short private one elsewhere when `run` is too long for a socket."""
        if len(os.fsencode(f"{self.run}{_LONGEST_SOCKET_NAME}")) <= MAX_SOCKET_PATH_BYTES:
            return self.run
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        return Path(f"/tmp/kala-{os.getuid()}-{digest}")  # noqa: S108 - made 0700 and its owner is checked


def make_private_directory(path: Path) -> None:
    """Make `path` with mode 0700, or check that what is there is a directory of this user and tighten it."""
    try:
        path.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
        found = path.lstat() if path.parent == Path("/tmp") else path.stat()  # noqa: S108 - a link there is an attack
        if not stat.S_ISDIR(found.st_mode):
            raise FailedPreconditionError(f"{path} is not a directory")
        if found.st_uid != os.getuid():
            raise FailedPreconditionError(f"{path} belongs to another user; choose another --state directory")
        if stat.S_IMODE(found.st_mode) != PRIVATE_MODE:
            path.chmod(PRIVATE_MODE)
    except OSError as error:
        raise FailedPreconditionError(
            f"{path} cannot be made ({error.strerror}); choose a writable directory with --state"
        ) from error


def write_private_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` in one step; no reader ever sees half of it, and nobody else may read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

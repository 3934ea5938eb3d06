"""What a witness remembers: for each log the newest checkpoint that it cosigned, in one file that is replaced whole."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from kala.audit.checkpoint import Checkpoint
from kala.errors import FailedPreconditionError, UnavailableError, VerificationError

VERSION: Final = 1
# What the lock holds once there was a state beside it.
MARK: Final = b"begun\n"


@dataclass(frozen=True, slots=True)
class Cosigned:
    """The newest checkpoint of a log that was cosigned, and the log's own signed note of it."""

    checkpoint: Checkpoint
    note: str


class WitnessState:
    """One state file; a lock beside it keeps a second witness out, which could cosign another history."""

    def __init__(self, path: Path) -> None:
        """Reads or begins the file; `FailedPreconditionError` when it is locked, gone or cannot be relied on."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(
                path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise FailedPreconditionError(f"{path} cannot be kept: {error.strerror}") from error
        try:
            self._take_lock()
            self._known: Mapping[str, Cosigned] = self._load()
            self._mark()
        except BaseException:
            os.close(self._lock)
            raise

    def newest(self, origin: str) -> Cosigned | None:
        """The newest checkpoint of a log that was cosigned; None before the first."""
        return self._known.get(origin)

    def keep(self, cosigned: Cosigned) -> None:
        """Remembers a checkpoint and returns when it is on disk; `UnavailableError` when it is not, and nothing changed."""
        known = {**self._known, cosigned.checkpoint.origin: cosigned}
        try:
            self._write(_dump(known))
        except OSError as error:
            raise UnavailableError(
                f"the witness's state cannot be written: {error.strerror}", reason="WITNESS_STATE"
            ) from error
        self._known = known

    def close(self) -> None:
        """Frees the file for another process."""
        os.close(self._lock)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FailedPreconditionError(f"another witness uses {self._path}") from error

    def _load(self) -> Mapping[str, Cosigned]:
        if not self._path.exists():
            if os.fstat(self._lock).st_size:
                raise FailedPreconditionError(
                    f"the witness's state {self._path} was there and is gone; restore it from a backup, or give the"
                    " witness a new name, new keys and another state file"
                )
            return {}
        try:
            return _parse(orjson.loads(self._path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, VerificationError) as error:
            # Beginning anew would forget what was cosigned, and with it every promise.
            raise FailedPreconditionError(
                f"the witness's state {self._path} is damaged ({error}); restore it from a backup"
            ) from error

    def _mark(self) -> None:
        """Writes a file that is new, and then in the lock that it was: one that is lost is never begun anew."""
        try:
            if not self._path.exists():
                self._write(_dump({}))
            if not os.fstat(self._lock).st_size:
                os.pwrite(self._lock, MARK, 0)
                os.fsync(self._lock)
        except OSError as error:
            raise FailedPreconditionError(f"{self._path} cannot be kept: {error.strerror}") from error

    def _write(self, data: bytes) -> None:
        draft = self._path.with_name(f"{self._path.name}.new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _dump(known: Mapping[str, Cosigned]) -> bytes:
    notes = {origin: one.note for origin, one in sorted(known.items())}
    return orjson.dumps({"version": VERSION, "notes": notes}, option=orjson.OPT_INDENT_2)


def _parse(value: Any) -> Mapping[str, Cosigned]:  # Any: JSON, which the caller refuses in any other shape
    if value["version"] != VERSION:
        raise VerificationError("it is of another release")
    known: dict[str, Cosigned] = {}
    for origin, note in value["notes"].items():
        checkpoint = Checkpoint.parse(note.rpartition("\n\n")[0] + "\n")
        if checkpoint.origin != origin:
            raise VerificationError("a checkpoint is filed under another log")
        known[origin] = Cosigned(checkpoint, note)
    return known

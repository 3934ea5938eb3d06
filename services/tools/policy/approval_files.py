"""Where approvals outlive the process: a file each in a private directory, replaced whole and durable before a call returns.

A file that cannot be read is no approval: its call has to be asked for again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

import structlog

from kala.errors import UnavailableError
from services.tools.files.model import Owner, Reference
from services.tools.policy.approvals import Approval, ApprovalState, Wanted
from services.tools.policy.model import Approver, Risk

NOT_KEPT: Final = "APPROVALS_NOT_KEPT"
VERSION: Final = 1
_ENDING: Final = ".json"
_UNFINISHED: Final = ".new"
_NAME: Final = re.compile(r"approvals/[a-z0-9-]{1,63}\.([0-9a-f]{32})")
_MOST_BYTES: Final = 128 * 1024 * 1024
"""More than the largest call has as text, which may be escaped; what is larger was not written here."""


class ApprovalFiles:
    """The files of one replica; one process at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Make the directory where it is absent, for its owner's eyes only."""
        with _explained():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        return cls(directory)

    def load(self) -> list[Approval]:
        """Give all that were kept, in the order of arrival; what cannot be read is told and taken away."""
        found: list[Approval] = []
        with _explained():
            for path in sorted(self._directory.iterdir()):
                try:
                    found.append(_parsed(path))
                except (ValueError, KeyError, TypeError, OSError, RecursionError) as problem:
                    structlog.get_logger().warning(
                        "a kept approval cannot be read and is forgotten", problem=type(problem).__name__
                    )
                    path.unlink(missing_ok=True)
        return sorted(found, key=lambda approval: approval.number)

    def keep(self, approval: Approval) -> None:
        """Write one, new or changed; UnavailableError where it cannot be made durable, and then the old one stands."""
        path = self._path(approval.name)
        unfinished = path.with_suffix(_UNFINISHED)
        with _explained():
            descriptor = os.open(
                unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            with os.fdopen(descriptor, "wb") as file:
                file.write(_written(approval))
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            self._sync()

    def drop(self, name: str) -> None:
        """Take one away."""
        with _explained():
            self._path(name).unlink(missing_ok=True)
            self._sync()

    def _path(self, name: str) -> Path:
        matched = _NAME.fullmatch(name)
        if matched is None:
            raise ValueError(f"{name!r} is no name of an approval")
        return self._directory / f"{matched[1]}{_ENDING}"

    def _sync(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"approvals cannot be kept ({error.strerror}): make room in state_dir, or let this service write there",
            reason=NOT_KEPT,
        ) from error


def _written(approval: Approval) -> bytes:
    value = {"version": VERSION, **asdict(approval)}
    value |= {"state": approval.state.value, "approver": approval.approver.value}
    return json.dumps(value, default=_spelled).encode()


def _spelled(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(type(value).__name__)


def _parsed(path: Path) -> Approval:
    if path.suffix != _ENDING or path.is_symlink() or path.stat().st_size > _MOST_BYTES:
        raise ValueError("not a file of an approval")
    raw: dict[str, Any] = json.loads(path.read_bytes())  # Any: JSON
    if raw.pop("version") != VERSION:
        raise ValueError("of another version")
    approval = Approval(
        **{
            **raw,
            "state": ApprovalState(raw["state"]),
            "approver": Approver(raw["approver"]),
            "call": _call(raw["call"]),
        }
    )
    matched = _NAME.fullmatch(approval.name)
    if matched is None or matched[1] != path.stem:
        raise ValueError("under another name")
    return approval


def _call(raw: Mapping[str, Any]) -> Wanted:  # Any: JSON
    return Wanted(
        **{
            **raw,
            "owner": Owner(**raw["owner"]),
            "risk": Risk(raw["risk"]),
            "call_digest": bytes.fromhex(raw["call_digest"]),
            "stdin": bytes.fromhex(raw["stdin"]),
            "files": tuple(
                Reference(file["path"], bytes.fromhex(file["sha256"]), file["size"]) for file in raw["files"]
            ),
        }
    )

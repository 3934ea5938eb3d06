"""Lays a training file where the trainer reads it, each row under its person's pseudonym, and takes it away.  Blocking."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from gateway.strict_json import read_object
from kala.errors import FailedPreconditionError, InvalidArgumentError

FOLDER: Final = "fine-tuning"
"""Of the trainer's data directory; nothing of the operator's own lies there."""

MAX_ROW_BYTES: Final = 1024 * 1024

Json = dict[str, Any]  # Any: JSON


class Tray:
    """Where training files lie for the trainer."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def lay(self, job_id: str, parts: Iterable[bytes], *, subject: str) -> Json:
        """Write a file's rows and give its reference; InvalidArgumentError names the row that is none."""
        path = self._path(job_id)
        draft = self._draft(job_id)
        digest, size = hashlib.sha256(), 0
        try:
            path.parent.mkdir(mode=0o750, exist_ok=True)
            # The trainer may run as another user of the same group.
            with os.fdopen(
                os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640), "wb"
            ) as file:
                for row in _rows(parts, subject):
                    file.write(row)
                    digest.update(row)
                    size += len(row)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            raise _unusable(error) from error
        finally:
            draft.unlink(missing_ok=True)
        if not size:
            raise InvalidArgumentError("training_file", "holds no row")
        return {"name": f"{FOLDER}/{path.name}", "sha256": digest.hexdigest(), "bytes": size}

    def clear(self, job_id: str) -> None:
        """Take a file away, whole or half laid; FailedPreconditionError where that cannot be done."""
        try:
            self._draft(job_id).unlink(missing_ok=True)
            self._path(job_id).unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(error) from error

    def laid(self) -> set[str]:
        """Give the jobs of which something lies here."""
        return {file.stem for file in (self._data_dir / FOLDER).glob("ftjob-*")}

    def _draft(self, job_id: str) -> Path:
        return self._path(job_id).with_suffix(".draft")

    def _path(self, job_id: str) -> Path:
        return self._data_dir / FOLDER / f"{job_id}.jsonl"


def _unusable(error: OSError) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the trainer's data directory cannot be written: {error.strerror}; see KALA_GATEWAY_TRAINING_DATA_DIR",
        reason="TRAINING_DATA_DIR_UNUSABLE",
    )


def _rows(parts: Iterable[bytes], subject: str) -> Iterator[bytes]:
    held, number = bytearray(), 0
    for part in (*parts, b"\n"):
        held += part
        while (end := held.find(b"\n")) >= 0:
            number += 1
            line = bytes(held[:end]).strip()
            del held[: end + 1]
            if line:
                yield _row(line, number, subject)
        if len(held) > MAX_ROW_BYTES:
            raise InvalidArgumentError(
                "training_file", f"line {number + 1} has more than {MAX_ROW_BYTES} bytes"
            )


def _row(line: bytes, number: int, subject: str) -> bytes:
    try:
        row = read_object(line)
    except InvalidArgumentError as error:
        raise InvalidArgumentError("training_file", f"line {number}: {error.message}") from error
    if "messages" not in row:
        raise InvalidArgumentError("training_file", f"line {number}: messages is missing")
    # So that an erasure finds it at the trainer too.
    row["subject"] = subject
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"

"""What happens in a piece of work: `events.jsonl`, written by its process, read by the service.

One JSON object per line, {"seq", "at", "kind", "event"}: a number that rises by one, the worker's Unix time in seconds, a
short name for the message and the message itself in protobuf's JSON with the contract's field names. A line that a crash
cut short is dropped by the next writer and never read.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message

from kala.trainer.v1 import dataset_pb2, job_pb2, registry_pb2

EVENTS: Final = "events.jsonl"

PROGRESS_SECONDS: Final = 1.0
"""Between two progress events at least; a change of state, and the first and last numbers, are never held back."""

MAX_LINE_BYTES: Final = 64 * 1024

KINDS: Final[dict[str, type[Message]]] = {
    "progress": job_pb2.TrainingProgress,
    "checkpoint": job_pb2.CheckpointEvent,
    "incident": job_pb2.IncidentEvent,
    "draft": job_pb2.DraftEvent,
    "evaluation": registry_pb2.EvaluateAdapterMetadata,
    "build": dataset_pb2.BuildDatasetMetadata,
    "export": registry_pb2.ExportAdapterMetadata,
}
_NAMES: Final = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Event:
    """One line."""

    sequence: int
    at: float
    """Unix time in seconds by the worker's clock."""
    message: Message
    """An instance of one of KINDS."""


class EventWriter:
    """Appends the events of one piece of work; a later process goes on with the numbers. Safe in threads."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = folder / EVENTS
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._sequence = _repair(self._path)
        self._state: int | None = None
        self._next_progress = 0.0

    def write(self, message: Message, *, force: bool = False) -> None:
        """Append one message of KINDS; progress within a second of the last one, in the same state, is left out unless forced."""
        with self._lock:
            if isinstance(message, job_pb2.TrainingProgress) and not self._is_due(message, force=force):
                return
            self._sequence += 1
            document = {
                "seq": self._sequence,
                "at": round(self._clock(), 6),
                "kind": _NAMES[type(message)],
                "event": json_format.MessageToDict(message, preserving_proto_field_name=True),
            }
            line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
            # One write of one short line: a reader sees all of it or, after a crash, a piece without its end.
            with self._path.open("ab", buffering=0) as file:
                file.write(line)

    def _is_due(self, progress: job_pb2.TrainingProgress, *, force: bool) -> bool:
        now = self._monotonic()
        if not force and progress.state == self._state and now < self._next_progress:
            return False
        self._state, self._next_progress = progress.state, now + PROGRESS_SECONDS
        return True


class EventReader:
    """Reads a growing file of events from where it last stopped; wrong lines are skipped, and counted."""

    def __init__(self, folder: Path, *, offset: int = 0) -> None:
        self._path = folder / EVENTS
        self.offset = offset
        self.wrong = 0

    def skip(self) -> None:
        """Pass over everything that is there now, up to the last whole line."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        self.offset = data.rfind(b"\n") + 1

    def read(self, *, limit: int = 1_000) -> list[Event]:
        """The next whole lines, at most `limit`."""
        try:
            with self._path.open("rb") as file:
                # A writer that begins again cuts what a crash left of a line.
                if self.offset > os.fstat(file.fileno()).st_size:
                    self.offset = 0
                file.seek(self.offset)
                return list(self._events(file, limit))
        except FileNotFoundError:
            return []

    def _events(self, file: Any, limit: int) -> Iterator[Event]:  # Any: an open binary file
        for _ in range(limit):
            line = file.readline(MAX_LINE_BYTES)
            if not line.endswith(b"\n"):
                if len(line) < MAX_LINE_BYTES:
                    return
                self.wrong += 1
                self.offset += len(line)
                continue
            self.offset += len(line)
            event = _parse(line)
            if event is None:
                self.wrong += 1
            else:
                yield event


def _parse(line: bytes) -> Event | None:
    try:
        raw = json.loads(line)
        message = KINDS[raw["kind"]]()
        json_format.ParseDict(raw["event"], message, ignore_unknown_fields=True)
        at = float(raw["at"])
        return Event(int(raw["seq"]), at, message) if math.isfinite(at) else None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        json_format.ParseError,
    ):
        return None


def _repair(path: Path) -> int:
    """Cut what a crash left of a last line, and give the last number."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
    for line in reversed(data[:whole].splitlines()):
        event = _parse(line)
        if event is not None:
            return event.sequence
    return 0

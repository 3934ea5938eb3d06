"""Have many lines judged at once by several judges, in bounded memory, with the answers in the order of the lines.

A lane is one judge that answers a few lines at a time: a process of this machine, or a connection to a gateway.
Lanes take lines as they become free, so a long text holds up nobody but its own lane. Pure but for its threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol

MAX_LINE_BYTES: Final = 32 * 1024 * 1024
"""A text and a request of the longest that is judged, each character as a pair of \\u escapes: 2 x 12 MiB."""

MAX_BATCH_LINES: Final = 16
MAX_BATCH_BYTES: Final = 16 * 1024
"""What fits the smallest pipe: a batch is written whole before its first answer is read, so neither side ever waits
for the other to read. A longer line is a batch of its own."""

WAITING_PER_LANE: Final = 4 * MAX_BATCH_LINES
"""Lines that wait behind a slow one before its answer; this many lines and answers a lane are all that is in memory."""

# `Any`: parsed JSON of another process.
Verdict = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input; `number` counts from 1, blank lines included; `data` is None when it was too long."""

    number: int
    size_bytes: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a line: a verdict, or an object with `error` when there is none."""

    line: Line
    verdict: Verdict

    @property
    def failed(self) -> bool:
        """Whether the line was not judged; it then has no outcome, least of all ALLOW."""
        return "error" in self.verdict


class Lane(Protocol):
    """One judge; used by one thread at a time."""

    def ask(self, lines: Sequence[Line]) -> Sequence[Verdict]:
        """One verdict or error object per line, in order; a KalaError ends the whole run."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it can answer more."""
        ...


def read_lines(stream: BinaryIO) -> Iterator[Line]:
    """The lines that are not blank; of one that is too long, no more than the limit is ever in memory."""
    number = 0
    while data := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(data) > MAX_LINE_BYTES:
            yield Line(number, _skip_line(stream, data), None)
        elif data.strip():
            yield Line(number, len(data), data)


def failure(problem: str, field: str = "", *, line_id: object = None) -> Verdict:
    """What stands in place of a verdict; `field` names the field at fault, if it was one."""
    return {"id": line_id, "error": {"field": field, "problem": problem}}


def judge_in_lanes(lines: Iterator[Line], lanes: Sequence[Lane]) -> Iterator[Answer]:
    """The answers in the order of the lines; what no lane is left to judge is answered with an error."""
    run = _Run(lines, lanes=len(lanes))
    try:
        for lane in lanes:
            threading.Thread(target=run.serve, args=(lane,), daemon=True).start()
        yield from run.answers()
    finally:
        run.stop()


class _Run:
    """The lines on their way through the lanes; all that threads share is changed under `_changed`."""

    def __init__(self, lines: Iterator[Line], *, lanes: int) -> None:
        self._lines = lines
        self._taking = threading.Lock()
        self._ahead: Line | None = None
        self._taken = 0
        self._changed = threading.Condition()
        self._room = WAITING_PER_LANE * lanes
        self._serving = lanes
        self._found: dict[int, Answer] = {}
        self._fault: BaseException | None = None
        self._stopped = False

    def serve(self, lane: Lane) -> None:
        """Carry batches through this lane until there are no more, or it closes."""
        fault: BaseException | None = None
        try:
            while lane.is_open:
                first, batch = self._take()
                if not batch:
                    break
                self._keep(first, batch, lane.ask(batch))
        except BaseException as error:  # noqa: BLE001 - it is raised again where the answers are read
            fault = error
        with self._changed:
            self._serving -= 1
            self._fault = self._fault or fault
            self._changed.notify_all()

    def answers(self) -> Iterator[Answer]:
        """Every answer, in order."""
        due = 0
        while (answer := self._due(due)) is not None:
            due += 1
            yield answer
        while rest := self._take()[1]:
            for line in rest:
                self._give_room(1)
                yield Answer(line, failure("no judge is left: all of them ended before this line"))

    def stop(self) -> None:
        """Let every lane end after what it is at."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _due(self, place: int) -> Answer | None:
        with self._changed:
            self._changed.wait_for(lambda: place in self._found or self._fault or not self._serving)
            if self._fault is not None:
                raise self._fault
            answer = self._found.pop(place, None)
        if answer is not None:
            self._give_room(1)
        return answer

    def _keep(self, first: int, batch: Sequence[Line], verdicts: Sequence[Verdict]) -> None:
        answers = [Answer(line, verdict) for line, verdict in zip(batch, verdicts, strict=True)]
        with self._changed:
            self._found.update(enumerate(answers, start=first))
            self._changed.notify_all()

    def _take(self) -> tuple[int, list[Line]]:
        """The next few lines and the place of the first; none when there are no more, or nobody waits for them."""
        with self._taking:
            first, batch, size = self._taken, list[Line](), 0
            while len(batch) < MAX_BATCH_LINES:
                line = self._ahead or next(self._lines, None)
                self._ahead = line
                if line is None or (batch and size + line.size_bytes > MAX_BATCH_BYTES):
                    break
                # Whoever waits here holds no line, so the one that is due is with another lane and makes room.
                if not self._take_room(wait=not batch):
                    break
                self._ahead = None
                batch.append(line)
                size += line.size_bytes
            self._taken += len(batch)
            return first, batch

    def _take_room(self, *, wait: bool) -> bool:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._room or self._stopped)
            if self._stopped or not self._room:
                return False
            self._room -= 1
            return True

    def _give_room(self, places: int) -> None:
        with self._changed:
            self._room += places
            self._changed.notify_all()


def _skip_line(stream: BinaryIO, data: bytes) -> int:
    size = len(data)
    while data and not data.endswith(b"\n"):
        data = stream.readline(MAX_LINE_BYTES + 1)
        size += len(data)
    return size

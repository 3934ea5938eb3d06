"""What a work process writes to its outputs, line by line, in `log.jsonl`: {"line", "at", "source", "text"}."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOG: Final = "log.jsonl"

MAX_TEXT_BYTES: Final = 16 * 1024
MAX_LOG_BYTES: Final = 64 * 1024 * 1024
"""A job that writes more has its later lines dropped, and the log says so: a loop of warnings must not fill the disk."""

LAST_LINES: Final = 12
MAX_LAST_CHARS: Final = 600

DRIVER: Final = "driver"


@dataclass(frozen=True, slots=True)
class Line:
    """One line."""

    number: int
    at: float
    """Unix time in seconds."""
    source: str
    text: str


class LogWriter:
    """Appends to the log of one piece of work; a later one goes on with the numbers."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / LOG
        self._clock = clock
        self._number = _cut_and_count(self._path)
        self._bytes = self._path.stat().st_size if self._path.exists() else 0
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    @property
    def last_lines(self) -> str:
        """What was written last, for an error."""
        return " | ".join(self._last)[-MAX_LAST_CHARS:]

    def write(self, raw: bytes, *, source: str = DRIVER) -> None:
        """Append one line, without its end; wrong UTF-8 is replaced, what is too long is cut."""
        text = raw[:MAX_TEXT_BYTES].decode("utf-8", "replace").rstrip("\r\n")
        text = text.encode()[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
        if text.strip():
            self._last.append(text)
        if self._bytes > MAX_LOG_BYTES:
            return
        line = self._line(source, text)
        if self._bytes + len(line) > MAX_LOG_BYTES:
            self._bytes = MAX_LOG_BYTES + 1
            line = self._line(source, f"the log has {MAX_LOG_BYTES} bytes; later lines are dropped")
        self._bytes += len(line)
        # A disk that is full must not stop who reads the outputs: a process that nobody reads stands still.
        with suppress(OSError), self._path.open("ab", buffering=0) as file:
            file.write(line)

    def _line(self, source: str, text: str) -> bytes:
        self._number += 1
        document = {"line": self._number, "at": round(self._clock(), 6), "source": source, "text": text}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class LogReader:
    """Reads a growing log from where it last stopped."""

    def __init__(self, folder: Path, *, after: int = 0) -> None:
        self._path = folder / LOG
        self._after = after
        self._offset = 0

    def read(self, *, limit: int = 1_000) -> list[Line]:
        """The next whole lines after those that were asked to be left out, at most `limit`."""
        found: list[Line] = []
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                while len(found) < limit:
                    raw = file.readline()
                    if not raw.endswith(b"\n"):
                        break
                    self._offset += len(raw)
                    line = _parse(raw)
                    if line is not None and line.number > self._after:
                        found.append(line)
        except FileNotFoundError:
            return []
        return found


def _parse(raw: bytes) -> Line | None:
    try:
        document = json.loads(raw)
        return Line(
            int(document["line"]), float(document["at"]), str(document["source"]), str(document["text"])
        )
    except (ValueError, KeyError, TypeError):
        return None


def _cut_and_count(path: Path) -> int:
    """Cut what a crash left of a last line, and give the last number."""
    if not path.exists():
        return 0
    number = whole = 0
    with path.open("rb+") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                file.truncate(whole)
                break
            whole += len(raw)
            line = _parse(raw)
            number = number if line is None else line.number
    return number

"""Reads single requests out of a batch's input file.  Blocking."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final

from gateway.files.model import PART_BYTES

if TYPE_CHECKING:
    from gateway.batches.model import LinePlace
    from gateway.files.model import StoredFile
    from gateway.files.store import FileStore

_KEPT: Final = 4
"""Opened parts that are remembered: neighbouring lines lie in the same one."""


class InputFile:
    """One input file, opened part by part; for any thread."""

    def __init__(self, files: FileStore, file: StoredFile) -> None:
        self._files = files
        self._file = file
        self._parts: dict[int, bytes] = {}
        self._lock = Lock()

    def line(self, place: LinePlace) -> bytes:
        """Give the bytes of one request; NotFoundError when the file was erased."""
        first, last = place.start // PART_BYTES, (place.start + place.length) // PART_BYTES
        last = min(last, self._file.parts - 1)
        joined = b"".join(self._part(number) for number in range(first, last + 1))
        begin = place.start - first * PART_BYTES
        return joined[begin : begin + place.length]

    def _part(self, number: int) -> bytes:
        with self._lock:
            if number not in self._parts:
                while len(self._parts) >= _KEPT:
                    del self._parts[next(iter(self._parts))]
                self._parts[number] = self._files.part(self._file, number)
            return self._parts[number]

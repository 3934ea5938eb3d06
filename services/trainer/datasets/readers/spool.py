"""Texts put aside on disk until what belongs to them is met; memory holds a place each."""

from __future__ import annotations

import tempfile
import zlib
from types import TracebackType
from typing import Final, Self

_BEST_SPEED: Final = 1

Place = tuple[int, int]
"""Offset and length of a text in the spool."""


class Spool:
    """A nameless file in the work's folder that goes with the work."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        self._file.close()

    def write(self, text: str) -> Place:
        """Keeps a text and returns where."""
        # Packed: what an archive of nothing but zeros unpacks to must not fill the disk either.
        data = zlib.compress(text.encode("utf-8", "replace"), level=_BEST_SPEED)
        self._file.seek(self._end)
        self._file.write(data)
        place = (self._end, len(data))
        self._end += len(data)
        return place

    def read(self, place: Place) -> str:
        """Returns the text that was kept there."""
        self._file.seek(place[0])
        return zlib.decompress(self._file.read(place[1])).decode()

"""What the runner writes into its pod's log, line by line: output, usage, the workspace, the end.

A line is `kala1 <kind> <base64>`. The code runs beside the runner, so nothing in a log is believed beyond what the code
could do anyway: sizes are counted here again.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from enum import Enum
from typing import Final

_MARK: Final = b"kala1"
# The runner's lines are below 13 KiB: container runtimes cut at 16 KiB.
_MAX_LINE_BYTES: Final = 64 * 1024
_NOISE_BYTES: Final = 2048


class Kind(Enum):
    """What a line carries."""

    STDOUT = b"out"
    STDERR = b"err"
    # JSON of what is used so far.
    USAGE = b"use"
    # A piece of the packed workspace.
    FILES = b"tar"
    # JSON of how it ended.
    END = b"end"


_KINDS: Final = {kind.value: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Frame:
    """One line."""

    kind: Kind
    data: bytes


class FrameReader:
    """Cuts a log into frames. What is no frame is kept as noise: the last words of a runner that broke."""

    def __init__(self) -> None:
        self._rest = b""
        self._noise = b""

    def feed(self, data: bytes) -> list[Frame]:
        """Give the frames that are complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            self._keep(self._rest)
            self._rest = b""
        return [frame for line in lines if (frame := self._read(line)) is not None]

    @property
    def noise(self) -> str:
        """Give the last of what was no frame."""
        return (self._noise + self._rest[-_NOISE_BYTES:]).decode(errors="replace").strip()

    def _read(self, line: bytes) -> Frame | None:
        parts = line.split(b" ")
        if len(parts) == 3 and parts[0] == _MARK and parts[1] in _KINDS:  # noqa: PLR2004 - mark, kind, data
            try:
                return Frame(_KINDS[parts[1]], base64.b64decode(parts[2], validate=True))
            except binascii.Error:
                pass
        self._keep(line)
        return None

    def _keep(self, line: bytes) -> None:
        self._noise = (self._noise + line + b"\n")[-_NOISE_BYTES:]

"""What a scan worker and its service say to each other over two pipes: frames of JSON, checked on both sides.

The worker reads hostile text, so what it says is data to be checked: no pickles.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from typing import Final

from pydantic import ConfigDict, TypeAdapter

from services.tools.code.model import MAX_FILE_BYTES, ScanOptions, SourceFile
from services.tools.code.validate import FileScan

HEAD: Final = struct.Struct(">I")
"""Comes before each frame: its length in bytes."""

# JSON writes a control character with six.
MAX_QUESTION_BYTES: Final = 6 * MAX_FILE_BYTES + 64 * 1024
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""Of one file's findings; beyond it the last ones are left out, and the report says so."""

MEMORY: Final = "memory"
"""The failure of a scan that needs more than the worker may have."""

MEMORY_BYTES: Final = 1024**3
"""Address space of a worker: several times what the densest file of the largest size needs."""


@dataclass(frozen=True, slots=True)
class Question:
    """One file to scan."""

    file: SourceFile
    options: ScanOptions


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question; the first one comes unasked and says that the worker is ready."""

    scan: FileScan | None = None
    # Why there is no scan: MEMORY, or the bug's place and type.
    failure: str = ""
    # The worker has grown and is better replaced.
    is_tired: bool = False


class MessageError(ValueError):
    """The other side said what it may not."""


_config: Final = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
_QUESTION: Final = TypeAdapter(tuple[Question, ...], config=_config)
_ANSWER: Final = TypeAdapter(tuple[Answer, ...], config=_config)


def question_to_bytes(question: Question) -> bytes:
    """Give a question as one frame."""
    return _framed(_QUESTION.dump_json((question,)))


def question_from_bytes(data: bytes) -> Question:
    """Read a frame's content; raises MessageError."""
    try:
        (question,) = _QUESTION.validate_json(data)
    except ValueError as error:
        raise MessageError("not a question") from error
    return question


def answer_to_bytes(answer: Answer) -> bytes:
    """Give an answer as one frame; of findings that are too long together the last are left out."""
    data = _ANSWER.dump_json((answer,))
    while len(data) > MAX_ANSWER_BYTES and answer.scan is not None and answer.scan.findings:
        kept = answer.scan.findings[: len(answer.scan.findings) // 2]
        answer = replace(answer, scan=replace(answer.scan, findings=kept, truncated=True))
        data = _ANSWER.dump_json((answer,))
    return _framed(data)


def answer_from_bytes(data: bytes) -> Answer:
    """Read a frame's content; raises MessageError."""
    try:
        (answer,) = _ANSWER.validate_json(data)
    except ValueError as error:
        raise MessageError("not an answer") from error
    return answer


def length_of(head: bytes, *, max_bytes: int) -> int:
    """Read what comes before a frame; raises MessageError for one that is too long."""
    length: int = HEAD.unpack(head)[0]
    if length > max_bytes:
        raise MessageError(f"a frame of {length} bytes; the limit is {max_bytes}")
    return length


def read_frame(descriptor: int, *, max_bytes: int) -> bytes | None:
    """Read one frame, blocking; None at the end of the pipe."""
    head = _read(descriptor, HEAD.size)
    if len(head) < HEAD.size:
        return None
    length = length_of(head, max_bytes=max_bytes)
    data = _read(descriptor, length)
    return data if len(data) == length else None


def write_frame(descriptor: int, frame: bytes) -> None:
    """Write one frame, blocking."""
    rest = memoryview(frame)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _framed(data: bytes) -> bytes:
    return HEAD.pack(len(data)) + data


def _read(descriptor: int, length: int) -> bytes:
    pieces: list[bytes] = []
    while length and (piece := os.read(descriptor, min(length, 1024 * 1024))):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)

"""Reads `multipart/form-data` (RFC 7578) as it comes, strictly and with bounds, holding no more than a part's head.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kala.errors import InvalidArgumentError

MAX_HEAD_BYTES: Final = 8 * 1024
"""Of one part's headers; a disposition and a type are a few hundred."""

MAX_PARTS: Final = 16
"""Two are needed, four are known."""

_TYPE: Final = re.compile(r"multipart/form-data\s*;(.*)", re.IGNORECASE | re.DOTALL)
_BOUNDARY: Final = re.compile(
    r"(?:^|;)\s*boundary=(?:\"([0-9A-Za-z'()+_,./:=? -]{1,70})\"|([0-9A-Za-z'()+_,./:=?-]{1,70}))\s*(?:;|$)"
)
"""RFC 2046 section 5.1.1: the characters of a boundary, at most 70."""

_PARAMETER: Final = re.compile(r";\s*(name|filename)=(?:\"((?:[^\"\\\r\n]|\\.)*)\"|([^\s;\"]+))\s*(?=;|$)")
_ESCAPED: Final = re.compile(r"\\(.)")
_PERCENT: Final = {"%22": '"', "%0D": "\r", "%0A": "\n"}
"""What browsers and HTTP clients escape in names, and nothing else."""


@dataclass(frozen=True, slots=True)
class PartBegun:
    """A part's head was read."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """More of the current part."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnded:
    """The current part is whole."""


Event = PartBegun | PartData | PartEnded


class MultipartReader:
    """Turns a body's bytes, however cut, into events."""

    def __init__(self, content_type: str) -> None:
        """Read the boundary; InvalidArgumentError where the header names none."""
        form = _TYPE.fullmatch(content_type.strip())
        found = _BOUNDARY.search(form[1]) if form else None
        if found is None:
            raise _malformed("content-type must be multipart/form-data with a boundary of 1 to 70 characters")
        self._delimiter = b"\r\n--" + (found[1] or found[2]).encode()
        # As if a line had ended before the body: then every delimiter looks the same.
        self._buffer = bytearray(b"\r\n")
        self._state = "preamble"
        self._parts = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Give what these bytes complete; raises InvalidArgumentError for what is malformed."""
        self._buffer += data
        while (step := self._step()) is not None:
            yield from step

    def close(self) -> None:
        """Raise InvalidArgumentError unless the closing delimiter has come."""
        if self._state != "end":
            raise _malformed("the body ends before its closing boundary; send it whole")

    def _step(self) -> list[Event] | None:
        """Do one step: its events, or None when more bytes are needed."""
        match self._state:
            case "preamble":
                return self._skip_to_delimiter()
            case "delimiter":
                return self._after_delimiter()
            case "head":
                return self._head()
            case "data":
                return self._data()
            case _:
                self._buffer.clear()  # an epilogue means nothing
                return None

    def _skip_to_delimiter(self) -> list[Event] | None:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise _malformed("the boundary of content-type does not come; check it")
            return None
        self._enter("delimiter", at + len(self._delimiter))
        return []

    def _after_delimiter(self) -> list[Event] | None:
        if len(self._buffer) < len(b"--"):
            return None
        if self._buffer.startswith(b"--"):
            self._enter("end", 2)
            return []
        if not self._buffer.startswith(b"\r\n"):
            raise _malformed("a boundary must be followed by a line's end")
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _malformed(f"there are more than {MAX_PARTS} parts; send fewer")
        # The line's end stays: it also ends a head without headers.
        self._enter("head", 0)
        return []

    def _head(self) -> list[Event] | None:
        at = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if at < 0:
            if len(self._buffer) >= MAX_HEAD_BYTES:
                raise _malformed(f"the headers of a part have more than {MAX_HEAD_BYTES} bytes")
            return None
        begun = _begun(bytes(self._buffer[:at]))
        self._enter("data", at + len(b"\r\n\r\n"))
        return [begun]

    def _data(self) -> list[Event] | None:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            ready = len(self._buffer) - len(self._delimiter) + 1
            if ready <= 0:
                return None
            data = bytes(self._buffer[:ready])
            del self._buffer[:ready]
            return [PartData(data)]
        data = bytes(self._buffer[:at])
        self._enter("delimiter", at + len(self._delimiter))
        return [PartData(data), PartEnded()] if data else [PartEnded()]

    def _enter(self, state: str, consumed: int) -> None:
        del self._buffer[:consumed]
        self._state = state


def _begun(head: bytes) -> PartBegun:
    try:
        lines = head.decode("utf-8").split("\r\n")[1:]
    except UnicodeDecodeError as error:
        raise _malformed("the headers of a part are not valid UTF-8") from error
    dispositions = [
        value.strip()
        for name, _, value in (line.partition(":") for line in lines)
        if name.lower() == "content-disposition"
    ]
    encodings = [line for line in lines if line.lower().startswith("content-transfer-encoding:")]
    if encodings and any(
        line.partition(":")[2].strip().lower() not in {"binary", "8bit"} for line in encodings
    ):
        raise _malformed("content-transfer-encoding must be binary or absent")
    if len(dispositions) != 1 or not dispositions[0].lower().startswith("form-data"):
        raise _malformed("each part needs one header `Content-Disposition: form-data; name=…`")
    found: dict[str, str] = {}
    for name, quoted, token in _PARAMETER.findall(dispositions[0]):
        if name in found:
            raise _malformed(f"a part has {name} twice")
        found[name] = _unescaped(quoted) if quoted else token
    if "name" not in found:
        raise _malformed("a part has no name")
    return PartBegun(found["name"], found.get("filename"))


def _unescaped(text: str) -> str:
    plain = _ESCAPED.sub(r"\1", text)
    for escape, character in _PERCENT.items():
        plain = plain.replace(escape, character)
    return plain


def _malformed(problem: str) -> InvalidArgumentError:
    return InvalidArgumentError("body", f"is not a form: {problem}", reason="INVALID_MULTIPART")

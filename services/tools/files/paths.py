"""Paths inside a workspace, and the patterns that choose artifacts; both as text, nothing is opened here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kala.errors import InvalidArgumentError

MAX_PATH_BYTES: Final = 1024
# What every Linux file system takes as one name.
MAX_SEGMENT_BYTES: Final = 255
MAX_PATTERNS: Final = 64
# Where a run puts what it leaves when the caller names nothing.
DEFAULT_PATTERN_DIRECTORY: Final = "out"


def require_path(field: str, path: str) -> str:
    """Give the path back when it has one meaning only and stays inside; raises InvalidArgumentError otherwise.

    Segments are taken as they stand: "%2e" and backslashes are ordinary characters of a name.
    """
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(field, "must be UTF-8") from None
    if not 1 <= len(raw) <= MAX_PATH_BYTES:
        raise InvalidArgumentError(field, f"must be 1 to {MAX_PATH_BYTES} bytes, not {len(raw)}")
    if raw.startswith(b"/"):
        raise InvalidArgumentError(field, "must be relative to the workspace; leave out the leading /")
    if b"\0" in raw:
        raise InvalidArgumentError(field, "must not hold a NUL character")
    for segment in raw.split(b"/"):
        if segment in {b"", b".", b".."}:
            raise InvalidArgumentError(
                field, f"must not hold the segment {segment.decode()!r}; write the plain path"
            )
        if len(segment) > MAX_SEGMENT_BYTES:
            raise InvalidArgumentError(field, f"has a segment of more than {MAX_SEGMENT_BYTES} bytes")
    return path


def readable_path(raw: bytes) -> str | None:
    """The path as text when it could be asked for by its name, else None."""
    try:
        return require_path("path", raw.decode())
    except (UnicodeDecodeError, InvalidArgumentError):
        return None


def shown_path(raw: bytes) -> str:
    """The path for people: bytes that are not UTF-8 become U+FFFD."""
    return raw.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Chooses files by path; "*" stands for any characters inside one segment, also at its beginning."""

    segments: tuple[str, ...]

    @classmethod
    def parse(cls, field: str, text: str) -> Pattern:
        """Read a pattern; raises InvalidArgumentError for what could not be a path."""
        return cls(tuple(require_path(field, text).split("/")))

    def matches(self, path: str) -> bool:
        """Whether the whole path is meant."""
        names = path.split("/")
        return len(names) == len(self.segments) and all(
            _segment_matches(pattern, name) for pattern, name in zip(self.segments, names, strict=True)
        )


def parse_patterns(field: str, texts: Sequence[str]) -> tuple[Pattern, ...]:
    """Read the patterns of one call; raises InvalidArgumentError for too many or a bad one."""
    if len(texts) > MAX_PATTERNS:
        raise InvalidArgumentError(field, f"names {len(texts)} patterns, at most {MAX_PATTERNS} are taken")
    return tuple(Pattern.parse(f"{field}[{index}]", text) for index, text in enumerate(texts))


def _segment_matches(pattern: str, name: str) -> bool:
    """Match from left to right, each part at its first place: no pattern costs more than length times length."""
    first, *others = pattern.split("*")
    if not others:
        return pattern == name
    last = others.pop()
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    end = len(name) - len(last)
    position = len(first)
    for part in others:
        found = name.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True

"""Spools with a key of their own, and disks that fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.common.spool import Spool

KEY = b"k" * 32
ALL = 1 << 30


@contextmanager
def opened(directory: Path, **options: int) -> Iterator[Spool]:
    spool = Spool(directory, KEY, **options)
    try:
        yield spool
    finally:
        spool.close()


def waiting(spool: Spool) -> list[bytes]:
    return spool.peek(100_000, ALL)


def records(count: int, start: int = 0) -> list[bytes]:
    return [b"record %d" % number for number in range(start, start + count)]


def fail(*_arguments: object) -> None:
    raise OSError(28, "No space left on device")

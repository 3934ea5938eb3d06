"""Scans code beside the event loop, one scan at a time per core that may be spared, and signs counts for gates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from services.tools.code.engines.python import python_engines
from services.tools.code.model import Engine, ScanOptions, ScanReport, SourceFile
from services.tools.code.validate import validate
from services.tools.threads import in_thread

T = TypeVar("T")

SCANS: Final = 2
"""A scan is pure Python: more at a time would only share the interpreter."""


class Scanning:
    """Runs the engines; one per process."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = tuple(engines)
        self._places = asyncio.Semaphore(SCANS)

    async def scan(self, files: Sequence[SourceFile], options: ScanOptions) -> ScanReport:
        """Scan files; raises InvalidArgumentError for what is out of limits."""
        async with self._places:
            return await in_thread(validate, files, options, self._engines)

    async def with_scan(
        self, work: Callable[[Callable[[Sequence[SourceFile]], ScanReport]], T], options: ScanOptions
    ) -> T:
        """Do work in a thread that scans again and again, with these options."""
        async with self._places:
            return await in_thread(work, lambda files: validate(files, options, self._engines))


def code_engines() -> tuple[Engine, ...]:
    """Every engine that this release has."""
    return python_engines()

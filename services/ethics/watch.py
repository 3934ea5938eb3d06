"""Verify the constitution again and again while it is in force; the first change ends the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from kala.errors import ConstitutionError
from kala.ethics.constitution import Trust, VerifiedConstitution, recheck_constitution, verify_constitution
from kala.ethics.manifest import MANIFEST_NAME

Sleep = Callable[[float], Awaitable[None]]


class ConstitutionWatch:
    """Knows when the files in force were last found to be what was signed."""

    def __init__(
        self,
        directory: Path,
        trust: Trust,
        *,
        interval_seconds: float,
        clock: Callable[[], float] = time.time,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._directory = directory
        self._trust = trust
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._sleep = sleep
        self.in_force: VerifiedConstitution = verify_constitution(directory, trust)
        self._verified_at = clock()

    def verified_at(self) -> float:
        """When the files were last verified, in Unix seconds."""
        return self._verified_at

    def forget_files(self) -> None:
        """Let go of the verified bytes once the judges are made of them; the facts stay."""
        self.in_force = self.in_force.without_files()

    async def run(self, on_change: Callable[[], Awaitable[None]]) -> None:
        """Return never; after the first change call `on_change` and raise ConstitutionError naming the file."""
        while True:
            await self._sleep(self._interval_seconds)
            try:
                await asyncio.to_thread(self._verify)
            except ConstitutionError:
                await on_change()
                raise

    def _verify(self) -> None:
        found = recheck_constitution(self._directory, self._trust)
        if found.digest != self.in_force.digest:
            # Properly signed, yet another one than this process judges by: only a restart may change the laws.
            raise ConstitutionError(
                f"{MANIFEST_NAME}: version {found.version} replaced version {self.in_force.version};"
                " restart ethics to judge by it"
            )
        self._verified_at = self._clock()

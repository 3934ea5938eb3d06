"""The isolation in use, and why there is none where there is none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from kala.errors import FailedPreconditionError, ResourceExhaustedError
from services.tools.sandbox.detection import (
    ORDER,
    Candidate,
    Detected,
    DetectionPolicy,
    MechanismReport,
    examine,
)
from services.tools.sandbox.model import Isolation, Sandbox, Strength, Tier

RETRY_SECONDS: Final = 5.0
"""A self-test takes a few seconds."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What a new self-test saw."""

    reports: tuple[MechanismReport, ...]
    elapsed_seconds: float


class Desk:
    """Gives out the sandbox that was found at start; a later self-test never changes which one it is."""

    def __init__(
        self,
        detected: Detected,
        candidates: Sequence[Candidate],
        policy: DetectionPolicy,
        *,
        least_strength: Strength,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._detected = detected
        self._candidates = candidates
        self._policy = policy
        self._least_strength = least_strength
        self._clock = clock
        self._testing = asyncio.Lock()

    @property
    def isolation(self) -> Isolation | None:
        """What keeps runs inside; None where nothing holds."""
        sandbox = self._detected.sandbox
        return None if sandbox is None else sandbox.isolation

    @property
    def unavailable_reason(self) -> str:
        """Why nothing may run, in words; empty where something may."""
        try:
            self.require()
        except FailedPreconditionError as error:
            return error.message
        return ""

    def require(self, least: Strength | None = None) -> Sandbox:
        """Give the sandbox.

        Raises NoIsolationError with a reason per mechanism, or FailedPreconditionError where it is weaker than asked for.
        """
        sandbox = self._detected.require()
        wanted = max(least or self._least_strength, self._least_strength)
        found = sandbox.isolation
        if found.strength < wanted:
            raise FailedPreconditionError(
                f"the isolation here, {found.tier.value}, is {found.strength.name.lower()} and the call or the policy "
                f"wants at least {wanted.name.lower()}; run it where a stronger tier holds (`kala tools selftest`)",
                reason="ISOLATION_TOO_WEAK",
            )
        return sandbox

    async def examine(self, tiers: Collection[Tier] = ()) -> Examined:
        """Try every mechanism again, one examination at a time; others get ResourceExhaustedError."""
        if self._testing.locked():
            raise ResourceExhaustedError(
                "a self-test runs already; ask again when it has ended",
                reason="SELF_TEST_RUNNING",
                retry_after_seconds=RETRY_SECONDS,
            )
        async with self._testing:
            began = self._clock()
            reports = await examine(
                self._candidates, self._policy, tiers=tiers or ORDER, in_use=self._detected.sandbox
            )
            return Examined(reports, self._clock() - began)

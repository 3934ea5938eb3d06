"""Which tier runs the code: the first in the order of preference that really held every probe, or none at all.

Nothing is believed because a program is installed or a kernel is new. Where no tier holds there is no sandbox, and whoever
asks for one gets a refusal with a reason for each mechanism.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kala.errors import FailedPreconditionError, KalaError
from services.tools.sandbox.model import Sandbox, Strength, Tier
from services.tools.sandbox.selftest import CaseReport, SelfTest, self_test

ORDER: Final = tuple(Tier)
_AS_ROOT: Final = (
    "the service runs as uid 0, where limits on processes do not bind and a break-out owns the machine: "
    "start it as an unprivileged user (tools.run_as_uid)"
)

# Tests a tier; the address is one of this machine that a run would reach if it had a network.
Test = Callable[[Sandbox, str], Awaitable[SelfTest]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tier that may exist here. `open` raises a KalaError that says what is missing and what would change that."""

    tier: Tier
    strength: Strength
    open: Callable[[], Awaitable[Sandbox]]
    # Implementation and version; empty when it is not installed.
    version: str = ""
    # An address of this machine that a run would reach if it had a network.
    reachable: str = "127.0.0.1"
    # Why it is used only where the operator names it, with the cure; empty when it may be chosen.
    caution: str = ""


@dataclass(frozen=True, slots=True)
class DetectionPolicy:
    """What the operator allows."""

    # Tiers that may be used, the preferred first. One that is named alone is used in spite of its caution.
    tiers: tuple[Tier, ...] = ORDER
    # Whether a tier that shares names with the host may be used.
    allow_weak: bool = False


@dataclass(frozen=True, slots=True)
class MechanismReport:
    """One tier: what it would promise, whether it may be used, and why not."""

    tier: Tier
    strength: Strength
    usable: bool
    selected: bool
    # Why it is not usable and what would change that; empty when it is.
    reason: str
    version: str
    cases: tuple[CaseReport, ...] = ()
    # From request to result of the quickest try of an empty program.
    start_seconds: float | None = None


class NoIsolationError(FailedPreconditionError):
    """No tier holds on this machine; nothing runs."""

    default_reason = "NO_ISOLATION"


@dataclass(frozen=True, slots=True)
class Detected:
    """What was found. The sandbox is open, and belongs to whoever asked."""

    sandbox: Sandbox | None
    reports: tuple[MechanismReport, ...]

    def require(self) -> Sandbox:
        """Give the sandbox.

        Raises:
            NoIsolationError: none holds; the message has a reason per mechanism.
        """
        if self.sandbox is not None:
            return self.sandbox
        reasons = "; ".join(f"{report.tier.value}: {report.reason}" for report in self.reports)
        raise NoIsolationError(
            f"nothing may run, since no isolation holds here: {reasons or 'none is built in'}"
        )


async def _self_test(sandbox: Sandbox, host: str) -> SelfTest:
    return await self_test(sandbox, host=host)


async def detect(
    candidates: Sequence[Candidate],
    policy: DetectionPolicy,
    *,
    test: Test = _self_test,
    uid: Callable[[], int] = os.geteuid,
) -> Detected:
    """Open and test the tiers in the order of preference until one holds; that one stays open."""
    reports: list[MechanismReport] = []
    chosen: Sandbox | None = None
    for candidate in _ordered(candidates, policy):
        if chosen is not None:
            reports.append(_report(candidate, "not tried: a tier that is preferred holds"))
        elif refusal := _refusal(candidate, policy, uid()):
            reports.append(_report(candidate, refusal))
        else:
            chosen, report = await _try(candidate, test)
            reports.append(report)
    return Detected(chosen, (*reports, *_missing(candidates)))


async def examine(
    candidates: Sequence[Candidate],
    policy: DetectionPolicy,
    *,
    tiers: Collection[Tier] = ORDER,
    in_use: Sandbox | None = None,
    test: Test = _self_test,
    uid: Callable[[], int] = os.geteuid,
) -> tuple[MechanismReport, ...]:
    """Test every tier of `tiers` anew, the one in use through its own sandbox, and close what was opened for it."""
    reports: list[MechanismReport] = []
    for candidate in _ordered(candidates, policy):
        if candidate.tier not in tiers:
            continue
        if in_use is not None and candidate.tier is in_use.isolation.tier:
            reports.append(_judged(candidate, in_use, await test(in_use, candidate.reachable)))
            continue
        # What the policy does not allow is tried all the same: people ask what this machine could give.
        refusal = _refusal(candidate, policy, uid())
        if uid() == 0:
            reports.append(_report(candidate, refusal))
            continue
        sandbox, report = await _try(candidate, test)
        if sandbox is not None:
            await sandbox.aclose()
        reason = "; ".join(part for part in (refusal, report.reason) if part)
        reports.append(replace(report, selected=False, usable=not reason, reason=reason))
    return (*reports, *(report for report in _missing(candidates) if report.tier in tiers))


def _ordered(candidates: Sequence[Candidate], policy: DetectionPolicy) -> list[Candidate]:
    order = (*policy.tiers, *ORDER)
    return sorted(candidates, key=lambda candidate: order.index(candidate.tier))


def _refusal(candidate: Candidate, policy: DetectionPolicy, uid: int) -> str:
    """Say why the tier may not be used, before anything of it is started."""
    if uid == 0:
        return _AS_ROOT
    if candidate.tier not in policy.tiers:
        return f"the settings do not name it: add {candidate.tier.value} to tools.tiers"
    if candidate.strength <= Strength.WEAK and not policy.allow_weak:
        return "it is weak: names of the host stay visible; tools.allow_weak = true accepts that"
    if candidate.caution and policy.tiers != (candidate.tier,):
        return candidate.caution
    return ""


async def _try(candidate: Candidate, test: Test) -> tuple[Sandbox | None, MechanismReport]:
    try:
        sandbox = await candidate.open()
    except (KalaError, OSError) as error:
        return None, _report(candidate, str(error) or type(error).__name__)
    try:
        report = _judged(candidate, sandbox, await test(sandbox, candidate.reachable))
    except BaseException:
        await sandbox.aclose()
        raise
    if report.usable:
        return sandbox, report
    await sandbox.aclose()
    return None, report


def _judged(candidate: Candidate, sandbox: Sandbox, result: SelfTest) -> MechanismReport:
    """Report on a tier that was tested; what it says of itself must be what was asked for."""
    isolation = sandbox.isolation
    if isolation.tier is not candidate.tier or isolation.strength is not candidate.strength:
        reason = f"it calls itself {isolation.tier.value}, strength {isolation.strength.name.lower()}"
    elif result.held:
        reason = ""
    else:
        failed = "; ".join(f"{case.id}: {case.detail}" for case in result.failures)
        reason = f"it did not hold: {failed or 'no probe could be run'}"
    return replace(
        _report(candidate, reason),
        usable=not reason,
        selected=not reason,
        version=isolation.version or candidate.version,
        cases=result.cases,
        start_seconds=result.start_seconds,
    )


def _report(candidate: Candidate, reason: str) -> MechanismReport:
    return MechanismReport(
        tier=candidate.tier,
        strength=candidate.strength,
        usable=False,
        selected=False,
        reason=reason,
        version=candidate.version,
    )


_STRENGTHS: Final = {
    Tier.KUBERNETES: Strength.STRONG,
    Tier.RUNSC: Strength.STRONG,
    Tier.BUBBLEWRAP: Strength.STANDARD,
    Tier.LANDLOCK: Strength.WEAK,
}
_NOT_CONFIGURED: Final = {
    Tier.KUBERNETES: "it is not configured: tools.runtime_class and tools.sandbox_image name what its pods run under and are made of",
}


def _missing(candidates: Sequence[Candidate]) -> tuple[MechanismReport, ...]:
    present = {candidate.tier for candidate in candidates}
    return tuple(
        MechanismReport(
            tier=tier,
            strength=_STRENGTHS[tier],
            usable=False,
            selected=False,
            reason=_NOT_CONFIGURED.get(tier, "it is not offered by this process"),
            version="",
        )
        for tier in ORDER
        if tier not in present
    )

"""Tests a tier as the user without rights that the service runs as: `selftest_program.py TIER STATE_DIRECTORY [PROBE...]`.

Prints the report as JSON. MUTATION in the environment names controls that the launcher leaves out. Not a fake itself: it is a process of its own because root is refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from services.tools.sandbox.detection import Candidate, DetectionPolicy, detect
from services.tools.sandbox.model import Sandbox, Strength, Tier
from services.tools.sandbox.probes.cases import PROBES
from services.tools.sandbox.selftest import self_test


def mutated() -> dict[str, Any]:
    """Start the launcher without some of its controls, where the test says so."""
    taken = os.environ.pop("MUTATION", "")
    program = str(Path(__file__).with_name("mutated_launcher.py"))
    return {"python": (sys.executable, program, taken)} if taken else {}


async def candidate(tier: Tier, state: Path) -> Candidate:
    from services.tools.sandbox.client import LauncherSettings

    settings = LauncherSettings(state_directory=state, **mutated())
    if tier is Tier.BUBBLEWRAP:
        from services.tools.sandbox.bubblewrap.tier import open_bubblewrap

        return Candidate(tier, Strength.STANDARD, lambda: open_bubblewrap(settings))
    if tier is Tier.RUNSC:
        from services.tools.sandbox.runsc.tier import open_runsc

        return Candidate(tier, Strength.STRONG, lambda: open_runsc(settings))
    from services.tools.sandbox.landlock.tier import open_landlock

    return Candidate(tier, Strength.WEAK, lambda: open_landlock(settings))


async def main(arguments: list[str]) -> None:
    tier = Tier(arguments[0])
    wanted = set(arguments[2:])
    probes = [probe for probe in PROBES if not wanted or probe.id in wanted]

    async def test(sandbox: Sandbox, host: str):
        return await self_test(sandbox, probes=probes, host=host)

    found = await detect(
        [await candidate(tier, Path(arguments[1]))],
        DetectionPolicy(tiers=(tier,), allow_weak=True),
        test=test,
    )
    if found.sandbox is not None:
        await found.sandbox.aclose()
    report = next(report for report in found.reports if report.tier is tier)
    words = asdict(replace(report, cases=()))
    words |= {"tier": tier.value, "cases": {case.id: [case.held, case.detail] for case in report.cases}}
    sys.stdout.write(json.dumps(words, indent=1, default=str) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))

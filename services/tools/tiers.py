"""The isolation tiers that this process may offer, each with what opens it."""

from __future__ import annotations

from functools import partial
from typing import Final

from services.tools.config import ToolsSettings
from services.tools.policy.model import Policy
from services.tools.sandbox.bubblewrap.tier import open_bubblewrap
from services.tools.sandbox.client import LauncherSettings
from services.tools.sandbox.detection import Candidate, DetectionPolicy
from services.tools.sandbox.model import Language, Strength, Tier

SELF_TEST_RUNS: Final = 4
"""What a self-test runs at a time."""


def candidates(settings: ToolsSettings, policy: Policy) -> list[Candidate]:
    """Every tier that is built in; which of them holds is found out by trying."""
    launched = LauncherSettings(
        state_directory=settings.state_dir / "sandbox",
        pool=dict.fromkeys(Language, settings.pool_slots),
        pool_disk_bytes=policy.default_limits.disk_bytes,
        # A self-test runs beside the runs.
        max_running=settings.max_runs + SELF_TEST_RUNS,
    )
    return [
        Candidate(Tier.BUBBLEWRAP, Strength.STANDARD, partial(open_bubblewrap, launched)),
    ]


def detection_policy(settings: ToolsSettings, policy: Policy) -> DetectionPolicy:
    """What the operator allows, by the settings or by the policy file."""
    return DetectionPolicy(
        tiers=tuple(Tier(name) for name in settings.tiers),
        allow_weak=settings.allow_weak or policy.allow_weak,
    )

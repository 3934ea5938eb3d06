"""The isolation tiers that this process may offer, each with what opens it."""

from __future__ import annotations

from services.tools.config import ToolsSettings
from services.tools.policy.model import Policy
from services.tools.sandbox.detection import Candidate, DetectionPolicy
from services.tools.sandbox.model import Tier


def candidates(settings: ToolsSettings) -> list[Candidate]:
    """Every tier that is built in; which of them holds is found out by trying."""
    del settings
    return []


def detection_policy(settings: ToolsSettings, policy: Policy) -> DetectionPolicy:
    """What the operator allows, by the settings or by the policy file."""
    return DetectionPolicy(
        tiers=tuple(Tier(name) for name in settings.tiers),
        allow_weak=settings.allow_weak or policy.allow_weak,
    )

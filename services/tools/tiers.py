"""The isolation tiers that this process may offer, each with what opens it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from services.tools.config import ToolsSettings
from services.tools.policy.model import Policy
from services.tools.sandbox.bubblewrap.tier import open_bubblewrap
from services.tools.sandbox.client import LauncherSettings
from services.tools.sandbox.detection import Candidate, DetectionPolicy
from services.tools.sandbox.kubernetes.api import KubernetesApi
from services.tools.sandbox.kubernetes.manifest import PodSettings
from services.tools.sandbox.kubernetes.sandbox import KubernetesSandbox, reachable_address
from services.tools.sandbox.landlock.tier import open_landlock
from services.tools.sandbox.model import Language, Sandbox, Strength, Tier
from services.tools.sandbox.runsc.tier import runsc_candidate

CLUSTER_URL: Final = "https://kubernetes.default.svc"

SELF_TEST_RUNS: Final = 4
"""What a self-test runs at a time."""


def candidates(settings: ToolsSettings, policy: Policy, stack: AsyncExitStack) -> list[Candidate]:
    """Every tier that can be tried; which of them holds is found out by trying. `stack` closes what tiers share."""
    launched = _launcher_settings(settings, policy)
    found = [
        runsc_candidate(launched),
        Candidate(Tier.BUBBLEWRAP, Strength.STANDARD, partial(open_bubblewrap, launched)),
        Candidate(Tier.LANDLOCK, Strength.WEAK, partial(open_landlock, launched)),
    ]
    if settings.runtime_class is not None:
        opening = partial(_open_kubernetes, settings, stack)
        found.append(Candidate(Tier.KUBERNETES, Strength.STRONG, opening, reachable=reachable_address()))
    return found


def detection_policy(settings: ToolsSettings, policy: Policy) -> DetectionPolicy:
    """What the operator allows, by the settings or by the policy file."""
    return DetectionPolicy(
        tiers=tuple(Tier(name) for name in settings.tiers),
        allow_weak=settings.allow_weak or policy.allow_weak,
    )


def _launcher_settings(settings: ToolsSettings, policy: Policy) -> LauncherSettings:
    return LauncherSettings(
        state_directory=settings.state_dir / "sandbox",
        pool=dict.fromkeys(Language, settings.pool_slots),
        # A call that says nothing of its disk finds a sandbox that waits.
        pool_disk_bytes=policy.default_limits.disk_bytes,
        # A self-test runs beside the runs.
        max_running=settings.max_runs + SELF_TEST_RUNS,
    )


async def _open_kubernetes(settings: ToolsSettings, stack: AsyncExitStack) -> Sandbox:
    pods = PodSettings(
        namespace=settings.sandbox_namespace,
        image=settings.sandbox_image or "",
        runtime_class=settings.runtime_class or "",
        replica=settings.replica,
    )
    api = await stack.enter_async_context(KubernetesApi(CLUSTER_URL, settings.sandbox_namespace))
    return KubernetesSandbox(api, pods, max_runs=settings.max_runs)

"""The gVisor tier: what it promises, which release there is, and what it takes to open it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from functools import partial
from typing import Final

from services.tools.sandbox.bubblewrap.plan import BUBBLEWRAP
from services.tools.sandbox.client import LauncherSandbox, LauncherSettings
from services.tools.sandbox.detection import Candidate
from services.tools.sandbox.model import Isolation, SetupFailedError, Strength, Tier
from services.tools.sandbox.runsc.plan import CONTROLS, RUNSC
from services.tools.sandbox.system_files import lay_out

# From this release on gVisor has systrap as its usual platform; before, ptrace, at many times the cost.
SYSTRAP_SINCE: Final = 2023_08_01
_RELEASE: Final = re.compile(r"(20\d{6})")
_VERSION_SECONDS: Final = 10.0
_INSTALL: Final = "install a current release of gVisor as https://gvisor.dev/docs/user_guide/install says"


def version() -> str:
    """Give "runsc …"; empty when it is not installed. It starts the program: once, at the start of the service."""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            [RUNSC, "--version"], capture_output=True, timeout=_VERSION_SECONDS, check=False, env={}
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    first = done.stdout.decode("ascii", "replace").splitlines()[:1]
    return first[0].replace(" version", "").strip() if first else ""


def release(found: str) -> int:
    """Give the date in a version as a number; 0 when there is none."""
    match = _RELEASE.search(found)
    return int(match.group(1)) if match else 0


def platform_for(found: str) -> str:
    """Name the platform that this release does best on without rights."""
    return "systrap" if release(found) >= SYSTRAP_SINCE else "ptrace"


def caution(found: str) -> str:
    """Say why this release is used only where it is named alone; empty when it may be chosen."""
    if not found or platform_for(found) == "systrap":
        return ""
    return f"{found} is old: slow, and years behind in fixes; {_INSTALL}, or name runsc alone in tools.tiers to use it as it is"


async def open_runsc(settings: LauncherSettings) -> LauncherSandbox:
    """Start the tier.

    Raises:
        SetupFailedError: runsc or bubblewrap is not installed, or the launcher does not start.
    """
    found = await asyncio.to_thread(version)
    if not found:
        raise SetupFailedError(f"{RUNSC} is not installed; {_INSTALL}", reason="RUNSC_MISSING")
    if not os.access(BUBBLEWRAP, os.X_OK):
        raise SetupFailedError(
            f"{BUBBLEWRAP}, which holds runsc, is not installed; install the package bubblewrap",
            reason="BUBBLEWRAP_MISSING",
        )
    isolation = Isolation(Tier.RUNSC, Strength.STRONG, found, CONTROLS)
    options = {"etc": str(lay_out(settings.state_directory)), "platform": platform_for(found)}
    return await LauncherSandbox.open(isolation, settings, options)


def runsc_candidate(settings: LauncherSettings) -> Candidate:
    """Offer the tier, with its caution where the release is old."""
    found = version()
    return Candidate(
        Tier.RUNSC, Strength.STRONG, partial(open_runsc, settings), version=found, caution=caution(found)
    )

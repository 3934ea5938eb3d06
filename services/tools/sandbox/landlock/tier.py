"""The Landlock tier: what it promises, and what it takes to open it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from services.tools.sandbox.client import LauncherSandbox, LauncherSettings
from services.tools.sandbox.landlock.directory import remove
from services.tools.sandbox.landlock.kernel import require_abi
from services.tools.sandbox.landlock.plan import CONTROLS, WORKSPACE
from services.tools.sandbox.model import Isolation, Strength, Tier

_DIRECTORY: Final = "landlock"


async def open_landlock(settings: LauncherSettings) -> LauncherSandbox:
    """Start the tier. It is weak: processes and the host's name stay visible, and memory and disk are watched, not bounded.

    Raises:
        LandlockUnavailableError: the kernel has too little Landlock.
        SetupFailedError: its launcher does not start.
    """
    abi = require_abi()
    directory = settings.state_directory / _DIRECTORY
    if directory.exists():
        # What a process that was killed left.
        await asyncio.to_thread(remove, directory)
    directory.mkdir(mode=0o700, parents=True)
    isolation = Isolation(Tier.LANDLOCK, Strength.WEAK, f"Landlock ABI {abi}", CONTROLS)
    return await LauncherSandbox.open(isolation, settings, {"directory": str(directory)}, dispose=dispose)


def dispose(workspace: int) -> None:
    """Delete the directories of a run that is over, given its workspace."""
    path = Path(os.readlink(f"/proc/self/fd/{workspace}"))  # noqa: PTH115 - a descriptor's name
    if path.name != WORKSPACE:
        raise ValueError(f"{path} is no workspace of this tier")
    remove(path.parent)

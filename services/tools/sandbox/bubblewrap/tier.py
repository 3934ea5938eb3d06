"""The bubblewrap tier: what it promises, and what it takes to open it."""

from __future__ import annotations

import asyncio
from typing import Final

from services.tools.sandbox.bubblewrap.plan import BUBBLEWRAP, CONTROLS
from services.tools.sandbox.client import LauncherSandbox, LauncherSettings
from services.tools.sandbox.model import Isolation, SetupFailedError, Strength, Tier
from services.tools.sandbox.system_files import lay_out

_VERSION_SECONDS: Final = 10.0


async def version() -> str:
    """Give "bubblewrap X.Y.Z"; empty when it is not installed."""
    try:
        process = await asyncio.create_subprocess_exec(
            BUBBLEWRAP, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        said, _ = await asyncio.wait_for(process.communicate(), _VERSION_SECONDS)
    except (OSError, TimeoutError):
        return ""
    return said.decode("ascii", "replace").strip()


async def open_bubblewrap(
    settings: LauncherSettings, *, kind: type[LauncherSandbox] = LauncherSandbox
) -> LauncherSandbox:
    """Start the tier.

    Raises:
        SetupFailedError: bubblewrap is not installed, or its launcher does not start.
    """
    found = await version()
    if not found:
        raise SetupFailedError(
            f"{BUBBLEWRAP} is not installed; install the package bubblewrap (apt-get install bubblewrap)",
            reason="BUBBLEWRAP_MISSING",
        )
    isolation = Isolation(Tier.BUBBLEWRAP, Strength.STANDARD, found, CONTROLS)
    try:
        options = {"etc": str(lay_out(settings.state_directory))}
    except OSError as error:
        raise SetupFailedError(
            f"the files that a sandbox needs could not be written to {settings.state_directory}: {error}"
        ) from error
    return await kind.open(isolation, settings, options)

"""The launcher's process: `python -m services.tools.sandbox.launcher DESCRIPTOR CONFIGURATION`."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from importlib import import_module
from typing import Any, Final

from services.tools.sandbox.cgroup import CgroupUnavailableError, Groups, open_groups
from services.tools.sandbox.launcher.limits import renounce_cores, take_descriptors
from services.tools.sandbox.launcher.loop import Launcher
from services.tools.sandbox.launcher.plan import Planner
from services.tools.sandbox.launcher.pool import Pool
from services.tools.sandbox.launcher.spawn import keep_private, reserve_floor
from services.tools.sandbox.model import Language, Tier

# Modules with a `planner(options) -> Planner`.
PLANNERS: Final = {
    Tier.BUBBLEWRAP: "services.tools.sandbox.bubblewrap.plan",
    Tier.LANDLOCK: "services.tools.sandbox.landlock.plan",
    Tier.RUNSC: "services.tools.sandbox.runsc.plan",
}
# linux/prctl.h
_SET_PDEATHSIG: Final = 1
_SET_CHILD_SUBREAPER: Final = 36


def main(arguments: list[str]) -> int:
    """Serve the socket whose descriptor is the first argument; the second is the configuration as JSON."""
    reserve_floor()
    # Signals that a terminal sends to all: the service decides when this process ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_SET_CHILD_SUBREAPER, 1)
    renounce_cores()
    take_descriptors()
    configuration = json.loads(arguments[1])
    if os.getppid() != configuration["parent"]:
        return 1
    sizes = {Language(name): int(size) for name, size in configuration["pool"].items()}
    pool = Pool(sizes, int(configuration["disk_bytes"]))
    with socket.socket(fileno=keep_private(int(arguments[0]))) as channel:
        Launcher(channel, _planner(configuration), pool, groups=_groups()).run()
    return 0


def _groups() -> Groups | None:
    """Give where control groups are made; None where none is delegated, and limits are watched only."""
    try:
        return open_groups()
    except CgroupUnavailableError:
        return None


def _planner(configuration: dict[str, Any]) -> Planner:  # JSON
    module = import_module(PLANNERS[Tier(configuration["tier"])])
    planner: Planner = module.planner(configuration["options"])
    return planner


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

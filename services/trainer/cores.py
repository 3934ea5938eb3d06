"""How many cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Give the cores that a process may run on; where no system call tells (macOS), those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

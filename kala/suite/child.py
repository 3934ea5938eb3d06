"""Runs one part as a child that never outlives its supervisor: `python -m kala.suite.child <parent pid> <module>`.

The part runs in this very process. On Linux the kernel ends it when the supervisor dies (prctl PR_SET_PDEATHSIG),
however the supervisor dies; elsewhere a thread watches for it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_WATCH_SECONDS: Final = 1.0
_EXIT_ORPHANED: Final = 0


def main(argv: list[str]) -> None:
    """Tie this process to its parent, then become the module named in `argv`."""
    parent, module = int(argv[1]), argv[2]
    _die_with_parent(parent)
    sys.argv = [module, *argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="kala-parent-watch").start()
    # The parent may have died before the call above took effect.
    if os.getppid() != parent:
        sys.exit(_EXIT_ORPHANED)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv)

"""Runs a program that never outlives its parent: `python tether.py <parent pid> <program> <argument>…`.

On Linux the kernel ends the program when the parent dies (prctl PR_SET_PDEATHSIG, which survives execve); elsewhere
this process stays beside it and watches.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_WATCH_SECONDS: Final = 1.0
_GRACE_SECONDS: Final = 5.0


def main(argv: list[str]) -> int:  # noqa: RET503 - execvp does not return
    """Tie this process to its parent and become the program, or watch over it; gives the program's exit code."""
    parent, command = int(argv[1]), argv[2:]
    if sys.platform != "linux":
        return _watch(parent, command)
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # The parent may have died before the call above took effect.
    if os.getppid() != parent:
        return 0
    os.execvp(command[0], command)  # noqa: S606 - the point of this program


def _watch(parent: int, command: list[str]) -> int:  # pragma: no cover - not on Linux
    child = subprocess.Popen(command)  # noqa: S603 - the point of this program

    def stop(_number: int, _frame: FrameType | None) -> None:
        child.terminate()

    signal.signal(signal.SIGTERM, stop)
    while True:
        try:
            return child.wait(_WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                break
    child.terminate()
    try:
        return child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv))

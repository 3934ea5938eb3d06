"""Starting one process of a plan with exactly the descriptors that it is given."""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from services.tools.sandbox.launcher.plan import SpawnPlan
from services.tools.sandbox.stubs import CODE_DESCRIPTOR

# Descriptors below this one are kept taken in the launcher, so that none of its own ever has a number that a child is given.
FLOOR: Final = 16
# The last of the standard streams.
_STANDARD: Final = 2
# Python ignores these; a child that inherited that would not end as its code expects.
_DEFAULT_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)


@dataclass(slots=True)
class Ends:
    """Our ends of a sandbox's pipes; -1 when given away or closed."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    code: int = -1
    info: int = -1

    def close(self) -> None:
        """Close what is left."""
        for name in ("stdin", "stdout", "stderr", "code", "info"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                os.close(descriptor)
                setattr(self, name, -1)


def reserve_floor() -> None:
    """Take every free descriptor below FLOOR, for as long as this process lives."""
    while True:
        descriptor = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if descriptor >= FLOOR:
            os.close(descriptor)
            return


def keep_private(channel: int) -> int:
    """Close everything but the standard streams and the channel to all children; give the channel's new number."""
    moved = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, FLOOR)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only
        with suppress(OSError):
            if int(name) > _STANDARD:
                os.set_inheritable(int(name), False)
    os.close(channel)
    return moved


def spawn(plan: SpawnPlan) -> tuple[int, Ends]:
    """Start the plan's program; give its process id and this side's ends.

    Raises:
        OSError: it could not be started; nothing is left open.
    """
    ends = Ends()
    theirs: dict[int, int] = {}
    try:
        theirs[0], ends.stdin = os.pipe2(os.O_CLOEXEC)
        ends.stdout, theirs[1] = os.pipe2(os.O_CLOEXEC)
        ends.stderr, theirs[2] = os.pipe2(os.O_CLOEXEC)
        theirs[CODE_DESCRIPTOR], ends.code = os.pipe2(os.O_CLOEXEC)
        if plan.info_descriptor is not None:
            ends.info, theirs[plan.info_descriptor] = os.pipe2(os.O_CLOEXEC)
        for number, content in plan.data.items():
            theirs[number] = _readable(content)
        for descriptor in (ends.stdin, ends.stdout, ends.stderr, ends.code):
            os.set_blocking(descriptor, False)
        pid = os.posix_spawn(
            plan.argv[0],
            plan.argv,
            dict(plan.environment),
            file_actions=[(os.POSIX_SPAWN_DUP2, source, number) for number, source in theirs.items()],
            setsigdef=_DEFAULT_SIGNALS,
            setsigmask=(),
        )
    except BaseException:
        ends.close()
        raise
    finally:
        for descriptor in theirs.values():
            os.close(descriptor)
    return pid, ends


def _readable(content: bytes) -> int:
    descriptor = os.memfd_create("plan", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor

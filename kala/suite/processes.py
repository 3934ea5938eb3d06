"""Processes by more than their number: a pid with its start time, so that a recycled pid is never signalled."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_POLL_SECONDS: Final = 0.02
_STATE_FIELD: Final = 0
_START_FIELD: Final = 19
"""Positions in /proc/<pid>/stat behind the command name (proc(5): fields 3 and 22)."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for all time: its pid, and when it started (opaque; also differs from boot to boot)."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now; None when there is none (a zombie counts as none)."""
        started = _start_of(pid)
        return None if started is None else cls(pid, started)

    def is_alive(self) -> bool:
        """Whether exactly this process still runs."""
        return _start_of(self.pid) == self.started

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to exactly this process; False when it is gone already."""
        if not hasattr(os, "pidfd_open"):
            return self._signal_by_pid(number)
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # The descriptor pins the process: the start time is compared after it was opened.
            if not self.is_alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _signal_by_pid(self, number: signal.Signals) -> bool:
        if not self.is_alive():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False


def wait_until_gone(process: ProcessId, *, timeout_seconds: float) -> bool:
    """Wait for a process that may be somebody else's child; True when it is gone in time."""
    return wait_until(lambda: not process.is_alive(), timeout_seconds=timeout_seconds)


def wait_until(condition: Callable[[], bool], *, timeout_seconds: float) -> bool:
    """Ask again and again until the condition holds; False when the time is over first."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def stop(process: ProcessId, *, grace_seconds: float) -> None:
    """Ask a process to end, and end it when the grace is over; returns when it is gone."""
    if process.send(signal.SIGTERM) and not wait_until_gone(process, timeout_seconds=grace_seconds):
        process.send(signal.SIGKILL)
        wait_until_gone(process, timeout_seconds=grace_seconds)


def resident_bytes(pid: int) -> int | None:
    """Memory that the process holds, shared pages counted by share; None where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), None)


def _start_of(pid: int) -> str | None:
    if sys.platform != "linux":
        return _start_by_ps(pid)
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The command name may hold anything, spaces and parentheses included; it ends at the last parenthesis.
    fields = line.rpartition(")")[2].split()
    if fields[_STATE_FIELD] in "ZX":
        return None
    return f"{_BOOT_ID.read_text(encoding='ascii').strip()[:8]}-{fields[_START_FIELD]}"


def _start_by_ps(pid: int) -> str | None:
    found = subprocess.run(  # noqa: S603 - fixed program, the only argument is a number
        ["/bin/ps", "-o", "lstart=", "-o", "state=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    text = found.stdout.strip()
    return None if not text or text.split()[-1].startswith("Z") else " ".join(text.split()[:-1])

"""How a run ended, from what its processes left behind."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

from services.tools.sandbox.launcher.processes import Stored
from services.tools.sandbox.model import Limits, Status

# A shell and bubblewrap say with 128 + N that signal N ended the program.
_SIGNAL_BASE: Final = 128


@dataclass(frozen=True, slots=True)
class Verdict:
    """A status with its reason in words."""

    status: Status
    reason: str
    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run used in all, as far as it was seen."""

    cpu_seconds: float
    peak_memory_bytes: int
    peak_tasks: int
    stored: Stored


def exceeded(limits: Limits, seconds: float, totals: Totals) -> Verdict | None:
    """Name the limit that a run is over; None while it keeps to all of them.

    What the kernel stops by itself (processes, a full disk) is the program's to handle, and is not named here.
    """
    held = totals.stored
    if seconds >= limits.wall_seconds:
        return _ended(Status.TIMEOUT, f"ran for {limits.wall_seconds:g} s, its limit")
    if totals.cpu_seconds >= limits.cpu_seconds:
        return _ended(Status.CPU, f"used {limits.cpu_seconds:g} s of CPU time, its limit")
    if totals.peak_memory_bytes > limits.memory_bytes:
        return _ended(Status.MEMORY, f"held more than {limits.memory_bytes} bytes of memory, its limit")
    if held.disk_bytes > limits.disk_bytes:
        return _ended(Status.DISK, f"wrote more than {limits.disk_bytes} bytes, its limit")
    if held.inodes > limits.inodes:
        return _ended(Status.INODES, f"made more than {limits.inodes} files and directories, its limit")
    return None


def judge(code: int, limits: Limits, totals: Totals) -> Verdict:
    """Read the exit status of a run that ended by itself; a limit that it ran into explains its failure."""
    if code == 0:
        return Verdict(Status.OK, "", exit_code=0)
    number = _signal_of(code)
    status, reason = _explain(code, number, limits, totals)
    return Verdict(status, reason, None if number else code, number)


def _explain(code: int, number: int | None, limits: Limits, totals: Totals) -> tuple[Status, str]:
    over = exceeded(limits, 0, totals)
    if number == signal.SIGXCPU:
        said = (Status.CPU, f"used {limits.cpu_seconds:g} s of CPU time, its limit")
    elif number == signal.SIGXFSZ:
        said = (Status.DISK, f"a file grew over {limits.file_bytes} bytes, its limit")
    elif over is not None:
        said = (over.status, over.reason)
    elif totals.stored.full:
        said = (Status.DISK, f"failed with all {limits.disk_bytes} bytes of its disk full")
    elif totals.peak_tasks >= limits.processes > 1:
        said = (Status.PROCESSES, f"failed with all {limits.processes} processes and threads in use")
    elif number is not None:
        said = (Status.ERROR, f"ended with signal {number} ({signal.Signals(number).name})")
    else:
        said = (Status.ERROR, f"ended with exit code {code}")
    return said


def _ended(status: Status, reason: str) -> Verdict:
    return Verdict(status, reason, signal=signal.SIGKILL)


def _signal_of(code: int) -> int | None:
    if code < 0:
        return -code
    number = code - _SIGNAL_BASE
    return number if number in set(signal.Signals) else None

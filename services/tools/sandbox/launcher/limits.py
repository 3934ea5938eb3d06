"""The kernel's own limits of one process, put on a waiting stub before the code goes in; its children inherit them."""

from __future__ import annotations

import math
import resource
from typing import Final

from services.tools.sandbox.model import Language, Limits

# Threads that node starts when it first reads a file or a name.
NODE_OWN_THREADS: Final = 4
# Address space of one Python process beyond its memory limit: the watchdog ends a run that touches too much, this stops a
# process that asks for far too much at once. node and what bash starts reserve far more than they use.
_ADDRESS_SPACE_FACTOR: Final = 2
_MIB: Final = 1024 * 1024
_MESSAGE_QUEUE_BYTES: Final = 0
# The sandbox's first process counts as one.
_FIRST_PROCESS: Final = 1
# Descriptors that this process may have, where the machine lets it: many times those of a run.
_MOST_DESCRIPTORS: Final = 65_536
_SHARE_OF_ONE_RUN: Final = 2


def renounce_cores() -> None:
    """Let no process of this one's leave a core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def take_descriptors() -> None:
    """Raise this process's own limit on descriptors, so that no run has the same.

    The kernel counts descriptors that are on their way through unix sockets per user, sandboxes included, and compares the
    count with the limit of whoever sends: a run with a higher one could keep this process from sending any.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if most > soft >= 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def open_files(limits: Limits) -> int:
    """Give how many descriptors a process of the run may have: at most half of what this one may."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limits.open_files if soft < 0 else min(limits.open_files, soft // _SHARE_OF_ONE_RUN)


def put(pid: int, language: Language, limits: Limits, own_threads: int) -> None:
    """Limit the process `pid`, which has `own_threads` before any code runs.

    Raises:
        OSError: one limit could not be put; the sandbox must not go on.
    """
    cpu = math.ceil(limits.cpu_seconds) + 1
    spare = NODE_OWN_THREADS if language is Language.JAVASCRIPT else 0
    processes = limits.processes + own_threads - 1 + spare + _FIRST_PROCESS
    pairs = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_FSIZE: _same(limits.file_bytes),
        resource.RLIMIT_NOFILE: _same(open_files(limits)),
        resource.RLIMIT_CORE: _same(0),
        resource.RLIMIT_MEMLOCK: _same(0),
        resource.RLIMIT_MSGQUEUE: _same(_MESSAGE_QUEUE_BYTES),
        resource.RLIMIT_NICE: _same(0),
        resource.RLIMIT_RTPRIO: _same(0),
        # Last: with it in force, this process could not be given a thread.
        resource.RLIMIT_NPROC: _same(processes),
    }
    if language is Language.PYTHON:
        pairs[resource.RLIMIT_AS] = _same(limits.memory_bytes * _ADDRESS_SPACE_FACTOR + 64 * _MIB)
    for kind, wanted in pairs.items():
        _, most = resource.prlimit(pid, kind)
        bound = most if most != resource.RLIM_INFINITY else max(wanted)
        resource.prlimit(pid, kind, (min(wanted[0], bound), min(wanted[1], bound)))


def _same(value: int) -> tuple[int, int]:
    return value, value

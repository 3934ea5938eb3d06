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
        resource.RLIMIT_NOFILE: _same(limits.open_files),
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

"""The probes: which program runs under which limits, and what counts as held."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final

from services.tools.sandbox.model import Language, Limits, Status, Strength

_MIB: Final = 1024 * 1024
_PROGRAMS: Final = Path(__file__).with_name("programs.py")

# What a probe may use unless it says otherwise: small, since it is filled on purpose.
PROBE_LIMITS: Final = Limits(
    wall_seconds=20.0,
    cpu_seconds=10.0,
    memory_bytes=256 * _MIB,
    processes=24,
    open_files=128,
    disk_bytes=8 * _MIB,
    inodes=256,
    file_bytes=4 * _MIB,
    output_bytes=64 * 1024,
    artifacts=8,
    artifact_bytes=_MIB,
)

_BY_ITSELF: Final = frozenset({Status.OK})


class Scope(Enum):
    """On which tiers a probe says something."""

    EVERYWHERE = "everywhere"
    # Where the kernel that answers is the host's: elsewhere these calls reach a kernel of the run's own.
    SHARED_KERNEL = "shared_kernel"
    # Where the tier promises a kernel of the run's own.
    OWN_KERNEL = "own_kernel"

    def covers(self, strength: Strength) -> bool:
        """Say whether a tier of this strength is asked."""
        if self is Scope.EVERYWHERE:
            return True
        return (strength is Strength.STRONG) is (self is Scope.OWN_KERNEL)


@dataclass(frozen=True, slots=True)
class Probe:
    """One attack. It is held when the run ended in one of `statuses`, said HELD at least once and ESCAPED never."""

    id: str
    description: str
    # Name of the function in programs.py, or the whole program in another language.
    program: str
    language: Language = Language.PYTHON
    limits: Limits = PROBE_LIMITS
    statuses: frozenset[Status] = _BY_ITSELF
    exit_code: int | None = None
    scope: Scope = Scope.EVERYWHERE
    stdin: bytes = b""
    # Run before it in a sandbox of its own; what it leaves must not be there.
    before: str = ""

    def source(self) -> bytes:
        """Give the program's text."""
        return _python(self.program) if self.language is Language.PYTHON else self.program.encode()

    def source_before(self) -> bytes:
        """Give the text of the program that is run first."""
        return _python(self.before)


def _python(program: str) -> bytes:
    return _PROGRAMS.read_bytes() + f"\nrun({program!r})\n".encode()


def _ended(*statuses: Status) -> frozenset[Status]:
    return frozenset(statuses)


RUNS: Final = Probe(
    "runs",
    "runs an honest Python program: file in, file out, stdin, both streams, exit code",
    "runs",
    statuses=_ended(Status.ERROR),
    exit_code=7,
    stdin=b"from stdin ",
)
TIMEOUT: Final = Probe(
    "timeout",
    "outlives its wall time, and leaves a daemon behind",
    "timeout",
    limits=replace(PROBE_LIMITS, wall_seconds=0.5),
    statuses=_ended(Status.TIMEOUT),
)
PROBES: Final = (
    RUNS,
    Probe(
        "shell",
        "runs an honest shell program, and reaches for the network from it",
        'if (exec 3<>"/dev/tcp/127.0.0.1/9") 2>/dev/null; then echo ESCAPED; else echo "HELD $((40 + 2))"; fi',
        language=Language.SHELL,
    ),
    Probe(
        "javascript",
        "runs an honest JavaScript program, and reads /etc/shadow from it",
        "try { require('fs').readFileSync('/etc/shadow'); console.log('ESCAPED'); }"
        " catch (error) { console.log('HELD ' + error.code); }",
        language=Language.JAVASCRIPT,
        limits=replace(PROBE_LIMITS, memory_bytes=512 * _MIB, processes=64),
    ),
    Probe("network", "connects to listeners of the host over TCP, UDP and unix sockets", "network"),
    Probe("host_file", "reads a file of the host by many names, and writes beside it", "host_file"),
    Probe(
        "pid_visibility", "finds a process of the host, reads its environment, signals it", "pid_visibility"
    ),
    Probe(
        "user_namespace",
        "makes a user namespace, where more of the kernel opens",
        "user_namespace",
        scope=Scope.SHARED_KERNEL,
    ),
    Probe(
        "system_calls",
        "calls the parts of the kernel that break-outs begin with",
        "system_calls",
        scope=Scope.SHARED_KERNEL,
    ),
    Probe(
        "own_kernel",
        "asks whether the kernel that answers is the host's",
        "own_kernel",
        scope=Scope.OWN_KERNEL,
    ),
    Probe("privileges", "holds or gains a capability, mounts, changes root", "privileges"),
    Probe(
        "devices",
        "opens a device that is more than a source of bytes",
        "devices",
        scope=Scope.SHARED_KERNEL,
    ),
    Probe("descriptors", "finds a descriptor that was left open", "descriptors"),
    Probe("environment", "finds a variable of the service", "environment"),
    Probe(
        "fork_limit",
        "makes four times as many processes as are allowed",
        "fork_limit",
        statuses=_ended(Status.OK, Status.PROCESSES),
    ),
    Probe(
        "memory",
        "holds three times the memory that is allowed, spread over processes",
        "memory",
        limits=replace(PROBE_LIMITS, memory_bytes=96 * _MIB),
        statuses=_ended(Status.OK, Status.MEMORY),
    ),
    Probe(
        "cpu_time",
        "computes for ever",
        "cpu_time",
        limits=replace(PROBE_LIMITS, cpu_seconds=0.3),
        statuses=_ended(Status.CPU),
    ),
    TIMEOUT,
    Probe(
        "output", "writes sixteen times the output that is allowed", "output", statuses=_ended(Status.OUTPUT)
    ),
    Probe(
        "disk",
        "fills every place that can be written",
        "disk",
        statuses=_ended(Status.OK, Status.DISK),
    ),
    Probe(
        "inodes",
        "makes twice as many files as are allowed",
        "inodes",
        statuses=_ended(Status.OK, Status.INODES),
    ),
    Probe("file_size", "makes one file larger than is allowed", "file_size"),
    Probe("freshness", "finds what another run has left", "freshness", before="leave"),
)

"""What a run is made of, in words that every isolation tier shares; sizes in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, Protocol

from kala.errors import FailedPreconditionError

# As the contract says: one event of output carries at most so much.
OUTPUT_PIECE_BYTES: Final = 32 * 1024


class Language(Enum):
    """What the sandbox runs: the system's own interpreters, never this service's."""

    PYTHON = "python"
    JAVASCRIPT = "javascript"
    SHELL = "shell"


class Tier(Enum):
    """What keeps a run inside, in the order of preference."""

    KUBERNETES = "kubernetes"
    RUNSC = "runsc"
    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "landlock"


class Strength(IntEnum):
    """What a tier promises; a higher number is stronger."""

    WEAK = 1
    STANDARD = 2
    STRONG = 3


class Status(Enum):
    """How a run ended; the names are the contract's."""

    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    CPU = "cpu"
    MEMORY = "memory"
    PROCESSES = "processes"
    DISK = "disk"
    INODES = "inodes"
    OUTPUT = "output"
    CANCELLED = "cancelled"
    SETUP_FAILED = "setup_failed"
    REFUSED = "refused"
    APPROVAL_REQUIRED = "approval_required"
    LAUNCHER_LOST = "launcher_lost"


class Stream(Enum):
    """Which of the two streams."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use; all its processes together unless said otherwise."""

    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int
    processes: int
    # Of one process.
    open_files: int
    # On the writable file systems together.
    disk_bytes: int
    inodes: int
    # Of one file.
    file_bytes: int
    # stdout and stderr together.
    output_bytes: int
    artifacts: int
    artifact_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run used so far; None where the tier cannot measure it."""

    wall_seconds: float = 0.0
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    peak_processes: int | None = None
    disk_bytes: int | None = None
    inodes: int | None = None
    output_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Isolation:
    """Where a run takes place; `controls` are sorted names such as "net.none", "seccomp", "userns"."""

    tier: Tier
    strength: Strength
    version: str
    controls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One program to run. It sees an empty writable /workspace (its current directory) and a read-only system."""

    language: Language
    # The program's text as UTF-8; it is run as a file would be (`__name__ == "__main__"`), with `arguments` after it.
    source: bytes
    limits: Limits
    arguments: tuple[str, ...] = ()
    stdin: bytes = b""
    # Shown read-only at /workspace/host and made the current directory; None almost always.
    host_directory: str | None = None
    # Added to the few variables that every run gets (PATH, HOME=/workspace, LANG=C.UTF-8, TMPDIR).
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of output as it was written; `offset` is the position of its first byte in its stream."""

    stream: Stream
    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What is used so far; about one a second."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over and no process of it lives; the last event of every run that began."""

    status: Status
    exit_code: int | None
    signal: int | None
    # In words; empty on OK.
    reason: str
    usage: Usage
    output_truncated: bool = False


Event = Output | Sample | Ended

# Called with a descriptor of the empty workspace directory after the sandbox stands and before any of the code runs, in a
# thread. It writes the files that the run may see; what it raises ends the run before it begins, and is raised by `start`.
Prepare = Callable[[int], None]


class Run(Protocol):
    """A run that has begun. It must be closed; closing ends it first."""

    @property
    def isolation(self) -> Isolation:
        """Where it takes place."""
        ...

    @property
    def warm(self) -> bool:
        """Whether a pre-warmed sandbox was used."""
        ...

    def events(self) -> AsyncIterator[Event]:
        """Yield output and samples as they come, and `Ended` at last; to be iterated once.

        A consumer that is slow slows the run's output (a bounded queue), it never costs memory.
        """
        ...

    async def kill(self) -> None:
        """End every process of the run, at once; `Ended` with CANCELLED follows unless it had ended before."""
        ...

    def workspace(self) -> int:
        """Give a directory descriptor of /workspace, valid until `aclose`; to be read after `Ended`, with openat2 rules only."""
        ...

    async def aclose(self) -> None:
        """End the run if it lasts, and free its workspace and descriptors."""
        ...


class Sandbox(Protocol):
    """One isolation tier, ready to run jobs."""

    @property
    def isolation(self) -> Isolation:
        """What it promises."""
        ...

    async def start(self, job: Job, prepare: Prepare | None = None) -> Run:
        """Begin a run.

        Raises:
            ResourceExhaustedError: all slots are taken; carries a retry time.
            SetupFailedError: the sandbox could not be set up completely; nothing of the code ran.
        """
        ...

    async def aclose(self) -> None:
        """End every run and what the tier keeps."""
        ...


class SetupFailedError(FailedPreconditionError):
    """The sandbox could not be set up completely; nothing of the code ran."""

    default_reason = "SANDBOX_SETUP_FAILED"

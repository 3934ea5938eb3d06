"""What the launcher must do to start one sandbox; each tier writes such plans, and knows nothing of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from services.tools.sandbox.model import Language

# Descriptors that a plan gives its own content start here: 0, 1, 2 and the code pipe are everybody's.
FIRST_DATA_DESCRIPTOR: Final = 4


class Containment(Enum):
    """What ends with what."""

    # All processes live in a PID namespace and die with its first.
    PID_NAMESPACE = "pid_namespace"
    # All processes descend from the one that was started, which adopts orphans.
    SUBTREE = "subtree"


@dataclass(frozen=True, slots=True)
class Shape:
    """What is decided when a sandbox is made, not when code comes."""

    language: Language
    disk_bytes: int
    host_directory: str | None = None


@dataclass(frozen=True, slots=True)
class SpawnPlan:
    """How one sandbox is started."""

    # Program and arguments; the last of them is the stub's command line.
    argv: tuple[str, ...]
    # Content that the program finds at a descriptor, by its number.
    data: Mapping[int, bytes] = field(default_factory=dict)
    # Where the program writes {"child-pid": N} of the sandbox's first process; None when it is that process.
    info_descriptor: int | None = None
    containment: Containment = Containment.PID_NAMESPACE
    # The workspace and the private /proc as the sandbox's own processes see them.
    workspace: str = "/workspace"
    # Its other writable file systems; they count for the same limits.
    scratch: tuple[str, ...] = ()
    # What the tier's own processes hold beside the run's, at most.
    overhead_bytes: int = 0
    # False where threads of the tier's own cannot be told from the run's.
    counts_tasks: bool = True
    # None where the sandbox sees no /proc of its own.
    proc: str | None = "/proc"
    environment: Mapping[str, str] = field(default_factory=dict)
    # A directory of the host that holds the workspace and the scratch, for a tier without mounts. Whoever the workspace is
    # given to deletes it.
    host_directory: str | None = None


Planner = Callable[[Shape], SpawnPlan]

"""What happens in one execution, in the order in which its caller hears of it; protobuf begins in `servicer.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.tools.files.model import Artifact, Owner, Reference
from services.tools.files.paths import Pattern
from services.tools.limits import AskedLimits
from services.tools.sandbox.model import Isolation, Limits, Output, Sample, Status, Strength, Usage


@dataclass(frozen=True, slots=True)
class Asked:
    """One tool call as its caller sent it, read but not yet judged."""

    owner: Owner
    tool: str
    arguments_json: str
    # "workspaces/<workspace>"; empty for a throw-away one.
    workspace: str = ""
    files: tuple[Reference, ...] = ()
    limits: AskedLimits = field(default_factory=AskedLimits)
    stdin: bytes = b""
    least_strength: Strength | None = None
    approval: str = ""
    after_untrusted: bool = False
    artifacts: tuple[Pattern, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The sandbox stands and the code is about to run."""

    run: str
    isolation: Isolation
    limits: Limits
    workspace: str
    warm: bool


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact was collected."""

    artifact: Artifact


@dataclass(frozen=True, slots=True)
class Exit:
    """The execution is over, and its facts are in the log."""

    run: str
    status: Status
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    usage: Usage = field(default_factory=Usage)
    stdout_sha256: bytes = b""
    stderr_sha256: bytes = b""
    output_truncated: bool = False
    artifacts: tuple[Artifact, ...] = ()
    result_json: str = ""
    approval: str = ""
    isolation: Isolation | None = None
    files: tuple[Reference, ...] = ()


Happening = Started | Output | Sample | Found | Exit

"""What a program of this tier may do, and the one way to make it so: all of it, or the program is not executed."""

from __future__ import annotations

import base64
import json
import os
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NoReturn

from services.tools.sandbox.landlock import kernel
from services.tools.sandbox.landlock.kernel import Rule
from services.tools.sandbox.seccomp import load

# Read and executed by every program: the system's own, nothing locally installed.
SYSTEM: Final = ("/usr/bin", "/usr/lib", "/usr/lib64")
# Read where they exist: what the loader, the C library and the interpreters look for and would not miss quietly.
SYSTEM_FILES: Final = (
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/openssl.cnf",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    # Of the program itself; the other processes of the host stay unseen, its own children's files with them.
    "/proc/self/fd",
    "/proc/self/stat",
    "/proc/self/statm",
)
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_STANDARD_STREAMS: Final = 3


@dataclass(frozen=True, slots=True)
class Limit:
    """One rlimit, soft and hard alike; `name` as in the module `resource`, without RLIMIT_."""

    name: str
    value: int


@dataclass(frozen=True, slots=True)
class Confinement:
    """A program and all that it may use; every path is absolute."""

    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    # The only place where it may write; its current directory unless `directory` is another.
    workspace: str
    limits: tuple[Limit, ...]
    # The seccomp filter, assembled once by whoever starts many of these; see `filter_for_this_machine`.
    seccomp: bytes
    # Where its temporary files go, the other place where it may write.
    scratch: str | None = None
    # Further places that it may read.
    readable: tuple[str, ...] = ()
    directory: str | None = None
    # Descriptors that it keeps beside the standard streams.
    descriptors: tuple[int, ...] = ()

    def to_json(self) -> str:
        """Write it for the program that applies it."""
        return json.dumps(asdict(self) | {"seccomp": base64.b64encode(self.seccomp).decode()})

    @classmethod
    def from_json(cls, text: str) -> Confinement:
        """Read what `to_json` wrote; anything else is a mistake of ours and raises."""
        fields = json.loads(text)
        return cls(
            arguments=tuple(fields.pop("arguments")),
            environment=tuple((name, value) for name, value in fields.pop("environment")),
            seccomp=base64.b64decode(fields.pop("seccomp"), validate=True),
            limits=tuple(Limit(**limit) for limit in fields.pop("limits")),
            readable=tuple(fields.pop("readable")),
            descriptors=tuple(fields.pop("descriptors")),
            **fields,
        )


def filter_for_this_machine() -> bytes:
    """Assemble the filter of this tier.

    Raises:
        FailedPreconditionError: there is no seccomp table for this machine.
    """
    # Not by the keeper, which starts with every run and is given the filter.
    from services.tools.sandbox.seccomp.filter import compile_filter
    from services.tools.sandbox.seccomp.rules import Reach

    return compile_filter(reach=Reach.HOST)


def rules(confinement: Confinement) -> tuple[Rule, ...]:
    """List what Landlock gives back."""
    files = (path for path in SYSTEM_FILES if Path(path).exists())
    return (
        *(Rule(path, kernel.READ) for path in SYSTEM if Path(path).exists()),
        *(Rule(path, kernel.READ) for path in files),
        *(Rule(path, kernel.READ) for path in confinement.readable),
        *(Rule(path, kernel.USE_DEVICE) for path in DEVICES if Path(path).exists()),
        Rule(confinement.workspace, kernel.WRITE),
        *(Rule(path, kernel.WRITE) for path in (confinement.scratch,) if path is not None),
    )


def execute(confinement: Confinement) -> NoReturn:
    """Become the program, confined. Every step must work; the first that does not is raised and nothing was executed.

    Raises:
        LandlockUnavailableError: the kernel has too little Landlock.
        OSError: the kernel refused a step.
        ValueError: a limit is above what this process may still set.
    """
    if os.geteuid() == 0:
        raise PermissionError("uid 0 is not confined: start the service as an unprivileged user")
    allowed = rules(confinement)
    os.chdir(confinement.directory or confinement.workspace)
    _keep_only(confinement.descriptors)
    load.renounce_privileges()
    kernel.restrict(allowed)
    load.install(confinement.seccomp)
    # At last: one on memory may be too small for this interpreter to go on.
    for limit in confinement.limits:
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit.name}"), (limit.value, limit.value))
    os.execve(confinement.arguments[0], confinement.arguments, dict(confinement.environment))  # noqa: S606 - the purpose


def _keep_only(descriptors: tuple[int, ...]) -> None:
    """Let no other descriptor pass the execution; those stay open until then, so that a failure can be told."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        descriptor = int(name)
        try:
            os.set_inheritable(descriptor, descriptor < _STANDARD_STREAMS or descriptor in descriptors)
        except OSError:
            # The descriptor of this very listing.
            continue

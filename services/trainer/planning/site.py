"""What the planner asks of the world around it: what the machine has, and what the service knows by name."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import VerificationError
from kala.trainer.v1.dataset_pb2 import Dataset
from services.common.gate_profile import read_profile

MAX_PROFILE_BYTES: Final = 1 << 20

_CGROUP_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Site:
    """The machine, and what the operator configured."""

    memory_bytes: int | None = None
    """Of this machine or container; None when it does not say."""
    gpu_memory_bytes: int | None = None
    """Of one GPU; None when the operator did not say."""
    cpus_per_worker: float = 1.0
    has_cluster: bool = False
    """Whether a Ray cluster is configured by address."""
    allows_demo_profiles: bool = False
    has_mlflow: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """A gate profile by name."""

    reference: ContentReference
    is_demo: bool


class Catalogue(Protocol):
    """What the service has stored; each gives None for what this principal's tenant does not have."""

    async def dataset(self, name: str, principal: Principal) -> Dataset | None:
        """A dataset by "datasets/<name>@<version>", or the newest by "datasets/<name>"."""
        ...

    async def parent(self, name: str, principal: Principal) -> ContentReference | None:
        """An adapter's reference with the digest and size of its signed manifest, by "adapters/<name>@<version>"."""
        ...

    async def profile(self, name: str) -> Profile | None:
        """A gate profile."""
        ...

    async def profiles(self) -> list[str]:
        """The names of all gate profiles."""
        ...

    async def tokens_per_second(self, base: str, device: str) -> float | None:
        """What earlier jobs of this base reached on such a device; None when none did."""
        ...


def read_profiles(directory: Path) -> dict[str, Profile]:
    """The gate profiles of a folder by name; raises VerificationError for one that cannot be read."""
    found: dict[str, Profile] = {}
    for path in sorted(directory.glob("*.json")):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise VerificationError(f"gate profile {path.name}: cannot be read") from error
        profile = read_profile(data[:MAX_PROFILE_BYTES]).content
        reference = ContentReference(name=profile.name, sha256=hashlib.sha256(data).digest(), bytes=len(data))
        found[profile.name] = Profile(reference, profile.demo)
    return found


def machine_memory_bytes() -> int | None:
    """The memory of this machine, or of the container around this process if that is less."""
    found: list[int] = []
    with contextlib.suppress(ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _CGROUP_LIMITS:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return min((size for size in found if size > 0), default=None)

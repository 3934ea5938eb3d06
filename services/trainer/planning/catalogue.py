"""What the planner may name, read from the trainer's own store and its folders of gate profiles."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InvalidArgumentError, NotFoundError
from kala.trainer.v1 import job_pb2
from kala.trainer.v1.dataset_pb2 import Dataset
from kala.trainer.v1.registry_pb2 import ADAPTER_STATE_REVOKED
from services.trainer.names import ADAPTERS, DATASETS, require_version, split_version
from services.trainer.planning.site import Profile, read_profiles
from services.trainer.store.store import Store

PACKAGED_PROFILES: Final = Path(__file__).parent.parent / "evaluation" / "profiles"

JOBS_LOOKED_AT: Final = 100


class StoredCatalogue:
    """Serves `site.Catalogue` from the store; another tenant's things are not there."""

    def __init__(self, store: Store, *profile_directories: Path) -> None:
        self._store = store
        self._profile_directories = profile_directories or (PACKAGED_PROFILES,)

    async def dataset(self, name: str, principal: Principal) -> Dataset | None:
        split_version(DATASETS, name, field="dataset")
        try:
            return await self._store.get_dataset(name, principal.tenant)
        except NotFoundError:
            return None

    async def parent(self, name: str, principal: Principal) -> ContentReference | None:
        require_version(ADAPTERS, name, field="adapter")
        try:
            adapter = await self._store.get_adapter(name, principal.tenant)
        except NotFoundError:
            return None
        if adapter.state == ADAPTER_STATE_REVOKED:
            raise InvalidArgumentError(
                "adapter", f"{name} is revoked, and all that is built on it; take another"
            )
        return adapter.reference

    async def profile(self, name: str) -> Profile | None:
        return self._profiles().get(name)

    async def profiles(self) -> list[str]:
        return sorted(self._profiles())

    async def tokens_per_second(self, base: str, device: str) -> float | None:
        part = await self._store.list_jobs(None, state=int(job_pb2.JOB_STATE_SUCCEEDED), limit=JOBS_LOOKED_AT)
        for job in part.items:
            on_gpu = job.spec.placement.gpus_per_worker > 0
            if job.spec.base.name == base and on_gpu == (device == "gpu") and job.progress.tokens_per_second:
                return job.progress.tokens_per_second / max(job.spec.placement.workers, 1)
        return None

    def _profiles(self) -> dict[str, Profile]:
        """Read anew each time: a profile that an operator changes is planned by as it is."""
        found: dict[str, Profile] = {}
        for directory in self._profile_directories:
            found |= read_profiles(directory)
        return found

"""A catalogue of datasets, parents and gate profiles in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.trainer.v1.dataset_pb2 import Dataset
from services.trainer.names import ADAPTERS, DATASETS, require_version, split_version
from services.trainer.planning.site import Profile


def dataset_of(name: str, *, rows: int = 400, tokens: int = 40_000, tenant: str = "acme") -> Dataset:
    """A built dataset as the store has it."""
    made = Dataset(name=name, tenant=tenant, owner="ann", digest=b"d" * 32)
    made.reference.CopyFrom(ContentReference(name=name, sha256=b"r" * 32, bytes=77))
    made.report.train_rows, made.report.tokens = rows, tokens
    return made


@dataclass
class FakeCatalogue:
    """Keeps `services.trainer.planning.site.Catalogue`."""

    datasets: list[Dataset] = field(default_factory=list)
    parents: dict[str, ContentReference] = field(default_factory=dict)
    gate_profiles: dict[str, Profile] = field(default_factory=dict)
    speed: float | None = None

    async def dataset(self, name: str, principal: Principal) -> Dataset | None:
        split_version(DATASETS, name, field="dataset")
        for each in reversed(self.datasets):
            if each.tenant == principal.tenant and name in (each.name, each.name.partition("@")[0]):
                return each
        return None

    async def parent(self, name: str, principal: Principal) -> ContentReference | None:
        require_version(ADAPTERS, name, field="adapter")
        return self.parents.get(name)

    async def profile(self, name: str) -> Profile | None:
        return self.gate_profiles.get(name)

    async def profiles(self) -> list[str]:
        return sorted(self.gate_profiles)

    async def tokens_per_second(self, base: str, device: str) -> float | None:
        return self.speed

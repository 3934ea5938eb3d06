"""Finds what a job names and holds it against the digests that were cleared, right before it is used."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError
from kala.trainer.v1 import job_pb2, registry_pb2
from kala.trainer.v1.dataset_pb2 import Dataset
from services.trainer.places import Places
from services.trainer.registry.lineage import ancestors_of
from services.trainer.store.store import Store
from services.trainer.work.order import AdapterPlace, BasePlace, DatasetPlace

MANIFEST: Final = "manifest.json"


class FoundBase(Protocol):
    """A base model that is here."""

    @property
    def directory(self) -> Path:
        """Where its files are."""
        ...

    @property
    def reference(self) -> ContentReference:
        """Its name with the digest of its files."""
        ...


class Bases(Protocol):
    """The bases of this machine."""

    async def find(self, name: str) -> FoundBase | None:
        """A base with the digests of its files; None when it is not here."""
        ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """Everything that a job names, found."""

    base: BasePlace
    datasets: tuple[tuple[DatasetPlace, Dataset], ...]
    parents: tuple[tuple[AdapterPlace, registry_pb2.Adapter], ...]


class Resolving:
    """Resolves jobs against what is on this machine."""

    def __init__(self, store: Store, places: Places, bases: Bases) -> None:
        self._store = store
        self._places = places
        self._bases = bases

    async def base(self, reference: ContentReference) -> BasePlace:
        """A base; FailedPreconditionError when it is not here or is another one by now."""
        found = await self._bases.find(reference.name)
        if found is None:
            raise FailedPreconditionError(
                f"base: the weights of {reference.name} are not here; see `kala models pull`",
                reason="BASE_NOT_HERE",
            )
        _require_same("base", reference, found.reference)
        return BasePlace(reference.name, found.directory, reference.sha256)

    async def job(self, spec: job_pb2.TrainingSpec, principal: Principal) -> Resolved:
        """All of a job; raises NotFoundError and FailedPreconditionError naming what is not as it was cleared."""
        base = await self.base(spec.base)
        # Before any work: a job on a merge that hides what it was made of ends in no adapter.
        await ancestors_of(self._store, spec.parents, spec.base.sha256, tenant=principal.tenant)
        datasets: list[tuple[DatasetPlace, Dataset]] = []
        for index, share in enumerate(spec.datasets):
            dataset = await self._store.get_dataset(share.dataset.name, principal.tenant)
            _require_same(f"datasets[{index}]", share.dataset, dataset.reference)
            directory = self._places.dataset(dataset.name)
            await asyncio.to_thread(_require_manifest, directory / MANIFEST, share.dataset)
            place = DatasetPlace(
                dataset.name, directory, int(share.use), share.weight or 1.0, share.dataset.sha256
            )
            datasets.append((place, dataset))
        parents: list[tuple[AdapterPlace, registry_pb2.Adapter]] = []
        for index, parent in enumerate(spec.parents):
            adapter = await self._store.get_adapter(parent.name, principal.tenant)
            _require_same(f"parents[{index}]", parent, adapter.reference)
            if adapter.state == registry_pb2.ADAPTER_STATE_REVOKED:
                raise FailedPreconditionError(f"parents[{index}]: {adapter.name} is revoked; take another")
            place_of = AdapterPlace(adapter.name, self._places.adapter(adapter.name), parent.sha256)
            parents.append((place_of, adapter))
        return Resolved(base, tuple(datasets), tuple(parents))


def _require_same(field: str, wanted: ContentReference, found: ContentReference) -> None:
    if wanted.sha256 != found.sha256:
        raise FailedPreconditionError(
            f"{field}: {wanted.name} is {found.sha256.hex()[:16]}… now, not {wanted.sha256.hex()[:16]}… as cleared; "
            "plan again",
            reason="REFERENCE_CHANGED",
        )


def _require_manifest(path: Path, wanted: ContentReference) -> None:
    try:
        digest = hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise FailedPreconditionError(
            f"{wanted.name}: its files are not here; build it again", reason="DATASET_DAMAGED"
        ) from error
    if digest != wanted.sha256:
        raise FailedPreconditionError(
            f"{wanted.name}: its manifest is not the one that was cleared; build it again",
            reason="DATASET_DAMAGED",
        )

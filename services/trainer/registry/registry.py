"""The registry: adapters as they come from training, as they are promoted, and as they end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.adapter_pb2 import (
    AdapterDescription,
    AdapterManifest,
    Ancestor,
    SignedAdapterManifest,
    SignedRevocationList,
)
from kala.common.v1.gate_pb2 import GateResult
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import AlreadyExistsError, FailedPreconditionError
from kala.trainer.v1 import dataset_pb2, job_pb2, registry_pb2
from kala.trainer.v1.registry_pb2 import (
    ADAPTER_STATE_CANDIDATE,
    ADAPTER_STATE_PROMOTED,
    ADAPTER_STATE_REVOKED,
)
from services.common.adapter_manifest import adapter_digest
from services.trainer.desks import Trained
from services.trainer.registry.bases import describe_base
from services.trainer.registry.describe import Training, datasets_used, describe
from services.trainer.registry.lineage import (
    ancestors_of,
    require_not_revoked,
    require_promoted,
    require_reference,
)
from services.trainer.registry.promotion import (
    GateRules,
    Signing,
    holds_gate,
    promote,
    require_candidate,
    require_passed,
    sign_candidate,
)
from services.trainer.registry.revocations import Revocations
from services.trainer.registry.shelf import Folder, Shelf, location_of
from services.trainer.store.store import Store


@dataclass(slots=True)
class Registry:
    """The adapters of this trainer. Promotions and revocations take turns: each reads, judges and writes one manifest."""

    store: Store
    shelf: Shelf
    revocations: Revocations
    signing: Signing
    rules: GateRules
    now: Callable[[], Timestamp]
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def register(self, trained: Training, source: Path, *, subject: str = "") -> registry_pb2.Adapter:
        """Takes what training left in `source` for the next version of its adapter: a signed candidate.

        Raises VerificationError when it is no adapter, or not one of what was cleared; nothing is kept of it then.
        """
        with self.shelf.staged(source) as stage:
            files = await asyncio.to_thread(stage.references)
            description = await asyncio.to_thread(describe, trained, stage, files)
            signed = await self._placed(stage, description, trained.spec.adapter)
        adapter = _adapter_of(signed, files)
        parents = [*(item.name for item in trained.datasets), *(item.name for item in trained.ancestors)]
        await self.store.put_adapter(adapter, parents=parents, subject=subject)
        return adapter

    async def training_of(self, trained: Trained) -> Training:
        """What a finished job is described from: what was cleared, logged and stored of it, and its base as it lies there."""
        claims, action = trained.claim.claims, trained.claim.sealed.action.value
        spec = trained.job.spec
        ancestors = await self.ancestors(spec.parents, spec.base.sha256, tenant=claims.principal.tenant)
        base = await asyncio.to_thread(
            describe_base,
            trained.base_directory,
            spec.base.name,
            expected_digest=spec.base.sha256,
            quantization=spec.quantization,
            root_digest=ancestors[0].base_digest if ancestors else b"",
        )
        found = {dataset.name: dataset for dataset in trained.datasets}
        shares = [(_found(found, share.dataset.name), share) for share in spec.datasets]
        return Training(
            job=trained.job.name,
            tenant=claims.principal.tenant,
            owner=claims.principal.id,
            action=action,
            decision_id=claims.decision_id,
            constitution_digest=claims.constitution_digest,
            intent_receipt=trained.claim.receipt_id,
            base=base,
            datasets=datasets_used(shares),
            started_at=_timestamp(trained.started_at),
            finished_at=_timestamp(trained.finished_at),
            result=trained.result,
            ancestors=ancestors,
        )

    async def made_by(self, job: job_pb2.TrainingJob) -> registry_pb2.Adapter | None:
        """The adapter that a job has made already; None before."""
        after = b""
        while True:
            part = await self.store.list_adapters(job.tenant, stem=job.spec.adapter, limit=100, after=after)
            for adapter in part.items:
                if adapter.description.training.job == job.name:
                    return adapter
            after = part.next_after
            if not after:
                return None

    async def promote(
        self,
        name: str,
        reference: ContentReference,
        evaluation: ContentReference,
        *,
        tenant: str,
        constitution_digest: bytes,
    ) -> registry_pb2.Adapter:
        """Signs an adapter's manifest with a passed gate; the same again gives the manifest that there is.

        Raises FailedPreconditionError for a gate that did not pass, is not in the log or is outdated, and for an adapter
        that changed or was revoked.
        """
        async with self._turn:
            adapter = await self.store.get_adapter(name, tenant)
            self.require_not_revoked(adapter)
            found = await self.store.get_evaluation(evaluation.name, tenant)
            require_passed(found, evaluation, adapter=adapter, constitution_digest=constitution_digest)
            manifest = AdapterManifest.FromString(adapter.manifest.manifest)
            if adapter.state == ADAPTER_STATE_PROMOTED and holds_gate(manifest, found.evidence):
                return adapter
            require_reference(adapter, reference)
            now = self.now()
            signed = await asyncio.to_thread(
                promote,
                manifest,
                found.evidence,
                self.shelf.folder(name),
                signing=self.signing,
                rules=self.rules,
                constitution_digest=constitution_digest,
                revoked=self.revocations.revoked,
                signed_at=now,
            )
            await asyncio.to_thread(self.shelf.replace_manifest, name, signed)
            promoted = _with_manifest(adapter, signed, now)
            await self.store.put_adapter(promoted)
            return promoted

    async def mended(self, name: str, *, tenant: str | None) -> registry_pb2.Adapter:
        """The adapter as it stands, its folder with the very manifest that the registry has: a cut promotion left two."""
        async with self._turn:
            adapter = await self.store.get_adapter(name, tenant)
            if await asyncio.to_thread(self.shelf.read_manifest, name) != adapter.manifest:
                await asyncio.to_thread(self.shelf.replace_manifest, name, adapter.manifest)
            return adapter

    async def revoke(
        self, name: str, reason: str, *, tenant: str
    ) -> tuple[registry_pb2.Adapter, list[str], SignedRevocationList]:
        """Ends an adapter's right to serve and that of all that was built on it; gives it, their names and the new list.

        The list goes first: whatever breaks afterwards, inference no longer takes them.
        """
        async with self._turn:
            adapter = await self.store.get_adapter(name, tenant)
            descendants = await self.store.adapters_on([name])
            await asyncio.to_thread(self.revocations.add, {adapter.adapter_digest: reason})
            await self.keep_list()
            revoked = await self._end(adapter, reason)
            for descendant in descendants:
                built = await self.store.get_adapter(descendant, None)
                await self._end(built, f"built on {name}, which is revoked: {reason}")
            return revoked, descendants, self.revocations.signed

    async def keep_list(self) -> None:
        """Has the database hold the list that the file holds, so that neither alone can be put back to an older one."""
        signed = self.revocations.signed
        try:
            await self.store.put_revocations(self.revocations.serial, signed)
        except AlreadyExistsError:
            return  # the same list, from an earlier try

    async def ancestors(
        self, parents: Sequence[ContentReference], base_digest: bytes, *, tenant: str
    ) -> list[Ancestor]:
        """The lineage of a job whose base is the merge of `parents`; FailedPreconditionError where it is not."""
        return await ancestors_of(
            self.store, parents, base_digest, tenant=tenant, revoked=self.revocations.revoked
        )

    def require_promoted(self, adapter: registry_pb2.Adapter) -> None:
        """Raises FailedPreconditionError unless the adapter may serve as far as this trainer knows."""
        require_promoted(adapter, self.revocations.revoked)

    def require_not_revoked(self, adapter: registry_pb2.Adapter) -> None:
        """Raises FailedPreconditionError for an adapter that was revoked, or whose ancestor was."""
        require_not_revoked(adapter, self.revocations.revoked)

    async def _placed(
        self, stage: Folder, description: AdapterDescription, stem: str
    ) -> SignedAdapterManifest:
        """Gives it a version of its own; one whose folder is there already, as after a lost database, is passed over."""
        while True:
            name = await self.store.next_version(stem, description.tenant)
            signed = sign_candidate(description, name, self.signing, self.now())
            # Every byte once more, by the rules that inference has: what they refuse is not placed.
            await asyncio.to_thread(
                require_candidate, signed, stage, rules=self.rules, base_digest=description.base.digest
            )
            try:
                await asyncio.to_thread(self.shelf.place, stage, name, signed)
            except AlreadyExistsError:
                continue
            return signed

    async def _end(self, adapter: registry_pb2.Adapter, reason: str) -> registry_pb2.Adapter:
        if adapter.state == ADAPTER_STATE_REVOKED:
            return adapter
        ended = registry_pb2.Adapter()
        ended.CopyFrom(adapter)
        ended.state = ADAPTER_STATE_REVOKED
        ended.revoked_reason = reason
        ended.updated_at.CopyFrom(self.now())
        await self.store.put_adapter(ended)
        return ended


def _found(datasets: Mapping[str, dataset_pb2.Dataset], name: str) -> dataset_pb2.Dataset:
    dataset = datasets.get(name)
    if dataset is None:
        raise FailedPreconditionError(f"{name} is gone; its rows cannot be named", reason="DATASET_GONE")
    return dataset


def _timestamp(seconds: float) -> Timestamp:
    micros = round(seconds * 1_000_000)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1_000)


def reference_of(name: str, signed: SignedAdapterManifest) -> ContentReference:
    """How actions name an adapter: by the bytes of its signed manifest."""
    data = signed.SerializeToString(deterministic=True)
    return ContentReference(name=name, sha256=hashlib.sha256(data).digest(), bytes=len(data))


def _adapter_of(signed: SignedAdapterManifest, files: Sequence[ContentReference]) -> registry_pb2.Adapter:
    manifest = AdapterManifest.FromString(signed.manifest)
    description = AdapterDescription.FromString(manifest.adapter)
    return registry_pb2.Adapter(
        name=description.name,
        state=ADAPTER_STATE_CANDIDATE,
        tenant=description.tenant,
        owner=description.owner,
        adapter_digest=adapter_digest(manifest.adapter),
        manifest=signed,
        reference=reference_of(description.name, signed),
        description=description,
        location=location_of(description.name),
        stage=description.stage,
        base=description.base.name,
        bytes=sum(file.bytes for file in files),
        created_at=manifest.signed_at,
        updated_at=manifest.signed_at,
    )


def _with_manifest(
    adapter: registry_pb2.Adapter, signed: SignedAdapterManifest, now: Timestamp
) -> registry_pb2.Adapter:
    changed = registry_pb2.Adapter()
    changed.CopyFrom(adapter)
    changed.state = ADAPTER_STATE_PROMOTED
    changed.manifest.CopyFrom(signed)
    changed.reference.CopyFrom(reference_of(adapter.name, signed))
    gates = AdapterManifest.FromString(signed.manifest).gates
    del changed.passed_profiles[:]
    changed.passed_profiles.extend(sorted({GateResult.FromString(gate.result).profile for gate in gates}))
    changed.updated_at.CopyFrom(now)
    return changed

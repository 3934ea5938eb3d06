"""The datasets' RPCs: built under a clearance in a process of their own, checked, read, listed, and erased."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from google.longrunning.operations_pb2 import Operation
from google.protobuf import json_format
from google.protobuf.message import Message

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from kala.trainer.v1 import dataset_pb2, job_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.sealing import action_digest
from services.trainer.datasets.erasure import without_subject
from services.trainer.datasets.files import HUB_URL, Access, local_path
from services.trainer.datasets.manifest import MANIFEST
from services.trainer.datasets.spec_checks import MAX_ROWS, require_spec
from services.trainer.desks import ErasedRows
from services.trainer.executors.model import Executor, Task
from services.trainer.names import DATASETS, new_number, split_version
from services.trainer.operations import BUILD, Asked, Operations
from services.trainer.pages import PageTokens
from services.trainer.places import Places
from services.trainer.records import DATASET_STARTED, Cleared
from services.trainer.running import Running
from services.trainer.store.store import Store
from services.trainer.work import order as work_order
from services.trainer.work.events import Event
from services.trainer.work.order import Order, write_order

DEFAULT_CHECKED: Final = 100_000
CHECK_SECONDS: Final = 600.0
"""A check is a call that somebody waits for."""
MAX_CHECKS: Final = 2
OUTPUT: Final = "dataset"
"""Folder below the work's that the process writes into."""
_SCRATCH: Final = "scratch-"
"""Beginning of folders that no operation has."""


class FoundBase(Protocol):
    """What is needed of a base."""

    @property
    def directory(self) -> Path:
        """Where its files are."""
        ...

    @property
    def reference(self) -> ContentReference:
        """Its name, digest and size."""
        ...


class Bases(Protocol):
    """Finds bases."""

    async def find(self, name: str) -> FoundBase | None:
        """A base whose files are here."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """What the operator allows and how much a build may use."""

    data_dir: Path | None = None
    remote_data: Sequence[str] = ()
    hub_url: str = HUB_URL
    evaluation_dirs: Sequence[Path] = ()
    """Folders of evaluation files that no row may be taken from."""
    public_keys: tuple[Path, ...] = ()
    threads: int = 1
    memory_bytes: int = 0
    max_seconds: float = 86_400.0

    @property
    def access(self) -> Access:
        """What sources may be read."""
        return Access(
            self.data_dir, frozenset(scheme.lower() for scheme in self.remote_data), self.hub_url.rstrip("/")
        )


class DatasetDesk:
    """Answers for datasets."""

    def __init__(
        self,
        *,
        store: Store,
        operations: Operations,
        places: Places,
        executor: Executor,
        tokens: PageTokens,
        bases: Bases,
        site: Site,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._operations = operations
        self._places = places
        self._executor = executor
        self._tokens = tokens
        self._bases = bases
        self._site = site
        self._clock = clock
        self._checks = asyncio.Semaphore(MAX_CHECKS)
        # Versions whose folder is in place before the table knows them.
        self._placing: set[str] = set()
        _remove_leftovers(places)

    async def build(self, action: pb.BuildDatasetAction, cleared: Cleared) -> Operation:
        """Begins to build; what is wrong with the spec is said before anything is logged."""
        claims = cleared.verified.claims
        asked = Asked(
            kind=BUILD,
            request_id=action.request_id,
            principal=claims.principal,
            digest=action_digest(cleared.verified.action),
            seconds=self._site.max_seconds,
            started=DATASET_STARTED,
            attributes={"dataset": action.spec.name},
            metadata=dataset_pb2.BuildDatasetMetadata(dataset=action.spec.name),
        )
        known = await self._operations.find(asked)
        if known is not None:
            return known
        require_spec(action.spec, self._site.access, digests=True)
        settings = await self._settings(action.spec)

        async def run(running: Running) -> Message:
            return await self._build(running, action.spec, cleared, settings)

        return await self._operations.start(asked, run, cleared=cleared)

    async def _build(
        self,
        running: Running,
        spec: dataset_pb2.DatasetSpec,
        cleared: Cleared,
        settings: Mapping[str, Any],  # Any: JSON
    ) -> dataset_pb2.Dataset:
        claims = cleared.verified.claims
        name = await self._store.next_version(spec.name, running.principal.tenant)
        order = Order(
            kind=work_order.BUILD,
            name=name,
            folder=running.folder,
            principal=running.principal,
            deadline=running.deadline,
            action=cleared.verified.action,
            threads=self._site.threads,
            memory_bytes=self._site.memory_bytes,
            settings=settings,
        )

        async def on_event(event: Event) -> None:
            await running.show(event.message)

        try:
            result = await running.process(order, public_keys=self._site.public_keys, on_event=on_event)
            dataset = _dataset_of(name, spec, result, running.principal, claims.decision_id)
            await self._place(
                running.folder / OUTPUT, dataset, result["subjects"], owner=running.principal.subject
            )
        finally:
            # What a build that failed has written holds rows; nothing is kept of it.
            await asyncio.to_thread(shutil.rmtree, running.folder / OUTPUT, ignore_errors=True)
        running.end_attributes |= {"dataset": name, "dataset_digest": dataset.digest.hex()}
        running.end_references.append(dataset.reference)
        return dataset

    async def _place(
        self, source: Path, dataset: dataset_pb2.Dataset, subjects: Mapping[str, int], *, owner: str = ""
    ) -> None:
        self._placing.add(dataset.name)
        try:
            await asyncio.to_thread(_move, source, self._places.dataset(dataset.name))
            await self._store.put_dataset(dataset, subject=owner, subjects=subjects)
        finally:
            self._placing.discard(dataset.name)

    async def check(self, request: pb.CheckDatasetRequest, principal: Principal) -> pb.CheckDatasetResponse:
        """Reads the sources in a process of its own and says what is wrong with them."""
        if request.max_rows > MAX_ROWS:
            raise InvalidArgumentError("max_rows", f"must be 1 to {MAX_ROWS:,}, or 0 for {DEFAULT_CHECKED:,}")
        spec = dataset_pb2.DatasetSpec()
        spec.CopyFrom(request.spec)
        require_spec(spec, self._site.access, digests=False)
        settings = await self._settings(spec)
        settings |= {
            "check": True,
            "max_rows": request.max_rows or DEFAULT_CHECKED,
            "spec": json_format.MessageToDict(spec, preserving_proto_field_name=True),
        }
        result = await self._run_check(settings, principal)
        response = pb.CheckDatasetResponse(buildable=bool(result["buildable"]))
        json_format.ParseDict(result["report"], response.report)
        json_format.ParseDict(result["spec"], response.spec)
        return response

    async def _run_check(
        self, settings: Mapping[str, Any], principal: Principal
    ) -> dict[str, Any]:  # Any: JSON both ways
        folder = self._places.work(_SCRATCH + new_number())
        order = Order(
            kind=work_order.BUILD,
            name="check",
            folder=folder,
            principal=principal,
            deadline=self._clock() + CHECK_SECONDS,
            threads=self._site.threads,
            memory_bytes=self._site.memory_bytes,
            settings=settings,
        )
        async with self._checks:
            try:
                await asyncio.to_thread(write_order, order, sealed=None, audience="", public_keys=())
                async with asyncio.timeout(CHECK_SECONDS):
                    ended = await self._executor.run(
                        Task(folder, order.threads, job_pb2.Placement()), _unattached
                    )
                return ended.result(folder)
            except TimeoutError:
                raise FailedPreconditionError(
                    f"the check took more than {CHECK_SECONDS:g} s; ask for fewer rows with max_rows"
                ) from None
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def get(self, request: pb.GetDatasetRequest, principal: Principal) -> pb.GetDatasetResponse:
        """Returns a dataset; without a version the newest."""
        split_version(DATASETS, request.name)
        return pb.GetDatasetResponse(dataset=await self._store.get_dataset(request.name, principal.tenant))

    async def list(self, request: pb.ListDatasetsRequest, principal: Principal) -> pb.ListDatasetsResponse:
        """Returns a page of datasets without their cards and specs."""
        page = self._tokens.page("ListDatasets", principal, request.page_size, request.page_token)
        part = await self._store.list_datasets(principal.tenant, limit=page.limit, after=page.after)
        for dataset in part.items:
            dataset.ClearField("card")
            dataset.ClearField("spec")
        token = self._tokens.next_token(page, part.next_after)
        return pb.ListDatasetsResponse(datasets=part.items, next_page_token=token)

    async def erase(self, tenant: str, subject: str) -> ErasedRows:
        """Removes every version that holds rows of a person; each goes on as a new version without them."""
        await self._remove_unknown()
        held = await self._store.datasets_of_subject(tenant, subject)
        for name in sorted(held):
            await self._erase_from(name, tenant, subject)
        return ErasedRows(sorted(held), sum(held.values()))

    async def _erase_from(self, name: str, tenant: str, subject: str) -> None:
        old = await self._store.get_dataset(name, tenant)
        folder = self._places.dataset(name)
        stem, _ = split_version(DATASETS, name)
        new = await self._store.next_version(stem, tenant)
        draft = self._places.work(_SCRATCH + new_number())
        try:
            kept = await asyncio.to_thread(without_subject, folder, draft, old, new, subject)
            if kept is not None:
                dataset, subjects = kept
                dataset.created_at.GetCurrentTime()
                await self._place(draft, dataset, subjects)
        finally:
            await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
        # The files go first: should this be cut, the table still says that there is something to remove.
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if await asyncio.to_thread(folder.exists):
            raise FailedPreconditionError(f"{name}: its files cannot be removed; look at {folder}")
        await self._store.remove_dataset(name)

    async def _remove_unknown(self) -> None:
        """Removes folders that no table knows, which a crash may have left and whose rows nobody could find."""
        for folder in await asyncio.to_thread(lambda: list(self._places.datasets.iterdir())):
            name = f"{DATASETS}/{folder.name}"
            if name in self._placing:
                continue
            try:
                await self._store.get_dataset(name, None)
            except (NotFoundError, InvalidArgumentError):
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _settings(self, spec: dataset_pb2.DatasetSpec) -> dict[str, Any]:  # Any: JSON for the process
        site = self._site
        settings: dict[str, Any] = {
            "data_dir": "" if site.data_dir is None else str(site.data_dir),
            "schemes": sorted(site.access.schemes),
            "hub_url": site.access.hub_url,
            "evaluation_files": [str(path) for path in await asyncio.to_thread(evaluations_of, spec, site)],
        }
        if spec.tokenizer.name:
            base = await self._bases.find(spec.tokenizer.name)
            if base is None:
                raise NotFoundError(f"spec.tokenizer: there is no base {spec.tokenizer.name} on this machine")
            if spec.tokenizer.sha256 and base.reference.sha256 != spec.tokenizer.sha256:
                raise FailedPreconditionError(
                    f"spec.tokenizer: {spec.tokenizer.name} is not the one that was cleared; check the dataset anew"
                )
            spec.tokenizer.CopyFrom(base.reference)
            settings["tokenizer"] = str(base.directory / "tokenizer.json")
        return settings


def evaluations_of(spec: dataset_pb2.DatasetSpec, site: Site) -> Sequence[Path]:
    """The files that no row may share text with: those that the spec names, else every one that the operator keeps."""
    known = [
        path
        for folder in site.evaluation_dirs
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz", ".json"))
    ]
    if not spec.evaluation_files:
        # Every one: two folders may have files of one name.
        return known
    by_name = {path.name: path for path in reversed(known)}
    return [by_name.get(file.name) or local_path(file.name, site.access) for file in spec.evaluation_files]


def _dataset_of(
    name: str,
    spec: dataset_pb2.DatasetSpec,
    result: Mapping[str, Any],  # Any: JSON of our own process
    principal: Principal,
    decision_id: str,
) -> dataset_pb2.Dataset:
    dataset = dataset_pb2.Dataset(
        name=name,
        tenant=principal.tenant,
        owner=principal.id,
        spec=spec,
        files=[
            ContentReference(name=each["name"], sha256=bytes.fromhex(each["sha256"]), bytes=each["bytes"])
            for each in result["files"]
        ],
        digest=bytes.fromhex(result["digest"]),
        card=result["card"],
        decision_id=decision_id,
    )
    json_format.ParseDict(result["report"], dataset.report)
    written = next(each for each in dataset.files if each.name == MANIFEST)
    dataset.reference.CopyFrom(ContentReference(name=name, sha256=written.sha256, bytes=written.bytes))
    dataset.created_at.GetCurrentTime()
    return dataset


def _move(source: Path, target: Path) -> None:
    """Puts a finished folder into place, whole or not at all; nothing is ever written over."""
    for path in source.iterdir():
        path.chmod(0o400)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if target.exists():
        raise FailedPreconditionError(f"{target.name} exists already; ask again")
    source.rename(target)


def _remove_leftovers(places: Places) -> None:
    """Removes what checks, erasures and builds of an earlier life of this service left unfinished."""
    for pattern in (f"{_SCRATCH}*", f"*/{OUTPUT}"):
        for folder in list(places.work_root.glob(pattern)):
            shutil.rmtree(folder, ignore_errors=True)


async def _unattached(elsewhere_id: str) -> None:
    del elsewhere_id

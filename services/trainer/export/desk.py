"""ExportAdapter: a process writes and compares, the service puts what passed into its place and into the log."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.longrunning.operations_pb2 import Operation
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.adapter_pb2 import ADAPTER_TASK_CLASSIFICATION
from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, InvalidArgumentError
from kala.trainer.v1 import registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from kala.trainer.v1.registry_pb2 import (
    EXPORT_FORMAT_GGUF_LORA,
    EXPORT_FORMAT_GGUF_MERGED,
    EXPORT_FORMAT_MERGED,
    EXPORT_FORMAT_MLX,
    EXPORT_FORMAT_PEFT,
    ExportFormat,
)
from services.common.service_records import Facts
from services.trainer.names import ADAPTERS, directory_name, require_request_id, require_version
from services.trainer.operations import EXPORT, Asked, Operations
from services.trainer.places import Places
from services.trainer.planning.bases import Bases
from services.trainer.records import Records
from services.trainer.registry.promotion import require_candidate
from services.trainer.registry.registry import Registry
from services.trainer.running import Running
from services.trainer.work import order as orders
from services.trainer.work.events import Event

EXPORTED: Final = "adapter.exported"
FOLDER: Final = "export"
MAX_SECONDS: Final = 6 * 3600.0
"""Merging and comparing 12 billion parameters on a CPU takes hours, not days."""

WEIGHT_FORMATS: Final[Mapping[ExportFormat.ValueType, tuple[str, ...]]] = {
    EXPORT_FORMAT_PEFT: (),
    EXPORT_FORMAT_GGUF_LORA: (),
    EXPORT_FORMAT_MERGED: ("f32", "f16", "bf16"),
    EXPORT_FORMAT_MLX: ("f32", "f16", "bf16"),
    EXPORT_FORMAT_GGUF_MERGED: ("f32", "f16", "bf16", "q8_0"),
}
"""What each layout may be asked for besides the base's own number format."""


@dataclass(slots=True)
class Exports:
    """Answers for exports."""

    registry: Registry
    operations: Operations
    places: Places
    bases: Bases
    records: Records
    now: Callable[[], Timestamp]
    threads: int = 1
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def export(self, request: pb.ExportAdapterRequest, principal: Principal) -> Operation:
        """Writes an adapter in another layout."""
        require_request_id(request.request_id)
        require_version(ADAPTERS, request.name)
        _require_format(request)
        asked = Asked(
            kind=EXPORT,
            request_id=request.request_id,
            principal=principal,
            digest=hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
            seconds=MAX_SECONDS,
            metadata=registry_pb2.ExportAdapterMetadata(adapter=request.name, format=request.format),
        )
        # What was asked for before is answered as it was, whatever became of the adapter since.
        known = await self.operations.find(asked)
        if known is not None:
            return known
        adapter = await self.registry.store.get_adapter(request.name, principal.tenant)
        self.registry.require_promoted(adapter)
        is_copy = request.format == EXPORT_FORMAT_PEFT
        if not is_copy and adapter.description.task == ADAPTER_TASK_CLASSIFICATION:
            raise FailedPreconditionError(
                f"{adapter.name} gives labels; a classifier is exported as PEFT only",
                reason="CLASSIFIER_NOT_EXPORTED",
            )

        async def run(running: Running) -> registry_pb2.Export:
            return await self._run(running, request)

        return await self.operations.start(asked, run)

    async def _run(self, running: Running, request: pb.ExportAdapterRequest) -> registry_pb2.Export:
        # As it stands now: it may have waited, and meanwhile been revoked or promoted by another gate.
        adapter = await self.registry.mended(request.name, tenant=running.principal.tenant)
        self.registry.require_promoted(adapter)
        order = await self._order(running, request, adapter)

        async def on_event(event: Event) -> None:
            await running.show(event.message)

        result = await running.process(order, on_event=on_event)
        # Writing takes hours: what was revoked meanwhile is not given out.
        self.registry.require_promoted(await self.registry.mended(adapter.name, tenant=adapter.tenant))
        export = _export_of(result, adapter.name, request.format)
        async with self._turn:
            return await self._keep(running, request, adapter, export)

    async def _keep(
        self,
        running: Running,
        request: pb.ExportAdapterRequest,
        adapter: registry_pb2.Adapter,
        export: registry_pb2.Export,
    ) -> registry_pb2.Export:
        """Logs an export, stores it and puts it into its place, in this order.

        A merge that lies there and is not known would be taken for a base without parents.
        """
        name = _folder_name(adapter.name, request)
        place = await asyncio.to_thread(self._place, name, running.name, export.files)
        export.location = str(place)
        export.created_at.CopyFrom(self.now())
        principal = running.principal
        await self.records.event(
            EXPORTED,
            Facts(
                "ok",
                attributes={
                    "adapter": adapter.name,
                    "adapter_digest": adapter.adapter_digest.hex(),
                    "format": ExportFormat.Name(request.format),
                    "operation": running.name,
                },
                references=export.files,
            ),
            tenant=principal.tenant,
            subject=principal.subject,
        )
        await self.registry.store.put_export(
            running.name, export, tenant=principal.tenant, owner=principal.id, subject=principal.subject
        )
        await asyncio.to_thread(_put, running.folder / FOLDER, place)
        return export

    async def _order(
        self, running: Running, request: pb.ExportAdapterRequest, adapter: registry_pb2.Adapter
    ) -> orders.Order:
        described = adapter.description.base
        base = await self.bases.find(described.name)
        if base is None or base.reference.sha256 != described.digest:
            raise FailedPreconditionError(
                f"the base {described.name} ({described.digest.hex()[:16]}) of {adapter.name} is not here; put its files "
                "back into KALA_TRAINER_BASES_DIR",
                reason="BASE_NOT_HERE",
            )
        folder = self.registry.shelf.folder(adapter.name)
        # Nothing that changed since it was signed is written out under its name.
        await asyncio.to_thread(
            require_candidate,
            adapter.manifest,
            folder,
            rules=self.registry.rules,
            base_digest=described.digest,
        )
        return orders.Order(
            kind=orders.EXPORT,
            name=running.name,
            folder=running.folder,
            principal=running.principal,
            deadline=running.deadline,
            base=orders.BasePlace(described.name, base.directory, described.digest),
            adapter=orders.AdapterPlace(adapter.name, folder.path, adapter.reference.sha256),
            threads=self.threads,
            settings={"format": int(request.format), "weight_format": request.weight_format},
        )

    def _place(self, name: str, operation: str, files: Any) -> Path:  # Any: the message's own list type
        """Where a finished export stays; the same again, which is the same bytes, is there already."""
        final = self.places.exports / name
        if not final.exists() or (final.is_dir() and _same(final, files)):
            return final
        return final.with_name(f"{name}-{operation.rpartition('/')[2][:8]}")


def _put(made: Path, place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(made)
        return
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made.rename(place)


def _require_format(request: pb.ExportAdapterRequest) -> None:
    formats = WEIGHT_FORMATS.get(request.format)
    if formats is None:
        names = ", ".join(ExportFormat.Name(each) for each in WEIGHT_FORMATS)
        raise InvalidArgumentError("format", f"must be one of {names}")
    if request.weight_format and request.weight_format not in formats:
        allowed = ", ".join(formats) or "empty: this layout keeps the adapter's own numbers"
        raise InvalidArgumentError("weight_format", f"must be {allowed}")


def _folder_name(adapter: str, request: pb.ExportAdapterRequest) -> str:
    """E.g. "tone-1-gguf_merged-f16"; a name that a base may have, for a merge is one."""
    kind = ExportFormat.Name(request.format).removeprefix("EXPORT_FORMAT_").lower()
    parts = [directory_name(adapter).replace("@", "-"), kind, request.weight_format]
    return "-".join(part for part in parts if part)


def _same(folder: Path, files: Any) -> bool:  # as above
    for file in files:
        path = folder / file.name
        if not path.is_file():
            return False
        with path.open("rb") as reading:
            if hashlib.file_digest(reading, "sha256").digest() != file.sha256:
                return False
    return True


def _export_of(
    result: Mapping[str, Any], adapter: str, export_format: ExportFormat.ValueType
) -> registry_pb2.Export:  # Any: JSON of our own process
    return registry_pb2.Export(
        adapter=adapter,
        format=export_format,
        files=[json_format.ParseDict(file, ContentReference()) for file in result["files"]],
        checks=[json_format.ParseDict(check, registry_pb2.ExportCheck()) for check in result["checks"]],
        model_digest=bytes.fromhex(result["model_digest"]),
    )

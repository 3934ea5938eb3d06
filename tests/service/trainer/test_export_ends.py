"""An export whose adapter, log or caller ends while it is written leaves nothing that could serve unnoticed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.longrunning.operations_pb2 import Operation

from kala.common.v1.reference_pb2 import ContentReference
from kala.trainer.v1 import registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.export.desk import FOLDER, Exports
from services.trainer.operations import Lanes, Operations
from services.trainer.places import Places
from services.trainer.running import LOCAL
from services.trainer.work.ended import Ended
from services.trainer.work.results import write_result
from tests.fakes.served_trainer import ScriptedExecutor
from tests.fakes.trained import FINISHED
from tests.service.trainer.test_registry import CALLER, Desk, desk

__all__ = ["desk"]

MODEL = b"\x77" * 32


@dataclass
class Exporting:
    """Exports over a real registry; what their process leaves is made here, and something happens meanwhile."""

    desk: Desk
    exports: Exports
    executor: ScriptedExecutor

    async def merged(self, name: str, meanwhile: Callable[[], Awaitable[object]]) -> Operation:
        async def script(task) -> Ended:
            made = task.folder / FOLDER
            made.mkdir()
            (made / "config.json").write_text("{}")
            write_result(task.folder, {"files": [], "checks": [], "model_digest": MODEL.hex()})
            await meanwhile()
            return Ended(0)

        self.executor.script = script
        request = pb.ExportAdapterRequest(
            name=name, request_id="e" * 16, format=registry_pb2.EXPORT_FORMAT_MERGED
        )
        operation = await self.exports.export(request, CALLER)
        await self.exports.operations.wait(operation.name)
        return await self.exports.operations.get(operation.name, CALLER)

    @property
    def placed(self) -> list[str]:
        folder = self.exports.places.exports
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []


@pytest.fixture
async def exporting(desk: Desk) -> AsyncIterator[Exporting]:
    adapter = await desk.promoted()
    base = adapter.description.base
    found = SimpleNamespace(directory=desk.root, reference=ContentReference(sha256=base.digest))

    async def find(_name: str):
        return found

    executor = ScriptedExecutor()
    places = Places(desk.root / "state")
    places.make()
    operations = Operations(
        store=desk.registry.store,
        records=desk.adapters.records,
        places=places,
        executors={LOCAL: executor},
        lanes=Lanes(1, 1, 1),
    )
    exports = Exports(
        registry=desk.registry,
        operations=operations,
        places=places,
        bases=SimpleNamespace(find=find),
        records=desk.adapters.records,
        now=lambda: FINISHED,
    )
    yield Exporting(desk, exports, executor)
    await operations.aclose()


async def nothing() -> None:
    """Happens."""


async def test_a_merge_is_known_before_it_is_there(exporting: Exporting) -> None:
    done = await exporting.merged("adapters/new-task@1", nothing)
    export = registry_pb2.Export()
    assert done.response.Unpack(export), done.error
    assert exporting.placed == [Path(export.location).name]
    (known,) = await exporting.desk.registry.store.list_exports("default", adapter="adapters/new-task@1")
    assert known == export


async def test_a_merge_that_the_log_does_not_know_is_no_base(exporting: Exporting) -> None:
    async def meanwhile() -> None:
        exporting.desk.log.is_away = True

    done = await exporting.merged("adapters/new-task@1", meanwhile)
    assert done.error.message == "the log is away"
    assert exporting.placed == []


async def test_an_adapter_that_was_revoked_meanwhile_is_not_exported(exporting: Exporting) -> None:
    async def meanwhile() -> None:
        request = pb.RevokeAdapterRequest(name="adapters/new-task@1", reason="it lies")
        await exporting.desk.adapters.revoke(request, CALLER)

    done = await exporting.merged("adapters/new-task@1", meanwhile)
    assert "is revoked: it lies" in done.error.message
    assert exporting.placed == []
    assert "adapter.exported" not in exporting.desk.log.kinds


async def test_the_same_request_gives_the_same_operation_though_the_adapter_ended(
    exporting: Exporting,
) -> None:
    done = await exporting.merged("adapters/new-task@1", nothing)
    request = pb.RevokeAdapterRequest(name="adapters/new-task@1", reason="it lies")
    await exporting.desk.adapters.revoke(request, CALLER)
    assert await exporting.merged("adapters/new-task@1", nothing) == done

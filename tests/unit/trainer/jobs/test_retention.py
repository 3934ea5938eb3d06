"""What is over is thrown away in its time, and nothing before."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.longrunning.operations_pb2 import Operation

from kala.common.v1.clearance_pb2 import Principal
from services.trainer.jobs.retention import CHECKPOINT_SECONDS, Retention, forget_rows
from services.trainer.operations import KEPT_SECONDS, Lanes, Operations
from services.trainer.places import Places
from services.trainer.records import Records
from services.trainer.store.operation_rows import OperationRow
from services.trainer.store.store import Store

NOW = 100 * 86_400.0


@pytest.fixture
async def retention(tmp_path: Path):
    places = Places(tmp_path)
    places.make()
    store = await Store.open(places.database)
    operations = Operations(
        store=store,
        records=Records(None),  # type: ignore[arg-type]  # nothing is logged here
        places=places,
        executors={},
        lanes=Lanes(1, 1, 1),
        clock=lambda: NOW,
    )
    yield store, places, Retention(store, places, operations, clock=lambda: NOW)
    store.close()


async def put(store: Store, places: Places, number: int, *, ended_ago: float | None) -> Path:
    name = f"{number:032x}"
    ended = None if ended_ago is None else round((NOW - ended_ago) * 1e6)
    row = OperationRow(
        name=f"operations/{name}",
        kind="train",
        principal=Principal(id="keys/ann", tenant="acme"),
        request_id=f"request-{number:020}",
        request_digest=bytes(32),
        created_at=1,
        deadline_at=2,
        operation=Operation(name=f"operations/{name}"),
        ended_at=ended,
    )
    await store.operations.insert(row, [])
    folder = places.work(name)
    (folder / "checkpoints" / "step-00000010").mkdir(parents=True)
    (folder / "log.jsonl").touch()
    return folder


async def test_checkpoints_go_after_a_day_and_folders_after_a_month(retention) -> None:
    store, places, sweeper = retention
    running = await put(store, places, 1, ended_ago=None)
    fresh = await put(store, places, 2, ended_ago=CHECKPOINT_SECONDS - 60)
    day_old = await put(store, places, 3, ended_ago=CHECKPOINT_SECONDS + 60)
    month_old = await put(store, places, 4, ended_ago=KEPT_SECONDS + 60)
    unknown = places.work("f" * 32)
    (unknown / "checkpoints").mkdir(parents=True)
    await sweeper.sweep()
    assert [(each / "checkpoints").exists() for each in (running, fresh, day_old, unknown)] == [
        True,
        True,
        False,
        True,
    ]
    assert (day_old / "log.jsonl").exists()
    assert not month_old.exists()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_what_may_hold_rows_goes_and_what_cannot_stays(tmp_path: Path) -> None:
    for name in ("checkpoints", "drafts", "reports"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in ("log.jsonl", "events.jsonl", "drafts.jsonl", "result.json"):
        (tmp_path / name).touch()
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tmp_path / "link").symlink_to(outside)
    await forget_rows(tmp_path)
    assert names_in(tmp_path) == ["events.jsonl", "log.jsonl", "reports"]
    assert (outside / "kept").exists()

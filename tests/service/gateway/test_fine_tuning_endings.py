"""Fine-tuning jobs that are cut off: by a cancellation, an erasure, a kill or a bug."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.fine_tuning import worker
from gateway.fine_tuning.feature import clear_unneeded
from gateway.fine_tuning.laying import FOLDER, Tray
from gateway.fine_tuning.model import Job
from gateway.fine_tuning.store import FineTuningStore
from gateway.fine_tuning.trainer import TrainerCalls
from kala.trainer.v1 import job_pb2
from tests.fakes.gateway_suite import Suite, eventually, running_suite
from tests.fakes.scripted_trainer import JOB
from tests.fakes.tuning_trainer import TuningTrainer, tuning_trainer
from tests.service.gateway.test_erasure import certificate_in, erase
from tests.service.gateway.test_fine_tuning import JOBS, create, ended, upload

pytestmark = pytest.mark.asyncio(loop_scope="session")

Worker = worker.FineTuningWorker


@pytest.fixture
def trainer(tmp_path: Path) -> TuningTrainer:
    return tuning_trainer(tmp_path / "data")


@pytest_asyncio.fixture(loop_scope="session")
async def suite(
    tmp_path: Path, trainer: TuningTrainer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Suite]:
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(Worker.__init__, "__kwdefaults__", {"poll_seconds": 0.02})
    async with running_suite(
        tmp_path, trainer=trainer, training_data_dir=tmp_path / "data", batch_concurrency=0
    ) as running:
        yield running


def written(suite: Suite, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(suite.directory / "gateway.db")) as connection:
        connection.execute(statement, values)
        connection.commit()


async def test_a_training_that_begins_while_its_job_is_cancelled_is_ended(
    suite: Suite, trainer: TuningTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = TrainerCalls.post

    async def post_and_cancel(self: TrainerCalls, job: Job, path: str, body: Any) -> Any:
        answer = await post(self, job, path, body)
        if path == "trainingJobs":
            assert (await suite.post(f"{JOBS}/{job.id}/cancel")).status_code == 200
        return answer

    monkeypatch.setattr(TrainerCalls, "post", post_and_cancel)
    job = await create(suite)
    assert (await ended(suite, job["id"]))["status"] == "cancelled"

    async def told() -> bool:
        return bool(trainer.cancelled)

    assert await eventually(told)
    assert set(trainer.cancelled) == {JOB}


async def test_a_training_ends_with_the_key_that_it_was_begun_for(
    suite: Suite, trainer: TuningTrainer
) -> None:
    trainer.states = [job_pb2.JOB_STATE_TRAINING]
    made = (
        await suite.post("/kala/v1/gateway/keys", {"display_name": "t", "scopes": ["SCOPE_TRAIN"]})
    ).json()
    body = {"model": "kala-embedded", "training_file": await upload(suite)}
    answer = await suite.http.post(JOBS, json=body, headers=suite.bearer(made["secret"]))
    job = answer.json()

    async def running() -> bool:
        return bool((await suite.get(f"{JOBS}/{job['id']}")).json()["status"] == "running")

    assert await eventually(running)
    assert (await suite.post(f"/kala/v1/gateway/{made['key']['name']}:revoke", {})).status_code == 200
    done = await ended(suite, job["id"])
    assert (done["status"], done["error"]["code"]) == ("failed", "invalid_api_key")
    assert trainer.cancelled == [JOB]


async def test_a_bug_in_one_job_does_not_end_the_others(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    post, failed = TrainerCalls.post, list[str]()

    async def post_once_wrongly(self: TrainerCalls, job: Job, path: str, body: Any) -> Any:
        if not failed:
            failed.append(job.id)
            raise KeyError("surprise")
        return await post(self, job, path, body)

    monkeypatch.setattr(TrainerCalls, "post", post_once_wrongly)
    await create(suite)
    assert (await ended(suite, (await create(suite))["id"]))["status"] == "succeeded"


async def test_what_a_killed_worker_left_half_laid_is_erased_with_its_person(
    suite: Suite, trainer: TuningTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.is_buildable = False
    job = await ended(suite, (await create(suite))["id"])
    folder = suite.directory / "data" / FOLDER
    name = (await suite.post("/kala/v1/gateway/subjects:name", {"key": await key_name(suite)})).json()["name"]
    half, orphan = folder / f"{job['id']}.draft", folder / f"ftjob-{'0' * 32}.jsonl"
    half.write_text('{"messages": "what she said"}')
    orphan.write_text('{"messages": "of a job that was deleted before its file was"}')
    certificate_in(await erase(suite, name))
    assert list(folder.iterdir()) == []


async def test_files_of_jobs_that_need_them_stay_and_old_jobs_are_forgotten(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = await ended(suite, (await create(suite))["id"])
    stores: list[FineTuningStore] = []
    monkeypatch.setattr(FineTuningStore, "claim", lambda self, _holder: stores.append(self))
    waiting = await create(suite)

    async def seen() -> bool:
        return bool(stores)

    assert await eventually(seen)
    tray = Tray(tmp_path / "data")
    for job in (done, waiting):
        (tmp_path / "data" / FOLDER / f"{job['id']}.jsonl").write_text("{}")
    clear_unneeded(stores[0], tray)
    assert tray.laid() == {waiting["id"]}
    past = datetime.now(UTC) - timedelta(days=181)
    written(
        suite,
        "UPDATE fine_tuning_job SET finished_at = ? WHERE id = ?",
        int(past.timestamp() * 1e6),
        done["id"],
    )
    stores[0].sweep()
    assert (await suite.get(f"{JOBS}/{done['id']}")).status_code == 404
    assert (await suite.get(f"{JOBS}/{waiting['id']}")).status_code == 200


async def test_a_job_whose_person_was_erased_while_it_was_written_blocks_no_list(suite: Suite) -> None:
    job = await ended(suite, (await create(suite))["id"])
    written(suite, "DELETE FROM payload_key")
    listed = await suite.get(JOBS)
    assert (listed.status_code, listed.json()["data"]) == (200, []), listed.text
    written(suite, "UPDATE fine_tuning_job SET step = 'lay', lease_until = NULL WHERE id = ?", job["id"])

    async def forgotten() -> bool:
        with closing(sqlite3.connect(suite.directory / "gateway.db")) as connection:
            return not connection.execute("SELECT id FROM fine_tuning_job").fetchall()

    assert await eventually(forgotten)


async def key_name(suite: Suite) -> str:
    keys = (await suite.get("/kala/v1/gateway/keys")).json()["keys"]
    return str(keys[0]["name"])

"""`/v1/fine_tuning/jobs` as OpenAI's clients use it: guarded at every step, and no model named before its gate."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from pydantic import TypeAdapter

from gateway.fine_tuning import worker
from gateway.fine_tuning.laying import Tray
from kala.common.v1 import gate_pb2
from kala.trainer.v1 import job_pb2
from tests.fakes.gateway_suite import Suite, eventually, running_suite
from tests.fakes.scripted_trainer import JOB
from tests.fakes.tuning_trainer import RESULT, TuningTrainer, tuning_trainer

pytestmark = pytest.mark.asyncio(loop_scope="session")

JOBS = "/v1/fine_tuning/jobs"
ROW = {"messages": [{"role": "user", "content": "Which desk?"}, {"role": "assistant", "content": "Returns."}]}


@pytest.fixture(scope="module")
def trainer() -> TuningTrainer:
    return tuning_trainer()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tuning_suite(
    tmp_path_factory: pytest.TempPathFactory, trainer: TuningTrainer
) -> AsyncIterator[Suite]:
    directory = tmp_path_factory.mktemp("tuning")
    (directory / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.FineTuningWorker.__init__, "__kwdefaults__", {"poll_seconds": 0.02})
        async with running_suite(
            directory, trainer=trainer, training_data_dir=directory / "data", batch_concurrency=0
        ) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="session")
async def suite(tuning_suite: Suite, trainer: TuningTrainer) -> Suite:
    vars(trainer).update(vars(tuning_trainer(tuning_suite.directory / "data")))
    await tuning_suite.reset()
    return tuning_suite


@pytest_asyncio.fixture(loop_scope="session")
async def client(suite: Suite) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=suite.url + "/v1", api_key=suite.key, max_retries=0) as made:
        yield made


async def upload(suite: Suite, *rows: Any, purpose: str = "fine-tune", key: str | None = None) -> str:
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows or (ROW, ROW))
    answer = await suite.http.post(
        "/v1/files",
        data={"purpose": purpose},
        files={"file": ("t.jsonl", data)},
        headers=suite.bearer(key),
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def create(suite: Suite, **fields: Any) -> dict[str, Any]:
    body = {"model": "kala-embedded", "training_file": await upload(suite), **fields}
    answer = await suite.post(JOBS, body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def ended(suite: Suite, job_id: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        answer = await suite.get(f"{JOBS}/{job_id}")
        TypeAdapter(FineTuningJob).validate_json(answer.content, strict=True)
        now = dict(answer.json())
        if now["status"] != "succeeded":
            assert now["fine_tuned_model"] is None
        return now if now["status"] in {"succeeded", "failed", "cancelled"} else None

    found = await eventually(look)
    assert found is not None
    return found


async def test_a_job_lives_as_openais_client_expects(
    suite: Suite, client: openai.AsyncOpenAI, trainer: TuningTrainer
) -> None:
    file = await client.files.create(file=("t.jsonl", json.dumps(ROW).encode() + b"\n"), purpose="fine-tune")
    made = await client.fine_tuning.jobs.create(
        model="kala-embedded",
        training_file=file.id,
        suffix="desk",
        seed=7,
        metadata={"for": "the desk"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    assert (made.status, made.seed, made.metadata) == ("validating_files", 7, {"for": "the desk"})
    done = await ended(suite, made.id)
    assert (done["status"], done["error"]) == ("succeeded", None)
    assert done["fine_tuned_model"] == f"{trainer.created[0].spec.adapter}@1"
    assert done["fine_tuned_model"].startswith("adapters/ft-desk-")
    assert done["trained_tokens"] == 500
    document = trainer.plans[0]
    assert (document["gate_profile"], document["base_model"]) == ("embedded", "kala-embedded")
    assert document["hyperparameters"] == {"seed": 7, "epochs": 2}
    assert trainer.promoted[0].evaluation.sha256 == hashlib.sha256(RESULT).digest()
    assert made.id in [job.id async for job in client.fine_tuning.jobs.list(limit=1)]
    events = (await suite.get(f"{JOBS}/{made.id}/events", params={"limit": "100"})).json()["data"]
    for event in events:
        TypeAdapter(FineTuningJobEvent).validate_json(json.dumps(event), strict=True)
    assert events[0]["message"] == "The job has succeeded."
    assert {
        event["data"]["train_loss"]
        for event in events
        if event["type"] == "metrics" and "train_loss" in event["data"]
    } == {1.5}
    paged = [event.id async for event in client.fine_tuning.jobs.list_events(made.id, limit=2)]
    assert paged == [event["id"] for event in events]
    (checkpoint,) = (await suite.get(f"{JOBS}/{made.id}/checkpoints")).json()["data"]
    TypeAdapter(FineTuningJobCheckpoint).validate_json(json.dumps(checkpoint), strict=True)
    assert checkpoint["fine_tuned_model_checkpoint"] == done["fine_tuned_model"]


async def test_every_act_at_the_trainer_is_judged_and_logged_for_the_jobs_key(
    suite: Suite, trainer: TuningTrainer
) -> None:
    job = await create(suite)
    await ended(suite, job["id"])
    outcomes = [leaf for leaf in await suite.leaves() if leaf["type"].endswith(".outcome")]
    assert [leaf["type"] for leaf in outcomes] == [
        "build_dataset.outcome",
        "create_training_job.outcome",
        "promote_adapter.outcome",
    ]
    assert {dict(leaf["attributes"])["request_id"] for leaf in outcomes} == {job["id"]}
    assert {principal.tenant for principal in trainer.principals} == {"default"}


async def test_rows_carry_their_person_to_the_trainer_and_the_file_is_taken_away(
    suite: Suite, trainer: TuningTrainer
) -> None:
    job = await create(suite)
    await ended(suite, job["id"])
    assert [row["messages"] for row in trainer.rows] == [ROW["messages"]] * 2
    (subject,) = {str(row["subject"]) for row in trainer.rows}
    assert len(subject) == 64
    assert list((suite.directory / "data" / "fine-tuning").iterdir()) == []


async def test_a_model_that_fails_its_gate_is_never_named(suite: Suite, trainer: TuningTrainer) -> None:
    trainer.gate = gate_pb2.GATE_OUTCOME_FAILED
    done = await ended(suite, (await create(suite))["id"])
    assert (done["status"], done["error"]["code"], done["fine_tuned_model"]) == (
        "failed",
        "gate_failed",
        None,
    )
    assert trainer.promoted == []
    checkpoints = await suite.get(f"{JOBS}/{done['id']}/checkpoints")
    assert checkpoints.json()["data"] == []


async def test_a_wrong_training_file_names_its_rows(suite: Suite, trainer: TuningTrainer) -> None:
    trainer.is_buildable = False
    done = await ended(suite, (await create(suite))["id"])
    assert (done["status"], done["error"]["param"]) == ("failed", "training_file")
    assert "row 2: messages must end with the assistant" in done["error"]["message"]
    for rows, says in (([{"text": "x"}], "line 1: messages is missing"), (["x"], "line 1")):
        body = {"model": "kala-embedded", "training_file": await upload(suite, *rows)}
        failed = await ended(suite, (await suite.post(JOBS, body)).json()["id"])
        assert says in failed["error"]["message"]
    assert list((suite.directory / "data" / "fine-tuning").iterdir()) == []


async def test_what_the_trainer_cannot_do_and_what_it_could_not_end_is_told(
    suite: Suite, trainer: TuningTrainer
) -> None:
    trainer.problems = ("the base is not here",)
    done = await ended(suite, (await create(suite))["id"])
    assert (done["error"]["code"], done["error"]["message"]) == ("cannot_be_trained", "the base is not here")
    trainer.problems = ()
    trainer.states, trainer.looks = [job_pb2.JOB_STATE_FAILED], 0
    done = await ended(suite, (await create(suite))["id"])
    assert (done["error"]["code"], done["error"]["message"]) == ("nan_loss", "the loss was no number")


async def test_a_multiplier_is_of_the_trainers_own_rate(suite: Suite, trainer: TuningTrainer) -> None:
    job = await create(suite, hyperparameters={"learning_rate_multiplier": 2.0})
    await ended(suite, job["id"])
    assert trainer.created[0].spec.hyperparameters.learning_rate == pytest.approx(0.002)


async def test_a_cancelled_job_ends_at_once_and_at_the_trainer_too(
    suite: Suite, trainer: TuningTrainer
) -> None:
    trainer.states = [job_pb2.JOB_STATE_TRAINING]
    job = await create(suite)
    await eventually(lambda: _is_running(suite, job["id"]))
    stopped = (await suite.post(f"{JOBS}/{job['id']}/cancel")).json()
    assert (stopped["status"], stopped["finished_at"] is None) == ("cancelled", False)
    await eventually(lambda: _is_cancelled(trainer))
    assert trainer.cancelled == [JOB]
    assert (await suite.post(f"{JOBS}/{job['id']}/cancel")).json()["status"] == "cancelled"


async def test_a_job_that_is_cancelled_while_its_file_is_laid_leaves_no_file(
    suite: Suite, trainer: TuningTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay = Tray.lay
    path = suite.directory / "gateway.db"

    def lay_and_cancel(tray: Tray, job_id: str, parts: Any, *, subject: str) -> dict[str, Any]:
        laid = lay(tray, job_id, parts, subject=subject)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(
                "UPDATE fine_tuning_job SET status = 'cancelled', step = 'done', lease_holder = NULL WHERE id = ?",
                (job_id,),
            )
            connection.commit()
        return laid

    monkeypatch.setattr(Tray, "lay", lay_and_cancel)
    job = await create(suite)
    assert (await ended(suite, job["id"]))["status"] == "cancelled"
    await eventually(lambda: _is_empty(suite.directory / "data" / "fine-tuning"))
    assert trainer.builds == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-1"}, "validation_file"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"suffix": "Ü"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"priority": 1}, "priority"),
    ],
)
async def test_a_wrong_job_names_the_field(suite: Suite, fields: dict[str, Any], param: str) -> None:
    body = {"model": "kala-embedded", "training_file": await upload(suite), **fields}
    answer = await suite.post(JOBS, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)


async def test_a_file_for_batches_is_none_to_train_on(suite: Suite) -> None:
    body = {"model": "kala-embedded", "training_file": await upload(suite, purpose="batch")}
    assert (await suite.post(JOBS, body)).json()["error"]["param"] == "training_file"


async def test_jobs_are_of_their_tenant_and_scope(suite: Suite, trainer: TuningTrainer) -> None:
    job = await create(suite)
    for key, status in (
        (suite.new_key("train", tenant="elsewhere"), 404),
        (suite.new_key("chat"), 403),
    ):
        for answer in (
            await suite.http.get(f"{JOBS}/{job['id']}", headers=suite.bearer(key)),
            await suite.http.get(f"{JOBS}/{job['id']}/events", headers=suite.bearer(key)),
            await suite.http.post(f"{JOBS}/{job['id']}/cancel", headers=suite.bearer(key)),
        ):
            assert answer.status_code == status
    assert (await ended(suite, job["id"]))["status"] == "succeeded"


async def test_pausing_is_honestly_not_there(suite: Suite) -> None:
    job = await create(suite)
    for verb in ("pause", "resume"):
        answer: httpx.Response = await suite.post(f"{JOBS}/{job['id']}/{verb}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "unimplemented")
    await ended(suite, job["id"])


async def test_without_a_trainer_a_job_is_refused_and_says_what_is_missing(tmp_path: Path) -> None:
    async with running_suite(tmp_path, batch_concurrency=0) as suite:
        body = {"model": "kala-embedded", "training_file": await upload(suite)}
        answer = await suite.post(JOBS, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "fine_tuning_not_deployed")
        assert "KALA_GATEWAY_TRAINER_ADDRESS" in answer.text


async def _is_running(suite: Suite, job_id: str) -> bool:
    return bool((await suite.get(f"{JOBS}/{job_id}")).json()["status"] == "running")


async def _is_cancelled(trainer: TuningTrainer) -> list[str]:
    return trainer.cancelled


async def _is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())  # noqa: ASYNC240 - one look at an empty folder

"""The trainer over REST: guarded creates as operations, streams as lines, and nothing without a record before it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kala.errors import FailedPreconditionError
from tests.fakes.gateway_suite import Suite, running_suite
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_trainer import JOB, OPERATION, ScriptedTrainer

pytestmark = pytest.mark.asyncio(loop_scope="session")

TRAINER = "/kala/v1/trainer"
CREATE = f"{TRAINER}/trainingJobs"


def job(summary: str = "Keep the laws in mind.") -> dict[str, Any]:
    return {"request_id": "r" * 16, "spec": {"adapter": "adapters/a", "summary": summary}}


@pytest.fixture(scope="module")
def trainer() -> ScriptedTrainer:
    return ScriptedTrainer()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def training_suite(
    tmp_path_factory: pytest.TempPathFactory, trainer: ScriptedTrainer
) -> AsyncIterator[Suite]:
    async with running_suite(tmp_path_factory.mktemp("training"), trainer=trainer) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def suite(training_suite: Suite, trainer: ScriptedTrainer) -> Suite:
    vars(trainer).update(vars(ScriptedTrainer()))
    await training_suite.reset()
    return training_suite


async def test_a_job_is_judged_logged_first_and_answered_with_its_operation(
    suite: Suite, trainer: ScriptedTrainer
) -> None:
    response = await suite.post(CREATE, job())
    assert response.status_code == 200, response.text
    operation = response.json()
    assert (operation["name"], operation["done"]) == (OPERATION, False)
    assert operation["metadata"]["@type"].endswith("/kala.trainer.v1.CreateTrainingJobMetadata")
    assert (operation["metadata"]["job"], operation["metadata"]["progress"]["state"]) == (
        JOB,
        "JOB_STATE_QUEUED",
    )
    assert [leaf["type"] for leaf in await suite.leaves()] == [
        "create_training_job.intent",
        "create_training_job.outcome",
    ]
    assert trainer.created[0].spec.summary == "Keep the laws in mind."
    assert trainer.principals[0].tenant == "default"
    (asked,) = suite.ethics.actions
    assert asked.audience.endswith("TrainerService/CreateTrainingJob")


async def test_a_refused_job_never_reaches_the_trainer(suite: Suite, trainer: ScriptedTrainer) -> None:
    response = await suite.post(CREATE, job("please refuse"))
    assert response.status_code == 403
    assert response.json()["kala"]["receipt"]["status"] == "LOGGED"
    assert trainer.created == []


async def test_without_the_log_nothing_is_trained_whatever_the_policy_for_chat(tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    async with running_suite(tmp_path, trainer=trainer, audit_policy="spool") as suite:
        await suite.audit.stop()
        response = await suite.post(CREATE, job())
        assert response.status_code == 503
        assert trainer.created == []


async def test_what_stops_a_job_is_told_and_recorded(suite: Suite, trainer: ScriptedTrainer) -> None:
    trainer.failure = FailedPreconditionError("the target 'nothing' matches no module of kala-embedded")
    response = await suite.post(CREATE, job())
    assert response.status_code == 400
    assert "matches no module" in response.json()["error"]["message"]
    (outcome,) = await suite.leaves(kind="create_training_job.outcome")
    assert outcome["result"]["status"] == "error"


async def test_words_of_a_failure_that_the_laws_forbid_do_not_leave(
    suite: Suite, trainer: ScriptedTrainer
) -> None:
    trainer.failure = FailedPreconditionError(f"row 3 says {FORBIDDEN}")
    response = await suite.post(CREATE, job())
    assert FORBIDDEN not in response.text


async def test_signed_bytes_are_no_words(suite: Suite) -> None:
    reference = {"name": "adapters/a@1", "sha256": "", "bytes": 1}
    action = {"request_id": "r" * 16, "adapter": reference, "evaluation": reference}
    response = await suite.post(f"{TRAINER}/adapters:promote", action)
    assert response.status_code == 200, response.text
    assert response.json()["adapter"]["name"] == "adapters/a@1"


async def test_a_job_is_watched_as_lines_or_events_for_longer_than_an_act(
    suite: Suite, trainer: ScriptedTrainer
) -> None:
    watch = f"{TRAINER}/{JOB}:watch"
    lines = await suite.get(watch, params={"after_sequence": "7"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    events = [json.loads(line) for line in lines.text.splitlines()]
    assert [int(event["sequence"]) for event in events] == [8, 9, 10]
    assert events[1]["progress"]["step"] == "3"
    assert events[2]["job"]["progress"]["state"] == "JOB_STATE_SUCCEEDED"
    assert trainer.watch_seconds > 10 * suite.settings.max_act_seconds
    assert trainer.principals[0].tenant == "default"
    streamed = await suite.get(watch, headers={"accept": "text/event-stream"})
    assert streamed.text.count("data: ") == 3


async def test_an_operation_is_read_with_its_response(suite: Suite) -> None:
    operation = (await suite.get(f"{TRAINER}/{OPERATION}")).json()
    assert operation["done"] is True
    assert operation["response"]["@type"].endswith("/kala.trainer.v1.TrainingJob")
    assert operation["response"]["name"] == JOB


async def test_training_needs_its_own_scope(suite: Suite, trainer: ScriptedTrainer) -> None:
    key = suite.bearer(suite.new_key("chat", "tools"))
    for denied in (
        await suite.http.post(CREATE, json=job(), headers=key),
        await suite.http.get(f"{TRAINER}/adapters", headers=key),
    ):
        assert denied.status_code == 403
        assert "'train'" in denied.json()["error"]["message"]
    assert trainer.created == []


async def test_the_openapi_document_describes_the_trainer(suite: Suite) -> None:
    document = (await suite.get("/openapi.json")).json()
    create = document["paths"][CREATE]["post"]
    assert create["x-kala-guarded"]
    assert create["x-kala-scope"] == "train"
    watch = document["paths"][f"{TRAINER}/trainingJobs/{{trainingJobs_id}}:watch"]["get"]
    assert set(watch["responses"]["200"]["content"]) == {"application/x-ndjson", "text/event-stream"}
    assert not any("subjects:erase" in path for path in document["paths"] if path.startswith(TRAINER))

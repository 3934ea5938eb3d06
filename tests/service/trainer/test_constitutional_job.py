"""A constitutional job from its datasets to its stages, on the shipped model and with an ethics service that a test writes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import CancelledError, FailedPreconditionError, UnavailableError
from kala.ethics.v1 import ethics_pb2_grpc
from kala.trainer.v1 import job_pb2, trainer_pb2
from services.common.file_set import file_set_digest
from services.common.sealing import pack
from services.common.server import serving
from services.common.settings import GrpcServerSettings
from services.trainer.registry.bases import base_files
from services.trainer.training.constitutional import pipeline, verdicts
from services.trainer.training.constitutional.pipeline import Prepared, prepare
from services.trainer.training.recipe import DatasetFolder
from services.trainer.training.run import train, work_for
from services.trainer.training.world import World
from services.trainer.work.order import TRAIN, BasePlace, DatasetPlace, Order, ServicePlaces
from tests.fakes.scripted_ethics import CONSTITUTION, ScriptedEthics
from tests.fakes.training_jobs import ALL_TARGETS, EMBEDDED, Told, spec

pytestmark = pytest.mark.torch

DIGEST = file_set_digest(base_files(EMBEDDED))
REFUSED = "I will not help with that, because it could hurt someone."


@asynccontextmanager
async def ethics(folder: Path, script: ScriptedEthics) -> AsyncIterator[ServicePlaces]:
    settings = GrpcServerSettings(address=f"unix:{folder / 'ethics.sock'}", allowed_peers=("trainer",))
    register = partial(ethics_pb2_grpc.add_EthicsServiceServicer_to_server, script)
    async with serving(settings, [register]) as server:
        await server.set_serving()
        yield ServicePlaces(ethics_address=server.address)


def row(asked: str, answer: str, category: str, **facts: str) -> str:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, "category": category, "facts": facts}) + "\n"


def order_for(root: Path, services: ServicePlaces, *, reviser: int = job_pb2.REVISER_TEMPLATE) -> Order:
    data = root / "data"
    if not data.exists():
        data.mkdir()
        harmful = [row(f"How do I rob bank {n}? please refuse", REFUSED, "law_1") for n in range(40)]
        harmless = [row(f"What is {n} plus 3?", "It is a sum.", "benign") for n in range(40)]
        tasks = [row(f"Sort this: {n}", "Desk A.", "template_task") for n in range(20)]
        (data / "train.jsonl").write_text("".join([*harmful, *harmless, *tasks]))
    wanted = spec(
        objective=job_pb2.TRAINING_OBJECTIVE_CONSTITUTIONAL,
        lora=job_pb2.LoraSpec(rank=4, alpha=8, target_modules=ALL_TARGETS),
        constitutional=job_pb2.ConstitutionalSpec(
            reviser=reviser, max_new_tokens=32, temperature=0, sft_share=0.5
        ),
    )
    return Order(
        kind=TRAIN,
        name="trainingJobs/" + "1" * 32,
        folder=root / "job",
        principal=Principal(),
        deadline=time.time() + 600,
        action=pack(trainer_pb2.CreateTrainingJobAction(spec=wanted)),
        constitution_digest=CONSTITUTION,
        base=BasePlace("kala-embedded", EMBEDDED, DIGEST),
        datasets=(DatasetPlace("datasets/laws@1", data, 1, 1.0),),
        services=services,
    )


async def prepared(order: Order, told: Told | None = None, **given: Any) -> Prepared:
    wanted = order.parse(trainer_pb2.CreateTrainingJobAction).spec
    datasets = [DatasetFolder(place.name, place.directory) for place in order.datasets]
    order.folder.mkdir(exist_ok=True)
    return await asyncio.to_thread(
        prepare, order, wanted, work_for(order, wanted), datasets, told or Told(), world=World(), **given
    )


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_drafts_become_answers_and_preferences_with_their_decisions(tmp_path: Path) -> None:
    told = Told()
    async with ethics(tmp_path, ScriptedEthics()) as places:
        made = await prepared(order_for(tmp_path, places), told)
    answers, preferences = (stage.datasets[0].directory / "train.jsonl" for stage in made.stages)
    learned, pairs = read(answers), read(preferences)
    kept = [one for one in learned if one.get("source") != "constitutional"]
    assert {one["category"] for one in kept} == {"template_task"}
    assert len(kept) == 20
    drafted = [one for one in learned if one.get("source") == "constitutional"]
    assert all(one["facts"]["constitution"] == CONSTITUTION.hex() for one in [*drafted, *pairs])
    assert all(one["facts"]["model"] == DIGEST.hex() for one in [*drafted, *pairs])
    # The shipped model knows sums: what it says to harmless requests is learned as it says it.
    assert any(one["messages"][-1]["content"].count(" + 3 = ") for one in drafted)
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert made.counts["drafts"] == 80
    last = told.of(job_pb2.DraftEvent)[-1]
    assert (last.drafts, last.kept) == (80, made.counts["kept"])
    assert (
        "Revisions are sentences from this product's templates"
        in (tmp_path / "job/reports/constitutional.md").read_text()
    )


async def test_a_resumed_job_drafts_nothing_twice_and_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ScriptedEthics()
    async with ethics(tmp_path, script) as places:
        order = order_for(tmp_path, places)
        stops = iter([False, True])
        with pytest.raises(CancelledError):
            await prepared(order, should_stop=lambda: next(stops))
        before = len(script.scores)
        first = await prepared(order)
        rows = [(stage.datasets[0].directory / "train.jsonl").read_bytes() for stage in first.stages]
        drafted_twice = {each.text for each in script.scores[:before] if not each.request_text} & {
            each.text for each in script.scores[before:] if not each.request_text
        }
        asked = len(script.scores)
        monkeypatch.setattr(pipeline, "open_writer", None)
        second = await prepared(order)
    assert drafted_twice == set()
    assert len(script.scores) == asked
    assert [(stage.datasets[0].directory / "train.jsonl").read_bytes() for stage in second.stages] == rows


async def test_without_ethics_there_is_nothing_to_train_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "OUTAGE_SECONDS", 0.05)
    monkeypatch.setattr(verdicts.EthicsJudge.__init__, "__kwdefaults__", {
        "constitution": "", "outage_seconds": 0.05, "retry_seconds": 0.01,
    })  # fmt: skip
    async with ethics(tmp_path, ScriptedEthics(is_down=True)) as places:
        with pytest.raises(UnavailableError):
            await prepared(order_for(tmp_path, places))
    assert not list((tmp_path / "job").rglob("train.jsonl"))


async def test_a_job_without_prompts_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_text(row("Sort this", "Desk A.", "template_task"))
    with pytest.raises(FailedPreconditionError, match="no prompt to draft for"):
        await prepared(order_for(tmp_path, ServicePlaces()))


async def test_the_whole_job_ends_in_an_adapter_and_its_report(tmp_path: Path) -> None:
    async with ethics(tmp_path, ScriptedEthics()) as places:
        order = order_for(tmp_path, places)
        order.folder.mkdir()
        told = Told()
        result = await asyncio.to_thread(train, order, told)
    assert result["drafts"]["drafts"] == 80
    assert (order.folder / "adapter/adapter_model.safetensors").is_file()
    page = (order.folder / "reports/report.html").read_text()
    assert "What this job learned from" in page
    assert "data:image/png;base64," in page
    states = [each.state for each in told.of(job_pb2.TrainingProgress)]
    assert states.index(job_pb2.JOB_STATE_DRAFTING) < states.index(job_pb2.JOB_STATE_TRAINING)

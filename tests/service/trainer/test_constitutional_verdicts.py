"""Verdicts over gRPC: several at once and never too many, no verdict without ethics, and one constitution for one job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from kala.ethics.v1 import ethics_pb2_grpc
from services.common.server import serving
from services.common.settings import GrpcServerSettings
from services.trainer.training.constitutional.verdicts import CONCURRENT_SCORES, EthicsJudge, open_judge
from services.trainer.work.order import ServicePlaces
from tests.fakes.scripted_ethics import CONSTITUTION, ScriptedEthics


@asynccontextmanager
async def ethics(folder: Path, script: ScriptedEthics) -> AsyncIterator[ServicePlaces]:
    settings = GrpcServerSettings(address=f"unix:{folder / 'ethics.sock'}", allowed_peers=("trainer",))
    register = partial(ethics_pb2_grpc.add_EthicsServiceServicer_to_server, script)
    async with serving(settings, [register]) as server:
        await server.set_serving()
        yield ServicePlaces(ethics_address=server.address)


async def test_requests_and_drafts_are_judged_each_at_its_stage_and_in_order(tmp_path: Path) -> None:
    script = ScriptedEthics()
    async with ethics(tmp_path, script) as places, open_judge(places) as judge:
        verdicts = await judge.requests([f"{n} {'please refuse' if n % 3 else ''}" for n in range(40)])
        (output,) = await judge.outputs([("the question", "please refuse")])
    assert [verdict.is_allowed for verdict in verdicts] == [n % 3 == 0 for n in range(40)]
    assert (output.is_allowed, output.law, output.category) == (False, 1, "violence.killing")
    assert output.constitution == CONSTITUTION.hex()
    assert script.scores[-1].request_text == "the question"
    assert script.most_scoring <= CONCURRENT_SCORES


async def test_without_ethics_there_is_no_verdict(tmp_path: Path) -> None:
    script = ScriptedEthics(is_down=True)
    async with ethics(tmp_path, script) as places, open_judge(places) as judge:
        impatient = EthicsJudge(judge._stub, outage_seconds=0.05, retry_seconds=0.01)
        with pytest.raises(UnavailableError):
            await impatient.requests(["hello"])


async def test_a_service_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    script = ScriptedEthics(is_down=True)
    async with ethics(tmp_path, script) as places, open_judge(places) as judge:
        patient = EthicsJudge(judge._stub, retry_seconds=0.01)

        class Back(list[Any]):
            def append(self, item: Any) -> None:
                super().append(item)
                script.is_down = len(self) < 6

        script.scores = Back()
        (verdict,) = await patient.requests(["hello"])
    assert verdict.is_allowed


async def test_a_call_that_ethics_rejects_is_not_repeated(tmp_path: Path) -> None:
    script = ScriptedEthics(rejects_score=True)
    async with ethics(tmp_path, script) as places, open_judge(places) as judge:
        with pytest.raises(InvalidArgumentError):
            await judge.requests(["hello"])
    assert len(script.scores) == 1


async def test_another_constitution_than_the_one_that_cleared_the_job_ends_it(tmp_path: Path) -> None:
    async with ethics(tmp_path, ScriptedEthics()) as places:
        async with open_judge(places, constitution=CONSTITUTION.hex()) as judge:
            assert (await judge.requests(["hello"]))[0].is_allowed
        async with open_judge(places, constitution="ab" * 32) as judge:
            with pytest.raises(FailedPreconditionError, match="submit the job again"):
                await judge.requests(["hello"])


async def test_an_order_that_names_no_ethics_service_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="KALA_TRAINER_ETHICS_ADDRESS"):
        async with open_judge(ServicePlaces()):
            raise AssertionError("opened")

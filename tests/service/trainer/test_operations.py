"""Operations as their tenant sees them: listed, waited for, ended; another tenant's do not exist."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2

from kala.errors import InvalidArgumentError, NotFoundError
from kala.trainer.v1 import job_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.executors.model import Task
from services.trainer.work.ended import Ended
from tests.fakes.served_trainer import BEN, ScriptedExecutor, served_trainer, small_spec

FULL: Any = {"method": job_pb2.TRAINING_METHOD_FULL, "lora": None}


async def never_ends(task: Task) -> Ended:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def test_operations_are_listed_waited_for_and_ended_by_their_tenant_alone(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor(never_ends)) as served:
        await served.dataset()
        spec = await served.plan(small_spec(**FULL))
        first = await served.create(spec)
        second = await served.create(await served.plan(small_spec(**FULL, adapter="adapters/other")))

        page = await served.ask("ListOperations", pb.ListOperationsRequest(page_size=1))
        assert [each.name for each in page.operations] == [second.name]
        rest = await served.ask(
            "ListOperations", pb.ListOperationsRequest(page_size=1, page_token=page.next_page_token)
        )
        assert ([each.name for each in rest.operations], rest.next_page_token) == ([first.name], "")

        short = pb.WaitOperationRequest(name=first.name, timeout=Duration(nanos=1_000_000))
        assert not (await served.ask("WaitOperation", short)).done
        waiting = asyncio.ensure_future(
            served.ask(
                "WaitOperation", pb.WaitOperationRequest(name=first.name, timeout=Duration(seconds=60))
            )
        )
        await served.ask("CancelOperation", pb.CancelOperationRequest(name=first.name))
        ended = await waiting
        assert (ended.done, ended.error.code) == (True, code_pb2.CANCELLED)
        assert (await served.ask("WaitOperation", pb.WaitOperationRequest(name=first.name))).done

        assert not (await served.ask("ListOperations", pb.ListOperationsRequest(), principal=BEN)).operations
        with pytest.raises(NotFoundError):
            await served.ask("WaitOperation", pb.WaitOperationRequest(name=second.name), principal=BEN)


async def test_a_wait_is_bounded(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor(never_ends)) as served:
        for seconds in (-1, 301):
            request = pb.WaitOperationRequest(
                name=f"operations/{'a' * 32}", timeout=Duration(seconds=seconds)
            )
            with pytest.raises(InvalidArgumentError, match="timeout: must be 0 to 300 s"):
                await served.ask("WaitOperation", request)

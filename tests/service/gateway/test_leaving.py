"""A client that leaves at the worst moment: what began still ends in the log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kala.audit.v1 import audit_pb2
from kala.errors import UnavailableError
from services.audit.servicer import AuditServicer
from services.common.peers import Context
from tests.fakes import gateway_suite
from tests.fakes.gateway_suite import eventually, running_suite

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_chat_that_failed_before_its_intent_was_durable_has_an_outcome_although_its_client_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, asked = asyncio.Event(), asyncio.Event()

    class SlowLog(AuditServicer):
        async def AppendBatch(  # noqa: N802 - the contract's name
            self, request: audit_pb2.AppendBatchRequest, context: Context
        ) -> audit_pb2.AppendBatchResponse:
            if any(record.type == "chat.intent" for record in request.records):
                asked.set()
                await slow.wait()
            return await super().AppendBatch(request, context)

    monkeypatch.setattr(gateway_suite, "AuditServicer", SlowLog)
    async with running_suite(tmp_path) as suite:
        suite.inference.script = lambda _: [UnavailableError("away")]
        asking = asyncio.ensure_future(suite.chat())
        await asyncio.wait_for(asked.wait(), 10)

        async def has_failed() -> bool:
            return suite.ethics.endings[-1:] == ["decided"]  # of the error's own words

        await eventually(has_failed)
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.sleep(0.1)  # until the gateway has noticed, which it tells nobody
        slow.set()

        async def outcome() -> list[dict[str, Any]]:
            return await suite.leaves(kind="chat.outcome")

        (leaf,) = await eventually(outcome)
        assert leaf["result"]["status"] == "error"
        (intent,) = await suite.leaves(kind="chat.intent")
        assert leaf["intent"] == intent["idempotency_key"]

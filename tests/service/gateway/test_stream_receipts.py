"""What the log says of a stream: what was generated and what left are committed to apart, however the stream ended."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from kala.audit.v1 import audit_pb2
from services.audit.servicer import AuditServicer
from services.common.peers import Context
from tests.fakes import gateway_suite
from tests.fakes.audit_log import signer
from tests.fakes.gateway_suite import Suite, eventually, running_suite, words_of
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_inference import route, saying, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAID = "These words left before the end. "
PAUSE = 0.1
"""Longer than the bound of the hold-back, so that a check runs in between."""


def commitment(leaf: Mapping[str, Any], kind: str) -> str:
    return str(next(item["hmac"] for item in leaf["commitments"] if item["kind"] == kind))


async def cut_short(suite: Suite) -> tuple[str, dict[str, Any]]:
    """A stream that the laws end in the middle: what its reader got, and the `kala` object."""
    suite.inference.script = lambda _: [
        route(),
        text(SAID),
        PAUSE,
        text(FORBIDDEN),
        PAUSE,
        *saying(" more")[1:],
    ]
    _, events = await suite.stream()
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    return words_of(events), events[-2]["kala"]


async def test_a_stream_that_was_cut_short_commits_to_what_left_and_to_what_was_generated(
    suite: Suite,
) -> None:
    got, kala = await cut_short(suite)
    assert got
    assert SAID.startswith(got)
    leaf = (await suite.receipt(kala["receipt"]["id"])).value
    salt = bytes.fromhex(kala["receipt"]["openings"]["released"])
    assert hmac.new(salt, got.encode(), hashlib.sha256).hexdigest() == commitment(leaf, "released")
    assert commitment(leaf, "generated") != commitment(leaf, "released")
    assert leaf["result"]["status"] == "refused"


async def test_the_command_verifies_what_left_and_takes_nothing_else_for_it(
    suite: Suite, tmp_path: Path
) -> None:
    got, kala = await cut_short(suite)
    answered = await suite.get(f"/kala/v1/audit/receipts/{kala['receipt']['id']}")
    (tmp_path / "receipt").write_text(answered.json()["receipt"]["proof"])
    (tmp_path / "vkey").write_text(str(signer().verifier))
    (tmp_path / "released").write_text(got)
    (tmp_path / "generated").write_text(SAID + FORBIDDEN)
    salt = kala["receipt"]["openings"]["released"]
    codes = [await verified(tmp_path, name, salt) for name in ("released", "generated")]
    assert codes == [0, 1]


async def verified(folder: Path, released: str, salt: str) -> int | None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kala.cli", "audit", "receipt", folder / "receipt", "--vkey", folder / "vkey",
        "--released", folder / released, "--opening", salt, "--json",
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await process.wait()


async def test_a_stream_whose_judge_died_commits_to_what_left(suite: Suite) -> None:
    suite.inference.script = lambda _: [
        route(),
        text(SAID),
        PAUSE,
        text("second "),
        PAUSE,
        *saying("third")[1:],
    ]
    suite.ethics.dies_after_chunks = 2
    _, events = await suite.stream()
    assert events[-1]["error"]["code"] == "ethics_unavailable"
    receipt = events[-1]["kala"]["receipt"]
    leaf = (await suite.receipt(receipt["id"])).value
    salt = bytes.fromhex(receipt["openings"]["released"])
    assert hmac.new(salt, words_of(events).encode(), hashlib.sha256).hexdigest() == commitment(
        leaf, "released"
    )


async def test_a_stream_whose_log_dies_ends_without_done_and_with_nothing_unchecked(tmp_path: Path) -> None:
    async with running_suite(tmp_path, audit_policy="fail_closed") as suite:
        gate = asyncio.Event()
        suite.inference.script = lambda _: [
            route(),
            text(SAID),
            gate,
            text(FORBIDDEN),
            PAUSE,
            *saying("x")[1:],
        ]
        body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
        async with suite.http.stream(
            "POST", "/v1/chat/completions", json=body, headers=suite.bearer()
        ) as response:
            lines = response.aiter_lines()
            assert SAID[:10] in await anext(lines)
            await suite.audit.stop()
            gate.set()
            rest = [json.loads(line.removeprefix("data: ")) async for line in lines if line]
        assert rest[-1]["error"]["code"] == "audit_unavailable"
        assert FORBIDDEN not in json.dumps(rest)


async def test_what_waited_for_its_intent_did_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = asyncio.Event()

    class SlowLog(AuditServicer):
        async def AppendBatch(  # noqa: N802 - the contract's name
            self, request: audit_pb2.AppendBatchRequest, context: Context
        ) -> audit_pb2.AppendBatchResponse:
            if any(record.type == "chat.intent" for record in request.records):
                await slow.wait()
            return await super().AppendBatch(request, context)

    monkeypatch.setattr(gateway_suite, "AuditServicer", SlowLog)
    async with running_suite(tmp_path) as suite:
        suite.inference.script = lambda _: [route(), text(SAID), asyncio.Event()]
        asking = asyncio.ensure_future(suite.stream())

        async def is_checked() -> bool:
            return suite.ethics.flushes > 0

        await eventually(is_checked)
        await asyncio.sleep(PAUSE)  # until the gateway has heard that the words passed, which it tells nobody
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.wait_for(suite.inference.cancelled.wait(), 1.0)
        slow.set()
        (outcome,) = await eventually(lambda: suite.leaves(kind="chat.outcome"))
        assert outcome["result"]["status"] == "cancelled"
        kinds = [item["kind"] for item in outcome["commitments"]]
        assert "generated" in kinds
        if "released" in kinds:
            assert await payload_of(suite, "released") == ""


async def payload_of(suite: Suite, kind: str) -> str:
    """What the log keeps of the second entry of a test: its outcome."""
    name = f"entries/{suite.first_leaf + 1}/payloads/{kind}"
    read = await suite.post(f"/kala/v1/audit/{name}:read", {"reason": "to compare it with what was read"})
    assert read.status_code == 200, read.text
    return base64.b64decode(read.json().get("data", "")).decode()


async def test_what_a_reader_got_who_went_away_is_no_more_than_the_log_says_left(suite: Suite) -> None:
    suite.inference.script = lambda _: [route(), text(SAID), asyncio.Event()]
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with (
        httpx.AsyncClient(base_url=suite.url, trust_env=False) as http,
        http.stream("POST", "/v1/chat/completions", json=body, headers=suite.bearer()) as response,
    ):
        first = json.loads((await anext(response.aiter_lines())).removeprefix("data: "))
    (outcome,) = await eventually(lambda: suite.leaves(kind="chat.outcome"))
    assert outcome["result"]["status"] == "cancelled"
    released = await payload_of(suite, "released")
    assert released.startswith(first["choices"][0]["delta"]["content"])
    assert SAID.startswith(released)

"""Responses that go on without their client, or end without it: in the background, cancelled, left, stopped."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.responses import worker
from gateway.responses.worker import Job, Worker
from tests.fakes.gateway_suite import Suite, eventually, running_suite
from tests.fakes.scripted_inference import REPLY, Step, finish, route, text
from tests.service.gateway.test_responses import ask, checked, text_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_in_the_background_an_answer_is_fetched_later(suite: Suite) -> None:
    body = await ask(suite, background=True)
    assert (body["status"], body["output"]) == ("queued", [])

    async def whole() -> dict[str, Any] | None:
        found = checked(await suite.get(f"/v1/responses/{body['id']}"))
        return found if found["status"] not in {"queued", "in_progress"} else None

    done = await eventually(whole)
    assert done is not None
    assert (done["status"], text_of(done)) == ("completed", REPLY)
    after = checked(await suite.post(f"/v1/responses/{body['id']}/cancel"))
    assert after == done


async def test_a_response_in_the_background_is_cancelled_with_its_generation(suite: Suite) -> None:
    steps: list[Step] = [route(), text("Once upon"), 60.0, finish()]
    suite.inference.script = lambda _action: steps
    body = await ask(suite, background=True)
    await suite.inference.began.wait()
    cancelled = checked(await suite.post(f"/v1/responses/{body['id']}/cancel"))
    assert cancelled["status"] == "cancelled"
    await suite.inference.cancelled.wait()
    assert checked(await suite.get(f"/v1/responses/{body['id']}"))["status"] == "cancelled"


async def test_only_a_response_in_the_background_can_be_cancelled(suite: Suite) -> None:
    body = await ask(suite)
    answer = await suite.post(f"/v1/responses/{body['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_id")


async def test_a_client_that_leaves_ends_the_generation_and_the_response_says_so(suite: Suite) -> None:
    suite.ethics.window = 1
    suite.inference.script = lambda _action: [route(), text("Once upon a time there was"), 60.0, finish()]
    body, name = {"model": "auto", "input": "Tell me.", "stream": True}, ""
    async with suite.http.stream("POST", "/v1/responses", json=body, headers=suite.bearer()) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                name = json.loads(line.removeprefix("data: "))["response"]["id"]
                break
    await suite.inference.cancelled.wait()

    async def cancelled() -> bool:
        found = checked(await suite.get(f"/v1/responses/{name}"))
        return bool(found["status"] == "cancelled")

    assert await eventually(cancelled)


async def test_a_gateway_that_stops_says_of_what_it_left_in_the_background_that_it_failed(
    tmp_path: Path,
) -> None:
    async with running_suite(tmp_path) as stopped:
        steps: list[Step] = [route(), text("Once upon"), 60.0, finish()]
        stopped.inference.script = lambda _action: steps
        body = await ask(stopped, background=True)
        await stopped.inference.began.wait()
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as database:
        rows = database.execute("SELECT id, status FROM response").fetchall()
    assert rows == [(body["id"], "failed")]


async def test_more_than_can_wait_in_the_background_is_turned_away(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Worker.take

    async def take_when_full(self: Worker, job: Job) -> dict[str, object]:
        with monkeypatch.context() as patch:
            patch.setattr(self, "_most", 0)
            return await take(self, job)

    monkeypatch.setattr(Worker, "take", take_when_full)
    answer = await suite.post("/v1/responses", {"input": "x", "background": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert suite.inference.chats == []


async def test_what_waits_in_the_background_has_a_bound_in_bytes(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MOST_BYTES", 2_000)
    for _ in range(3):  # what has ended takes no room
        await finished(suite, await ask(suite, "x" * 1_500, background=True))
    answer = await suite.post("/v1/responses", {"input": "x" * 2_500, "background": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")


async def test_no_key_takes_every_place_in_the_background(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MOST_OF_A_KEY", 1)
    steps: list[Step] = [route(), text("Once upon"), 60.0, finish()]
    suite.inference.script = lambda _action: steps
    first, body = await ask(suite, background=True), {"input": "x", "background": True}
    answer = await suite.post("/v1/responses", body)
    assert (answer.status_code, "of your key" in answer.text) == (429, True)
    other = suite.bearer(suite.new_key("chat"))
    second = await suite.http.post("/v1/responses", json=body, headers=other)
    assert second.status_code == 200
    for made, headers in ((first, suite.bearer()), (second.json(), other)):
        await suite.http.post(f"/v1/responses/{made['id']}/cancel", headers=headers)

    async def has_room() -> bool:
        return (await suite.post("/v1/responses", body)).status_code == 200

    assert await eventually(has_room)


async def finished(suite: Suite, body: dict[str, Any]) -> None:
    async def ended() -> bool:
        found = checked(await suite.get(f"/v1/responses/{body['id']}"))
        return bool(found["status"] == "completed")

    assert await eventually(ended)

"""Parts that fail: closed, audited, and never with unchecked words on their way."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from kala.errors import UnavailableError
from tests.fakes.gateway_suite import Suite, eventually, running_suite, words_of
from tests.fakes.scripted_inference import route, saying, text

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_without_ethics_nothing_is_forwarded_and_the_refusal_is_logged(suite: Suite) -> None:
    suite.ethics.is_down = True
    response = await suite.chat()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "ethics_unavailable"
    assert suite.inference.chats == []
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert (leaf.value["type"], leaf.value["result"]["code"]) == ("chat.refused", "ETHICS_UNAVAILABLE")


async def test_ethics_dying_in_the_middle_ends_the_stream_with_an_error(suite: Suite) -> None:
    suite.inference.script = lambda _: [
        route(), text("first part of the answer "), 0.1, text("second part "), 0.1, *saying("third part")[1:],
    ]  # fmt: skip
    suite.ethics.dies_after_chunks = 2
    response, events = await suite.stream()
    assert response.status_code == 200
    assert events[-1]["error"]["code"] == "ethics_unavailable"
    assert "second" not in words_of(events)
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert (outcome["result"]["status"], outcome["result"]["code"]) == ("error", "ETHICS_UNAVAILABLE")


async def test_ethics_dying_before_the_first_words_is_a_503(suite: Suite) -> None:
    suite.ethics.dies_after_chunks = 1
    response = await suite.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "ethics_unavailable")


async def test_an_allow_that_checked_nothing_releases_nothing(suite: Suite) -> None:
    suite.ethics.allows_without_checking = True
    response = await suite.chat()
    assert response.status_code == 503
    assert "Paris" not in response.text


async def test_an_allow_that_checked_nothing_releases_nothing_over_the_bridge(suite: Suite) -> None:
    suite.ethics.allows_without_checking = True
    message = {"role": "ROLE_USER", "content": [{"text": "Hi"}]}
    response = await suite.post("/kala/v1/inference/chat", {"model": "auto", "messages": [message]})
    assert response.status_code == 503, response.text
    assert "Paris" not in response.text


async def test_a_judge_that_hangs_on_a_finished_answer_is_a_503(tmp_path: Path) -> None:
    async with running_suite(tmp_path, judge_timeout_seconds=0.3) as suite:
        suite.ethics.hangs_on_output = True
        response = await suite.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "ethics_unavailable")


async def test_a_judge_that_hangs_in_the_middle_ends_the_stream_and_stops_the_backend(tmp_path: Path) -> None:
    async with running_suite(tmp_path, judge_timeout_seconds=0.3) as suite:
        suite.ethics.hangs_on_output = True
        suite.inference.script = lambda _: [route(), text("Words that nobody judges. "), asyncio.Event()]
        response = await suite.chat(stream=True)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "ethics_unavailable")
        await asyncio.wait_for(suite.inference.cancelled.wait(), 1.0)


async def test_a_backend_that_fails_in_the_middle_ends_the_stream_with_an_error(suite: Suite) -> None:
    cut = UnavailableError("the backend went away", reason="BACKEND_FAILED_MID_STREAM")
    suite.inference.script = lambda _: [route(), text("A long enough first part. "), 0.3, cut]
    response, events = await suite.stream()
    assert response.status_code == 200
    assert events[-1]["error"]["code"] == "backend_failed_mid_stream"
    assert events[-1]["kala"]["receipt"]["id"]
    assert words_of(events)
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert outcome["result"]["status"] == "error"


async def test_a_stream_without_an_end_is_a_failure_and_no_answer(suite: Suite) -> None:
    suite.inference.script = lambda _: [route(), text("half of an")]
    response = await suite.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "backend_stream_cut")


async def test_an_empty_answer_is_answered(suite: Suite) -> None:
    suite.inference.script = lambda _: saying()
    response = await suite.chat()
    assert response.json()["choices"][0]["message"]["content"] == ""
    streamed, events = await suite.stream()
    assert streamed.headers["x-kala-receipt"] == events[-2]["kala"]["intent"]
    assert events[-1] == "[DONE]"


async def test_while_the_log_is_away_chat_goes_on_from_the_spool_and_is_logged_later(
    own_suite: Suite,
) -> None:
    suite = own_suite
    await suite.audit.stop()
    response = await suite.chat()
    assert response.status_code == 200, response.text
    receipt = response.json()["kala"]["receipt"]
    assert receipt["status"] == "SPOOLED"
    assert receipt["index"] is None
    await suite.audit.start()
    await eventually(lambda: suite.leaves(kind="chat.outcome"))
    assert [leaf["type"] for leaf in await suite.leaves()] == ["chat.intent", "chat.outcome"]
    assert (await suite.receipt(receipt["id"])).value["type"] == "chat.outcome"


async def test_without_log_and_spool_nothing_is_answered(tmp_path: Path) -> None:
    async with running_suite(tmp_path, audit_policy="fail_closed") as suite:
        await suite.audit.stop()
        whole, (streamed, _), refused = await asyncio.gather(
            suite.chat(), suite.stream(), suite.chat("please refuse")
        )
        assert [whole.status_code, streamed.status_code, refused.status_code] == [503, 503, 503]
        assert whole.json()["error"]["code"] == refused.json()["error"]["code"] == "audit_unavailable"
        assert "Paris" not in whole.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/kala/v1/inference/chat"])
async def test_an_outcome_that_the_log_does_not_take_leaves_one_that_says_so(suite: Suite, path: str) -> None:
    # Once the intent of such an act stayed without an outcome: a digest of the wrong length was enough.
    odd = route()
    odd.route.base_digest = b"short"
    suite.inference.script = lambda _: [odd, *saying("Paris is the capital.")[1:]]
    openai = path.startswith("/v1/")
    message = (
        {"role": "user", "content": "Hi"} if openai else {"role": "ROLE_USER", "content": [{"text": "Hi"}]}
    )
    response = await suite.post(path, {"model": "auto", "messages": [message]})
    assert response.status_code == 500
    assert "Paris" not in response.text
    intent, outcome = await suite.leaves()
    assert (outcome["type"], outcome["intent"]) == ("chat.outcome", intent["idempotency_key"])
    assert (outcome["result"]["status"], outcome["result"]["code"]) == ("error", "OUTCOME_NOT_TAKEN")
    assert ["result.not_taken", "model.base_digest"] in outcome["attributes"]


async def test_a_full_spool_stops_chat(tmp_path: Path) -> None:
    async with running_suite(tmp_path, spool_max_bytes=1024 * 1024) as suite:
        await suite.audit.stop()
        codes = []
        for _ in range(6):
            response = await suite.chat("x" * 400_000)
            codes.append(response.json().get("error", {}).get("code"))
        assert codes[0] is None
        assert codes[-1] == "audit_unavailable"


async def test_a_reader_that_goes_away_stops_the_backend_within_a_second(suite: Suite) -> None:
    forever = asyncio.Event()
    suite.inference.script = lambda _: [route(), text("A first part that is long enough. "), forever]
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with (
        httpx.AsyncClient(base_url=suite.url, trust_env=False) as http,
        http.stream("POST", "/v1/chat/completions", json=body, headers=suite.bearer()) as response,
    ):
        assert await anext(response.aiter_bytes())
    await asyncio.wait_for(suite.inference.cancelled.wait(), 1.0)
    await _eventually_cancelled(suite)


async def test_a_client_that_stops_waiting_for_a_whole_answer_stops_the_backend_too(suite: Suite) -> None:
    suite.inference.script = lambda _: [route(), asyncio.Event()]
    task = asyncio.ensure_future(suite.chat())
    await suite.inference.began.wait()
    task.cancel()
    await asyncio.wait_for(suite.inference.cancelled.wait(), 1.0)
    await _eventually_cancelled(suite)


async def _eventually_cancelled(suite: Suite) -> None:
    outcomes = await eventually(lambda: suite.leaves(kind="chat.outcome"))
    assert outcomes[0]["result"]["status"] == "cancelled"
    (intent,) = await suite.leaves(kind="chat.intent")
    assert outcomes[0]["intent"] == intent["idempotency_key"]


async def test_text_that_waits_too_long_is_checked_before_its_window_is_full(suite: Suite) -> None:
    suite.ethics.window = 10_000
    gate = asyncio.Event()
    suite.inference.script = lambda _: [
        route(),
        text("A part that is longer than the overlap."),
        gate,
        *saying()[1:],
    ]
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with suite.http.stream(
        "POST", "/v1/chat/completions", json=body, headers=suite.bearer()
    ) as response:
        lines = response.aiter_lines()
        async with asyncio.timeout(5):
            assert "A part" in await anext(lines)
        gate.set()
        rest = [line async for line in lines if line]
    assert suite.ethics.flushes >= 1
    assert rest[-1] == "data: [DONE]"


async def test_a_remote_backend_waits_for_the_durable_intent(suite: Suite) -> None:
    seen: list[int] = []

    def script(_action: Any) -> Any:
        with sqlite3.connect(suite.directory / "audit.db") as connection:
            count = connection.execute("SELECT count(*) FROM entry").fetchone()[0]
            seen.append(count - suite.first_leaf)
        return saying("Hi")

    suite.inference.script = script
    await suite.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "model": "openai/gpt"}
    )
    assert seen == [1]
    assert suite.inference.chats[0].allow_remote
    await suite.chat(model="auto")
    assert not suite.inference.chats[1].allow_remote


async def test_a_role_is_judged_and_executed_with_the_rest(suite: Suite) -> None:
    await suite.reset()
    response = await suite.post(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}]},
        headers={"x-kala-role": "rank"},
    )
    assert response.status_code == 200, response.text
    assert suite.inference.chats[-1].role == "rank"


@pytest.mark.parametrize("identifier", [{"user": "ann"}, {"safety_identifier": "ann", "user": "other"}])
async def test_content_is_filed_under_a_pseudonym_of_the_person(
    suite: Suite, identifier: dict[str, str]
) -> None:
    await suite.chat(**identifier)
    await suite.chat()
    first, _, second, _ = await suite.leaves()
    assert first["subject_key_id"] != second["subject_key_id"]
    assert first["actor"] == second["actor"] == second["subject_key_id"]
    assert "ann" not in str(first)

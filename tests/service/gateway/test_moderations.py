"""Moderations over HTTP: OpenAI's types, one record per call, and no verdict that could be taken for an all-clear."""

from __future__ import annotations

import asyncio
import hmac
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, InternalServerError
from openai.types import ModerationCreateResponse
from openai.types.shared import ErrorObject

from kala.common.v1 import decision_pb2
from kala.ethics.v1 import ethics_pb2
from tests.fakes.gateway_suite import Suite, eventually, running_suite
from tests.fakes.scripted_ethics import CONSTITUTION, verdict_on

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = {"type": "text", "text": "please refuse"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


async def moderate(suite: Suite, given: Any, **fields: Any) -> httpx.Response:
    return await suite.post("/v1/moderations", {"input": given, **fields})


def error_of(response: httpx.Response) -> ErrorObject:
    return ErrorObject.model_validate(response.json()["error"], strict=True)


async def test_an_unmodified_openai_client_reads_the_verdict(suite: Suite) -> None:
    async with AsyncOpenAI(base_url=f"{suite.url}/v1", api_key=suite.key, max_retries=0) as client:
        raw = await client.moderations.with_raw_response.create(
            model="omni-moderation-latest", input=["Good morning", "please refuse", "please redirect"]
        )
        made = raw.parse()
        assert [result.flagged for result in made.results] == [False, True, True]
        assert made.results[1].categories.violence
        assert made.results[1].category_scores.violence == 1.0
        assert made.results[1].category_scores.illicit == 1.0
        with pytest.raises(BadRequestError, match=r"input\[1\]"):
            await client.moderations.create(input=["a", ""])
        suite.ethics.is_down = True
        with pytest.raises(InternalServerError) as caught:
            await client.moderations.create(input="a")
        assert (caught.value.status_code, caught.value.code) == (503, "ethics_unavailable")
    assert raw.headers["x-kala-receipt"].startswith("rcpt_")
    assert raw.headers["x-kala-attempts"] == "none"
    assert float(raw.headers["x-kala-overhead-ms"]) > 0


async def test_the_answer_says_who_judged_and_how(suite: Suite) -> None:
    body = (await moderate(suite, "please refuse")).json()
    ModerationCreateResponse.model_validate(body, strict=True)
    (result,) = body["results"]
    decision = result["kala"]["decision"]
    assert body["id"].startswith("modr-")
    assert body["model"] == f"kala-constitution-{CONSTITUTION.hex()[:16]}"
    assert (decision["outcome"], decision["law"], decision["stage"]) == ("REFUSE", 1, "request")
    assert decision["message"]
    assert result["categories"]["law_1"]
    assert not result["categories"]["law_2"]
    assert result["category_scores"]["kala/cyber.malware"] == 0.25
    assert suite.inference.chats == []


async def test_a_question_asked_back_is_flagged(suite: Suite) -> None:
    assert (await moderate(suite, "please ask")).json()["results"][0]["flagged"]


async def test_parts_are_judged_as_one_input(suite: Suite) -> None:
    body = (await moderate(suite, [{"type": "text", "text": "one"}, TEXT])).json()
    assert [result["flagged"] for result in body["results"]] == [True]
    assert [request.text for request in suite.ethics.scores] == ["one\nplease refuse"]


async def test_a_models_words_are_judged_as_an_output(suite: Suite) -> None:
    body = (await moderate(suite, "Sure", kala_stage="output", kala_request_text="How?")).json()
    (request,) = suite.ethics.scores
    assert (request.stage, request.request_text) == (ethics_pb2.STAGE_OUTPUT, "How?")
    assert body["results"][0]["kala"]["decision"]["stage"] == "output"


async def test_one_record_says_what_was_asked_and_answered_without_its_words(suite: Suite) -> None:
    texts = ["Good morning", "please ask", "please refuse"]
    response = await moderate(suite, texts, user="ann")
    (leaf,) = [await suite.receipt(response.headers["x-kala-receipt"])]
    assert [found["type"] for found in await suite.leaves()] == ["moderation.verdict"]
    value, results = leaf.value, response.json()["results"]
    decisions = [result["kala"]["decision"] for result in results]
    assert value["decision"]["id"] == decisions[2]["id"]
    assert (value["decision"]["outcome"], value["decision"]["law"]) == ("REFUSE", 1)
    assert value["result"]["status"] == "ok"
    assert value["action"]["rpc"] == "HTTP POST /v1/moderations"
    assert value["subject_key_id"] != value["actor"]
    facts = dict(value["attributes"])
    assert (facts["moderation.texts"], facts["moderation.flagged"]) == ("3", "2")
    assert facts["moderation.stage"] == "request"
    assert facts["moderation.text_1"] == f"{decisions[1]['id']} ASK_CLARIFICATION law 1 violence.killing"
    assert not any(text in leaf.data.decode() for text in texts)


async def test_the_answer_opens_the_commitment_in_the_log(suite: Suite) -> None:
    body = (await moderate(suite, ["please refuse", "naïve"])).json()
    receipt = body.pop("kala")["receipt"]
    said = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    value = (await suite.receipt(receipt["id"])).value
    kept = {each["kind"]: each for each in value["commitments"]}
    salt = bytes.fromhex(receipt["openings"]["released"])
    assert kept["released"]["hmac"] == hmac.new(salt, said, "sha256").hexdigest()
    assert dict(value["attributes"])["result.released_form"] == "moderation"


async def test_the_log_keeps_the_answer_and_only_a_commitment_to_the_question(suite: Suite) -> None:
    receipt = (await moderate(suite, "long " * 20_000)).json()["kala"]["receipt"]
    with closing(sqlite3.connect(suite.directory / "audit.db")) as connection:
        kept = dict(
            connection.execute(
                "SELECT kind, length(ciphertext) FROM payload WHERE idx = ?", (receipt["index"],)
            )
        )
    assert kept["request"] < 200
    assert kept["released"] > 1000


@pytest.mark.parametrize(
    ("body", "param", "code", "says"),
    [
        (b"{", "body", "invalid_json", "line 1"),
        (b'{"input": "a\\u0000b"}', "input", "nul_character", "NUL"),
        (b"{}", "input", "invalid_value", "is required"),
        (b'{"input": "a", "stream": true}', "stream", "unknown_parameter", "remove it"),
        (json.dumps({"input": ["x"] * 33}).encode(), "input", "invalid_value", "at most 32 entries"),
        (json.dumps({"input": "x" * 1_048_577}).encode(), "input", "invalid_value", "at most 1048576 characters"),
        (json.dumps({"input": [TEXT, IMAGE]}).encode(), "input[1]", "unjudged_part", "describe in words"),
    ],
    ids=["json", "nul", "absent", "unknown", "many", "long", "image"],
)  # fmt: skip
async def test_a_malformed_request_is_explained_and_logged(
    suite: Suite, body: bytes, param: str, code: str, says: str
) -> None:
    response = await suite.http.post("/v1/moderations", content=body, headers=suite.bearer())
    error = error_of(response)
    assert (response.status_code, error.param, error.code) == (400, param, code)
    assert says in error.message
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    reason = {"invalid_value": "INVALID_ARGUMENT"}.get(code, code.upper())
    assert (leaf.value["type"], leaf.value["result"]["code"]) == ("moderation.invalid", reason)
    assert suite.ethics.scores == []


async def test_an_oversize_body_is_413(suite: Suite) -> None:
    response = await moderate(suite, "x" * 5_000_000)
    assert (response.status_code, error_of(response).code) == (413, "request_too_large")


async def test_strangers_and_keys_without_the_scope_are_turned_away_and_logged(suite: Suite) -> None:
    stranger = await suite.http.post("/v1/moderations", json={"input": "a"})
    other = await suite.http.post(
        "/v1/moderations", json={"input": "a"}, headers=suite.bearer(suite.new_key("audit.read"))
    )
    assert (stranger.status_code, other.status_code) == (401, 403)
    assert [leaf["type"] for leaf in await suite.leaves()] == ["rpc.denied", "rpc.denied"]
    assert (await suite.get("/v1/moderations")).status_code == 405


async def test_without_ethics_there_is_no_verdict_and_a_record(suite: Suite) -> None:
    suite.ethics.is_down = True
    response = await moderate(suite, ["a", "b"])
    assert (response.status_code, error_of(response).code) == (503, "ethics_unavailable")
    assert "results" not in response.json()
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert (leaf.value["type"], leaf.value["result"]["status"]) == ("moderation.refused", "error")
    assert leaf.value["result"]["code"] == "ETHICS_UNAVAILABLE"


@pytest.mark.parametrize("score", [float("nan"), 2.0], ids=["not a number", "above one"])
async def test_a_senseless_verdict_is_no_verdict(suite: Suite, score: float) -> None:
    suite.ethics.verdict = verdict_on("Good morning")
    suite.ethics.verdict.laws[0].score = score
    assert (await moderate(suite, "a")).status_code == 503


async def test_a_verdict_without_an_outcome_is_no_verdict(suite: Suite) -> None:
    suite.ethics.verdict = ethics_pb2.ScoreResponse(decision=decision_pb2.Decision(id="0" * 32))
    assert (await moderate(suite, "a")).status_code == 503


async def test_one_text_without_a_verdict_ends_the_whole_call(tmp_path: Path) -> None:
    async with running_suite(tmp_path, judge_timeout_seconds=0.3) as suite:
        suite.ethics.hangs_on_score = "slow"
        response = await moderate(suite, ["a", "slow", "b"])
        assert (response.status_code, error_of(response).code) == (503, "ethics_unavailable")
        assert "results" not in response.json()
        assert await eventually(lambda: asyncio.sleep(0, result=suite.ethics.scoring == 0))


async def test_a_call_that_takes_too_long_has_no_verdict(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.moderations.CALL_SECONDS", 0.1)
    suite.ethics.hangs_on_score = "slow"
    response = await moderate(suite, ["a", "slow"])
    assert (response.status_code, error_of(response).code) == (503, "ethics_unavailable")
    assert "send fewer or shorter" in error_of(response).message


async def test_what_ethics_finds_wrong_is_told_by_the_callers_own_field(suite: Suite) -> None:
    suite.ethics.rejects_score = True
    response = await moderate(suite, ["a"])
    assert (response.status_code, error_of(response).param) == (400, "input[0]")
    assert (await suite.leaves())[-1]["type"] == "moderation.refused"


async def test_at_most_four_texts_of_a_call_are_judged_at_a_time(suite: Suite) -> None:
    texts = [f"text {number}" for number in range(32)]
    body = (await moderate(suite, texts)).json()
    assert len(body["results"]) == 32
    assert sorted(request.text for request in suite.ethics.scores) == sorted(texts)
    assert 1 <= suite.ethics.most_scoring <= 4


async def test_a_client_that_goes_away_ends_the_judging_and_is_logged(suite: Suite) -> None:
    suite.ethics.hangs_on_score = "slow"
    task = asyncio.ensure_future(moderate(suite, "slow"))
    await eventually(lambda: asyncio.sleep(0, result=suite.ethics.scoring))
    task.cancel()
    (leaf,) = await eventually(lambda: suite.leaves(kind="moderation.refused"))
    assert leaf["result"]["status"] == "cancelled"
    assert await eventually(lambda: asyncio.sleep(0, result=suite.ethics.scoring == 0))


async def test_no_more_calls_than_there_is_room_for(tmp_path: Path) -> None:
    async with running_suite(tmp_path, max_concurrent_requests=1) as suite:
        suite.ethics.hangs_on_score = "slow"
        first = asyncio.ensure_future(moderate(suite, "slow"))
        await eventually(lambda: asyncio.sleep(0, result=suite.ethics.scoring))
        assert error_of(await moderate(suite, "a")).code == "rate_limit_exceeded"
        first.cancel()


async def test_where_the_policy_allows_it_images_are_left_out_and_named(tmp_path: Path) -> None:
    async with running_suite(tmp_path, unjudged_parts="allow") as suite:
        response = await moderate(suite, [IMAGE, TEXT])
        (result,) = response.json()["results"]
        assert result["flagged"]
        assert result["kala"]["unjudged"] == ["input[0]"]
        leaf = await suite.receipt(response.headers["x-kala-receipt"])
        assert dict(leaf.value["attributes"])["moderation.unjudged"] == "1"
        alone = await moderate(suite, [IMAGE])
        assert (alone.status_code, error_of(alone).code) == (400, "unjudged_part")


async def test_while_the_log_is_away_the_verdict_comes_from_the_spool(own_suite: Suite) -> None:
    await own_suite.audit.stop()
    response = await moderate(own_suite, "please refuse")
    assert response.json()["kala"]["receipt"]["status"] == "SPOOLED"
    await own_suite.audit.start()
    await eventually(lambda: own_suite.leaves(kind="moderation.verdict"))


async def test_without_log_and_spool_there_is_no_verdict(tmp_path: Path) -> None:
    async with running_suite(tmp_path, audit_policy="fail_closed") as suite:
        await suite.audit.stop()
        response = await moderate(suite, "please refuse")
        assert (response.status_code, error_of(response).code) == (503, "audit_unavailable")
        assert "results" not in response.json()


async def test_the_document_describes_the_endpoint(suite: Suite) -> None:
    document = (await suite.http.get("/openapi.json")).json()
    operation = document["paths"]["/v1/moderations"]["post"]
    assert operation["x-kala-scope"] == "chat"
    schemas = document["components"]["schemas"]
    body = (await moderate(suite, "a")).json()
    result = schemas["Moderation"]["properties"]["results"]["items"]
    assert set(result["properties"]["categories"]["required"]) == set(body["results"][0]["categories"])
    assert {"ModerationText", "ModerationImage"} <= set(schemas)

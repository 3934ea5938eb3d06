"""A key's limits over HTTP: exact under races and at two gateways, in OpenAI's words, and closed while Redis is away."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.limits.key_limits import UNLIMITED
from kala.errors import UnavailableError
from tests.fakes.gateway_suite import Suite, eventually, running_suite
from tests.fakes.scripted_inference import route, saying, text
from tests.redis_server import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEYS = "/kala/v1/gateway/keys"
USAGE = "/kala/v1/gateway/usage"


async def limited_key(suite: Suite, **limits: Any) -> tuple[str, str]:
    """A key's name and secret."""
    body = {"display_name": "limited", "roles": ["user"], "limits": limits}
    made = await suite.post(KEYS, body)
    assert made.status_code == 200, made.text
    return made.json()["key"]["name"], made.json()["secret"]


def budget(unit: str, amount: int, period: str = "TOTAL") -> dict[str, Any]:
    return {"unit": f"BUDGET_UNIT_{unit}", "period": f"BUDGET_PERIOD_{period}", "amount": str(amount)}


async def ask(suite: Suite, key: str, **fields: Any) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hello."}], **fields}
    return await suite.http.post("/v1/chat/completions", json=body, headers=suite.bearer(key))


async def test_of_two_hundred_racing_requests_on_a_budget_of_ten_ten_are_answered(suite: Suite) -> None:
    _, key = await limited_key(suite, budgets=[budget("REQUESTS", 10)])
    answers = await asyncio.gather(*(ask(suite, key) for _ in range(200)))
    assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 190}
    assert len(await suite.leaves(kind="chat.intent")) == 10


async def test_two_gateways_share_budgets_and_minutes(tmp_path: Path, redis_url: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir(mode=0o700)
    async with running_suite(one, limits_storage=redis_url) as first:
        shared: dict[str, Any] = {
            "database": first.settings.database,
            "pepper_file": first.settings.pepper_file,
        }
        async with running_suite(two, limits_storage=redis_url, **shared) as second:

            async def race(**limits: Any) -> Counter[int]:
                _, key = await limited_key(first, **limits)
                asked = (ask(suite, key) for _ in range(30) for suite in (first, second))
                return Counter(answer.status_code for answer in await asyncio.gather(*asked))

            assert await race(budgets=[budget("REQUESTS", 10, "TOTAL")]) == {200: 10, 429: 50}
            assert await race(concurrent=1) != {200: 60}
            while True:
                minute = time.time() // 60
                passed = await race(requests_per_minute=10)
                if time.time() // 60 == minute:  # else the race was of two minutes
                    break
            assert passed == {200: 10, 429: 50}


async def test_a_used_up_budget_is_openais_insufficient_quota_and_is_not_tried_again(suite: Suite) -> None:
    _, key = await limited_key(suite, budgets=[budget("TOKENS", 5)])
    client = openai.AsyncOpenAI(api_key=key, base_url=suite.url + "/v1", max_retries=3)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.code == caught.value.type == "insufficient_quota"
    assert "has a budget of 5 tokens (total) and 5 left of it" in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.response.headers
    await client.close()


async def test_answers_say_how_the_minute_stands(suite: Suite) -> None:
    _, key = await limited_key(suite, requests_per_minute=2, tokens_per_minute=100_000)
    first = await ask(suite, key, max_completion_tokens=10)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert 0 <= float(first.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 100_000
    answers = [await ask(suite, key) for _ in range(4)]  # a minute may turn between them
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "auto"}),
        ("/v1/responses", {"model": 5}),
        ("/v1/embeddings", {"model": 5}),
        ("/v1/moderations", {"model": 5}),
        ("/v1/files", {}),
        ("/kala/v1/inference/chat", {"model": 5}),
        (KEYS, {"display_name": "mine"}),
    ],
    ids=["chat", "response", "embedding", "moderation", "file", "RPC", "without the scope"],
)
async def test_what_is_turned_away_with_a_record_counts_as_a_request(
    suite: Suite, path: str, body: dict[str, Any]
) -> None:
    # Malformed requests passed every limit, and each of them wrote to the log's disk.
    _, key = await limited_key(suite, budgets=[budget("REQUESTS", 2)])
    answers = [await suite.http.post(path, json=body, headers=suite.bearer(key)) for _ in range(4)]
    assert [answer.status_code for answer in answers][2:] == [429, 429]
    assert {answer.status_code for answer in answers[:2]} <= {400, 403}
    records = [leaf for leaf in await suite.leaves() if leaf["type"] != "admin"]
    assert len(records) == 2


async def test_a_request_holds_its_place_until_it_ends(suite: Suite) -> None:
    _, key = await limited_key(suite, concurrent=1)
    may_end = asyncio.Event()
    suite.inference.script = lambda _: [may_end, *saying("Hello.")]
    running = asyncio.ensure_future(ask(suite, key, stream=True))
    await suite.inference.began.wait()
    full = await ask(suite, key)
    assert full.status_code == 429
    assert "runs 1 requests at a time" in full.json()["error"]["message"]
    may_end.set()
    assert (await running).status_code == 200

    async def is_free() -> bool:
        return (await ask(suite, key)).status_code == 200

    assert await eventually(is_free)


async def test_a_changed_limit_counts_at_once(suite: Suite) -> None:
    name, key = await limited_key(suite, budgets=[budget("REQUESTS", 1)])
    assert [(await ask(suite, key)).status_code for _ in range(2)] == [200, 429]
    body = {"limits": {"budgets": [budget("REQUESTS", 2)]}, "update_mask": "limits"}
    changed = await suite.http.patch(f"/kala/v1/gateway/{name}", json=body, headers=suite.bearer())
    assert changed.status_code == 200, changed.text
    assert changed.json()["key"]["limits"]["budgets"][0]["amount"] == "2"
    assert [(await ask(suite, key)).status_code for _ in range(2)] == [200, 429]
    logged = (await suite.leaves(kind="admin"))[-1]
    assert '["requests","total",2]' in dict(logged["attributes"])["args.limits"]
    lifted = await suite.http.patch(
        f"/kala/v1/gateway/{name}", json={"update_mask": "limits"}, headers=suite.bearer()
    )
    assert "limits" not in lifted.json()["key"]
    assert (await ask(suite, key)).status_code == 200
    # That limits were lifted once left no word in the log.
    facts = dict((await suite.leaves(kind="admin"))[-1]["attributes"])
    assert facts["args.changes"] == "limits"
    assert facts["args.limits"] == UNLIMITED.to_json()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limits": {"requests_per_minute": "0"}, "update_mask": "limits"}, "limits.requests_per_minute"),
        ({"limits": {"budgets": [{"amount": "5"}]}, "update_mask": "limits"}, "limits.budgets[0].unit"),
        ({"limits": {"budgets": [budget("COST_MICROS", 5)]}, "update_mask": "limits"}, "KALA_GATEWAY_PRICES"),
        ({"display_name": "x"}, "update_mask"),
        ({"update_mask": "name"}, "update_mask"),
    ],
)
async def test_a_wrong_change_names_the_field(suite: Suite, body: dict[str, Any], field: str) -> None:
    name, _ = await limited_key(suite)
    answer = await suite.http.patch(f"/kala/v1/gateway/{name}", json=body, headers=suite.bearer())
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]


async def test_a_redis_that_is_away_is_named_and_lets_only_unlimited_keys_in(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    async with running_suite(tmp_path, limits_storage=own_redis.url) as suite:
        _, key = await limited_key(suite, requests_per_minute=100)
        assert (await ask(suite, key)).status_code == 200
        own_redis.stop()
        closed = await ask(suite, key)
        assert closed.status_code == 503
        assert closed.json()["error"]["code"] == "limits_unavailable"
        assert f"127.0.0.1:{own_redis.port}" in closed.json()["error"]["message"]
        assert (await suite.chat()).status_code == 200
        own_redis.start()
        assert (await ask(suite, key)).status_code == 200


async def test_a_database_without_budgets_lets_no_budgeted_key_in(tmp_path: Path) -> None:
    async with running_suite(tmp_path) as suite:
        _, key = await limited_key(suite, budgets=[budget("TOKENS", 10_000)])
        assert (await ask(suite, key)).status_code == 200
        with closing(sqlite3.connect(suite.settings.database)) as connection:
            connection.execute("ALTER TABLE budget_use RENAME TO gone")
        closed = await ask(suite, key)
        assert closed.status_code == 503
        assert closed.json()["error"]["code"] == "database_unavailable"
        assert len(suite.inference.chats) == 1
        assert (await suite.chat()).status_code == 200


async def test_usage_is_summed_by_key_and_model(tmp_path: Path) -> None:
    prices = {"*": {"input": 2, "output": 3}}
    async with running_suite(tmp_path, prices=prices) as suite:
        name, key = await limited_key(suite)
        first = await ask(suite, key)
        usage = first.json()["usage"]
        await ask(suite, key, stream=True)

        async def counted() -> Any:
            answer = await suite.get(USAGE, params={"key": name})
            rows = answer.json().get("rows", [])
            return rows[0] if rows and rows[0]["requests"] == "2" else None

        row = await eventually(counted)
        assert row["model"] == first.json()["model"]
        assert int(row["input_tokens"]) == 2 * usage["prompt_tokens"]
        assert int(row["output_tokens"]) == 2 * usage["completion_tokens"]
        assert int(row["cost_micros"]) == 4 * usage["prompt_tokens"] + 6 * usage["completion_tokens"]
        later = await suite.get(USAGE, params={"key": name, "from": "2200-01-01T00:00:00Z"})
        assert later.json().get("rows", []) == []
        assert (await suite.get(USAGE, params={"key": "x"})).status_code == 400
        nobody = await suite.http.get(USAGE, headers=suite.bearer(key))
        assert nobody.status_code == 403


async def test_roles_are_sets_of_scopes_and_nobody_gives_more_than_it_holds(suite: Suite) -> None:
    made = await suite.post(KEYS, {"display_name": "o", "roles": ["operator"]})
    assert made.json()["key"]["scopes"] == ["SCOPE_CHAT", "SCOPE_TOOLS", "SCOPE_TRAIN"]
    admin = suite.new_key("admin", "chat")
    denied = await suite.http.post(
        KEYS, json={"display_name": "a", "roles": ["auditor"]}, headers=suite.bearer(admin)
    )
    assert denied.status_code == 403
    wrong = await suite.post(KEYS, {"display_name": "o", "roles": ["root"]})
    assert wrong.status_code == 400
    assert "admin, auditor, operator, user" in wrong.json()["error"]["message"]


LONG = "word " * 6000
"""Ten thousand tokens by its length, where 1,024 are set aside for an answer."""


async def used_tokens(suite: Suite, name: str) -> int:
    with closing(sqlite3.connect(suite.settings.database)) as connection:
        row = connection.execute(
            "SELECT used FROM budget_use WHERE key_id = ?", (name.removeprefix("keys/"),)
        ).fetchone()
    return int(row[0])


async def test_who_leaves_a_stream_before_its_end_has_used_what_it_read(suite: Suite) -> None:
    # Every answer could be had for what is set aside, by leaving before the backend's count came.
    name, key = await limited_key(suite, budgets=[budget("TOKENS", 1_000_000)])
    suite.inference.script = lambda _: [route(), text(LONG), asyncio.Event()]
    body = {"model": "auto", "messages": [{"role": "user", "content": "Go."}], "stream": True}
    headers, read = suite.bearer(key), 0
    async with suite.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        async for line in answer.aiter_lines():
            read += len(line)
            if read > len(LONG) // 2:
                break

    async def is_charged() -> bool:
        return await used_tokens(suite, name) > 5000

    assert await eventually(is_charged)


async def test_a_stream_that_fails_has_used_the_words_that_were_read(suite: Suite) -> None:
    # A schema that no answer follows made every streamed answer free.
    name, key = await limited_key(suite, budgets=[budget("TOKENS", 1_000_000)])
    was_read = asyncio.Event()
    broken = UnavailableError("breaks the schema", reason="ANSWER_BREAKS_SCHEMA")
    suite.inference.script = lambda _: [route(), text(LONG), was_read, broken]
    body = {"model": "auto", "messages": [{"role": "user", "content": "Go."}], "stream": True}
    headers, read = suite.bearer(key), 0
    async with suite.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        async for line in answer.aiter_lines():
            read += len(line)
            if read > len(LONG) // 2:
                was_read.set()

    async def is_charged() -> bool:
        return await used_tokens(suite, name) > 5000

    assert await eventually(is_charged)
    before = await used_tokens(suite, name)
    suite.inference.script = lambda _: [broken]
    assert (await ask(suite, key)).status_code == 503

    async def is_given_back() -> bool:
        return await used_tokens(suite, name) == before

    assert await eventually(is_given_back)


async def test_a_caller_whose_own_time_is_over_keeps_what_was_set_aside(suite: Suite) -> None:
    # Else a model could be kept at work for nothing, by asking for less time than it takes.
    name, key = await limited_key(suite, budgets=[budget("TOKENS", 1_000_000)])
    suite.inference.script = lambda _: [route(), text("Hello."), asyncio.Event()]
    action = {"model": "auto", "messages": [{"role": "ROLE_USER", "content": [{"text": "Go."}]}]}
    late = await suite.http.post(
        "/kala/v1/inference/chat", json=action, headers=suite.bearer(key) | {"x-server-timeout": "1"}
    )
    assert late.status_code == 504, late.text
    await suite.reset()  # asks the log, so that what is settled is settled
    assert await used_tokens(suite, name) >= 1024

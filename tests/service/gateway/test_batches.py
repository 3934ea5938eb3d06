"""`/v1/batches` as OpenAI's clients use it: every line guarded, no line lost or doubled, whatever happens to it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types import Batch
from pydantic import TypeAdapter

from gateway.batches import worker
from kala.inference.v1 import inference_pb2
from tests.fakes.gateway_suite import Suite, eventually, running_suite
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_inference import REPLY, Step, saying

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def batch_suite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    async with running_suite(tmp_path_factory.mktemp("batches"), batch_lease_seconds=1) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def suite(batch_suite: Suite) -> Suite:
    await batch_suite.reset()
    return batch_suite


@pytest_asyncio.fixture(loop_scope="session")
async def client(suite: Suite) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=suite.url + "/v1", api_key=suite.key, max_retries=0) as made:
        yield made


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}


def rows(*bodies: dict[str, Any], url: str = CHAT) -> bytes:
    lines = [
        {"custom_id": f"r{number}", "method": "POST", "url": url, "body": body}
        for number, body in enumerate(bodies, 1)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def upload(suite: Suite, data: bytes, key: str | None = None, **form: str) -> str:
    answer = await suite.http.post(
        "/v1/files",
        data={"purpose": "batch", **form},
        files={"file": ("in.jsonl", data)},
        headers=suite.bearer(key),
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def create(suite: Suite, data: bytes, endpoint: str = CHAT, key: str | None = None) -> dict[str, Any]:
    body = {"input_file_id": await upload(suite, data, key), "endpoint": endpoint, "completion_window": "24h"}
    answer = await suite.http.post("/v1/batches", json=body, headers=suite.bearer(key))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def ended(suite: Suite, batch: dict[str, Any]) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        answer = await suite.get(f"/v1/batches/{batch['id']}")
        now = dict(answer.json())
        TypeAdapter(Batch).validate_json(answer.content, strict=True)
        return now if now["status"] in {"completed", "failed", "expired", "cancelled"} else None

    found = await eventually(look, seconds=20)
    assert found is not None
    return found


async def content(suite: Suite, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    text = (await suite.get(f"/v1/files/{file_id}/content")).text
    return [json.loads(line) for line in text.splitlines()]


async def test_a_batch_lives_as_openais_client_expects(suite: Suite, client: openai.AsyncOpenAI) -> None:
    data = rows(chat("one"), chat("two"), chat("three", max_tokens=-1))
    file = await client.files.create(file=("in.jsonl", data), purpose="batch")
    made = await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"job": "nightly"},
    )
    assert (made.status, made.metadata, made.expires_at) == (
        "validating",
        {"job": "nightly"},
        made.created_at + 86_400,
    )
    done = await ended(suite, {"id": made.id})
    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert done["usage"]["total_tokens"] == 24
    output = await content(suite, done["output_file_id"])
    assert [line["custom_id"] for line in output] == ["r1", "r2"]
    for line in output:
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        assert line["response"]["body"]["choices"][0]["message"]["content"] == REPLY
    (failed,) = await content(suite, done["error_file_id"])
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("r3", 400)
    assert failed["response"]["body"]["error"]["type"] == "invalid_request_error"
    listed = [batch.id async for batch in client.batches.list(limit=1)]
    assert made.id in listed


async def test_each_line_is_judged_and_logged_under_the_batchs_name(suite: Suite) -> None:
    batch = await create(suite, rows(chat("one"), chat("please refuse")))
    done = await ended(suite, batch)
    first, second = await content(suite, done["output_file_id"])
    assert second["response"]["body"]["choices"][0]["finish_reason"] == "content_filter"
    assert len(suite.inference.chats) == 1
    outcomes = await suite.leaves(kind="chat.outcome")
    refused = await suite.leaves(kind="chat.refused")
    assert [_request_id(leaf) for leaf in outcomes + refused] == [
        f"{batch['id']}-1",
        f"{batch['id']}-2",
    ]
    receipt = first["response"]["body"]["kala"]["receipt"]["id"]
    assert _request_id((await suite.receipt(receipt)).value) == f"{batch['id']}-1"


async def test_what_the_laws_forbid_is_in_no_output(suite: Suite) -> None:
    suite.inference.script = lambda _: saying("fine ", FORBIDDEN)
    done = await ended(suite, await create(suite, rows(chat("one"))))
    text = (await suite.get(f"/v1/files/{done['output_file_id']}/content")).text
    assert FORBIDDEN not in text


@pytest.mark.parametrize(
    ("endpoint", "body", "says"),
    [
        ("/v1/completions", {"prompt": "Once"}, lambda answer: answer["choices"][0]["text"]),
        ("/v1/embeddings", {"input": ["a"]}, lambda answer: answer["data"][0]["embedding"]),
        ("/v1/responses", {"model": "auto", "input": "Hi"}, lambda answer: answer["output"][0]["content"]),
    ],
)
async def test_other_endpoints_take_batches_too(suite: Suite, endpoint: str, body: Any, says: Any) -> None:
    done = await ended(suite, await create(suite, rows(body, url=endpoint), endpoint))
    (line,) = await content(suite, done["output_file_id"])
    assert says(line["response"]["body"])


async def test_a_wrong_input_file_fails_the_batch_and_names_the_lines(suite: Suite) -> None:
    batch = await create(suite, rows(chat("one")) + b"{\n" + rows(chat("again")))
    done = await ended(suite, batch)
    assert done["status"] == "failed"
    problems = [(each["code"], each["line"], each["param"]) for each in done["errors"]["data"]]
    assert problems == [("invalid_request", 2, "body"), ("duplicate_custom_id", 3, "custom_id")]
    assert suite.inference.chats == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/rerank"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"priority": "high"}, "priority"),
    ],
)
async def test_a_wrong_batch_names_the_field(suite: Suite, fields: dict[str, Any], param: str) -> None:
    body = {
        "input_file_id": await upload(suite, rows(chat("a"))),
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    answer = await suite.post("/v1/batches", body | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


async def test_a_batch_of_another_tenant_does_not_exist(suite: Suite) -> None:
    batch = await create(suite, rows(chat("one")))
    other = suite.new_key("chat", tenant="elsewhere")
    for answer in (
        await suite.http.get(f"/v1/batches/{batch['id']}", headers=suite.bearer(other)),
        await suite.http.post(f"/v1/batches/{batch['id']}/cancel", headers=suite.bearer(other)),
    ):
        assert answer.status_code == 404
    body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
    stolen = await suite.http.post("/v1/batches", json=body, headers=suite.bearer(other))
    assert (stolen.status_code, stolen.json()["error"]["param"]) == (400, "input_file_id")
    await ended(suite, batch)


async def test_a_cancelled_batch_keeps_what_was_done_and_names_the_rest(suite: Suite) -> None:
    go = asyncio.Event()

    def script(action: inference_pb2.ChatAction) -> list[Step]:
        return saying(REPLY) if b"one" in action.SerializeToString() else [go, *saying(REPLY)]

    suite.inference.script = script
    batch = await create(suite, rows(chat("one"), *(chat(f"wait {number}") for number in range(5))))
    await eventually(lambda: _counts(suite, batch, completed=1))
    stopped = (await suite.post(f"/v1/batches/{batch['id']}/cancel")).json()
    assert stopped["status"] == "cancelling"
    in_use = await suite.http.delete(f"/v1/files/{batch['input_file_id']}", headers=suite.bearer())
    assert (in_use.status_code, in_use.json()["error"]["code"]) == (400, "file_in_use")
    go.set()
    done = await ended(suite, batch)
    assert done["status"] == "cancelled"
    output, errors = await content(suite, done["output_file_id"]), await content(suite, done["error_file_id"])
    ids = sorted(line["custom_id"] for line in output + errors)
    assert ids == [f"r{number}" for number in range(1, 7)]
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    deleted = await suite.http.delete(f"/v1/files/{batch['input_file_id']}", headers=suite.bearer())
    assert deleted.status_code == 200


async def test_a_revoked_key_ends_its_batch(suite: Suite) -> None:
    go = asyncio.Event()
    suite.inference.script = lambda _: [go, *saying(REPLY)]
    made = (await suite.post("/kala/v1/gateway/keys", {"display_name": "b", "scopes": ["SCOPE_CHAT"]})).json()
    batch = await create(suite, rows(*(chat(str(n)) for n in range(4))), key=made["secret"])
    await eventually(lambda: _is_begun(suite))
    assert (await suite.post(f"/kala/v1/gateway/{made['key']['name']}:revoke", {})).status_code == 200
    go.set()
    done = await ended(suite, batch)
    assert (done["status"], done["errors"]["data"][0]["code"]) == ("failed", "invalid_api_key")
    output, errors = await content(suite, done["output_file_id"]), await content(suite, done["error_file_id"])
    assert (len(output), {line["error"]["code"] for line in errors}) == (2, {"invalid_api_key"})
    assert sorted(line["custom_id"] for line in output + errors) == ["r1", "r2", "r3", "r4"]


async def test_while_a_part_is_away_lines_wait_and_none_fails(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_PAUSE_SECONDS", 0.05)
    suite.ethics.is_down = True
    batch = await create(suite, rows(chat("one"), chat("two")))
    await eventually(lambda: _refused(suite))
    assert suite.inference.chats == []
    suite.ethics.is_down = False
    done = await ended(suite, batch)
    assert done["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


async def test_a_part_that_stays_away_fails_the_line_in_the_end(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(worker, "MAX_ATTEMPTS", 2)
    suite.ethics.is_down = True
    done = await ended(suite, await create(suite, rows(chat("one"))))
    (line,) = await content(suite, done["error_file_id"])
    assert line["response"]["body"]["error"]["code"] == "ethics_unavailable"


async def test_an_erased_person_takes_the_batches_that_name_them_along(suite: Suite) -> None:
    batch = await create(suite, rows(chat("one", user="ada"), chat("two")))
    done = await ended(suite, batch)
    name = (await suite.post("/kala/v1/gateway/subjects:name", {"person": "ada"})).json()["name"]
    erased = await suite.post(
        f"/kala/v1/audit/{name}:erase",
        {"reason": "she asked for it", "request_id": "AAECAwQFBgcICQoLDA0ODw=="},
    )
    assert erased.status_code == 200, erased.text
    for path in (
        f"/v1/batches/{batch['id']}",
        f"/v1/files/{batch['input_file_id']}",
        f"/v1/files/{done['output_file_id']}/content",
    ):
        assert (await suite.get(path)).status_code == 404


async def test_a_batch_that_was_cut_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    never = asyncio.Event()
    asked: list[str] = []

    def script(action: inference_pb2.ChatAction) -> list[Step]:
        text = action.messages[-1].content[0].text
        asked.append(text)
        return [never] if text == "hang" and not never.is_set() else saying(f"to {text}")

    texts = ["a", "b", "hang", "hang", "c", "d"]
    async with running_suite(tmp_path, batch_lease_seconds=1) as suite:
        suite.inference.script = script
        batch = await create(suite, rows(*map(chat, texts)))
        await eventually(lambda: _counts(suite, batch, completed=2))
        await eventually(lambda: _asked(asked, "hang", 2))
        key = suite.key
    never.set()
    async with running_suite(tmp_path, batch_lease_seconds=1) as suite:
        suite.inference.script = script
        suite.key = key
        done = await ended(suite, batch)
        output = await content(suite, done["output_file_id"])
    said = [
        (line["custom_id"], line["response"]["body"]["choices"][0]["message"]["content"]) for line in output
    ]
    assert said == [(f"r{number}", f"to {text}") for number, text in enumerate(texts, 1)]
    # What was done before is not asked again.
    assert sorted(text for text in asked if text != "hang") == ["a", "b", "c", "d"]


async def _counts(suite: Suite, batch: dict[str, Any], **counts: int) -> bool:
    found = (await suite.get(f"/v1/batches/{batch['id']}")).json()["request_counts"]
    return all(found[name] >= value for name, value in counts.items())


def _request_id(leaf: Mapping[str, Any]) -> str:
    return str(dict(leaf["attributes"])["request_id"])


async def _is_begun(suite: Suite) -> bool:
    return len(suite.inference.chats) == 2


async def _refused(suite: Suite) -> list[dict[str, Any]]:
    return await suite.leaves(kind="chat.refused")


async def _asked(asked: list[str], text: str, times: int) -> bool:
    return asked.count(text) >= times


async def test_a_key_needs_the_scope_for_batches(suite: Suite) -> None:
    denied: httpx.Response = await suite.http.get("/v1/batches", headers=suite.bearer(suite.new_key("train")))
    assert denied.status_code == 403


async def test_an_input_file_that_cannot_be_read_ends_its_batch(suite: Suite) -> None:
    go = asyncio.Event()
    suite.inference.script = lambda _: [go, *saying(REPLY)]
    batch = await create(suite, rows(*(chat(str(n)) for n in range(4))))
    await eventually(lambda: _is_begun(suite))
    with closing(sqlite3.connect(suite.directory / "gateway.db")) as connection:
        # As if it had been deleted between the look for whoever reads it and the deletion.
        connection.execute("DELETE FROM file_part WHERE file_id = ?", (batch["input_file_id"],))
        connection.execute("DELETE FROM file WHERE id = ?", (batch["input_file_id"],))
        connection.commit()
    go.set()
    done = await ended(suite, batch)
    # Lines that lie in a part that was read already are still carried out.
    assert done["status"] in {"failed", "completed"}
    assert done["request_counts"]["completed"] + done["request_counts"]["failed"] == 4


async def test_a_damaged_input_file_fails_its_batch(suite: Suite) -> None:
    file = await upload(suite, rows(chat("one")))
    with closing(sqlite3.connect(suite.directory / "gateway.db")) as connection:
        connection.execute("UPDATE file SET sha256 = ? WHERE id = ?", (bytes(32), file))
        connection.commit()
    body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    done = await ended(suite, (await suite.post("/v1/batches", body)).json())
    assert (done["status"], done["errors"]["data"][0]["code"]) == ("failed", "input_file_unreadable")


async def test_a_window_that_is_over_names_the_lines_that_were_not_carried_out(suite: Suite) -> None:
    go = asyncio.Event()
    suite.inference.script = lambda _: [go, *saying(REPLY)]
    batch = await create(suite, rows(*(chat(str(n)) for n in range(4))))
    await eventually(lambda: _is_begun(suite))
    with closing(sqlite3.connect(suite.directory / "gateway.db")) as connection:
        connection.execute("UPDATE batch SET expires_at = 1 WHERE id = ?", (batch["id"],))
        # Its holder goes on from what it read before; so the lease is taken from it, as if it had died.
        connection.execute("UPDATE batch SET lease_until = 1 WHERE id = ?", (batch["id"],))
        connection.commit()
    go.set()
    done = await ended(suite, batch)
    output, errors = await content(suite, done["output_file_id"]), await content(suite, done["error_file_id"])
    assert (done["status"], {line["error"]["code"] for line in errors}) == ("expired", {"batch_expired"})
    assert sorted(line["custom_id"] for line in output + errors) == ["r1", "r2", "r3", "r4"]


async def test_a_budget_that_is_used_up_fails_the_lines_that_are_left(suite: Suite) -> None:
    made = await suite.post(
        "/kala/v1/gateway/keys",
        {
            "display_name": "b",
            "scopes": ["SCOPE_CHAT"],
            "limits": {
                "budgets": [{"unit": "BUDGET_UNIT_REQUESTS", "period": "BUDGET_PERIOD_TOTAL", "amount": "2"}]
            },
        },
    )
    assert made.status_code == 200, made.text
    done = await ended(
        suite, await create(suite, rows(*(chat(str(n)) for n in range(4))), key=made.json()["secret"])
    )
    assert done["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    errors = await content(suite, done["error_file_id"])
    assert {line["response"]["body"]["error"]["code"] for line in errors} == {"insufficient_quota"}

"""The REST bridge: paths, scopes, bodies, streams, guarded calls and errors."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kala.errors import NotFoundError
from tests.fakes.gateway_suite import Suite, eventually, running_suite
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_inference import REPLY, Step, saying

pytestmark = pytest.mark.asyncio(loop_scope="session")

ACTION = {"model": "auto", "messages": [{"role": "ROLE_USER", "content": [{"text": "Hi"}]}]}


async def test_a_path_variable_and_a_query_reach_the_service(suite: Suite) -> None:
    backend = await suite.get("/kala/v1/inference/backends/lmstudio")
    assert backend.json()["backend"]["name"] == "backends/lmstudio"
    page = await suite.get("/kala/v1/inference/backends?page_size=7")
    assert page.json() == {"backends": [_backend("backends/7")], "next_page_token": ""}
    camel = await suite.get("/kala/v1/inference/backends", params={"pageSize": "8"})
    assert camel.json()["backends"][0]["name"] == "backends/8"


def _backend(name: str) -> dict[str, Any]:
    return {
        "name": name, "kind": "", "url": "", "state": "BACKEND_STATE_UNSPECIFIED", "detail": "",
        "breaker": "BREAKER_STATE_UNSPECIFIED", "in_flight": 0, "position": 0, "remote": False, "discovered": False,
    }  # fmt: skip


async def test_a_stream_comes_as_lines_or_as_events(suite: Suite) -> None:
    lines = await suite.post("/kala/v1/inference/models:pull", {"source": "x"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["file"] for line in lines.text.splitlines()] == ["a", "b"]
    events = await suite.post("/kala/v1/inference/models:pull", {}, headers={"accept": "text/event-stream"})
    assert events.headers["content-type"] == "text/event-stream"
    assert events.text.count("data: ") == 2


async def test_a_large_download_may_take_longer_than_an_act(suite: Suite) -> None:
    await suite.post("/kala/v1/inference/models:pull", {"source": "x"})
    assert suite.inference.pull_seconds > 10 * suite.settings.max_act_seconds


async def test_a_guarded_call_takes_the_bare_action_and_runs_the_whole_pipeline(suite: Suite) -> None:
    response = await suite.post("/kala/v1/inference/chat", ACTION)
    assert response.status_code == 200, response.text
    messages = [json.loads(line) for line in response.text.splitlines()]
    assert messages[1]["delta"]["text"] == REPLY
    assert "clearance" not in response.text
    assert [leaf["type"] for leaf in await suite.leaves()] == ["chat.intent", "chat.outcome"]
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert leaf.value["model"]["backend"] == "backends/fake"
    assert response.headers["x-kala-attempts"] == "fake=ok"
    embedded = await suite.post("/kala/v1/inference/embed", {"inputs": ["a", "b"]})
    assert [each["values"] for each in embedded.json()["embeddings"]] == [[0.5, 1.0]] * 2
    assert (await suite.leaves())[-1]["type"] == "embed.outcome"


async def test_a_clearance_is_never_accepted(suite: Suite) -> None:
    body = {"sealed": {"action": {}, "clearance": {"key_id": "x"}}}
    response = await suite.post("/kala/v1/inference/chat", body)
    assert response.status_code == 400
    assert response.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert suite.ethics.actions == []


async def test_a_refused_action_is_403_with_decision_and_receipt(suite: Suite) -> None:
    body = {"messages": [{"role": "ROLE_USER", "content": [{"text": "please refuse"}]}]}
    response = await suite.post("/kala/v1/inference/chat", body)
    error = response.json()["error"]
    assert (response.status_code, error["status"]) == (403, "PERMISSION_DENIED")
    assert error["details"][0]["reason"] == "REFUSE"
    assert response.json()["kala"]["decision"]["law"] == 1
    assert suite.inference.chats == []
    assert (await suite.receipt(response.headers["x-kala-receipt"])).value["type"] == "chat.refused"


async def test_a_refused_output_does_not_leave_even_in_pieces(suite: Suite) -> None:
    suite.inference.script = lambda _: saying("a " + FORBIDDEN[:4], FORBIDDEN[4:])
    response = await suite.post("/kala/v1/inference/chat", ACTION)
    assert response.status_code == 403
    assert FORBIDDEN[:4] not in response.text
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert outcome["result"]["status"] == "refused"


async def test_internal_rpcs_are_not_there(suite: Suite) -> None:
    for path in ("/kala/v1/ethics/actions:check", "/kala/v1/audit/entries:batch", "/kala/v1/nothing"):
        response = await suite.post(path, {})
        assert (response.status_code, response.json()["error"]["status"]) == (404, "NOT_FOUND")


async def test_a_wrong_verb_names_the_right_one(suite: Suite) -> None:
    response = await suite.get("/kala/v1/inference/chat")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert "POST" in response.json()["error"]["message"]


async def test_what_is_not_deployed_is_503_and_what_is_not_served_is_501(suite: Suite) -> None:
    tools = await suite.get("/kala/v1/tools/tools")
    assert (tools.status_code, "tools service" in tools.json()["error"]["message"]) == (503, True)
    trainer = await suite.get("/kala/v1/trainer/adapters")
    assert trainer.json()["error"]["details"][0]["reason"] == "TRAINER_NOT_DEPLOYED"
    later = await suite.post("/kala/v1/inference/models:load", {"model": "a"})
    assert (later.status_code, later.json()["error"]["status"]) == (501, "UNIMPLEMENTED")


async def test_every_rpc_asks_for_its_own_scope(suite: Suite) -> None:
    key = suite.bearer(suite.new_key("chat"))
    denied = await suite.http.get("/kala/v1/audit/entries", headers=key)
    assert (denied.status_code, denied.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
    assert (await suite.leaves())[-1]["type"] == "rpc.denied"
    public = await suite.http.get("/kala/v1/audit/checkpoint", headers=key)
    assert public.status_code == 200
    assert (await suite.http.get("/kala/v1/audit/checkpoint")).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", "/kala/v1/inference/chat", b"{", "not valid JSON"),
        ("POST", "/kala/v1/inference/chat", b'{"nothing": 1}', "nothing"),
        ("POST", "/kala/v1/inference/embed", b'{"inputs": 5}', "inputs"),
        ("POST", "/kala/v1/inference/backends/a:check", b'{"name": "backends/b"}', "twice"),
        ("POST", "/kala/v1/inference/embed?x=1", b"{}", "query"),
        ("GET", "/kala/v1/inference/backends?made_up=1", b"", "made_up"),
        ("GET", "/kala/v1/inference/backends?page_size=x", b"", "page_size"),
        ("GET", "/kala/v1/inference/backends", b"{}", "body"),
    ],
)  # fmt: skip
async def test_malformed_calls_are_400_and_logged(
    suite: Suite, method: str, path: str, body: bytes, says: str
) -> None:
    response = await suite.http.request(method, path, content=body, headers=suite.bearer())
    assert response.status_code == 400, response.text
    assert says in response.json()["error"]["message"]
    assert (await suite.leaves())[-1]["type"] == "rpc.invalid"


async def test_a_reader_of_the_log_stays_in_its_tenant(suite: Suite) -> None:
    await suite.chat()
    index = suite.first_leaf + 1
    stranger = suite.bearer(suite.new_key("audit.read", "chat", tenant="other"))
    assert (await suite.get(f"/kala/v1/audit/entries/{index}")).status_code == 200
    assert (await suite.http.get(f"/kala/v1/audit/entries/{index}", headers=stranger)).status_code == 404
    receipt = f"rcpt_{(await suite.leaves(kind='chat.outcome'))[0]['idempotency_key']}"
    assert (await suite.http.get(f"/kala/v1/audit/receipts/{receipt}", headers=stranger)).status_code == 404
    other = await suite.http.get("/kala/v1/audit/entries?filter.tenant=default", headers=stranger)
    assert other.status_code == 403


async def test_openapi_describes_every_route_with_its_comment_and_scope(suite: Suite) -> None:
    document = (await suite.http.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    operation = document["paths"]["/kala/v1/audit/entries/{entries_id}"]["get"]
    assert operation["x-kala-scope"] == "audit_read"
    assert operation["summary"] == "Returns one entry's leaf with its proof."
    chat = document["paths"]["/kala/v1/inference/chat"]["post"]
    assert chat["x-kala-guarded"] is True
    reference = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert reference.endswith("kala.inference.v1.ChatAction")
    assert "kala.common.v1.Clearance" not in document["components"]["schemas"]
    assert "/v1/chat/completions" in document["paths"]
    scopes = {
        operation.get("x-kala-scope") for path in document["paths"].values() for operation in path.values()
    }
    assert "internal" not in scopes


@pytest.mark.parametrize("path", ["/kala/v1/inference/chat", "/kala/v1/inference/embed"])
async def test_a_guarded_call_fails_closed_without_ethics(suite: Suite, path: str) -> None:
    suite.ethics.is_down = True
    body = ACTION if path.endswith("chat") else {"inputs": ["a"]}
    response = await suite.post(path, body)
    assert (response.status_code, response.json()["error"]["status"]) == (503, "UNAVAILABLE")
    assert response.json()["error"]["details"][0]["reason"] == "ETHICS_UNAVAILABLE"
    assert (await suite.receipt(response.headers["x-kala-receipt"])).value["result"]["status"] == "error"


async def test_a_guarded_call_whose_output_cannot_be_checked_does_not_answer(suite: Suite) -> None:
    suite.ethics.dies_after_chunks = 1
    response = await suite.post("/kala/v1/inference/chat", ACTION)
    assert response.status_code == 503
    assert REPLY not in response.text
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert (outcome["result"]["status"], outcome["result"]["code"]) == ("error", "ETHICS_UNAVAILABLE")


async def test_a_guarded_call_that_fails_is_logged_with_its_reason(suite: Suite) -> None:
    suite.inference.script = lambda _: [NotFoundError("no such model", reason="MODEL_NOT_FOUND")]
    response = await suite.post("/kala/v1/inference/chat", ACTION)
    assert (response.status_code, response.json()["error"]["status"]) == (404, "NOT_FOUND")
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert outcome["result"]["code"] == "MODEL_NOT_FOUND"


async def test_a_guarded_call_with_an_expired_clearance_is_judged_again(suite: Suite) -> None:
    suite.ethics.clearance_age_seconds = [300]
    assert (await suite.post("/kala/v1/inference/chat", ACTION)).status_code == 200
    assert len(suite.ethics.actions) == 2


async def test_a_client_that_leaves_a_guarded_call_stops_it(suite: Suite) -> None:
    suite.inference.script = lambda _: [asyncio.Event()]
    task = asyncio.ensure_future(suite.post("/kala/v1/inference/chat", ACTION))
    await suite.inference.began.wait()
    task.cancel()
    await asyncio.wait_for(suite.inference.cancelled.wait(), 1.0)
    (outcome,) = await eventually(lambda: suite.leaves(kind="chat.outcome"))
    assert outcome["result"]["status"] == "cancelled"


COUNT = "/kala/v1/inference/tokens:count"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", COUNT),
        ("GET", "/kala/v1/inference/models"),
        ("POST", "/kala/v1/inference/models:pull"),
        ("GET", "/kala/v1/audit/checkpoint:watch"),
        ("POST", "/kala/v1/inference/embed"),
    ],
)
async def test_every_call_of_a_service_waits_for_the_same_room_as_chats(
    tmp_path: Path, method: str, path: str
) -> None:
    # Once calls that are no acts ran outside the bound: one key could count tokens without end.
    async with running_suite(tmp_path, max_concurrent_requests=1) as suite:
        gate = asyncio.Event()
        suite.inference.script = lambda _: [gate]
        chat = asyncio.ensure_future(suite.chat())
        await suite.inference.began.wait()
        response = await suite.http.request(method, path, headers=suite.bearer())
        error = response.json()["error"]
        assert (response.status_code, error["status"]) == (429, "RESOURCE_EXHAUSTED")
        assert error["message"] == "too many requests are running; try again in a second"
        assert response.headers["retry-after"] == "1"
        gate.set()
        await chat


async def test_a_key_can_be_revoked_while_there_is_no_room(tmp_path: Path) -> None:
    async with running_suite(tmp_path, max_concurrent_requests=1) as suite:
        suite.inference.count_waits = asyncio.Event()
        count = asyncio.ensure_future(suite.post(COUNT, {}))
        await suite.inference.began.wait()
        assert (await suite.chat()).status_code == 429
        (key,) = (await suite.get("/kala/v1/gateway/keys")).json()["keys"]
        assert (await suite.post(f"/kala/v1/gateway/{key['name']}:revoke", {})).status_code == 200
        suite.inference.count_waits.set()
        assert (await count).status_code == 200


async def test_a_client_that_leaves_a_call_stops_it_and_frees_its_place(tmp_path: Path) -> None:
    # Once such a call ran on to its end for nobody.
    async with running_suite(tmp_path, max_concurrent_requests=1) as suite:
        suite.inference.count_waits = asyncio.Event()
        count = asyncio.ensure_future(suite.post(COUNT, {}))
        await suite.inference.began.wait()
        count.cancel()
        await asyncio.wait_for(suite.inference.cancelled.wait(), 1.0)

        async def has_room() -> bool:
            return (await suite.get("/kala/v1/inference/models")).status_code == 200

        await eventually(has_room)


async def test_a_stream_that_fails_says_so_at_its_end(suite: Suite) -> None:
    early = await suite.post("/kala/v1/inference/models:pull", {"source": "fail early"})
    assert (early.status_code, early.json()["error"]["status"]) == (503, "UNAVAILABLE")
    lines = await suite.post("/kala/v1/inference/models:pull", {"source": "fail late"})
    assert lines.status_code == 200
    assert json.loads(lines.text.splitlines()[-1])["error"]["code"] == 503
    accept = {"accept": "text/event-stream"}
    events = await suite.post("/kala/v1/inference/models:pull", {"source": "fail late"}, headers=accept)
    assert "event: error\ndata: {" in events.text
    empty = await suite.post("/kala/v1/inference/models:pull", {"source": "nothing"})
    assert (empty.status_code, empty.text) == (200, "")


async def test_the_content_of_another_tenant_cannot_be_read(suite: Suite) -> None:
    await suite.chat()
    path = f"/kala/v1/audit/entries/{suite.first_leaf}/payloads/request:read"
    body = {"reason": "a test of tenancy"}
    stranger = suite.bearer(suite.new_key("audit.read", tenant="other"))
    assert (await suite.http.post(path, json=body, headers=stranger)).status_code == 404
    assert (await suite.post(path, body)).status_code in {200, 501}
    mine = suite.bearer(suite.new_key("audit.read"))
    assert (await suite.http.get("/kala/v1/audit/entries", headers=mine)).status_code in {200, 501}


async def test_a_bug_is_500_without_its_words(suite: Suite) -> None:
    def broken(_action: object) -> list[Step]:
        raise RuntimeError("secret detail")

    suite.inference.script = broken
    response = await suite.post("/kala/v1/inference/chat", ACTION)
    assert response.status_code == 500
    assert "secret detail" not in response.text

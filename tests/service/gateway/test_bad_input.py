"""Bad input: each has a clear OpenAI-shaped error that names the field, and an audit record."""

from __future__ import annotations

import asyncio
import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from openai.types.shared import ErrorObject

from gateway.key_store import KeyStore
from gateway.keys import hash_secret, make_key, scope_numbers
from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.fakes.gateway_suite import Suite, running_suite
from tests.fakes.images import data_uri, png

MESSAGES = [{"role": "user", "content": "Hi"}]

pytestmark = pytest.mark.asyncio(loop_scope="session")


def error_of(response: httpx.Response) -> ErrorObject:
    """Read the error as openai-python does."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    return ErrorObject.model_validate(response.json()["error"], strict=True)


async def send(suite: Suite, body: bytes, **headers: str) -> httpx.Response:
    return await suite.http.post(
        "/v1/chat/completions",
        content=body,
        headers=suite.bearer() | {"content-type": "application/json"} | headers,
    )


@pytest.mark.parametrize(
    ("body", "param", "code", "says"),
    [
        (b'{"model": "auto", ', "body", "invalid_json", "line 1"),
        (b"", "body", "invalid_json", "not valid JSON"),
        (b"[1, 2]", "body", "invalid_json", "JSON object"),
        (b'{"messages": "\xff"}', "body", "invalid_utf8", "UTF-8 at byte 14"),
        (b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}', "messages[0].content", "nul_character", "NUL"),
        (b'{"messages": [{"role": "user", "content": "a\x00b"}]}', "body", "invalid_json", "control character"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages[0].content", "lone_surrogate", "surrogate"),
        (b'{"messages": [], "messages": []}', "messages", "duplicate_key", "twice"),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, "body", "too_deep", "64 levels"),
        (b'{"messages": [], "seed": ' + b"9" * 5000 + b"}", "body", "invalid_number", "64 characters"),
        (b'{"messages": [], "temperature": 1e999}', "body", "invalid_number", "number"),
        (b'{"messages": [], "temperature": NaN}', "body", "invalid_json", "NaN"),
    ],
)  # fmt: skip
async def test_malformed_json_is_explained_and_logged(
    suite: Suite, body: bytes, param: str, code: str, says: str
) -> None:
    response = await send(suite, body)
    error = error_of(response)
    assert response.status_code == 400
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert says in error.message
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert leaf.value["type"] == "chat.invalid"
    assert leaf.value["result"]["code"] == code.upper()
    assert suite.ethics.actions == []


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "Hi"}, "messages", "must be a list, not a string"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string or a list"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role", "'developer'"),
        ({"messages": [{"role": "user", "content": "x"}] * 10_001}, "messages", "at most 10000 entries"),
        ({"model": 5}, "model", "must be a string"),
        ({"max_tokens": -1}, "max_tokens", "at least 1"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "only one"),
        ({"temperature": 2.5}, "temperature", "at most 2"),
        ({"temperature": "0.5"}, "temperature", "must be a number, not a string"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name", "64 characters"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice.function.name", "not among"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
            "messages[0].content[0].image_url.url",
            "data URI",
        ),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named_with_its_limit(
    suite: Suite, fields: dict[str, Any], param: str, says: str
) -> None:
    response = await send(suite, json.dumps({"model": "auto", "messages": MESSAGES} | fields).encode())
    error = error_of(response)
    assert (response.status_code, error.param) == (400, param)
    assert says in error.message
    assert (await suite.leaves())[-1]["type"] == "chat.invalid"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"web_search_options": {"x": 1}}, "web_search_options", "unsupported_parameter"),
        ({"made_up": 1}, "made_up", "unknown_parameter"),
    ],
)
async def test_a_parameter_that_cannot_be_honoured_is_refused_by_name(
    suite: Suite, fields: dict[str, Any], param: str, code: str
) -> None:
    response = await suite.chat(**fields)
    error = error_of(response)
    assert (response.status_code, error.param, error.code) == (400, param, code)
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert (leaf.value["type"], leaf.value["result"]["code"]) == ("chat.invalid", code.upper())


async def test_what_openai_clients_send_is_accepted(suite: Suite) -> None:
    response = await suite.chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ann"},
            {"role": "assistant", "content": None, "refusal": None, "audio": None, "function_call": None,
             "annotations": [], "tool_calls": [
                 {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
        store=False, metadata={"a": "b"}, user="u-1", n=1, service_tier="auto", logit_bias={}, seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        tools=[{"type": "function", "function": {"name": "f"}}], parallel_tool_calls=False,
        reasoning_effort="low", stop=["a", "b"], frequency_penalty=None,
    )  # fmt: skip
    assert response.status_code == 200, response.text
    assert suite.ethics.actions[0].after_untrusted_content


async def test_ten_thousand_messages_are_answered(suite: Suite) -> None:
    response = await suite.chat(messages=[{"role": "user", "content": "x"}] * 10_000)
    assert response.status_code == 200
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert (leaf.value["type"], leaf.value["result"]["status"]) == ("chat.outcome", "ok")


@pytest.mark.parametrize("declares_length", [True, False])
async def test_an_oversize_body_is_413_and_logged(suite: Suite, *, declares_length: bool) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 5_000_000}]}).encode()

    async def parts() -> Any:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    response = await suite.http.post(
        "/v1/chat/completions", content=body if declares_length else parts(), headers=suite.bearer()
    )
    error = error_of(response)
    assert (response.status_code, error.code) == (413, "request_too_large")
    assert "4194304 bytes" in error.message
    assert (await suite.leaves())[-1]["type"] == "chat.invalid"


async def test_a_large_body_is_accepted_for_its_images_only(suite: Suite) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(png(padding=4_000_000))}}
    with_image = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    assert (await suite.chat(messages=with_image)).status_code == 200
    mentions = [{"role": "user", "content": '"image_url"' + "A" * 5_000_000}]
    assert (await suite.chat(messages=mentions)).status_code == 413


async def test_a_missing_key_is_401_and_logged(suite: Suite) -> None:
    response = await suite.http.post("/v1/chat/completions", json={"messages": MESSAGES})
    error = error_of(response)
    assert (response.status_code, error.code) == (401, "invalid_api_key")
    assert "Authorization: Bearer" in error.message
    assert response.headers["www-authenticate"] == "Bearer"
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert (leaf.value["type"], leaf.value["tenant"]) == ("rpc.denied", "anonymous")


def stored_key(suite: Suite, *, ttl: timedelta | None, revoked: bool) -> str:
    now = datetime.now(UTC)
    made = make_key(
        display_name="old", scopes=scope_numbers(["chat"]), ttl=ttl, now=now - timedelta(days=1),
        randomness=secrets.token_bytes,
    )  # fmt: skip
    store = KeyStore(suite.settings.database)
    digest = hash_secret(made.secret)
    assert digest is not None
    store.insert(made.key, digest)
    if revoked:
        store.revoke(made.id, now)
    store.close()
    return made.secret


@pytest.mark.parametrize(
    ("ttl", "revoked", "says"),
    [(timedelta(hours=1), False, "expired on"), (None, True, "was revoked")],
    ids=["expired", "revoked"],
)
async def test_an_ended_key_is_401_and_says_how_it_ended(
    suite: Suite, ttl: timedelta | None, revoked: bool, says: str
) -> None:
    key = stored_key(suite, ttl=ttl, revoked=revoked)
    response = await suite.http.post(
        "/v1/chat/completions", json={"messages": MESSAGES}, headers=suite.bearer(key)
    )
    error = error_of(response)
    assert (response.status_code, error.code) == (401, "invalid_api_key")
    assert says in error.message
    assert key not in response.text
    assert (await suite.leaves())[-1]["type"] == "rpc.denied"


@pytest.mark.parametrize("header", ["Bearer nonsense", "Basic dTpw", "Bearer kala_" + "x" * 43])
async def test_an_unknown_key_is_401(suite: Suite, header: str) -> None:
    response = await suite.http.post(
        "/v1/chat/completions", json={"messages": MESSAGES}, headers={"authorization": header}
    )
    assert (response.status_code, error_of(response).code) == (401, "invalid_api_key")
    assert (await suite.receipt(response.headers["x-kala-receipt"])).value["type"] == "rpc.denied"


async def test_a_key_without_the_scope_is_403_and_logged_with_its_pseudonym(suite: Suite) -> None:
    key = suite.new_key("audit.read")
    response = await suite.http.post(
        "/v1/chat/completions", json={"messages": MESSAGES}, headers=suite.bearer(key)
    )
    error = error_of(response)
    assert (response.status_code, error.code) == (403, "insufficient_permissions")
    assert "'chat'" in error.message
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert leaf.value["type"] == "rpc.denied"
    assert leaf.value["actor"] is not None


@pytest.mark.parametrize(
    ("raised", "status", "code", "param"),
    [
        (NotFoundError("model 'x' is not known", reason="MODEL_NOT_FOUND"), 404, "model_not_found", "model"),
        # Once every NOT_FOUND was told as a missing model.
        (NotFoundError("adapters/tone@1 is not loaded; load it with LoadAdapter", reason="ADAPTER_NOT_LOADED"), 404,
         "adapter_not_loaded", None),
        (InvalidArgumentError("messages", "are too long", reason="CONTEXT_LENGTH_EXCEEDED"), 400,
         "context_length_exceeded", "messages"),
        (FailedPreconditionError("not loaded", reason="NO_MODEL_LOADED"), 400, "no_model_loaded", None),
        (ResourceExhaustedError("busy", retry_after_seconds=2), 429, "rate_limit_exceeded", None),
        (UnavailableError("cut", reason="BACKEND_FAILED_MID_STREAM"), 503, "backend_failed_mid_stream", None),
    ],
)  # fmt: skip
async def test_what_inference_refuses_is_told_apart_and_logged(
    suite: Suite, raised: KalaError, status: int, code: str, param: str | None
) -> None:
    suite.inference.script = lambda _: [raised]
    response = await suite.chat(model="x")
    error = error_of(response)
    assert (response.status_code, error.code, error.param) == (status, code, param)
    leaf = await suite.receipt(response.headers["x-kala-receipt"])
    assert leaf.value["result"]["status"] == "error"
    if status == 429:
        assert response.headers["retry-after"] == "2"


async def test_an_unknown_provider_is_named(suite: Suite) -> None:
    response = await suite.post(
        "/v1/chat/completions", {"messages": MESSAGES}, headers={"x-kala-provider": "nobody"}
    )
    assert (response.status_code, error_of(response).param) == (400, "x-kala-provider")
    assert (await suite.receipt(response.headers["x-kala-receipt"])).value["type"] == "chat.invalid"


async def test_unknown_paths_and_methods_have_the_same_shape(suite: Suite) -> None:
    unknown = await suite.get("/v1/nothing")
    assert (unknown.status_code, error_of(unknown).code) == (404, "not_found")
    wrong = await suite.get("/v1/chat/completions")
    assert (wrong.status_code, error_of(wrong).code) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_more_requests_than_there_is_room_for_are_429(tmp_path: Any) -> None:
    async with running_suite(tmp_path, max_concurrent_requests=1) as suite:
        gate = asyncio.Event()
        suite.inference.script = lambda _: [gate]
        first = asyncio.ensure_future(suite.chat())
        await suite.inference.began.wait()
        second = await suite.chat()
        assert (second.status_code, error_of(second).code) == (429, "rate_limit_exceeded")
        gate.set()
        await first

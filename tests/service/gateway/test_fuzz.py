"""Hostile bodies, paths and verbs on every endpoint: each is answered in its shape, and none is a bug or a way in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.gateway_suite import Suite
from tests.fakes.openapi_document import operations_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

FUZZED = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)  # fmt: skip
MAX_DEPTH = 8
DECLARED = {501, 503, 504}

NUMBERS = [
    "1e999",
    "-1e999",
    "9" * 63,
    "9" * 65,
    "-" + "9" * 400,
    "1" + "0" * 30,
    "0.1e-400",
    "NaN",
    "-Infinity",
    "01",
]
STRINGS = [
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\u0000"',
    '"\x00"',
    '"' + "x" * 70_000 + '"',
    '"\\x41"',
    '"\u202e\ufeff"',
]
KEYS = [
    "model", "messages", "input", "prompt", "query", "documents", "role", "content", "stream", "tools", "name",
    "sealed", "clearance", "inputs", "__proto__", "constructor", "", "\\u0000", "model\\u0000", "\\ud800",
]  # fmt: skip

scalars = st.one_of(
    st.sampled_from(NUMBERS + STRINGS),
    st.sampled_from(["null", "true", "false", "{}", "[]", '"auto"', '"user"', '"Hi"', "1", "-1"]),
    st.text(max_size=20).map(json.dumps),
)


def _joined(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"


# Pairs, not a mapping: the same key may come twice.
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]"),
        st.lists(st.tuples(st.sampled_from(KEYS), inner), max_size=5).map(_joined),
    ),
    max_leaves=12,
)
nested = st.tuples(st.sampled_from(["[", '{"messages":']), st.integers(60, 3000)).map(
    lambda given: given[0] * given[1] + "1" + {"[": "]", '{"messages":': "}"}[given[0]] * given[1]
)
bodies = st.one_of(
    st.lists(st.tuples(st.sampled_from(KEYS), values), max_size=6)
    .map(_joined)
    .map(lambda text: text.encode("utf-8", "surrogatepass")),
    nested.map(lambda text: b'{"model":' + text.encode() + b"}"),
    st.binary(max_size=200),
    values.map(lambda text: text.encode("utf-8", "surrogatepass")[:-1]),
)
posts = st.sampled_from([
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/moderations", "/v1/responses",
    "/v1/batches", "/v1/files", "/v1/fine_tuning/jobs", "/api/test-lmstudio",
    "/kala/v1/inference/chat", "/kala/v1/inference/embed", "/kala/v1/inference/tokens:count",
    "/kala/v1/tools/execute", "/kala/v1/gateway/keys", "/kala/v1/gateway/sessions", "/kala/v1/gateway/subjects:name",
    "/kala/v1/audit/entries:export", "/kala/v1/ethics/decisions:replay", "/kala/v1/ethics/score",
])  # fmt: skip


@FUZZED
@given(path=posts, body=bodies)
async def test_a_hostile_body_is_answered_in_its_shape(suite: Suite, path: str, body: bytes) -> None:
    headers = suite.bearer() | {"content-type": "application/json"}
    response = await suite.http.post(path, content=body, headers=headers)
    assert response.status_code < 500 or response.status_code in DECLARED, response.text
    if response.status_code >= 400:
        require_shape(path, response.json())


def require_shape(path: str, answer: Any) -> None:
    """Require an error as the clients of this path read it."""
    error = answer["error"]
    if path.startswith("/kala/"):
        assert {"code", "message", "status", "details"} <= set(error)
    else:
        assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]


JUNK: tuple[Any, ...] = ([],)
"""What is no text, number or object, and cannot be looked up in a set."""

SEGMENTS = [
    "v1", "kala", "chat", "completions", "models", "responses", "files", "gateway", "keys", "audit", "entries", "log",
    "tools", "workspaces", "tile", "checkpoint", "healthz", "openapi.json", "metrics", "..", ".", "", "%2e%2e", "%2E.",
    "..%2f", "%2f", "%5c..", "%00", "%0a", "%0d%0ax: y", "%zz", "%", "%ff", "%c0%ae", "a;b", "a:b", ":revoke", "*", "é",
    "\\", "etc", "passwd", "%25%32%65", "?", "#", "x" * 3000,
]  # fmt: skip
PUBLIC = {"/healthz", "/readyz", "/metrics", "/openapi.json"}
VERBS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "get", "X"]


async def raw(suite: Suite, verb: str, target: str, *headers: str) -> tuple[int, bytes]:
    """Send one request as it is written, which no client library does, and give status and body; 0 for no answer."""
    host, port = suite.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        lines = [
            f"{verb} {target} HTTP/1.1",
            f"host: {host}",
            "connection: close",
            "content-length: 0",
            *headers,
        ]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogatepass"))
        async with asyncio.timeout(20):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if head else 0), body


@FUZZED
@given(
    verb=st.sampled_from(VERBS),
    segments=st.lists(st.sampled_from(SEGMENTS), max_size=7),
    slashes=st.sampled_from(["/", "//", "/./"]),
)
async def test_no_trick_with_a_path_opens_what_needs_a_key(
    suite: Suite, verb: str, segments: list[str], slashes: str
) -> None:
    target = "/" + slashes.join(segments)
    status, body = await raw(suite, verb, target)
    assert 400 <= status < 500 or target.partition("?")[0].partition("#")[0] in PUBLIC, (status, body[:300])


@FUZZED
@given(verb=st.sampled_from(VERBS), segments=st.lists(st.sampled_from(SEGMENTS), max_size=7))
async def test_no_path_is_a_bug_for_who_has_a_key(suite: Suite, verb: str, segments: list[str]) -> None:
    status, body = await raw(suite, verb, "/" + "/".join(segments), f"authorization: Bearer {suite.key}")
    assert 200 <= status < 500 or status in DECLARED, (status, body[:300])


async def test_a_resource_name_cannot_climb_to_another_resource(suite: Suite) -> None:
    for path in (
        "/kala/v1/inference/backends/..%2fmodels",
        "/kala/v1/inference/backends/../models",
        "/kala/v1/audit/entries/5%2fpayloads%2frequest",
        "/kala/v1/gateway/keys/x%3arevoke",
        "/kala/v1/audit/log/..%2f..%2fgateway%2fkeys",
        "/kala//v1/gateway/keys",
        "/v1/models/..%2f..%2fkala%2fv1%2fgateway%2fkeys",
    ):
        status, body = await raw(suite, "GET", path, f"authorization: Bearer {suite.key}")
        assert status in {400, 404, 405}, (path, status, body[:200])


async def test_a_verb_that_a_path_lacks_is_405_and_says_which_it_has(suite: Suite) -> None:
    document = (await suite.get("/openapi.json")).json()
    wrong = []
    for path, item in document["paths"].items():
        has = {verb.upper() for verb in item}
        target = path.replace("{", "").replace("}", "")
        for verb in {"GET", "POST", "PUT", "PATCH", "DELETE"} - has:
            response = await suite.http.request(verb, target, headers=suite.bearer())
            allowed = set(response.headers.get("allow", "").split(", "))
            if response.status_code != 405 or not has <= allowed or verb in allowed:
                wrong.append((verb, path, response.status_code, sorted(allowed)))
            else:
                require_shape(path, response.json())
    assert wrong == []


async def test_a_value_of_a_wrong_type_anywhere_is_the_clients_mistake(suite: Suite) -> None:
    document = (await suite.get("/openapi.json")).json()
    bugs = []
    for verb, path, operation in operations_of(document):
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if verb != "POST" or body is None or path.startswith("/kala/"):
            continue
        wholes = [whole_of(document, body["schema"], choice) for choice in (0, -1)]
        # As it is spelt in the document, with one value of another type.
        for wrong in {
            json.dumps(replaced(whole, place, junk))
            for whole in wholes
            for place in places_in(whole)
            for junk in JUNK
        }:
            response = await suite.http.post(path, content=wrong, headers=suite.bearer())
            if response.status_code >= 500 and response.status_code not in DECLARED:
                bugs.append((path, wrong, response.text))
    assert bugs == []


SIMPLE = {"integer": 1, "number": 0.5, "boolean": False}


def whole_of(document: Any, schema: Any, choice: int, depth: int = 0) -> Any:
    """A value with every field that a schema knows, optional ones too; of alternatives the first or the last."""
    if "$ref" in schema:
        named = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return whole_of(document, named, choice, depth)
    choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if choices:
        some = [each for each in choices if each.get("type") != "null"]
        return whole_of(document, some[choice], choice, depth)
    if schema.get("type") == "object" and depth < MAX_DEPTH:
        fields = schema.get("properties", {}).items()
        return {name: whole_of(document, each, choice, depth + 1) for name, each in fields}
    if schema.get("type") == "array" and depth < MAX_DEPTH:
        return [whole_of(document, schema.get("items", {}), choice, depth + 1)]
    known = schema.get("const") or schema.get("enum", [None])[0]
    return known or schema.get("minimum") or SIMPLE.get(schema.get("type"), "auto")


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place below a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*place, key)
        yield from places_in(each, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], junk: Any) -> Any:
    """A copy with something else at one place."""
    if not place:
        return junk
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(value[place[0]], place[1:], junk)
    return copy

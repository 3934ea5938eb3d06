"""Reading the log through the gateway: exports, live feeds and content over REST, within one tenant, each an entry."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kala.audit.checkpoint import open_checkpoint
from kala.audit.export import manifest_path, verify_export
from tests.fakes.gateway_suite import Suite, signer

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXPORT = "/kala/v1/audit/entries:export"
WATCH = "/kala/v1/audit/entries:watch"
CHECKPOINTS = "/kala/v1/audit/checkpoint:watch"


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def feed(suite: Suite, path: str, headers: dict[str, str]) -> AsyncIterator[AsyncIterator[Any]]:
    """The messages of a stream, one line each, as long as the context is entered."""
    async with asyncio.timeout(20), suite.http.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        yield (json.loads(line) async for line in response.aiter_lines())


async def test_an_export_over_rest_is_verified_offline(suite: Suite, tmp_path: Path) -> None:
    await suite.chat()
    key = suite.bearer(suite.new_key("audit.read"))
    response = await suite.http.post(EXPORT, json={"filter": {"types": ["chat.outcome"]}}, headers=key)
    assert response.status_code == 200, response.text
    *parts, last = lines_of(response.text)
    data = tmp_path / "export.jsonl"
    data.write_bytes(b"".join(base64.b64decode(part["data"]) for part in parts))
    manifest_path(data).write_bytes(base64.b64decode(last["manifest"]))
    report = verify_export(data, [signer().verifier])
    assert report.manifest.count >= 1
    assert report.manifest.filter == {"tenant": "default", "types": ["chat.outcome"]}
    (leaf,) = await suite.leaves(kind="audit.export")
    assert (leaf["tenant"], dict(leaf["attributes"])["filter.tenant"]) == ("default", "default")
    assert leaf["actor"]


async def test_an_export_and_a_feed_stay_in_the_tenant(suite: Suite) -> None:
    await suite.chat()
    stranger = suite.bearer(suite.new_key("audit.read", tenant="other"))
    response = await suite.http.post(EXPORT, json={}, headers=stranger)
    parts = lines_of(response.text)
    exported = b"".join(base64.b64decode(part["data"]) for part in parts[:-1])
    assert {json.loads(line)["tenant"] for line in exported.splitlines()} <= {"other"}
    for call in (
        suite.http.post(EXPORT, json={"filter": {"tenant": "default"}}, headers=stranger),
        suite.http.get(f"{WATCH}?filter.tenant=default", headers=stranger),
    ):
        assert (await call).status_code == 403
    async with feed(suite, f"{WATCH}?from_index=0", stranger) as entries:
        await suite.chat()
        other = suite.bearer(suite.new_key("chat", tenant="other"))
        body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}
        assert (await suite.http.post("/v1/chat/completions", json=body, headers=other)).status_code == 200
        async for entry in entries:
            leaf = json.loads(base64.b64decode(entry["entry"]["leaf"]))
            assert leaf["tenant"] == "other"
            if leaf["type"] == "chat.outcome":
                break


async def test_a_reader_needs_the_scope(suite: Suite) -> None:
    chatter = suite.bearer(suite.new_key("chat"))
    assert (await suite.http.post(EXPORT, json={}, headers=chatter)).status_code == 403
    assert (await suite.http.get(WATCH, headers=chatter)).status_code == 403
    assert not await suite.leaves(kind="audit.export")


async def test_a_live_feed_begins_before_its_first_entry(suite: Suite) -> None:
    key = suite.bearer(suite.new_key("audit.read"))
    wanted = "filter.types=chat.outcome"
    headers = {**key, "accept": "text/event-stream"}
    # Entering returns with the headers, though nothing is logged yet that the filter lets through.
    async with asyncio.timeout(20), suite.http.stream("GET", f"{WATCH}?{wanted}", headers=headers) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"] == "text/event-stream"
        await suite.chat()
        async for line in stream.aiter_lines():
            if line:
                leaf = json.loads(base64.b64decode(json.loads(line.removeprefix("data: "))["entry"]["leaf"]))
                assert leaf["type"] == "chat.outcome"
                break


async def test_a_watch_that_is_refused_says_so_in_its_status(suite: Suite) -> None:
    response = await suite.get(f"{WATCH}?from_index=999999999")
    assert response.status_code == 400
    assert "from_index" in response.json()["error"]["message"]


async def test_new_checkpoints_are_public(suite: Suite) -> None:
    async with feed(suite, CHECKPOINTS, suite.bearer(suite.new_key("chat"))) as notes:
        sizes = []
        async for note in notes:
            sizes.append(open_checkpoint(note["checkpoint"], [signer().verifier]).size)
            if len(sizes) == 2:
                break
            await suite.chat()
    assert sizes[0] < sizes[1]
    assert {leaf["type"] for leaf in await suite.leaves()} == {"chat.intent", "chat.outcome"}


async def test_content_is_read_for_a_reason_and_leaves_one_entry(suite: Suite) -> None:
    await suite.chat()
    auditor = suite.bearer(suite.new_key("audit.read"))
    path = f"/kala/v1/audit/entries/{suite.first_leaf}/payloads/request:read"
    refused = await suite.http.post(path, json={"reason": "why not"}, headers=auditor)
    assert refused.status_code == 400
    response = await suite.http.post(path, json={"reason": "a complaint, ticket 4711"}, headers=auditor)
    assert response.status_code == 200, response.text
    assert base64.b64decode(response.json()["data"])
    (leaf,) = [leaf for leaf in await suite.leaves() if leaf["type"].startswith("audit.")]
    assert (leaf["type"], leaf["tenant"]) == ("audit.payload_read", "default")
    assert dict(leaf["attributes"])["reason"] == "a complaint, ticket 4711"

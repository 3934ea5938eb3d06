"""Three gateways on one PostgreSQL share a batch; the one that works on it is killed, and no line is lost or doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kala.inference.v1 import inference_pb2
from tests.fakes.gateway_suite import Suite, eventually, running_suite
from tests.fakes.scripted_inference import Step, saying

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]

LINES = 40
REPLICAS = 3
PAUSE_SECONDS = 0.05
"""Of each answer, so that the kill comes in the middle."""

SHARED = ("ethics_address", "inference_address", "audit_address", "database", "pepper_file", "store_key_file")


async def test_a_killed_replicas_batch_is_ended_by_another_without_a_lost_or_doubled_line(
    tmp_path: Path, postgres_url: str
) -> None:
    async with running_suite(tmp_path, database=postgres_url, batch_concurrency=0) as suite:
        suite.inference.script = _script
        async with _replicas(suite) as replicas:
            batch = await _create(suite)
            await eventually(lambda: _done(suite, batch, LINES // 4), seconds=60)
            holder = await _holder(suite)
            replicas[holder].kill()
            replicas[holder].wait()
            ended = await eventually(lambda: _ended(suite, batch), seconds=60)
            assert await _holder(suite) != holder
    assert ended is not None
    assert (ended["status"], ended["request_counts"]) == (
        "completed",
        {"total": LINES, "completed": LINES, "failed": 0},
    )
    lines = ended["lines"]
    said = [(line["custom_id"], _text(line)) for line in lines]
    assert said == [(f"r{number}", f"to {number}") for number in range(LINES)]
    # What was in the killed replica's hands was asked once more; everything else once.
    assert LINES <= len(suite.inference.chats) <= LINES + 2


def _script(action: inference_pb2.ChatAction) -> list[Step]:
    return [PAUSE_SECONDS, *saying(f"to {action.messages[-1].content[0].text}")]


@asynccontextmanager
async def _replicas(suite: Suite) -> AsyncIterator[dict[str, subprocess.Popen[bytes]]]:
    """Gateways as processes of their own, by their names in the log; ready when they come."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for number in range(REPLICAS):
            name = f"replica-{number}"
            started[name] = _start(suite, name)
        for name in started:
            await eventually(lambda name=name: _listens(suite, name), seconds=60)  # type: ignore[misc]
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def _start(suite: Suite, name: str) -> subprocess.Popen[bytes]:
    own = suite.directory / name
    own.mkdir()
    values = {
        **{field: getattr(suite.settings, field) for field in SHARED},
        "port": 0,
        "metrics_port": "off",
        "spool_dir": own / "spool",
        "spool_key_file": own / "spool.key",
        "url_file": own / "url",
        "producer_id": name,
        "batch_lease_seconds": 1,
        "batch_concurrency": 2,
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KALA_")}
    ours = {f"KALA_GATEWAY_{field.upper()}": str(value) for field, value in values.items()}
    with (own / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "gateway"],
            env={**kept, **ours},
            cwd=own,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


async def _listens(suite: Suite, name: str) -> bool:
    return (suite.directory / name / "url").exists()


async def _create(suite: Suite) -> dict[str, Any]:
    rows = b"".join(
        json.dumps(
            {
                "custom_id": f"r{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "auto", "messages": [{"role": "user", "content": str(number)}]},
            }
        ).encode()
        + b"\n"
        for number in range(LINES)
    )
    uploaded = await suite.http.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", rows)}, headers=suite.bearer()
    )
    body = {
        "input_file_id": uploaded.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    created = await suite.post("/v1/batches", body)
    assert created.status_code == 200, created.text
    return dict(created.json())


async def _done(suite: Suite, batch: dict[str, Any], count: int) -> bool:
    found = (await suite.get(f"/v1/batches/{batch['id']}")).json()
    return bool(found["request_counts"]["completed"] >= count)


async def _holder(suite: Suite) -> str:
    """Give who logged the newest answer: one replica works on a batch at a time."""
    leaves = await suite.leaves(kind="chat.outcome")
    return str(leaves[-1]["producer"]["id"])


async def _ended(suite: Suite, batch: dict[str, Any]) -> dict[str, Any] | None:
    found = dict((await suite.get(f"/v1/batches/{batch['id']}")).json())
    if found["status"] not in {"completed", "failed", "expired", "cancelled"}:
        return None
    text = (await suite.get(f"/v1/files/{found['output_file_id']}/content")).text
    return found | {"lines": [json.loads(line) for line in text.splitlines()]}


def _text(line: dict[str, Any]) -> str:
    return str(line["response"]["body"]["choices"][0]["message"]["content"])

"""How batches end for which something is missing: a scope, or room for their answers."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.batches import worker
from tests.fakes.gateway_suite import eventually, running_suite
from tests.service.gateway.test_batches import CHAT, chat, content, create, ended, rows, upload

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_one_line_without_its_scope_fails_alone(tmp_path: Path) -> None:
    async with running_suite(tmp_path, has_tools=True) as suite:
        key = suite.new_key("chat")
        data = rows(chat("one", kala_tools="auto"), chat("two"))
        body = {
            "input_file_id": await upload(suite, data, key),
            "endpoint": CHAT,
            "completion_window": "24h",
        }
        made = await suite.http.post("/v1/batches", json=body, headers=suite.bearer(key))
        done = await ended(suite, json.loads(made.text))
        assert (done["status"], done["request_counts"]["completed"]) == ("completed", 1)


async def test_answers_without_room_wait_for_it_and_are_let_go_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_PAUSE_SECONDS", 0.05)
    data = rows(chat("one"))
    filler = b"x" * 2000
    async with running_suite(tmp_path, file_quota_bytes=len(filler) + 2 * len(data) + 10) as suite:
        fill = await upload(suite, filler)
        batch = await create(suite, data)

        async def waits() -> bool:
            found = (await suite.get(f"/v1/batches/{batch['id']}")).json()
            return bool(found["status"] == "finalizing" and found["errors"])

        assert await eventually(waits)
        late = await create(suite, data)
        assert await eventually(waits)
        with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection:
            connection.execute("UPDATE batch SET expires_at = 1 WHERE id = ?", (batch["id"],))
            connection.commit()
        done = await ended(suite, batch)
        assert (done["status"], done["errors"]["data"][0]["code"]) == ("failed", "file_quota_exceeded")
        with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection:
            kept = connection.execute("SELECT batch_id FROM batch_line").fetchall()
        assert kept == [(late["id"],)]
        assert (await suite.http.delete(f"/v1/files/{fill}", headers=suite.bearer())).status_code == 200
        done = await ended(suite, late)
        assert done["status"] == "completed"
        assert len(await content(suite, done["output_file_id"])) == 1

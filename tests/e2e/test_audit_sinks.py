"""The real audit process with a sink and a live feed: killed at any moment, stopped while somebody watches."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from services.common.channel import open_channel
from tests.fakes.audit_log import is_url, record
from tests.fakes.audit_process import AuditProcess

pytestmark = pytest.mark.e2e

KILLS = 2
RECORDS = 40


def process_at(directory: Path, database: str, **environment: str) -> AuditProcess:
    url = database if is_url(database) else None
    return AuditProcess(directory / "audit", url=url, environment=environment)


def lines_of(path: Path) -> list[dict[str, Any]]:
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in whole.splitlines()]


async def test_a_sink_misses_nothing_however_often_the_service_is_killed(
    log_database: str, tmp_path: Path
) -> None:
    """Each life of the service feeds the sink some of the log before it is killed; repeats are allowed, holes are not."""
    path = tmp_path / "events.ocsf"
    sinks = {"siem": {"url": path.as_uri(), "format": "ocsf", "batch_entries": 7}}
    audit = process_at(tmp_path, log_database, KALA_AUDIT_SINKS=json.dumps(sinks))
    for life in range(KILLS + 1):
        audit.start()
        async with open_channel(audit.address, peer_name="gateway") as channel:
            stub = audit_pb2_grpc.AuditServiceStub(channel)
            records = [record(life * RECORDS + number) for number in range(RECORDS)]
            request = audit_pb2.AppendBatchRequest(records=records)
            response = await stub.AppendBatch(request, timeout=20, wait_for_ready=True)
        last = response.receipts[-1].index
        wanted = last + 1 if life == KILLS else len(lines_of(path)) + 1
        async with asyncio.timeout(30):
            while len(seen := lines_of(path)) < wanted or (  # noqa: ASYNC110 - a file tells nobody
                life == KILLS and seen[-1]["metadata"]["sequence"] < last
            ):
                await asyncio.sleep(0.02)
        if life < KILLS:
            audit.kill()
    assert audit.stop() == 0, audit.output()
    order = [event["metadata"]["sequence"] for event in lines_of(path)]
    assert sorted(set(order)) == list(range(max(order) + 1))
    # Whatever comes again comes right after the crash, in order: the first sight of each entry ascends.
    assert list(dict.fromkeys(order)) == sorted(set(order))


async def test_a_live_feed_does_not_hold_up_a_stop(log_database: str, tmp_path: Path) -> None:
    # A drain longer than the test waits for the process: whoever used it up would fail here.
    audit = process_at(tmp_path, log_database, KALA_AUDIT_DRAIN_SECONDS="600")
    audit.start()
    async with open_channel(audit.address, peer_name="gateway") as channel:
        stub = audit_pb2_grpc.AuditReadServiceStub(channel)
        streams = [
            stub.WatchEntries(audit_pb2.WatchEntriesRequest(from_index=0), wait_for_ready=True),
            stub.WatchCheckpoints(audit_pb2.WatchCheckpointsRequest(), wait_for_ready=True),
        ]
        for stream in streams:
            await anext(aiter(stream))
        assert await asyncio.to_thread(audit.stop) == 0, audit.output()

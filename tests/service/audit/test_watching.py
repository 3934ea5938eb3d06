"""Watching the log over gRPC from either database: every entry once and in order, whichever replica appended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from kala.audit.checkpoint import open_checkpoint
from kala.audit.v1 import audit_pb2
from kala.common.v1 import clearance_pb2
from kala.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError
from services.audit.reading import watching
from services.common.channel import open_channel
from services.common.principals import principal_metadata
from services.common.status import translated
from tests.fakes.audit_log import LogFile, is_url, record
from tests.fakes.audit_server import ServedLog, served_log

SOMEONE = principal_metadata(clearance_pb2.Principal(id="keys/a", tenant="ours", subject=f"{1:064x}"))
ANOTHER = principal_metadata(clearance_pb2.Principal(id="keys/b", tenant="ours", subject=f"{2:064x}"))


@pytest.fixture
async def served(log_database: str) -> AsyncIterator[ServedLog]:
    async with served_log(log_database) as log:
        log.file.append(*(record(number) for number in range(10)), with_proof=False)
        yield log


def watch(served: ServedLog, metadata: Any = None, **request: Any) -> Any:
    return served.read.WatchEntries(audit_pb2.WatchEntriesRequest(**request), metadata=metadata)


async def take(stream: Any, count: int) -> list[audit_pb2.Entry]:
    async with asyncio.timeout(20):
        return [(await anext(aiter(stream))).entry for _ in range(count)]


async def test_a_watch_goes_on_from_an_index_without_a_gap_or_a_repeat(served: ServedLog) -> None:
    stream = watch(served, from_index=7, filter=audit_pb2.EntryFilter(types=["chat.outcome"]))
    assert [entry.index for entry in await take(stream, 3)] == [7, 8, 9]
    # Index 10 is the watch's own entry, which the filter leaves out.
    for number in range(10, 200, 19):
        served.file.append(*(record(n) for n in range(number, number + 19)), with_proof=False)
    entries = await take(stream, 190)
    assert [json.loads(entry.leaf)["trace_id"] for entry in entries] == [f"{n:032x}" for n in range(10, 200)]
    assert [entry.index for entry in entries] == list(range(11, 201))


async def test_a_watch_without_an_index_shows_what_comes(served: ServedLog) -> None:
    stream = watch(served)
    await stream.initial_metadata()  # it stands
    served.file.append(record(50, payloads=2))
    (entry,) = await take(stream, 1)
    assert json.loads(entry.leaf)["trace_id"] == f"{50:032x}"
    assert list(entry.payload_kinds) == ["released", "request"]


async def test_a_watch_shows_only_what_meets_its_filter(served: ServedLog) -> None:
    stream = watch(served, filter=audit_pb2.EntryFilter(law=3, tenant="default"))
    await stream.initial_metadata()
    served.file.append(*(record(number) for number in range(100, 120)))
    assert [json.loads(e.leaf)["decision"]["law"] for e in await take(stream, 4)] == [3] * 4


async def test_a_live_feed_hides_its_own_reads_and_shows_those_of_others(served: ServedLog) -> None:
    stream = watch(served, metadata=SOMEONE)
    await stream.initial_metadata()
    await served.read.Query(audit_pb2.QueryRequest(), metadata=SOMEONE)
    await served.read.Query(audit_pb2.QueryRequest(), metadata=ANOTHER)
    await served.read.Query(audit_pb2.QueryRequest())
    # An export by the watcher itself: no loop comes of it, and its owner may want to see it.
    async for _ in served.read.Export(audit_pb2.ExportRequest(), metadata=SOMEONE):
        pass
    seen = [json.loads(entry.leaf) for entry in await take(stream, 3)]
    assert [(leaf["type"], leaf["actor"]) for leaf in seen] == [
        ("audit.query", f"{2:064x}"),
        ("audit.query", None),
        ("audit.export", f"{1:064x}"),
    ]


async def test_what_another_replica_appends_is_seen(served: ServedLog, log_database: str) -> None:
    if not is_url(log_database):
        pytest.skip("a log in SQLite has one writer")
    stream = watch(served)
    await stream.initial_metadata()
    other = LogFile(log_database)
    try:
        other.append(record(500))
    finally:
        other.close()
    (entry,) = await take(stream, 1)
    assert json.loads(entry.leaf)["trace_id"] == f"{500:032x}"


async def test_an_index_beyond_the_log_and_a_span_of_time_are_refused(served: ServedLog) -> None:
    with pytest.raises(InvalidArgumentError, match="at most 10"), translated():
        await take(watch(served, from_index=11), 1)
    wanted = audit_pb2.EntryFilter()
    wanted.until.seconds = 1
    with pytest.raises(InvalidArgumentError, match="no times"), translated():
        await take(watch(served, filter=wanted), 1)


async def test_watchers_have_a_bounded_number_of_places_and_give_them_back(
    served: ServedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [watch(served) for _ in range(watching.MAX_WATCHERS)]
    for stream in streams:
        await stream.initial_metadata()
    with pytest.raises(ResourceExhaustedError, match="64 watch"), translated():
        await take(watch(served), 1)
    # Checkpoints are public: who watches entries takes no place of theirs, and the other way round.
    await anext(aiter(served.read.WatchCheckpoints(audit_pb2.WatchCheckpointsRequest())))
    for stream in streams:
        stream.cancel()
    async with asyncio.timeout(20):
        while True:
            stream = watch(served, from_index=0)
            try:
                with translated():
                    await take(stream, 1)
                break
            except ResourceExhaustedError:
                await asyncio.sleep(0)


async def test_checkpoints_come_as_they_are_signed_and_leave_no_entry(served: ServedLog) -> None:
    stream = served.read.WatchCheckpoints(audit_pb2.WatchCheckpointsRequest())
    sizes = []
    async with asyncio.timeout(20):
        for number in range(10, 13):
            note = (await anext(aiter(stream))).checkpoint
            sizes.append(open_checkpoint(note, [served.verifier]).size)
            served.file.append(record(number))
    assert sizes == [10, 11, 12]
    assert served.file.reader.head().size == 13


async def test_a_stopping_server_ends_its_watches_so_that_they_go_on_elsewhere(log_database: str) -> None:
    async with AsyncExitStack() as outlives:
        async with served_log(log_database) as served:
            served.file.append(record(0))
            channel = await outlives.enter_async_context(open_channel(served.address, peer_name="gateway"))
            request = audit_pb2.WatchEntriesRequest(from_index=0)
            stream = type(served.read)(channel).WatchEntries(request)
            await take(stream, 1)
        with pytest.raises(UnavailableError), translated():
            await take(stream, 2)


@pytest.mark.parametrize("error", [UnavailableError("away"), ZeroDivisionError("a bug")], ids=["away", "bug"])
async def test_a_head_that_cannot_be_read_for_a_while_ends_no_watch(
    served: ServedLog, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    stream = watch(served)
    await stream.initial_metadata()
    reader = type(served.file.reader)
    real, failed = reader.head, asyncio.Event()
    loop = asyncio.get_running_loop()

    def failing(self: Any) -> Any:
        loop.call_soon_threadsafe(failed.set)
        raise error

    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(reader, "head", failing)
        await asyncio.wait_for(failed.wait(), 20)
    assert reader.head is real
    served.file.append(record(50))
    (entry,) = await take(stream, 1)
    assert json.loads(entry.leaf)["trace_id"] == f"{50:032x}"

"""Whoever reads the log leaves an entry, durable before the answer; what cannot be logged is not read."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kala.audit.v1 import audit_pb2
from kala.common.v1 import clearance_pb2
from kala.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from services.audit.payloads import commit
from services.common.channel import open_channel
from services.common.principals import PRINCIPAL_METADATA_KEY, principal_metadata
from services.common.status import translated
from tests.fakes.audit_log import open_log, record
from tests.fakes.audit_server import ServedLog, served_log

ACTOR = f"{5:064x}"
PRINCIPAL = clearance_pb2.Principal(id="keys/auditor", tenant="ours", subject=ACTOR)
FOR_SOMEONE = principal_metadata(PRINCIPAL)
REASON = "ticket 4711: a complaint"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("read") / "audit.db"
    with open_log(path) as log:
        log.append(*(record(number, payloads=3) for number in range(20)), with_proof=False)
    return path


@pytest.fixture
async def served(filled: Path, tmp_path: Path) -> AsyncIterator[ServedLog]:
    async with served_log(Path(shutil.copy(filled, tmp_path / "audit.db"))) as log:
        yield log


def leaves(served: ServedLog, first: int = 20) -> list[dict[str, Any]]:
    """The entries that were logged since the log was filled."""
    size = served.file.reader.head().size
    rows = served.file.reader.query([], first=first, last=size, limit=1_000, descending=False)
    return [json.loads(row.leaf) for row in rows]


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass


# What reads entries, by the RPC that the entry names.
READS: dict[str, tuple[str, Callable[[ServedLog], Awaitable[object]]]] = {
    "Query": ("audit.query", lambda s: s.read.Query(audit_pb2.QueryRequest(), metadata=FOR_SOMEONE)),
    "Summary": ("audit.query", lambda s: s.read.Summary(audit_pb2.SummaryRequest(), metadata=FOR_SOMEONE)),
    "ListGaps": ("audit.query", lambda s: s.read.ListGaps(audit_pb2.ListGapsRequest(), metadata=FOR_SOMEONE)),
    "PipelineStatus": (
        "audit.query",
        lambda s: s.read.PipelineStatus(audit_pb2.PipelineStatusRequest(), metadata=FOR_SOMEONE),
    ),
    "GetEntry": (
        "audit.query",
        lambda s: s.read.GetEntry(audit_pb2.GetEntryRequest(name="entries/3"), metadata=FOR_SOMEONE),
    ),
    "ReadPayload": (
        "audit.payload_read",
        lambda s: s.read.ReadPayload(
            audit_pb2.ReadPayloadRequest(name="entries/3/payloads/request", reason=REASON),
            metadata=FOR_SOMEONE,
        ),
    ),
    "Export": (
        "audit.export",
        lambda s: drain(s.read.Export(audit_pb2.ExportRequest(), metadata=FOR_SOMEONE)),
    ),
    "WatchEntries": (
        "audit.watch",
        lambda s: anext(
            aiter(s.read.WatchEntries(audit_pb2.WatchEntriesRequest(from_index=0), metadata=FOR_SOMEONE))
        ),
    ),
}


@pytest.mark.parametrize("rpc", READS)
async def test_every_reading_is_an_entry_that_names_who_read_for_whom(served: ServedLog, rpc: str) -> None:
    kind, read = READS[rpc]
    await read(served)
    (leaf,) = leaves(served)
    assert (leaf["type"], leaf["action"]["rpc"]) == (kind, f"/kala.audit.v1.AuditReadService/{rpc}")
    assert (leaf["tenant"], leaf["actor"]) == ("ours", ACTOR)
    assert ["peer", "local:gateway"] in leaf["attributes"]


@pytest.mark.parametrize("rpc", READS)
async def test_what_cannot_be_logged_is_not_read(served: ServedLog, rpc: str) -> None:
    await served.log.stop()
    with pytest.raises(UnavailableError), translated():
        await READS[rpc][1](served)
    assert not leaves(served)


@pytest.mark.parametrize("rpc", READS)
async def test_a_reader_who_is_named_malformed_reads_nothing(served: ServedLog, rpc: str) -> None:
    broken = ((PRINCIPAL_METADATA_KEY, b"\xff"),)
    calls: dict[str, Callable[[], Any]] = {
        "Query": lambda: served.read.Query(audit_pb2.QueryRequest(), metadata=broken),
        "Summary": lambda: served.read.Summary(audit_pb2.SummaryRequest(), metadata=broken),
        "ListGaps": lambda: served.read.ListGaps(audit_pb2.ListGapsRequest(), metadata=broken),
        "PipelineStatus": lambda: served.read.PipelineStatus(
            audit_pb2.PipelineStatusRequest(), metadata=broken
        ),
        "GetEntry": lambda: served.read.GetEntry(
            audit_pb2.GetEntryRequest(name="entries/3"), metadata=broken
        ),
        "ReadPayload": lambda: served.read.ReadPayload(
            audit_pb2.ReadPayloadRequest(name="entries/3/payloads/request", reason=REASON), metadata=broken
        ),
        "Export": lambda: drain(served.read.Export(audit_pb2.ExportRequest(), metadata=broken)),
        "WatchEntries": lambda: drain(
            served.read.WatchEntries(audit_pb2.WatchEntriesRequest(), metadata=broken)
        ),
    }
    with pytest.raises(UnauthenticatedError), translated():
        await calls[rpc]()


async def test_one_query_is_one_entry_whatever_its_pages(served: ServedLog) -> None:
    request = audit_pb2.QueryRequest(filter=audit_pb2.EntryFilter(law=3, types=["chat.outcome"]), page_size=1)
    pages = 0
    while True:
        response = await served.read.Query(request)
        pages += 1
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert pages == 4
    (leaf,) = leaves(served)
    assert leaf["attributes"][:2] == [["filter.law", "3"], ["filter.types", "chat.outcome"]]
    assert leaf["tenant"] == "kala"


async def test_a_filter_too_long_for_an_attribute_is_named_by_its_digest(served: ServedLog) -> None:
    wanted = audit_pb2.EntryFilter(types=["t" * 64] * 32)
    await served.read.Query(audit_pb2.QueryRequest(filter=wanted))
    (leaf,) = leaves(served)
    assert dict(leaf["attributes"])["filter.types"].startswith("sha256:")


async def test_proofs_receipts_and_checkpoints_leave_no_entry(served: ServedLog) -> None:
    await served.read.GetCheckpoint(audit_pb2.GetCheckpointRequest())
    await served.read.GetReceipt(audit_pb2.GetReceiptRequest(name=f"receipts/rcpt_{3:032x}"))
    await served.read.GetConsistencyProof(audit_pb2.GetConsistencyProofRequest(old_size=20))
    # A part that needs a proof for itself, as inference does for a gate.
    await served.read.GetEntry(audit_pb2.GetEntryRequest(name="entries/3"))
    assert not leaves(served)


async def test_a_payload_is_read_in_plain_and_opens_its_commitment(served: ServedLog) -> None:
    response = await served.read.ReadPayload(
        audit_pb2.ReadPayloadRequest(name="entries/7/payloads/released", reason=REASON), metadata=FOR_SOMEONE
    )
    assert response.data == b"secret canary 7"
    entry = json.loads(served.file.reader.query([], first=7, last=8, limit=1, descending=False)[0].leaf)
    hmacs = {value["kind"]: value["hmac"] for value in entry["commitments"]}
    assert commit(response.salt, response.data) == hmacs["released"]
    (leaf,) = leaves(served)
    attributes = dict(leaf["attributes"])
    assert (attributes["entry"], attributes["payload"], attributes["reason"]) == ("7", "released", REASON)
    assert b"canary" not in json.dumps(leaf).encode()


@pytest.mark.parametrize("reason", ["", "short", "       a       ", "x" * 1_025])
async def test_content_is_read_for_a_reason_only(served: ServedLog, reason: str) -> None:
    request = audit_pb2.ReadPayloadRequest(name="entries/7/payloads/request", reason=reason)
    with pytest.raises(InvalidArgumentError, match="reason"), translated():
        await served.read.ReadPayload(request)
    assert not leaves(served)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("entries/7/payloads/derived", NotFoundError),  # its salt alone is kept
        ("entries/7/payloads/generated", NotFoundError),
        ("entries/99/payloads/request", NotFoundError),
        ("entries/9999999999999999999/payloads/request", NotFoundError),
        ("entries/7/payloads/", InvalidArgumentError),
        ("entries/07/payloads/request", InvalidArgumentError),
        ("entries/7", InvalidArgumentError),
    ],
)
async def test_what_is_not_there_is_neither_read_nor_logged(
    served: ServedLog, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error), translated():
        await served.read.ReadPayload(audit_pb2.ReadPayloadRequest(name=name, reason=REASON))
    assert not leaves(served)


async def test_content_that_is_not_what_the_leaf_commits_to_is_not_given(served: ServedLog) -> None:
    rows = {row.kind: row for row in served.file.reader.payloads(7)}
    with served.file.writer._transaction() as db:
        db.execute(
            "UPDATE payload SET ciphertext = ? WHERE idx = 7 AND kind = 'request'",
            (rows["released"].ciphertext,),
        )
    request = audit_pb2.ReadPayloadRequest(name="entries/7/payloads/request", reason=REASON)
    with pytest.raises(DataLossError), translated():
        await served.read.ReadPayload(request)


@pytest.mark.parametrize("part", ["inference", "tools", "ethics", "trainer", "witness"])
async def test_parts_that_only_prove_may_not_read_content(served: ServedLog, part: str) -> None:
    async with open_channel(served.address, peer_name=part) as channel:
        reads = type(served.read)(channel)
        request = audit_pb2.ReadPayloadRequest(name="entries/7/payloads/request", reason=REASON)
        for call in (
            lambda: reads.ReadPayload(request),
            lambda: drain(reads.Export(audit_pb2.ExportRequest())),
            lambda: drain(reads.WatchEntries(audit_pb2.WatchEntriesRequest())),
            lambda: reads.Query(audit_pb2.QueryRequest()),
        ):
            with pytest.raises(PermissionDeniedError), translated():
                await call()
        await reads.GetEntry(audit_pb2.GetEntryRequest(name="entries/7"))

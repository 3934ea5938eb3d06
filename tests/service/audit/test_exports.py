"""Exports over gRPC from either database: whole lines, a signed manifest, and nothing that does not verify offline."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kala.audit.export import manifest_path, verify_export
from kala.audit.export_manifest import Manifest, parse_manifest
from kala.audit.report import TamperedError
from kala.audit.v1 import audit_pb2
from kala.common.v1.clearance_pb2 import Principal
from kala.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError, UnavailableError
from services.audit.export import exporting
from services.audit.storage.postgres_retention import drop_before
from services.common.principals import principal_metadata
from services.common.status import translated
from tests.fakes.audit_log import NOW, open_log, record
from tests.fakes.audit_server import ServedLog, served_log

TOTAL = 300
FORMATS = {
    "jsonl": audit_pb2.EXPORT_FORMAT_JSONL,
    "ocsf": audit_pb2.EXPORT_FORMAT_OCSF,
    "cef": audit_pb2.EXPORT_FORMAT_CEF,
    "otlp": audit_pb2.EXPORT_FORMAT_OTLP,
}


@pytest.fixture
async def served(log_database: str) -> AsyncIterator[ServedLog]:
    async with served_log(log_database) as log:
        for start in range(0, TOTAL, 100):
            log.file.append(*(record(number) for number in range(start, start + 100)), with_proof=False)
        yield log


@pytest.fixture
async def on_file(tmp_path: Path) -> AsyncIterator[ServedLog]:
    """For what does not depend on the database."""
    async with served_log(tmp_path / "audit.db") as log:
        log.file.append(*(record(number) for number in range(TOTAL)), with_proof=False)
        yield log


async def export(served: ServedLog, **request: Any) -> tuple[bytes, bytes]:
    """The data and the manifest of an export."""
    parts = [part async for part in served.read.Export(audit_pb2.ExportRequest(**request))]
    assert [part.WhichOneof("part") for part in parts] == ["data"] * (len(parts) - 1) + ["manifest"]
    for part in parts[:-1]:
        assert part.data.endswith(b"\n")
        assert len(part.data) <= 1024 * 1024
    return b"".join(part.data for part in parts[:-1]), parts[-1].manifest


def verified(served: ServedLog, directory: Path, exported: tuple[bytes, bytes]) -> Manifest:
    """What an outsider finds who has the two files and the public key."""
    data = directory / "export"
    data.write_bytes(exported[0])
    manifest_path(data).write_bytes(exported[1])
    return verify_export(data, [served.verifier]).manifest


@pytest.mark.parametrize("name", FORMATS)
async def test_an_export_of_the_whole_log_is_verified_offline(
    served: ServedLog, tmp_path: Path, name: str
) -> None:
    exported = await export(served, format=FORMATS[name])
    manifest = verified(served, tmp_path, exported)
    assert manifest.is_whole
    assert (manifest.format, manifest.count, manifest.checkpoint.size) == (name, TOTAL, TOTAL)
    assert (manifest.size_bytes, manifest.sha256) == (len(exported[0]), sha256(exported[0]).hexdigest())
    assert (manifest.hashes == []) is (name == "jsonl")


@pytest.mark.parametrize(
    ("wanted", "indexes"),
    [
        (audit_pb2.EntryFilter(law=3), range(3, TOTAL, 5)),
        (audit_pb2.EntryFilter(law=3, model="model-1"), range(13, TOTAL, 15)),
        (audit_pb2.EntryFilter(trace_id=f"{299:032x}"), [299]),
        (audit_pb2.EntryFilter(trace_id=f"{0:032x}"), [0]),
        (audit_pb2.EntryFilter(tenant="nobody"), []),
    ],
    ids=["law", "law and model", "the last", "the first", "none"],
)
async def test_an_export_of_some_entries_proves_each_of_them(
    served: ServedLog, tmp_path: Path, wanted: audit_pb2.EntryFilter, indexes: range
) -> None:
    exported = await export(served, filter=wanted)
    manifest = verified(served, tmp_path, exported)
    listed = [index for first, length in manifest.runs for index in range(first, first + length)]
    assert listed == list(indexes)
    traces = [json.loads(line)["trace_id"] for line in exported[0].splitlines()]
    assert traces == [f"{index:032x}" for index in indexes]


async def test_an_export_of_a_span_of_time_says_so(served: ServedLog, tmp_path: Path) -> None:
    wanted = audit_pb2.EntryFilter(tenant="default", types=["chat.outcome"])
    getattr(wanted, "from").FromMicroseconds(NOW + 1_000)
    wanted.until.FromMicroseconds(NOW + 2_000)
    manifest = verified(served, tmp_path, await export(served, filter=wanted))
    assert manifest.runs == [(100, 100)]
    assert manifest.filter == {
        "from": "2026-09-21T14:13:20.001000Z",
        "tenant": "default",
        "types": ["chat.outcome"],
        "until": "2026-09-21T14:13:20.002000Z",
    }


async def test_an_export_names_its_own_entry_which_is_not_part_of_it(
    served: ServedLog, tmp_path: Path
) -> None:
    manifest = verified(served, tmp_path, await export(served))
    receipt = await served.read.GetReceipt(audit_pb2.GetReceiptRequest(name=f"receipts/{manifest.receipt}"))
    assert receipt.receipt.index == TOTAL == manifest.count


async def test_one_changed_bit_of_the_data_is_found(on_file: ServedLog, tmp_path: Path) -> None:
    for wanted in (audit_pb2.EntryFilter(), audit_pb2.EntryFilter(law=3)):
        data, manifest = await export(on_file, filter=wanted)
        for place in (0.0, 0.5, 0.999):
            changed = bytearray(data)
            changed[int(place * len(data))] ^= 1
            with pytest.raises(TamperedError):
                verified(on_file, tmp_path, (bytes(changed), manifest))


async def test_entries_that_are_left_out_or_swapped_are_found(on_file: ServedLog, tmp_path: Path) -> None:
    data, manifest = await export(on_file)
    lines = data.splitlines(keepends=True)
    for changed in (lines[:-1], lines[1:], [lines[1], lines[0], *lines[2:]], [*lines, lines[0]]):
        with pytest.raises(TamperedError):
            verified(on_file, tmp_path, (b"".join(changed), manifest))


async def test_entries_logged_during_an_export_are_not_in_it(served: ServedLog, tmp_path: Path) -> None:
    stream = served.read.Export(audit_pb2.ExportRequest())
    parts = [await anext(aiter(stream))]
    served.file.append(*(record(TOTAL + number) for number in range(10)))
    parts += [part async for part in stream]
    data = b"".join(part.data for part in parts[:-1])
    assert verified(served, tmp_path, (data, parts[-1].manifest)).count == TOTAL


async def test_an_ocsf_event_is_an_api_activity_that_carries_its_leaf_and_its_fingerprint(
    on_file: ServedLog,
) -> None:
    data, _ = await export(on_file, format=audit_pb2.EXPORT_FORMAT_OCSF)
    events = [json.loads(line) for line in data.splitlines()]
    event = events[1]  # n % 4 == 1: refused
    assert (event["class_uid"], event["category_uid"], event["type_uid"]) == (6003, 6, 600399)
    assert event["metadata"]["version"] == "1.9.0"
    assert event["metadata"]["profiles"] == ["ai_operation", "record_integrity"]
    assert event["ai_model"] == {"name": "model-1", "ai_provider": "pythia"}
    assert event["message_context"]["completion_tokens"] == 1
    assert event["status_detail"] == "REFUSE by law 1"
    assert event["severity_id"] == 3
    entry = on_file.file.reader.entry(1)
    assert entry is not None
    assert event["raw_data"].encode() == entry.leaf
    # The record_integrity profile: the digest of the event's RFC 8785 form without its fingerprint.
    value = event["attestation"].pop("fingerprint")["value"]
    canonical = json.dumps(event, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    assert sha256(canonical).hexdigest() == value
    # What the class and its profiles require of every event.
    for one in events:
        assert one.keys() >= {
            "activity_id", "category_uid", "class_uid", "type_uid", "time", "severity_id", "metadata", "actor",
            "api", "src_endpoint", "attestation", "ai_model",
        }  # fmt: skip
        assert one["api"]["operation"] == "Chat"
        assert one["actor"]["user"]["uid"]


async def test_a_cef_line_escapes_what_would_end_its_fields(on_file: ServedLog) -> None:
    made = record(TOTAL)
    made.model.served = "a|b=c\\d\ne"
    on_file.file.append(made)
    data, _ = await export(
        on_file, format=audit_pb2.EXPORT_FORMAT_CEF, filter=audit_pb2.EntryFilter(model="a|b=c\\d\ne")
    )
    (line,) = data.decode().splitlines()
    assert line.startswith("CEF:0|KALA|audit|1|chat.outcome|chat.outcome|2|rt=")
    assert r"cs4=a|b\=c\\d\ne cs4Label=model" in line
    assert f"externalId={TOTAL} " in line


async def test_an_otlp_line_is_a_request_that_its_own_parser_takes(on_file: ServedLog) -> None:
    from google.protobuf.json_format import Parse
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    data, _ = await export(on_file, format=audit_pb2.EXPORT_FORMAT_OTLP)
    records = []
    for line in data.splitlines():
        value = json.loads(line)
        for one in value["resourceLogs"][0]["scopeLogs"][0]["logRecords"]:
            # OTLP's JSON spells ids in hex, where protobuf's own takes base64.
            assert len(bytes.fromhex(one.pop("traceId"))) == 16
        request = Parse(json.dumps(value), ExportLogsServiceRequest())
        records += request.resource_logs[0].scope_logs[0].log_records
    assert len(records) == TOTAL
    entry = on_file.file.reader.entry(7)
    assert entry is not None
    assert records[7].body.string_value.encode() == entry.leaf
    assert records[7].time_unix_nano == (NOW + 7) * 1_000


async def test_a_filter_that_no_manifest_could_prove_ends_without_one(
    on_file: ServedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "MAX_RUNS", 10)
    with pytest.raises(InvalidArgumentError, match="export in parts"), translated():
        await export(on_file, filter=audit_pb2.EntryFilter(law=3))
    monkeypatch.setattr(exporting, "MAX_RUNS", 1_000)
    monkeypatch.setattr(exporting, "MAX_PROOF_HASHES", 10)
    with pytest.raises(InvalidArgumentError, match="export in parts"), translated():
        await export(on_file, filter=audit_pb2.EntryFilter(law=3))


async def test_an_unknown_format_and_an_empty_log_are_refused(on_file: ServedLog, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="format"), translated():
        await export(on_file, format=9)
    async with served_log(tmp_path / "empty.db") as empty:
        with pytest.raises(NotFoundError, match="empty"), translated():
            await export(empty)


async def test_only_so_many_exports_run_at_once(on_file: ServedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    real = exporting.ExportRun.next_chunk

    def held(self: exporting.ExportRun) -> bytes | None:
        released.wait(20)
        return real(self)

    monkeypatch.setattr(exporting.ExportRun, "next_chunk", held)
    running = [asyncio.create_task(export(on_file)) for _ in range(5)]
    try:
        (refused,), rest = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        released.set()
    with pytest.raises(ResourceExhaustedError, match="4 exports run"), translated():
        refused.result()
    assert len(await asyncio.gather(*rest)) == 4


async def test_one_tenant_cannot_keep_all_places_of_exports(
    on_file: ServedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked for four exports and read none of them kept everybody else from exporting."""
    released = threading.Event()
    real = exporting.ExportRun.next_chunk

    def held(self: exporting.ExportRun) -> bytes | None:
        released.wait(20)
        return real(self)

    async def begin(tenant: str) -> int:
        who = principal_metadata(Principal(id="keys/k", tenant=tenant, subject="a" * 64))
        return len([part async for part in on_file.read.Export(audit_pb2.ExportRequest(), metadata=who)])

    monkeypatch.setattr(exporting.ExportRun, "next_chunk", held)
    running = [asyncio.create_task(begin("acme")) for _ in range(3)]
    try:
        (refused,), rest = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        other = asyncio.create_task(begin("other"))
    finally:
        released.set()
    with pytest.raises(ResourceExhaustedError, match="2 of them this tenant's"), translated():
        refused.result()
    assert await other
    assert all(await asyncio.gather(*rest))


async def test_an_export_that_cannot_be_logged_sends_nothing(on_file: ServedLog) -> None:
    await on_file.log.stop()
    with pytest.raises(UnavailableError), translated():
        await anext(aiter(on_file.read.Export(audit_pb2.ExportRequest())))


async def test_a_manifest_of_another_key_is_refused(on_file: ServedLog, tmp_path: Path) -> None:
    _, manifest = await export(on_file)
    value = json.loads(manifest)
    value["count"] = TOTAL - 1
    forged = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(TamperedError, match="not the one that was signed"):
        verified(on_file, tmp_path, (b"", forged))
    assert parse_manifest(manifest, [on_file.verifier]).count == TOTAL


async def test_what_retention_dropped_is_a_proved_gap(postgres_url: str, tmp_path: Path) -> None:
    with open_log(postgres_url):
        pass
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE entry DETACH PARTITION entry_0")
        connection.execute("DROP TABLE entry_0")
        connection.execute("SELECT audit_extend_entry(1024, 256)")
    async with served_log(postgres_url) as served:
        served.file.append(*(record(number) for number in range(700)), with_proof=False)
        engine = served.file.open_engine()
        assert drop_before(engine, served.file.log_id, 600) == 512
        engine.dispose()
        manifest = verified(served, tmp_path, await export(served))
        assert manifest.runs == [(512, 188)]
        some = await export(served, filter=audit_pb2.EntryFilter(law=3))
        assert verified(served, tmp_path, some).count == len(range(513, 700, 5))

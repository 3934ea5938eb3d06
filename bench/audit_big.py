"""A large log: verified, exported, queried, and one subject of many erased from it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from bench.audit_load import service
from kala.audit.database_source import DatabaseSource
from kala.audit.mirror import verify_tiles
from kala.audit.note import Signer, Verifier
from kala.audit.sources import DirectorySource
from kala.audit.tile_paths import CHECKPOINT_PATH, bundles_of, tiles_of
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from services.audit.batch import BatchWriter, Submission
from services.audit.payloads import KeyEncryptionKey
from services.audit.records import entry_of
from services.audit.storage.sqlite_store import SqliteReader, SqliteWriter
from services.common.peers import GATEWAY, PEER_METADATA_KEY
from services.common.secret_keys import load_or_create_secret_key
from tests.fakes.audit_log import NOW, ORIGIN, record
from tests.fakes.audit_privacy import principal

BATCH: Final = 1_000
SUBJECTS: Final = 10_000
NEW_ENTRIES: Final = 10_000
QUERIES: Final = 200
FORMATS: Final = {
    "JSONL": audit_pb2.EXPORT_FORMAT_JSONL,
    "OCSF": audit_pb2.EXPORT_FORMAT_OCSF,
    "CEF": audit_pb2.EXPORT_FORMAT_CEF,
}


@dataclass(frozen=True)
class BigFigures:
    """What a large log costs."""

    entries: int
    verify_cpu_seconds: float
    incremental_cpu_seconds: float
    query_p99_ms: float
    erase_seconds: float
    exported_per_second: dict[str, float]


def measure(folder: Path, entries: int) -> BigFigures:
    """Makes the log and measures; a million entries take two minutes to make."""
    folder.mkdir(mode=0o700)
    signer = Signer.of(ORIGIN, os.urandom(32))
    (folder / "log.key").touch(mode=0o600)
    (folder / "log.key").write_text(signer.private_text() + "\n")
    kek = load_or_create_secret_key(folder / "kek.key")
    database = folder / "audit.db"
    pinned = _fill(database, signer, kek, entries)
    whole, incremental = _verify(folder, database, signer.verifier, pinned)
    with (
        service(folder / "served", database=str(database), keys=folder) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        reads = audit_pb2_grpc.AuditReadServiceStub(channel)
        exported = {name: _export(reads, kind) for name, kind in FORMATS.items()}
        queried = _query(reads)
        erased = _erase(audit_pb2_grpc.AuditPrivacyServiceStub(channel))
    return BigFigures(entries, whole, incremental, queried, erased, exported)


def _subject(number: int) -> str:
    return f"{number % SUBJECTS:064x}"


def _fill(path: Path, signer: Signer, kek: bytes, entries: int) -> str:
    """Makes the log; returns the checkpoint that stood `NEW_ENTRIES` before its end."""
    writer = SqliteWriter(path, origin=ORIGIN, vkey=str(signer.verifier))
    reader = SqliteReader(path)
    batches = BatchWriter(
        writer=writer, reader=reader, signer=signer, kek=KeyEncryptionKey(kek), clock=lambda: NOW
    )
    pinned = ""
    for first in range(0, entries, BATCH):
        made = []
        for number in range(first, min(first + BATCH, entries)):
            one = record(number, payloads=1)
            one.subject_key_id = _subject(number)
            one.model.served = f"model-{number % 997}"
            made.append(entry_of(one, "local:gateway"))
        outcome = batches.write([Submission(made, with_proof=False)])[0]
        if first + BATCH == entries - NEW_ENTRIES:
            assert not isinstance(outcome, Exception)
            pinned = outcome[-1].note
    reader.close()
    writer.close()
    return pinned


def _verify(folder: Path, database: Path, verifier: Verifier, pinned: str) -> tuple[float, float]:
    mirror = folder / "mirror"
    with closing(DatabaseSource(database)) as source:
        for path in _files(source):
            data = source.read(path)
            assert data is not None
            (mirror / path).parent.mkdir(parents=True, exist_ok=True)
            (mirror / path).write_bytes(data)
    whole = _cpu(lambda: verify_tiles(DirectorySource(mirror), [verifier]))
    if not pinned:
        return whole, 0.0
    more = _cpu(lambda: verify_tiles(DirectorySource(mirror), [verifier], pinned=pinned, resume=True))
    return whole, more


def _files(source: DatabaseSource) -> Iterator[str]:
    note = source.read(CHECKPOINT_PATH)
    assert note is not None
    size = int(note.split(b"\n")[1])
    yield CHECKPOINT_PATH
    for path in (*tiles_of(size), *bundles_of(size)):
        yield str(path)


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _export(reads: audit_pb2_grpc.AuditReadServiceStub, kind: audit_pb2.ExportFormat.ValueType) -> float:
    """Entries a second, from the call to the manifest."""
    began, lines = time.perf_counter(), 0
    for part in reads.Export(audit_pb2.ExportRequest(format=kind), metadata=((PEER_METADATA_KEY, GATEWAY),)):
        lines += part.data.count(b"\n")
    return lines / (time.perf_counter() - began)


def _query(reads: audit_pb2_grpc.AuditReadServiceStub) -> float:
    """The 99th percentile of a page of 100 by one of several filters, in milliseconds."""
    rng, taken = random.Random(1), []
    for _ in range(QUERIES):
        wanted = rng.choice(
            (
                audit_pb2.EntryFilter(model=f"model-{rng.randrange(997)}"),
                audit_pb2.EntryFilter(actor=f"{rng.randrange(7):064x}"),
                audit_pb2.EntryFilter(trace_id=f"{rng.randrange(10_000):032x}"),
                audit_pb2.EntryFilter(law=rng.randrange(5), outcomes=[1 + rng.randrange(4)]),  # type: ignore[list-item] # its numbers
            )
        )
        request = audit_pb2.QueryRequest(filter=wanted, descending=rng.random() < 0.5)
        began = time.perf_counter()
        reads.Query(request, metadata=((PEER_METADATA_KEY, GATEWAY),))
        taken.append((time.perf_counter() - began) * 1000)
    return sorted(taken)[int(len(taken) * 0.99) - 1]


def _erase(privacy: audit_pb2_grpc.AuditPrivacyServiceStub) -> float:
    """Seconds until the certificate of one subject's erasure."""
    request = audit_pb2.EraseSubjectRequest(
        name=f"subjects/{_subject(7)}", reason="asked by the person", request_id=os.urandom(16)
    )
    began = time.perf_counter()
    answer = privacy.EraseSubject(request, metadata=((PEER_METADATA_KEY, GATEWAY), *principal()))
    assert answer.certificate
    return time.perf_counter() - began


def lines(figures: BigFigures) -> list[str]:
    """As Markdown."""
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in figures.exported_per_second.items())
    return [
        (
            f"- G6: {figures.entries:,} entries verified from a mirror in {figures.verify_cpu_seconds:.2f} s CPU; "
            f"{NEW_ENTRIES:,} more in {figures.incremental_cpu_seconds * 1000:.0f} ms"
        ),
        f"- G11: one subject of {SUBJECTS:,} among {figures.entries:,} entries erased in {figures.erase_seconds:.2f} s",
        f"- G12: a page of 100 by a filter, p99 {figures.query_p99_ms:.1f} ms; exported a second: {rates}",
    ]

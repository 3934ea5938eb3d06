"""Load on an audit service by clients that do as little as possible, and what its database does alone."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from bench.grpc_process import serving
from kala.audit.merkle import EMPTY_ROOT
from kala.audit.note import Signer
from kala.audit.v1 import audit_pb2
from services.audit.batch import BatchWriter, Submission
from services.audit.payloads import KeyEncryptionKey
from services.audit.records import entry_of
from services.audit.storage.postgres import Postgres
from services.audit.storage.postgres_store import PostgresWriter
from services.audit.storage.sqlite_store import SqliteWriter
from services.audit.storage.store import Commit, Head, LogWriter
from services.common.event_loop import GC_THRESHOLDS
from services.common.peers import GATEWAY, PEER_METADATA_KEY
from services.common.secret_keys import load_or_create_secret_key
from tests.fakes.audit_log import KEK, NOW, ORIGIN, record

APPEND: Final = "/kala.audit.v1.AuditService/Append"
APPEND_BATCH: Final = "/kala.audit.v1.AuditService/AppendBatch"
IDLE_SECONDS: Final = 1.3
"""Longer than the service is idle before it writes its figures."""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Service:
    """A running service and where its figures come to lie."""

    address: str
    figures_file: Path
    pid: int

    def figures(self) -> dict[str, float]:
        """Everything since it started."""
        time.sleep(IDLE_SECONDS)
        figures: dict[str, float] = json.loads(self.figures_file.read_text())
        return figures


@contextmanager
def service(
    folder: Path, *, database: str | None = None, keys: Path | None = None, store: str = "real"
) -> Iterator[Service]:
    """Runs the audit service over a database of its own, or over this one."""
    folder.mkdir(mode=0o700, parents=True)
    keys = keys or folder
    if not (keys / "log.key").exists():
        (keys / "log.key").touch(mode=0o600)
        (keys / "log.key").write_text(Signer.of(ORIGIN, os.urandom(32)).private_text() + "\n")
        load_or_create_secret_key(keys / "kek.key")
    settings = {
        "KALA_AUDIT_ADDRESS": f"unix:{folder}/s",
        "KALA_AUDIT_METRICS_PORT": "off",
        "KALA_AUDIT_DATABASE": database or str(folder / "audit.db"),
        "KALA_AUDIT_LOG_KEY_FILE": str(keys / "log.key"),
        "KALA_AUDIT_KEK_FILE": str(keys / "kek.key"),
        "KALA_AUDIT_LOG_LEVEL": "error",
        "BENCH_AUDIT_FIGURES": str(folder / "figures.json"),
        "BENCH_AUDIT_STORE": store,
    }
    address = settings["KALA_AUDIT_ADDRESS"]
    with serving("bench.audit_process", folder, address, settings) as (pid, _):
        yield Service(address, folder / "figures.json", pid)


def requests(calls: int, size: int, *, with_proof: bool = False) -> list[bytes]:
    """Calls of so many new records each, ready to be sent."""
    made = []
    for _ in range(calls):
        records = [record(next(_numbers), key=os.urandom(16), payloads=1) for _ in range(size)]
        request: audit_pb2.AppendRequest | audit_pb2.AppendBatchRequest
        if size == 1:
            request = audit_pb2.AppendRequest(record=records[0], with_proof=with_proof)
        else:
            request = audit_pb2.AppendBatchRequest(records=records, with_proof=with_proof)
        made.append(request.SerializeToString())
    return made


@dataclass(frozen=True, slots=True)
class Load:
    """How a load went: seconds altogether, and milliseconds of each call."""

    seconds: float
    call_ms: Sequence[float]


def load(services: Sequence[Service], calls: Sequence[bytes], *, callers: int, method: str) -> Load:
    """Sends the calls as fast as the services answer, from so many callers that wait for each answer."""
    return asyncio.run(_load(services, calls, callers, method))


async def _load(services: Sequence[Service], calls: Sequence[bytes], callers: int, method: str) -> Load:
    metadata = ((PEER_METADATA_KEY, GATEWAY),)
    waiting, taken = iter(calls), []
    async with _channels(services) as channels:
        stubs = [channel.unary_unary(method) for channel in channels]

        async def call(number: int) -> None:
            stub = stubs[number % len(stubs)]
            for request in waiting:
                began = time.perf_counter()
                await stub(request, metadata=metadata, timeout=60)
                taken.append((time.perf_counter() - began) * 1000)

        began = time.perf_counter()
        await asyncio.gather(*(call(number) for number in range(callers)))
        return Load(time.perf_counter() - began, taken)


class _channels:  # noqa: N801 - used as a function
    def __init__(self, services: Sequence[Service]) -> None:
        self._made = [grpc.aio.insecure_channel(one.address) for one in services]

    async def __aenter__(self) -> list[grpc.aio.Channel]:
        return self._made

    async def __aexit__(self, *exc_info: object) -> None:
        for channel in self._made:
            await channel.close()


class _Recorder:
    """Takes what a batch writer commits, and keeps it, or the last of it only."""

    def __init__(self, *, keeps_all: bool = True) -> None:
        self._keeps_all = keeps_all
        self.commits: list[Commit] = []

    def head(self) -> Head:
        return self.commits[-1].head if self.commits else Head(0, b"", EMPTY_ROOT, 0, 0)

    def commit(self, batch: Commit) -> None:
        if not self._keeps_all:
            self.commits.clear()
        self.commits.append(batch)

    def __getattr__(self, _name: str) -> object:
        return lambda *_arguments: None


def _batch_writer(recorder: _Recorder) -> BatchWriter:
    return BatchWriter(
        writer=recorder,  # type: ignore[arg-type] # the part of it that is used
        reader=recorder,  # type: ignore[arg-type] # likewise
        signer=Signer.of(ORIGIN, b"s" * 32),
        kek=KeyEncryptionKey(KEK),
        clock=lambda: NOW,
    )


def cpu_alone(count: int = 4_000, size: int = 100) -> tuple[float, float]:
    """Microseconds of CPU for a record with one payload, nothing else running in the process.

    First to take it out of its message, checked; then to place, seal, commit to, spell and hash it.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    writer, reading, writing = _batch_writer(_Recorder(keeps_all=False)), 0.0, 0.0
    for _ in range(count // size):
        request = audit_pb2.AppendBatchRequest.FromString(requests(1, size)[0])
        began = time.thread_time()
        entries = [entry_of(one, "local:gateway") for one in request.records]
        read = time.thread_time()
        writer.write([Submission(entries, with_proof=False)])
        reading, writing = reading + read - began, writing + time.thread_time() - read
    return reading / count * 1e6, writing / count * 1e6


def transactions(count: int, size: int) -> list[Commit]:
    """What the service would commit for so many batches of this size."""
    recorder = _Recorder()
    writer = _batch_writer(recorder)
    for _ in range(count):
        records = [record(next(_numbers), key=os.urandom(16), payloads=1) for _ in range(size)]
        writer.write([Submission([entry_of(one, "local:gateway") for one in records], with_proof=False)])
    return recorder.commits


def replay(writer: LogWriter, commits: Sequence[Commit]) -> Load:
    """The database alone: the same transactions, made before, one after the other."""
    taken = []
    began = time.perf_counter()
    for batch in commits:
        start = time.perf_counter()
        writer.commit(batch)
        taken.append((time.perf_counter() - start) * 1000)
    return Load(time.perf_counter() - began, taken)


@contextmanager
def empty_store(url: str | None) -> Iterator[LogWriter]:
    """A new database, in a file or behind this URL, and nothing but its writer."""
    vkey = str(Signer.of(ORIGIN, b"s" * 32).verifier)
    with ExitStack() as stack:
        writer: LogWriter
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kala-bench-"))
            writer = SqliteWriter(Path(folder) / "audit.db", origin=ORIGIN, vkey=vkey)
        else:
            writer = PostgresWriter(Postgres(url), origin=ORIGIN, vkey=vkey)
        stack.callback(writer.close)
        yield writer


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """What came to a service's figures between two looks at them."""
    return {name: value - before.get(name, 0) for name, value in after.items()}

"""A real log in a temporary directory, with records to fill it, for tests of everything around it."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from kala.audit.note import Signer
from kala.audit.v1 import audit_pb2
from kala.errors import KalaError
from services.audit.batch import BatchWriter, Logged, Submission
from services.audit.migrate import migrate_sqlite
from services.audit.payloads import KeyEncryptionKey
from services.audit.records import entry_of
from services.audit.storage.postgres import Postgres
from services.audit.storage.postgres_reader import PostgresReader
from services.audit.storage.postgres_store import PostgresWriter
from services.audit.storage.sqlite_store import LOG_ID, SqliteReader, SqliteWriter
from services.audit.storage.store import LogReader
from services.common.database import connectable

ORIGIN = "kala.test/audit"
SEED = b"s" * 32
KEK = b"k" * 32
NOW = 1_790_000_000_000_000


def signer() -> Signer:
    return Signer.of(ORIGIN, SEED)


def record(
    number: int, *, key: bytes | None = None, payloads: int = 0, kind: str = "chat.outcome"
) -> audit_pb2.Record:
    """A full record; the same number and key give the same bytes."""
    made = audit_pb2.Record(
        type=kind,
        idempotency_key=key or number.to_bytes(16, "big"),
        tenant="default",
        actor=f"{number % 7:064x}",
        trace_id=f"{number:032x}",
        intent=(number + 1_000_000).to_bytes(16, "big"),
    )
    made.producer.id, made.producer.boot, made.producer.sequence = "gateway-0", b"bootboot", number + 1
    made.occurred_at.FromMicroseconds(NOW + number)
    made.action.rpc = "/kala.inference.v1.InferenceService/Chat"
    made.action.digest = bytes([number % 256]) * 32
    made.decision.id, made.decision.outcome = f"{number:032x}", 1 + number % 4
    made.decision.constitution_digest = b"c" * 32
    made.decision.law = number % 5
    made.decision.judges.add(name="hard_blocks", version="1", outcome=1, score_millionths=number % 1_000_000)
    made.model.requested, made.model.served, made.model.backend = (
        "auto",
        f"model-{number % 3}",
        "backends/pythia",
    )
    made.result.status, made.result.finish_reason, made.result.output_tokens = "ok", "stop", number
    made.attributes.add(key="note", value=f"é\u2028\t\x7f {number}")
    for place in range(payloads):
        made.payloads.add(
            kind=("request", "released", "derived")[place], data=b"secret canary %d" % number, store=place < 2
        )
    return made


@functools.cache
def _migrated() -> bytes:
    """An empty database of the current schema: the migration runs once per test process."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "empty.db"
        migrate_sqlite(path)
        return path.read_bytes()


@dataclass
class LogFile:
    """A log on disk and the one process that writes it."""

    path: Path | str
    seed: bytes = SEED
    clock: Iterator[int] = field(default_factory=lambda: itertools.count(NOW, 1_000))
    keys: Signer | None = None

    def __post_init__(self) -> None:
        self.signer = self.keys or Signer.of(ORIGIN, self.seed)
        self.writer = self._open_writer()
        self.reader = self.open_reader()
        try:
            self.batches = BatchWriter(
                writer=self.writer,
                reader=self.reader,
                signer=self.signer,
                kek=KeyEncryptionKey(KEK),
                clock=lambda: next(self.clock),
            )
        except KalaError:
            self.close()
            raise

    def _open_writer(self) -> SqliteWriter | PostgresWriter:
        vkey = str(self.signer.verifier)
        if is_url(self.path):
            return PostgresWriter(Postgres(str(self.path)), origin=ORIGIN, vkey=vkey)
        path = Path(self.path)
        if not path.exists():
            path.write_bytes(_migrated())
        return SqliteWriter(path, origin=ORIGIN, vkey=vkey)

    def open_reader(self) -> LogReader:
        """A further reader; whoever asks for it closes it."""
        if isinstance(self.writer, PostgresWriter):
            return PostgresReader(Postgres(str(self.path)), log_id=self.writer.log_id)
        return SqliteReader(Path(self.path))

    @property
    def log_id(self) -> int:
        return self.writer.log_id if isinstance(self.writer, PostgresWriter) else LOG_ID

    def open_engine(self) -> Engine:
        """An engine for the cold paths; whoever asks for it disposes of it."""
        if isinstance(self.writer, PostgresWriter):
            return Postgres(str(self.path)).engine()
        return connectable(str(self.path), variable="KALA_AUDIT_DATABASE")

    def append(self, *records: audit_pb2.Record, with_proof: bool = True) -> Sequence[Logged]:
        (outcome,) = self.write([records], with_proof=with_proof)
        if isinstance(outcome, KalaError):
            raise outcome
        return outcome

    def write(
        self, submissions: Sequence[Sequence[audit_pb2.Record]], *, with_proof: bool = True
    ) -> list[Sequence[Logged] | KalaError]:
        return self.batches.write(
            [
                Submission([entry_of(one, "local:gateway") for one in records], with_proof)
                for records in submissions
            ]
        )

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


@contextmanager
def open_log(path: Path | str, seed: bytes = SEED) -> Iterator[LogFile]:
    log = LogFile(path, seed)
    try:
        yield log
    finally:
        log.close()


def fill(path: Path | str, sizes: Sequence[int], *, payloads: int = 0) -> None:
    """Makes a log of batches of these sizes."""
    with open_log(path) as log:
        numbers = itertools.count()
        for size in sizes:
            log.append(*(record(next(numbers), payloads=payloads) for _ in range(size)), with_proof=False)


def is_url(path: Path | str) -> bool:
    return "://" in str(path)


def fresh_key() -> bytes:
    return os.urandom(16)

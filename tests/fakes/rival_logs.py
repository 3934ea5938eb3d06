"""Writers of one log that race in threads, as replicas of the service do, and what each was told."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from kala.audit.merkle import CompactRange, leaf_hash
from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2
from kala.errors import KalaError, UnavailableError
from services.audit.batch import BatchWriter, Logged, Submission
from services.audit.payloads import KeyEncryptionKey
from services.audit.records import entry_of
from services.audit.storage.postgres import Postgres
from services.audit.storage.postgres_reader import PostgresReader
from services.audit.storage.postgres_store import PostgresWriter
from services.audit.storage.store import Commit, HeadMovedError
from tests.fakes.audit_log import KEK, NOW, ORIGIN, record, signer

RETRY_SECONDS = 0.02


class CountingWriter(PostgresWriter):
    """Counts how often the database was asked to commit, and how often in vain."""

    commits = 0
    in_vain = 0

    def commit(self, batch: Commit) -> None:
        self.commits += 1
        try:
            super().commit(batch)
        except HeadMovedError:
            self.in_vain += 1
            raise


@dataclass
class Rival:
    """One writer; repeats a batch with the same keys until it is told where it lies, as the real client does."""

    url: str
    name: int
    told: list[Logged] = field(default_factory=list)
    refusals: int = 0
    error: BaseException | None = None

    def open(self, stack: ExitStack) -> None:
        vkey = str(signer().verifier)
        self.writer = stack.enter_context(
            closing(CountingWriter(Postgres(self.url), origin=ORIGIN, vkey=vkey))
        )
        reader = stack.enter_context(closing(PostgresReader(Postgres(self.url), log_id=self.writer.log_id)))
        clock = itertools.count(NOW + self.name, 1_000)
        self.batches = BatchWriter(
            writer=self.writer,
            reader=reader,
            signer=signer(),
            kek=KeyEncryptionKey(KEK),
            clock=lambda: next(clock),
        )

    def append(self, records: Sequence[audit_pb2.Record]) -> None:
        submission = Submission([entry_of(one, "local:gateway") for one in records], with_proof=True)
        while True:
            try:
                (outcome,) = self.batches.write([submission])
            except UnavailableError as error:
                outcome = error
            if isinstance(outcome, UnavailableError):
                self.refusals += 1
                time.sleep(RETRY_SECONDS)
                continue
            if isinstance(outcome, KalaError):
                raise outcome
            self.told.extend(outcome)
            return

    def run(self, batches: Iterator[int], start: threading.Barrier) -> None:
        """Appends batches of these sizes."""
        try:
            start.wait()
            for size in batches:
                records = [record(place, key=os.urandom(16), payloads=1) for place in range(size)]
                self.append(records)
        except Exception as error:  # noqa: BLE001 - shown by the thread that waits
            self.error = error


def race(rivals: Sequence[Rival], batches: Sequence[Iterator[int]]) -> list[threading.Thread]:
    """Starts every rival on its batches at once."""
    start = threading.Barrier(len(rivals))
    threads = [
        threading.Thread(target=rival.run, args=(sizes, start), daemon=True)
        for rival, sizes in zip(rivals, batches, strict=True)
    ]
    for thread in threads:
        thread.start()
    return threads


def problems_of(rivals: Sequence[Rival], url: str) -> list[str]:
    """Everything in which the log differs from what its writers were told."""
    problems = [f"rival {rival.name}: {rival.error!r}" for rival in rivals if rival.error is not None]
    with closing(PostgresReader(Postgres(url), log_id=rivals[0].writer.log_id)) as reader:
        head, tree, rows = reader.head(), CompactRange(), {}
        for index in range(head.size):
            entry = reader.entry(index)
            if entry is None:
                problems.append(f"there is no entry {index}")
                break
            if entry.idem in rows:
                problems.append(f"the key of entry {index} is there twice")
            rows[entry.idem] = (index, entry.leaf_hash)
            tree.append(leaf_hash(entry.leaf))
        if tree.root() != head.root:
            problems.append("the head's root is not that of the entries")
    for rival in rivals:
        for one in rival.told:
            verified = verify_receipt(one.proof, [signer().verifier])
            if rows.get(one.key) != (verified.index, verified.leaf.hash):
                problems.append(f"{one.key.hex()} was told index {verified.index}: {rows.get(one.key)}")
    told = [one.key for rival in rivals for one in rival.told]
    if len(told) != len(set(told)) or len(rows) < len(told):
        problems.append(f"{len(told)} records were acknowledged, and {len(rows)} are there")
    return problems

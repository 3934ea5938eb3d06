"""Holds a log to what it told its clients: the proof that nothing acknowledged is lost, doubled, renumbered or reordered.

The proof is the clients' journal of acknowledgements, never the log's own consistency: a log that loses its newest
entries is perfectly consistent.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field

import grpc
import psycopg

from kala.audit.checkpoint import open_checkpoint
from kala.audit.database import verify_database
from kala.audit.leaf import parse_leaf
from kala.audit.merkle import CompactRange, leaf_hash
from kala.audit.note import Verifier
from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import VerificationError
from services.common.channel import open_channel
from tests.fakes.audit_log import record
from tests.fakes.audit_process import AuditProcess

CALLERS = 4
CALL_SECONDS = 5
# How long a log may acknowledge nothing: one that is to keep its promise, and one that is broken on purpose.
PATIENCE_SECONDS = 60
BROKEN_SECONDS = 8
# How often a caller sends its last batch again though it was acknowledged.
REPEATS = 0.3

Row = tuple[int, bytes, bytes, bytes]


@dataclass
class Journal:
    """What the clients were told, each caller's receipts in the order of its calls."""

    receipts: list[list[audit_pb2.Receipt]] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)

    def __len__(self) -> int:
        return sum(map(len, self.receipts))

    @property
    def newest(self) -> str:
        """The largest checkpoint that anyone was told."""
        return max(self.notes, key=size_of)


def size_of(note: str) -> int:
    """The tree size that a checkpoint signs."""
    return int(note.split("\n")[1])


@dataclass
class _Caller:
    """Appends batches; repeats each with the same keys, anywhere, until it is acknowledged, as the real client does."""

    stubs: Sequence[audit_pb2_grpc.AuditServiceAsyncStub]
    journal: Journal
    numbers: itertools.count[int]
    stop: asyncio.Event
    rng: random.Random
    told: list[audit_pb2.Receipt]

    async def run(self) -> None:
        before: audit_pb2.AppendBatchRequest | None = None
        while not self.stop.is_set():
            request = self._request()
            calls = [self._call(request)]
            if before is not None and self.rng.random() < REPEATS:
                # An answer that got lost on its way: what is in the log comes again, beside what is new.
                calls.append(self._call(before))
            await asyncio.gather(*calls)
            before = request

    def _request(self) -> audit_pb2.AppendBatchRequest:
        records = [
            record(next(self.numbers), key=os.urandom(16), payloads=1)
            for _ in range(self.rng.randrange(1, 20))
        ]
        return audit_pb2.AppendBatchRequest(records=records, with_proof=True)

    async def _call(self, request: audit_pb2.AppendBatchRequest) -> None:
        while True:
            try:
                response = await self.rng.choice(self.stubs).AppendBatch(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError:
                if self.stop.is_set():
                    return
                await asyncio.sleep(0.02)
            else:
                self.told.extend(response.receipts)
                self.journal.notes.add(response.checkpoint)
                self.journal.acknowledged.set()
                return


@asynccontextmanager
async def load(replicas: Sequence[AuditProcess], callers: int = CALLERS) -> AsyncIterator[Journal]:
    """Callers append for as long as the context is entered, each to any of the replicas."""
    journal, stop, numbers = Journal(), asyncio.Event(), itertools.count()
    channels = [open_channel(replica.address, peer_name="gateway") for replica in replicas]
    opened = [await channel.__aenter__() for channel in channels]
    stubs = [audit_pb2_grpc.AuditServiceStub(channel) for channel in opened]
    journal.receipts = [[] for _ in range(callers)]
    tasks = [
        asyncio.create_task(_Caller(stubs, journal, numbers, stop, random.Random(seed), told).run())
        for seed, told in enumerate(journal.receipts)
    ]
    try:
        yield journal
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        for channel in channels:
            await channel.__aexit__(None, None, None)


async def some_more(journal: Journal, seconds: float = PATIENCE_SECONDS) -> None:
    """Returns when something more was acknowledged."""
    journal.acknowledged.clear()
    await asyncio.wait_for(journal.acknowledged.wait(), seconds)


async def first_of(journal: Journal) -> None:
    """Returns when anything was acknowledged: until then even a broken log has all the time of a busy machine."""
    try:
        await some_more(journal)
    except TimeoutError as error:
        raise AssertionError("nothing was acknowledged before the first kill") from error


@contextmanager
def started(*replicas: AuditProcess) -> Iterator[None]:
    """Starts them; kills those that still run at the end, which are none when the log was whole and the test passed."""
    try:
        for replica in replicas:
            replica.start()
        yield
    finally:
        for replica in replicas:
            if replica.process is not None:
                replica.kill()


async def stopped(*replicas: AuditProcess) -> None:
    """Stops them in order, each once it serves: a process that is still starting dies of SIGTERM."""
    for replica in replicas:
        async with open_channel(replica.address, peer_name="gateway") as channel:
            reads = audit_pb2_grpc.AuditReadServiceStub(channel)
            await reads.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=60, wait_for_ready=True)
        status = await asyncio.to_thread(replica.stop)
        assert status == 0, replica.output()


@asynccontextmanager
async def may_stall(*, is_broken: bool) -> AsyncIterator[None]:
    """Lets a log that is broken on purpose stop acknowledging: its own checks may notice before ours do."""
    try:
        yield
    except TimeoutError:
        if not is_broken:
            raise


async def kill_under_load(
    replicas: Sequence[AuditProcess], kills: int, *, is_broken: bool = False
) -> Journal:
    """Kills one replica after another while callers append; stops all in order at the end."""
    rng = random.Random(11)
    patience = BROKEN_SECONDS if is_broken else PATIENCE_SECONDS
    with started(*replicas):
        async with load(replicas) as journal, may_stall(is_broken=is_broken):
            await first_of(journal)
            for _ in range(kills):
                await some_more(journal, patience)
                await asyncio.sleep(rng.uniform(0.05, 0.35))
                victim = rng.choice(replicas)
                await asyncio.to_thread(victim.kill)
                victim.start()
            await some_more(journal, patience)
        if not is_broken:  # what is broken may be unable to stop in order
            await stopped(*replicas)
    return journal


def rows_of(audit: AuditProcess) -> list[Row]:
    """Every entry as the database has it: index, leaf, leaf hash, key."""
    columns = "SELECT idx, leaf, leaf_hash, idem FROM entry ORDER BY idx"
    if audit.url is not None:
        with psycopg.connect(audit.url) as connection:
            return [(row[0], *map(bytes, row[1:])) for row in connection.execute(columns)]  # type: ignore[misc] # four
    with closing(sqlite3.connect(audit.database)) as database:
        return [(row[0], *map(bytes, row[1:])) for row in database.execute(columns)]  # type: ignore[misc] # four


def problems_of(journal: Journal, audit: AuditProcess) -> list[str]:
    """Everything in which the log differs from what its clients were told."""
    rows = rows_of(audit)
    problems = [*_tree_problems(rows, journal.notes, audit.verifier)]
    if audit.url is None:
        try:
            verify_database(audit.database, [audit.verifier], pinned=journal.newest)
        except VerificationError as error:
            problems.append(str(error))
    places = {key: (index, digest) for index, _, digest, key in rows}
    if len(rows) != len(places):
        problems.append(f"{len(rows) - len(places)} keys are in the log twice")
    for told in journal.receipts:
        before, seen = -1, set[bytes]()
        for receipt in told:
            index, digest = receipt.index, receipt.leaf_hash
            try:
                verified = verify_receipt(receipt.proof, [audit.verifier])
                assert (verified.index, verified.leaf.hash) == (index, digest)
            except VerificationError as error:
                problems.append(f"{receipt.name} was told a proof that does not hold: {error}")
            key = bytes.fromhex(receipt.name.removeprefix("receipts/rcpt_"))
            if key not in places:
                problems.append(f"{receipt.name} is lost")
            elif places[key] != (index, digest):
                problems.append(f"{receipt.name} was told index {index} and is at {places[key][0]}")
            if key not in seen and index <= before:
                problems.append(f"{receipt.name} at {index} came after one at {before}")
            before = max(before, index)
            seen.add(key)
    return problems


def shows_loss(problems: Sequence[str]) -> bool:
    """Whether something acknowledged is not where it was: gone, or written anew when its caller repeated it."""
    return any("is lost" in problem or "was told index" in problem for problem in problems)


def _tree_problems(rows: Sequence[Row], notes: set[str], verifier: Verifier) -> list[str]:
    """What is wrong with the entries themselves, and every checkpoint that does not sign the beginning of them."""
    signed = {}
    for note in notes:
        checkpoint = open_checkpoint(note, [verifier])
        if signed.setdefault(checkpoint.size, checkpoint.root) != checkpoint.root:
            return [f"two roots were signed for size {checkpoint.size}"]
    problems = [
        f"size {size} was signed, and there are {len(rows)} entries" for size in signed if size > len(rows)
    ]
    tree = CompactRange()
    for place, (index, leaf, digest, key) in enumerate(rows):
        value = parse_leaf(leaf).value
        if index != place or leaf_hash(leaf) != digest or value["idempotency_key"] != key.hex():
            problems.append(f"entry {index} at place {place} is not what its row says")
        tree.append(digest)
        if signed.get(tree.size, tree.root()) != tree.root():
            problems.append(f"the checkpoint of size {tree.size} does not sign the entries")
    return problems


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for another task or process to bring something about."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it is not ours to set an event
            await asyncio.sleep(0.01)

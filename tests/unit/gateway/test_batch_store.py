"""Batches and files in SQLite and PostgreSQL: leases that fence, answers kept once, room that no race overfills."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete

from gateway.batches import model
from gateway.batches.model import Batch, LinePlace, LineProblem, LineResult
from gateway.batches.output import write_files
from gateway.batches.store import BatchStore
from gateway.batches.tables import BATCH, BATCH_LINE, BATCH_PERSON
from gateway.database import open_database
from gateway.files.model import PART_BYTES
from gateway.files.store import STALE, Bounds, FileStore
from gateway.files.tables import FILE, FILE_PART, FILE_ROOM
from gateway.leases import LeaseLostError
from gateway.payload_table import PAYLOAD_KEY
from gateway.payloads import Payloads
from kala.errors import FailedPreconditionError, KalaError, NotFoundError
from tests.postgres import Databases

SUBJECT, OTHER = "ab" * 32, "cd" * 32
LEASE = timedelta(seconds=30)


@dataclass
class Stores:
    batches: BatchStore
    files: FileStore
    time: list[datetime] = field(default_factory=lambda: [datetime(2026, 1, 2, tzinfo=UTC)])

    def later(self, span: timedelta) -> None:
        self.time[0] += span

    def file(self, data: bytes = b"x", *, subject: str = SUBJECT, tenant: str = "t") -> str:
        draft = self.files.begin(tenant=tenant, owner="k", subject=subject)
        self.files.append(draft, data)
        return self.files.finish(draft, purpose="batch", name="in", life=None).id

    def batch(self, *, subject: str = SUBJECT, tenant: str = "t") -> Batch:
        now = self.time[0]
        made = Batch(
            id=model.new_batch_id(),
            tenant=tenant,
            owner="k",
            subject=subject,
            endpoint="/v1/chat/completions",
            input_file_id=self.file(subject=subject, tenant=tenant),
            status=model.VALIDATING,
            created_at=now,
            expires_at=now + timedelta(hours=24),
            metadata={"a": "b"},
        )
        self.batches.create(made)
        return made

    def accepted(self, holder: str = "h", lines: int = 3) -> Batch:
        self.batch()
        claimed = self.batches.claim(holder)
        assert claimed is not None
        return self.batches.accept(
            claimed, holder, [LinePlace(n, n, 1) for n in range(1, lines + 1)], [OTHER]
        )


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    databases: Databases | None = None
    url = str(tmp_path_factory.mktemp("batches") / "g.db")
    if request.param == "postgres":
        server: Databases = request.getfixturevalue("postgres_databases")
        databases, url = server, server.create()
    made = open_database(url)
    yield made
    made.dispose()
    if databases is not None:
        databases.drop(url)


@pytest.fixture
def stores(engine: Engine, tmp_path: Path) -> Stores:
    with engine.begin() as connection:
        for table in (BATCH_LINE, BATCH_PERSON, BATCH, FILE_PART, FILE, FILE_ROOM, PAYLOAD_KEY):
            connection.execute(delete(table))
    payloads = Payloads(engine, tmp_path / "store.key")
    time = [datetime(2026, 1, 2, tzinfo=UTC)]
    bounds = Bounds(file_bytes=4 * PART_BYTES, tenant_bytes=4 * PART_BYTES)
    files = FileStore(engine, payloads, bounds=bounds, now=lambda: time[0])
    return Stores(BatchStore(engine, payloads, lease=LEASE, now=lambda: time[0]), files, time)


def result(number: int, *, ok: bool = True, text: bytes = b"{}") -> LineResult:
    return LineResult(number, ok, text, 2, 3)


def test_one_holder_works_on_a_batch_until_its_lease_ends(stores: Stores) -> None:
    made = stores.batch()
    first = stores.batches.claim("a")
    assert first is not None
    assert (first.id, first.metadata) == (made.id, {"a": "b"})
    assert stores.batches.claim("b") is None
    stores.later(LEASE - timedelta(seconds=1))
    assert stores.batches.renew(made.id, "a") == model.VALIDATING
    stores.later(LEASE - timedelta(seconds=1))
    assert stores.batches.claim("b") is None
    stores.later(timedelta(seconds=2))
    assert stores.batches.claim("b") is not None
    with pytest.raises(LeaseLostError):
        stores.batches.renew(made.id, "a")


def test_replicas_that_look_at_once_take_different_batches(stores: Stores) -> None:
    made = {stores.batch().id for _ in range(4)}
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(stores.batches.claim, "abcd"))
    assert sorted(batch.id for batch in taken if batch) == sorted(made)


def test_the_batch_that_rested_longest_comes_first(stores: Stores) -> None:
    first, second = stores.batch(), stores.batch()
    order = []
    for _ in range(3):
        stores.later(timedelta(seconds=1))
        claimed = stores.batches.claim("a")
        assert claimed is not None
        order.append(claimed.id)
        stores.batches.release(claimed.id, "a")
    assert set(order[:2]) == {first.id, second.id}
    assert order[2] == order[0]


def test_a_paused_batch_is_left_alone(stores: Stores) -> None:
    made = stores.batch()
    assert stores.batches.claim("a")
    stores.batches.release(made.id, "a", pause=timedelta(seconds=10))
    assert stores.batches.claim("b") is None
    stores.later(timedelta(seconds=10))
    assert stores.batches.claim("b")


def test_an_answer_is_kept_once_and_only_by_the_holder(stores: Stores) -> None:
    batch = stores.accepted("a")
    assert stores.batches.record(batch, "a", result(1)) == model.IN_PROGRESS
    with pytest.raises(LeaseLostError):
        stores.batches.record(batch, "a", result(1, text=b"again"))
    stores.later(LEASE)
    assert stores.batches.claim("b")
    with pytest.raises(LeaseLostError):
        stores.batches.record(batch, "a", result(2))
    stores.batches.record(batch, "b", result(2, ok=False))
    now = stores.batches.get("t", batch.id)
    assert (now.total, now.completed, now.failed, now.input_tokens, now.output_tokens) == (3, 1, 1, 4, 6)
    assert [place.number for place in stores.batches.pending(batch.id, limit=9)] == [3]
    assert [kept.line for kept in stores.batches.results(now, limit=9)] == [b"{}", b"{}"]


def test_a_batch_ends_with_its_files_or_not_at_all(stores: Stores) -> None:
    batch = stores.accepted("a", lines=2)
    stores.batches.record(batch, "a", result(1, text=b"one"))
    stores.batches.record(batch, "a", result(2, ok=False, text=b"two"))
    before = stores.files.taken("t")
    stores.later(LEASE)
    assert stores.batches.claim("b")
    with pytest.raises(LeaseLostError):
        write_files(batch, "a", model.COMPLETED, store=stores.batches, files=stores.files)
    assert stores.files.taken("t") == before
    write_files(batch, "b", model.COMPLETED, store=stores.batches, files=stores.files)
    ended = stores.batches.get("t", batch.id)
    assert ended.status == model.COMPLETED
    assert "completed_at" in ended.stamps
    for file_id, data in ((ended.output_file_id, b"one\n"), (ended.error_file_id, b"two\n")):
        assert file_id is not None
        file = stores.files.get("t", file_id)
        assert (b"".join(stores.files.read(file)), file.purpose) == (data, "batch_output")
    assert stores.batches.claim("c") is None


def test_a_cancelled_batch_stays_its_holders_to_end(stores: Stores) -> None:
    batch = stores.accepted("a")
    assert stores.batches.cancel("t", batch.id).status == model.CANCELLING
    assert stores.batches.record(batch, "a", result(1)) == model.CANCELLING
    write_files(batch, "a", model.CANCELLED, store=stores.batches, files=stores.files)
    assert stores.batches.cancel("t", batch.id).status == model.CANCELLED


def test_a_batch_of_another_tenant_is_not_there(stores: Stores) -> None:
    made = stores.batch()
    with pytest.raises(NotFoundError):
        stores.batches.get("u", made.id)
    with pytest.raises(NotFoundError):
        stores.batches.cancel("u", made.id)
    assert stores.batches.list("u", limit=9) == []
    assert [batch.id for batch in stores.batches.list("t", limit=9)] == [made.id]


def test_a_rejected_batch_says_why_and_is_done(stores: Stores) -> None:
    made = stores.batch()
    claimed = stores.batches.claim("a")
    assert claimed is not None
    stores.batches.reject(claimed, "a", [LineProblem("empty_file", "nothing in it")])
    ended = stores.batches.get("t", made.id)
    assert (ended.status, ended.errors[0]["code"]) == (model.FAILED, "empty_file")
    assert stores.batches.claim("b") is None


@pytest.mark.parametrize("who", [SUBJECT, OTHER], ids=["its own person", "a person that a line names"])
def test_an_erased_person_takes_batch_and_files_along(stores: Stores, who: str) -> None:
    batch = stores.accepted("a", lines=1)
    stores.batches.record(batch, "a", result(1))
    kept = stores.batch(subject="ee" * 32)
    count, files = stores.batches.erase("t", who)
    assert (count, files) == (1, [batch.input_file_id])
    assert stores.files.erase("t", who, also=files) == 1
    with pytest.raises(NotFoundError):
        stores.batches.get("t", batch.id)
    with pytest.raises(LeaseLostError):
        stores.batches.renew(batch.id, "a")
    assert stores.batches.get("t", kept.id).id == kept.id
    assert stores.files.get("t", kept.input_file_id).size == 1


def test_what_was_written_while_its_person_was_erased_blocks_nobody(stores: Stores, engine: Engine) -> None:
    lost, kept = stores.batch(), stores.batch(subject=OTHER)
    with engine.begin() as connection:
        connection.execute(delete(PAYLOAD_KEY).where(PAYLOAD_KEY.c.subject == SUBJECT))
    assert [batch.id for batch in stores.batches.list("t", limit=9)] == [kept.id]
    claimed = {found.id for found in (stores.batches.claim("a"), stores.batches.claim("a")) if found}
    assert claimed == {kept.id}
    assert stores.batches.unread("t") == {kept.id: kept.input_file_id}
    with pytest.raises(NotFoundError):
        stores.batches.get("t", lost.id)


def test_a_batch_that_nobody_accepted_is_unread_and_erased_when_told(stores: Stores) -> None:
    read = stores.accepted("a")
    new = stores.batch(subject=OTHER)
    assert stores.batches.unread("t") == {new.id: new.input_file_id}
    assert stores.batches.erase("u", SUBJECT, also=[new.id]) == (0, [])
    assert stores.batches.erase("t", "ee" * 32, also=[new.id]) == (1, [new.input_file_id])
    assert stores.batches.get("t", read.id).id == read.id


def test_an_erasure_of_more_files_than_a_statement_has_room_for_ends(stores: Stores) -> None:
    named, also = stores.file(subject=OTHER), [f"file-{number:032x}" for number in range(70_000)]
    kept = stores.file(subject=OTHER)
    assert stores.files.erase("t", SUBJECT, also=[*also, named]) == 1
    assert stores.files.get("t", kept).id == kept


def test_what_ended_long_ago_is_forgotten(stores: Stores) -> None:
    done, going = stores.accepted("a"), stores.batch()
    write_files(done, "a", model.COMPLETED, store=stores.batches, files=stores.files)
    stores.later(timedelta(days=181))
    stores.batches.sweep()
    assert [batch.id for batch in stores.batches.list("t", limit=9)] == [going.id]


def test_writers_that_race_never_pass_the_tenants_bound(stores: Stores) -> None:
    def write(number: int) -> bool:
        draft = stores.files.begin(tenant="r", owner="k", subject=f"{number:064x}")
        try:
            stores.files.append(draft, bytes(PART_BYTES))
            stores.files.finish(draft, purpose="batch", name="x", life=None)
        except FailedPreconditionError:
            stores.files.discard(draft)
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) == 4
    assert stores.files.taken("r") == 4 * PART_BYTES


def test_an_upload_that_broke_off_is_swept_away(stores: Stores) -> None:
    draft = stores.files.begin(tenant="t", owner="k", subject=SUBJECT)
    stores.files.append(draft, bytes(PART_BYTES))
    kept = stores.file()
    stores.later(STALE)
    assert stores.files.sweep() == 1
    assert stores.files.taken("t") == 1
    with pytest.raises(KalaError):
        stores.files.finish(draft, purpose="batch", name="x", life=None)
    assert stores.files.get("t", kept).size == 1


def test_the_key_of_a_file_binds_each_part_to_its_place(stores: Stores) -> None:
    data = secrets.token_bytes(2 * PART_BYTES + 7)
    file = stores.files.get("t", stores.file(data))
    assert (file.parts, b"".join(stores.files.read(file))) == (3, data)

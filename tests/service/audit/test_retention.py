"""Retention: content and entries go when they are due, said in the log before; what is held stays, proofs stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import select

from kala.audit.database import verify_database
from kala.audit.receipt import verify_receipt
from kala.errors import UnavailableError
from services.audit.config import AuditSettings
from services.audit.privacy.retention import DAY_US, Clocks, Retention, retaining
from services.audit.privacy.retention_store import STEP_ENTRIES, RetentionStore
from services.audit.storage.schema import PAYLOAD
from tests.fakes.audit_log import record, signer
from tests.fakes.audit_privacy import PrivateLog, private_log, spoken

ALICE, BOB = "a" * 64, "b" * 64
TRUSTED = [signer().verifier]


@pytest.fixture
async def log(log_database: str) -> AsyncIterator[PrivateLog]:
    async with private_log(log_database) as opened:
        yield opened


def store_of(log: PrivateLog) -> RetentionStore:
    return RetentionStore(log.store.engine, log.store.log_id, clock=lambda: log.now[0])


def retention_of(log: PrivateLog, *, payload_days: int = 30, entry_days: int = 180) -> Retention:
    return Retention(
        store_of(log),
        log.once,
        Clocks(payload_days, entry_days),
        clock=lambda: log.now[0],
        step_pause_seconds=0,
    )


def kept(log: PrivateLog) -> list[int]:
    """The entries that still have content."""
    with log.store.engine.connect() as connection:
        rows = connection.execute(select(PAYLOAD.c.idx).where(PAYLOAD.c.ciphertext.is_not(None))).scalars()
        return sorted(set(rows))


async def test_content_goes_after_its_days_and_younger_content_stays(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE), spoken(1, BOB))
    log.now[0] += 29 * DAY_US
    assert await retention_of(log).run() == 0
    await log.append(spoken(2, ALICE))
    log.now[0] += 2 * DAY_US
    assert await retention_of(log).run() == 4
    assert kept(log) == [2]


async def test_what_is_about_to_expire_is_logged_before_it_does(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE), spoken(1, BOB))
    log.now[0] += 31 * DAY_US
    await retention_of(log).run()
    (said,) = [leaf for leaf in log.leaves() if leaf["type"] == "retention.expired"]
    assert dict(said["attributes"]) == {"days": "30", "entries.from": "0", "entries.until": "2"}
    log.now[0] += DAY_US
    await retention_of(log).run()
    assert len([leaf for leaf in log.leaves() if leaf["type"] == "retention.expired"]) == 1


async def test_nothing_expires_while_the_log_cannot_say_so(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    log.now[0] += 31 * DAY_US
    await log.log.stop()
    with pytest.raises(UnavailableError):
        await retention_of(log).run()
    assert kept(log) == [0]


async def test_a_held_person_keeps_content_until_the_hold_ends(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE), spoken(1, BOB), spoken(2, ALICE))
    held = await log.hold(ALICE)
    log.now[0] += 31 * DAY_US
    await retention_of(log).run()
    assert kept(log) == [0, 2]
    await log.release(held.hold)
    await retention_of(log).run()
    assert kept(log) == []


async def test_expiry_goes_in_bounded_steps_and_a_cut_one_goes_on(
    log: PrivateLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 2 * STEP_ENTRIES + 7
    for start in range(0, many, 500):
        await log.append(*(spoken(number, ALICE) for number in range(start, min(start + 500, many))))
    log.now[0] += 31 * DAY_US
    step, steps = RetentionStore.expire_step, []

    def cut(store: RetentionStore, first: int, until: int) -> tuple[int, int]:
        if len(steps) == 1:
            raise UnavailableError("killed here")
        steps.append(step(store, first, until))
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(RetentionStore, "expire_step", cut)
        with pytest.raises(UnavailableError):
            await retention_of(log).run()
    assert steps == [(STEP_ENTRIES, 2 * STEP_ENTRIES)]
    assert kept(log) == list(range(STEP_ENTRIES, many))
    await retention_of(log).run()
    assert kept(log) == []


async def test_two_replicas_expire_once(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    log.now[0] += 31 * DAY_US
    assert await retention_of(log).run() + await retention_of(log).run() == 2


async def test_a_proof_outlives_the_content(log: PrivateLog) -> None:
    before = await log.append(spoken(0, ALICE))
    log.now[0] += 400 * DAY_US
    await retention_of(log).run()
    assert verify_receipt(log.reading.entry(0).proof, TRUSTED).leaf.hash == before.receipts[0].leaf_hash


async def test_a_log_whose_content_expired_verifies_offline(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    async with private_log(str(path)) as log:
        await log.append(spoken(0, ALICE), spoken(1, BOB))
        log.now[0] += 31 * DAY_US
        await retention_of(log).run()
    assert verify_database(path, TRUSTED, pinned=None).entries == 3


async def test_entries_of_sqlite_are_never_dropped(log: PrivateLog) -> None:
    await log.append(record(0))
    log.now[0] += 4000 * DAY_US
    await retention_of(log).run()
    assert log.leaves()[0]["idempotency_key"] == "0" * 32


async def test_entries_go_by_whole_partitions_when_both_clocks_ran_out(
    postgres_log_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partitions of a real log hold a million entries; those of this one 256."""
    import services.audit.privacy.retention as retention_module

    monkeypatch.setattr(retention_module, "PARTITION_WIDTH", 256)
    async with private_log(postgres_log_url) as log:
        with log.store.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE entry_0")
            connection.exec_driver_sql("SELECT audit_extend_entry(1023, 256)")
        for start in range(0, 600, 200):
            last = await log.append(*(spoken(number, ALICE) for number in range(start, start + 200)))
        held = await log.hold(ALICE)
        log.now[0] += 200 * DAY_US
        await log.append(record(5_000))
        retention = retention_of(log)
        await retention.run()
        assert store_of(log).first_entry() == 0, "content of a held person is in every partition"
        await log.release(held.hold)
        await retention.run()
        assert kept(log) == []
        assert store_of(log).first_entry() == 512
        newest = log.reading.entry(599)
        assert newest.entry.leaf_hash == last.receipts[-1].leaf_hash
        assert verify_receipt(newest.proof, TRUSTED).index == 599
        assert log.reading.consistency(200, None)[0]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"entry_retention_days": 179}, "allow_below_legal_floor"),
        ({"entry_retention_days": 20, "allow_below_legal_floor": True}, "payload_retention_days is 30"),
        ({"payload_retention_days": 0}, "payload_retention_days"),
    ],
)
def test_a_span_that_is_too_short_is_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        AuditSettings(**fields)  # type: ignore[arg-type] # fields of the settings


def test_entries_may_be_kept_for_ever_and_shorter_where_somebody_says_so() -> None:
    assert AuditSettings().entry_retention_days == 180
    assert AuditSettings(entry_retention_days=0).entry_retention_days == 0
    assert AuditSettings(entry_retention_days=90, allow_below_legal_floor=True).entry_retention_days == 90


async def test_retention_runs_beside_the_service_and_outlives_a_failure(
    log: PrivateLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.append(spoken(0, ALICE))
    log.now[0] += 31 * DAY_US
    expire, tries, is_done = RetentionStore.expire_step, [0], asyncio.Event()
    loop = asyncio.get_running_loop()

    def failing_first(store: RetentionStore, first: int, until: int) -> tuple[int, int]:
        tries[0] += 1
        if tries[0] == 1:
            raise UnavailableError("the database restarts")
        result = expire(store, first, until)
        loop.call_soon_threadsafe(is_done.set)
        return result

    monkeypatch.setattr(RetentionStore, "expire_step", failing_first)
    async with retaining(retention_of(log), poll_seconds=60, retry_seconds=0):
        await asyncio.wait_for(is_done.wait(), 20)
    assert kept(log) == []

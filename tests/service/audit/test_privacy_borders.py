"""Erasure, holds and expiry where two meet: two tenants, two logs in one database, a hold that ends meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from kala.audit.note import Signer
from kala.errors import NotFoundError
from services.audit.privacy.retention import DAY_US, Clocks, Retention
from services.audit.privacy.retention_store import STEP_ENTRIES, RetentionStore
from services.audit.storage.schema import PAYLOAD
from tests.fakes.audit_privacy import PrivateLog, private_log, spoken

ALICE, BOB = "a" * 64, "b" * 64
OTHER_LOG = Signer.of("kala.test/other", b"o" * 32)
MINUTE_US = 60_000_000


@pytest.fixture
async def log(log_database: str) -> AsyncIterator[PrivateLog]:
    async with private_log(log_database) as opened:
        yield opened


def kept(log: PrivateLog) -> list[int]:
    """The entries of this log that still have content."""
    query = select(PAYLOAD.c.idx).where(
        PAYLOAD.c.log_id == log.store.log_id, PAYLOAD.c.ciphertext.is_not(None)
    )
    with log.store.engine.connect() as connection:
        return sorted(set(connection.execute(query).scalars()))


def retention_of(log: PrivateLog) -> Retention:
    store = RetentionStore(log.store.engine, log.store.log_id, clock=lambda: log.now[0])
    return Retention(store, log.once, Clocks(30, 0), clock=lambda: log.now[0], step_pause_seconds=0)


async def test_another_tenant_s_erasure_takes_no_words_that_still_wait_in_a_spool(log: PrivateLog) -> None:
    """Before they arrive the log knows nothing of Alice, so anybody may ask for her: for their own tenant."""
    log.now[0] += MINUTE_US
    await log.erase(ALICE, tenant="elsewhere")
    log.now[0] += MINUTE_US
    await log.append(spoken(0, ALICE))
    assert kept(log) == [2]


async def test_a_key_that_another_log_of_the_database_destroyed_seals_nothing_more(
    postgres_log_url: str,
) -> None:
    async with private_log(postgres_log_url) as one, private_log(postgres_log_url, key=OTHER_LOG) as two:
        await one.append(spoken(0, ALICE))
        await two.append(spoken(0, ALICE))
        await one.erase(ALICE)
        assert (kept(one), kept(two)) == ([], [])
        # Its writer remembered the key.
        await two.append(spoken(1, ALICE))
        assert two.reading.payload(1, "request")[1] == b"secret canary 1"


async def test_a_person_of_another_log_is_still_of_its_tenant(postgres_log_url: str) -> None:
    async with private_log(postgres_log_url) as one, private_log(postgres_log_url, key=OTHER_LOG) as two:
        await one.append(spoken(0, ALICE))
        with pytest.raises(NotFoundError):
            await two.erase(ALICE, tenant="elsewhere")
        assert kept(one) == [0]


async def test_content_expires_in_every_log_of_a_database(postgres_log_url: str) -> None:
    async with private_log(postgres_log_url) as one, private_log(postgres_log_url, key=OTHER_LOG) as two:
        for log in (one, two):
            await log.append(spoken(0, ALICE), spoken(1, BOB))
        held = await two.hold(ALICE)
        for log in (one, two):
            log.now[0] += 31 * DAY_US
            await retention_of(log).run()
        assert (kept(one), kept(two)) == ([0], [0])
        await two.release(held.hold)
        for log in (one, two):
            await retention_of(log).run()
        assert (kept(one), kept(two)) == ([], [])


async def test_what_a_hold_kept_goes_only_after_the_log_said_so(
    log: PrivateLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hold ends while a run is on its way: that run has not announced what it kept."""
    await log.append(*(spoken(number, ALICE if number == 3 else BOB) for number in range(STEP_ENTRIES + 10)))
    held = await log.hold(ALICE)
    log.now[0] += 31 * DAY_US
    step = RetentionStore.expire_step
    said: list[bool] = []

    def watched(self: RetentionStore, first: int, until: int) -> tuple[int, int]:
        found = step(self, first, until)
        if first == 0:
            log.privacy_store.release_hold(held.hold.removeprefix("holds/"))
        if 3 not in kept(log):
            said.append(any(dict(leaf["attributes"]).get("entries.from") == "3" for leaf in log.leaves()))
        return found

    monkeypatch.setattr(RetentionStore, "expire_step", watched)
    await retention_of(log).run()
    assert kept(log) == []
    assert said[0]

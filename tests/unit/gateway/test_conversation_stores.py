"""Stored responses and sessions, on SQLite and on PostgreSQL: whose they are, how long, and what a killed gateway leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from gateway.background import Background
from gateway.conversations.records import COMPLETED, FAILED, IN_PROGRESS, Owner, StoredResponse
from gateway.conversations.session_store import SessionStore, StoredSession
from gateway.conversations.store import MAX_TURNS, ResponseStore
from gateway.database import open_database
from gateway.payloads import Payloads
from gateway.responses.keeping import LEASE_SECONDS, MICROS, Keeper
from kala.errors import AlreadyExistsError, FailedPreconditionError, KalaError, NotFoundError
from tests.postgres import Databases

ALICE = Owner("t", "keys/a", "a" * 64)
BOB = Owner("t", "keys/a", "b" * 64)
STRANGERS = [Owner("t", "keys/b", "a" * 64), Owner("u", "keys/a", "a" * 64)]
NOW, LATER = 1_000, 2_000


@dataclass
class Stores:
    engine: Engine
    responses: ResponseStore
    sessions: SessionStore
    payloads: Payloads


@pytest.fixture(scope="module")
def postgres_engine(postgres_databases: Databases) -> Iterator[Engine]:
    """One database for all tests here: making one takes seconds on a busy machine."""
    url = postgres_databases.create()
    engine = open_database(url)
    yield engine
    engine.dispose()
    postgres_databases.drop(url)


@pytest.fixture(params=["sqlite", "postgres"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    if request.param == "sqlite":
        engine = open_database(tmp_path / "g.db")
    else:
        engine = request.getfixturevalue("postgres_engine")
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE response, session, session_turn, payload_key"))
    payloads = Payloads(engine, tmp_path / "store.key")
    yield Stores(engine, ResponseStore(engine, payloads), SessionStore(engine, payloads), payloads)
    if request.param == "sqlite":
        engine.dispose()


def response(name: str, owner: Owner = ALICE, previous: str | None = None, **fields: Any) -> StoredResponse:
    stored = StoredResponse(
        id=name, owner=owner, previous_id=previous, status=COMPLETED, is_refused=False, created_at=NOW,
        expires_at=LATER, lease_until=None, items=[{"id": f"in_{name}"}], body={"id": name, "status": COMPLETED},
    )  # fmt: skip
    return replace(stored, **fields)


def test_a_conversation_comes_oldest_first_with_each_persons_words(stores: Stores) -> None:
    stores.responses.insert(response("r1"))
    stores.responses.insert(response("r2", BOB, "r1"))
    stores.responses.insert(response("r3", ALICE, "r2"))
    found = stores.responses.conversation(ALICE, "r3", NOW)
    assert [(one.id, one.items[0]["id"]) for one in found] == [
        ("r1", "in_r1"),
        ("r2", "in_r2"),
        ("r3", "in_r3"),
    ]


@pytest.mark.parametrize("stranger", STRANGERS, ids=["another key", "another tenant"])
def test_what_is_anothers_is_neither_found_followed_nor_deleted(stores: Stores, stranger: Owner) -> None:
    stores.responses.insert(response("r1"))
    assert stores.responses.find(stranger, "r1", NOW) is None
    with pytest.raises(NotFoundError):
        stores.responses.conversation(stranger, "r1", NOW)
    stores.responses.insert(response("r2", stranger, "r1"))
    with pytest.raises(NotFoundError, match="'r1'"):
        stores.responses.conversation(stranger, "r2", NOW)
    assert not stores.responses.delete(stranger, "r1")
    assert stores.responses.find(ALICE, "r1", NOW) is not None


def test_what_has_expired_is_out_of_sight_at_once_and_swept_later(stores: Stores) -> None:
    stores.responses.insert(response("r1"))
    stores.responses.insert(response("r2", previous="r1", expires_at=LATER + 1))
    assert stores.responses.find(ALICE, "r1", LATER) is None
    with pytest.raises(NotFoundError, match="'r1'"):
        stores.responses.conversation(ALICE, "r2", LATER)
    assert stores.responses.sweep(LATER) == 1
    assert stores.responses.find(ALICE, "r2", LATER) is not None


def test_a_conversation_has_a_bounded_number_of_turns(stores: Stores) -> None:
    sealed = response("x")
    stores.responses.insert(replace(sealed, id="r0"))
    with stores.engine.begin() as connection:
        copy = text(
            "INSERT INTO response SELECT :new, tenant, owner, subject, :old, status, is_refused, created_at, "
            "expires_at, lease_until, input, body FROM response WHERE id = 'r0'"
        )
        connection.execute(copy, [{"new": f"r{i}", "old": f"r{i - 1}"} for i in range(1, MAX_TURNS + 1)])
    with pytest.raises(FailedPreconditionError, match=str(MAX_TURNS)):
        stores.responses.conversation(ALICE, f"r{MAX_TURNS}", NOW)


def test_what_is_finished_cancelled_or_erased_is_not_changed_any_more(stores: Stores) -> None:
    body = {"id": "r1", "status": IN_PROGRESS}
    stores.responses.insert(response("r1", status=IN_PROGRESS, body=body))
    assert stores.responses.update("r1", ALICE, {"status": "cancelled"})
    assert not stores.responses.update("r1", ALICE, {"status": COMPLETED})
    stores.responses.insert(response("r2", status=IN_PROGRESS, body=body))
    assert stores.responses.erase("t", ALICE.subject) == 2
    assert not stores.responses.update("r2", ALICE, {"status": COMPLETED})
    assert stores.responses.find(ALICE, "r2", NOW) is None


def test_a_row_put_in_anothers_place_does_not_open(stores: Stores) -> None:
    stores.responses.insert(response("r1"))
    stores.responses.insert(response("r2"))
    with stores.engine.begin() as connection:
        connection.execute(
            text("UPDATE response SET body = (SELECT body FROM response WHERE id = 'r1') WHERE id = 'r2'")
        )
    with pytest.raises(KalaError, match="damaged"):
        stores.responses.find(ALICE, "r2", NOW)


def test_what_was_written_while_its_person_was_erased_is_as_if_it_were_not_there(stores: Stores) -> None:
    working = response("r1", status=IN_PROGRESS, lease_until=NOW)
    stores.responses.insert(working)
    stores.responses.insert(response("r2", BOB, "r1"))
    stores.sessions.insert(StoredSession("s1", BOB, "", NOW, LATER))
    stores.sessions.append("s1", ALICE, 0, [{"content": "alice's"}])
    stores.payloads.erase("t", ALICE.subject)
    assert stores.responses.find(ALICE, "r1", NOW) is None
    with pytest.raises(NotFoundError, match="'r1'"):
        stores.responses.conversation(BOB, "r2", NOW)
    assert stores.sessions.turns("s1") == ([], 1)
    assert stores.responses.abandoned(NOW + 1) == []
    assert not stores.responses.delete(ALICE, "r1")


def test_turns_come_in_order_and_only_one_of_two_at_once_is_added(stores: Stores) -> None:
    stores.sessions.insert(StoredSession("s1", ALICE, "Title", NOW, LATER))
    stores.sessions.append("s1", ALICE, 0, [{"role": "user", "content": "one"}])
    messages, position = stores.sessions.turns("s1")
    assert (messages, position) == ([{"role": "user", "content": "one"}], 1)

    def add(owner: Owner) -> bool:
        try:
            stores.sessions.append("s1", owner, 1, [{"role": "user", "content": "two"}])
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(add, [ALICE, BOB] * 2)) == 1
    assert stores.sessions.find(ALICE, "s1", NOW).requests == 2


def test_an_erasure_takes_a_persons_turns_out_of_anybodys_session(stores: Stores) -> None:
    stores.sessions.insert(StoredSession("s1", ALICE, "", NOW, LATER))
    stores.sessions.append("s1", ALICE, 0, [{"content": "alice's"}])
    stores.sessions.append("s1", BOB, 1, [{"content": "bob's"}])
    assert stores.sessions.erase("t", BOB.subject) == (0, 1)
    assert stores.sessions.turns("s1") == ([{"content": "alice's"}], 1)
    assert stores.sessions.erase("t", ALICE.subject) == (1, 1)
    with pytest.raises(NotFoundError):
        stores.sessions.append("s1", BOB, 2, [{"content": "late"}])


def test_expired_sessions_go_with_their_turns(stores: Stores) -> None:
    stores.sessions.insert(StoredSession("s1", ALICE, "", NOW, LATER))
    stores.sessions.append("s1", ALICE, 0, [{"content": "x"}])
    assert stores.sessions.sweep(LATER) == 1
    assert stores.sessions.turns("s1") == ([], 0)


async def test_what_a_killed_gateway_worked_on_is_reported_as_failed(stores: Stores) -> None:
    clock = [100.0]
    killed, other = (
        Keeper(stores.responses, background=Background(), ttl_seconds=3600, clock=lambda: clock[0])
        for _ in range(2)
    )
    body = {"id": "r1", "status": IN_PROGRESS, "output": []}
    await killed.begin("r1", ALICE, items=[], body=body, previous_id=None)
    clock[0] += LEASE_SECONDS - 1
    await killed.renew()
    clock[0] += LEASE_SECONDS - 1
    assert (await other.find(ALICE, "r1")).status == IN_PROGRESS
    clock[0] += 2
    found = await other.find(ALICE, "r1")
    assert (found.status, found.body["error"]["code"]) == (FAILED, "server_error")
    assert not await killed.finish("r1", ALICE, {**body, "status": COMPLETED})

    await killed.begin("r2", ALICE, items=[], body={**body, "id": "r2"}, previous_id=None)
    clock[0] += LEASE_SECONDS + 1
    await other.sweep()
    assert stores.responses.find(ALICE, "r2", int(clock[0] * MICROS)).status == FAILED  # type: ignore[union-attr] # it is there


async def test_a_cancellation_elsewhere_ends_the_work_here(stores: Stores) -> None:
    here, there = (
        Keeper(stores.responses, background=Background(), ttl_seconds=3600, clock=lambda: 100.0)
        for _ in range(2)
    )
    stopped = asyncio.Event()
    body = {"id": "r1", "status": IN_PROGRESS}
    await here.begin("r1", ALICE, items=[], body=body, previous_id=None, stop=stopped.set)
    await here.renew()
    assert not stopped.is_set()
    await there.change("r1", ALICE, {**body, "status": "cancelled"})
    await here.renew()
    assert stopped.is_set()

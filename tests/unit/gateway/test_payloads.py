"""What the gateway keeps of people: readable only with their key, and with nothing once that is destroyed."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from gateway.database import open_database
from gateway.payloads import OVERHEAD_BYTES, Payloads
from kala.errors import DataLossError, FailedPreconditionError, KalaError, NotFoundError, UnavailableError
from tests.postgres import Databases

ALICE, BOB = "a" * 64, "b" * 64
CONTEXT = b"response\0resp_1"
WORDS = "The patient's name is Müller.".encode()


@pytest.fixture(scope="module")
def postgres_engine(postgres_databases: Databases) -> Iterator[Engine]:
    """One database for all tests here: making one takes seconds on a busy machine."""
    url = postgres_databases.create()
    engine = open_database(url)
    yield engine
    engine.dispose()
    postgres_databases.drop(url)


@pytest.fixture(params=["sqlite", "postgres"])
def payloads(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Payloads]:
    if request.param == "sqlite":
        engine = open_database(tmp_path / "g.db")
    else:
        engine = request.getfixturevalue("postgres_engine")
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE payload_key"))
    yield Payloads(engine, tmp_path / "store.key")
    if request.param == "sqlite":
        engine.dispose()


def test_what_was_sealed_comes_back_and_is_nowhere_in_the_database(tmp_path: Path) -> None:
    payloads = Payloads(open_database(tmp_path / "g.db"), tmp_path / "store.key")
    sealed = payloads.seal("t", ALICE, WORDS, CONTEXT)
    assert payloads.open("t", ALICE, sealed, CONTEXT) == WORDS
    assert b"ller" not in sealed
    assert len(sealed) == len(WORDS) + OVERHEAD_BYTES


@pytest.mark.parametrize(
    ("tenant", "subject", "context"),
    [("u", ALICE, CONTEXT), ("t", BOB, CONTEXT), ("t", ALICE, b"response\0resp_2")],
    ids=["another tenant", "another person", "another place"],
)
def test_a_payload_opens_only_where_it_belongs(
    payloads: Payloads, tenant: str, subject: str, context: bytes
) -> None:
    sealed = payloads.seal("t", ALICE, WORDS, CONTEXT)
    payloads.seal("u", ALICE, b"", CONTEXT)
    payloads.seal("t", BOB, b"", CONTEXT)
    with pytest.raises(KalaError):
        payloads.open(tenant, subject, sealed, context)


def test_an_erasure_reaches_what_was_sealed_before_it_through_every_replica(
    payloads: Payloads, tmp_path: Path
) -> None:
    other = Payloads(payloads._engine, tmp_path / "store.key")
    sealed, bobs = payloads.seal("t", ALICE, WORDS, CONTEXT), payloads.seal("t", BOB, WORDS, CONTEXT)
    assert other.erase("t", ALICE) == 1
    with pytest.raises(NotFoundError) as error:
        payloads.open("t", ALICE, sealed, CONTEXT)
    assert error.value.reason == "SUBJECT_ERASED"
    assert payloads.open("t", BOB, bobs, CONTEXT) == WORDS
    assert other.erase("t", ALICE) == 0

    again = payloads.seal("t", ALICE, b"new", CONTEXT)
    assert other.open("t", ALICE, again, CONTEXT) == b"new"
    with pytest.raises(NotFoundError):
        other.open("t", ALICE, sealed, CONTEXT)


def test_a_destroyed_key_leaves_no_bytes_in_the_files(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "g.db")
    payloads = Payloads(engine, tmp_path / "store.key")
    payloads.seal("t", ALICE, WORDS, CONTEXT)
    with closing(sqlite3.connect(tmp_path / "g.db")) as connection:
        (wrapped,) = connection.execute("SELECT wrapped FROM payload_key").fetchone()
    payloads.erase("t", ALICE)
    for file in tmp_path.glob("g.db*"):
        assert wrapped not in file.read_bytes(), file.name


def test_an_erasure_whose_bytes_a_reader_keeps_is_not_reported_as_done(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'g.db'}?timeout=0.05")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    payloads = Payloads(engine, tmp_path / "store.key")
    payloads.seal("t", ALICE, WORDS, CONTEXT)
    with closing(sqlite3.connect(tmp_path / "g.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM payload_key").fetchall()
        with pytest.raises(UnavailableError, match="repeat the erasure"):
            payloads.erase("t", ALICE)
    assert payloads.erase("t", ALICE) == 0


def test_racing_writers_of_a_new_person_share_one_key(payloads: Payloads, tmp_path: Path) -> None:
    others = [payloads, *(Payloads(payloads._engine, tmp_path / "store.key") for _ in range(3))]
    with ThreadPoolExecutor(4) as pool:
        sealed = list(pool.map(lambda one: one.seal("t", ALICE, WORDS, CONTEXT), others * 3))
    assert {payloads.open("t", ALICE, each, CONTEXT) for each in sealed} == {WORDS}
    with payloads._engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM payload_key")).scalar() == 1


@given(st.data())
def test_no_changed_byte_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    payloads, sealed = _one_sealed(tmp_path_factory)
    place = data.draw(st.integers(0, len(sealed) - 1))
    changed = bytearray(sealed)
    changed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises((DataLossError, NotFoundError)):
        payloads.open("t", ALICE, bytes(changed), CONTEXT)


@given(st.integers(0, OVERHEAD_BYTES))
def test_a_cut_payload_is_damage(tmp_path_factory: pytest.TempPathFactory, kept: int) -> None:
    payloads, sealed = _one_sealed(tmp_path_factory)
    with pytest.raises(DataLossError):
        payloads.open("t", ALICE, sealed[:kept], CONTEXT)


def test_another_key_file_stops_the_process_and_says_which_is_missing(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "g.db")
    Payloads(engine, tmp_path / "store.key").seal("t", ALICE, WORDS, CONTEXT)
    with pytest.raises(FailedPreconditionError, match=r"other\.key is not the key"):
        Payloads(engine, tmp_path / "other.key")


def test_a_damaged_data_key_is_damage_not_another_persons_text(payloads: Payloads) -> None:
    sealed = payloads.seal("t", ALICE, WORDS, CONTEXT)
    payloads.seal("t", BOB, WORDS, CONTEXT)
    with payloads._engine.begin() as connection:
        connection.execute(
            text("UPDATE payload_key SET wrapped = :w WHERE subject = :s"),
            {"w": secrets.token_bytes(60), "s": ALICE},
        )
    with pytest.raises(DataLossError):
        payloads.open("t", ALICE, sealed, CONTEXT)


_MADE: list[tuple[Payloads, bytes]] = []


def _one_sealed(directories: pytest.TempPathFactory) -> tuple[Payloads, bytes]:
    if not _MADE:
        directory = directories.mktemp("sealed")
        payloads = Payloads(open_database(directory / "g.db"), directory / "store.key")
        _MADE.append((payloads, payloads.seal("t", ALICE, WORDS, CONTEXT)))
    return _MADE[0]

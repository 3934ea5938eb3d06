"""Several writers of one log in PostgreSQL, and a server that goes away under them."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import psycopg
import pytest

from kala.errors import DataLossError, UnavailableError
from services.audit.storage import postgres, postgres_store
from services.audit.storage.postgres import Postgres
from services.audit.storage.postgres_store import PostgresWriter
from services.audit.storage.store import StoreFailedError
from tests.fakes.audit_log import LogFile, open_log, record
from tests.fakes.rival_logs import Rival, problems_of, race
from tests.postgres import Databases, name_of, own_postgres


@pytest.fixture
def rivals(postgres_log_url: str) -> Iterator[list[Rival]]:
    with ExitStack() as stack:
        made = [Rival(postgres_log_url, name) for name in range(3)]
        for rival in made:
            rival.open(stack)
        yield made


def test_three_racing_writers_make_one_log_and_little_is_built_in_vain(
    rivals: list[Rival], postgres_log_url: str
) -> None:
    for thread in race(rivals, [iter([1, 7, 20] * 20) for _ in rivals]):
        thread.join()
    assert problems_of(rivals, postgres_log_url) == []
    assert [len(rival.told) for rival in rivals] == [28 * 20] * 3
    # Without turns two thirds would be.
    commits = sum(rival.writer.commits for rival in rivals)
    assert sum(rival.writer.in_vain for rival in rivals) <= 0.1 * commits
    assert [rival.refusals for rival in rivals] == [0, 0, 0]


def test_the_same_record_sent_through_two_writers_is_logged_once(
    rivals: list[Rival], postgres_log_url: str
) -> None:
    """A client that got no answer from one replica asks the next."""
    records = [[record(number, payloads=1) for number in range(40)] for _ in rivals]
    threads = [
        threading.Thread(target=lambda r=rival, mine=mine: [r.append([one]) for one in mine])  # type: ignore[misc]
        for rival, mine in zip(rivals, records, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    created = [one for rival in rivals for one in rival.told if one.created]
    assert len(created) == 40
    places = {one.key: one.index for one in created}
    assert all(places[one.key] == one.index for rival in rivals for one in rival.told)


def test_the_race_goes_wrong_without_the_compare_and_swap(
    rivals: list[Rival], postgres_log_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what the compare-and-swap prevents must be seen. The entries' primary key is what is left."""
    weakened = postgres_store._APPEND.replace("AND size = %(old_size)s AND root = %(old_root)s ", "")
    assert weakened != postgres_store._APPEND
    monkeypatch.setattr(postgres_store, "_APPEND", weakened)
    for rival in rivals:
        monkeypatch.setattr(rival.writer, "take_turn", lambda: None)
    threads = race(rivals, [iter([3] * 20) for _ in rivals])
    for thread in threads:
        # Whoever comes second finds its indexes taken, and is refused for ever.
        thread.join(2)
    monkeypatch.undo()
    assert sum(rival.refusals for rival in rivals) > 0 or problems_of(rivals, postgres_log_url)


def test_a_restart_under_load_loses_and_doubles_nothing() -> None:
    stop = threading.Event()

    def until_stopped() -> Iterator[int]:
        for size in itertools.cycle([1, 5, 9]):
            if stop.is_set():
                return
            yield size

    with own_postgres() as server, ExitStack() as stack:
        rivals = [Rival(server.url(), name) for name in range(3)]
        for rival in rivals:
            rival.open(stack)
        threads = race(rivals, [until_stopped() for _ in rivals])
        for restart in (server.restart, server.restart, lambda: (server.kill(), server.start())):
            before = [len(rival.told) for rival in rivals]
            restart()
            for rival, count in zip(rivals, before, strict=True):
                while len(rival.told) <= count and rival.error is None:
                    assert any(thread.is_alive() for thread in threads)
        stop.set()
        for thread in threads:
            thread.join()
        assert problems_of(rivals, server.url()) == []


def test_a_connection_lost_while_idle_costs_no_caller_an_error(postgres_log_url: str) -> None:
    with open_log(postgres_log_url) as log:
        log.append(record(0))
        _drop_connections(postgres_log_url)
        assert log.append(record(1))[0].index == 1
        _drop_connections(postgres_log_url)
        assert log.reader.head().size == 2


def _drop_connections(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_database_that_is_down_is_unavailable_and_then_goes_on() -> None:
    with own_postgres() as server, open_log(server.url()) as log:
        log.append(record(0))
        server.stop()
        with pytest.raises(UnavailableError):
            log.append(record(1))
        with pytest.raises(UnavailableError):
            log.reader.head()
        server.start()
        assert log.append(record(1))[0].index == 1
        assert log.reader.head().size == 2


def test_a_server_made_weaker_while_the_log_runs_is_acknowledged_nothing() -> None:
    """`fsync` can be turned off by a reload; a commit after that may be lost."""
    with own_postgres() as server, open_log(server.url()) as log:
        log.append(record(0))
        with psycopg.connect(server.url(), autocommit=True) as admin:
            for setting in ("fsync", "full_page_writes"):
                _set(admin, log, f"ALTER SYSTEM SET {setting} = off")
                with pytest.raises(UnavailableError, match=f"{setting} = off"):
                    log.append(record(1))
                _set(admin, log, f"ALTER SYSTEM RESET {setting}")
                assert log.reader.head().size == 1
        assert log.append(record(1))[0].index == 1


def _set(admin: psycopg.Connection, log: LogFile, statement: str) -> None:
    """Changes the server's settings; a session takes them up at its next statement after the signal came."""
    admin.execute(statement.encode())
    setting = statement.split()[3]
    expected = "off" if "= off" in statement else "on"
    admin.execute("SELECT pg_reload_conf()")
    assert isinstance(log.writer, PostgresWriter)
    while log.writer._session.connection().execute(f"SHOW {setting}".encode()).fetchone() != (expected,):
        pass


def test_a_rival_that_went_silent_in_its_turn_does_not_stop_the_log(
    postgres_log_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_store, "TURN_SECONDS", 1)
    with open_log(postgres_log_url) as silent, open_log(postgres_log_url) as log:
        for writer in (silent.writer, log.writer):
            assert isinstance(writer, PostgresWriter)
            writer._turns = 5
        assert silent.writer.take_turn() is not None
        assert log.append(record(0))[0].index == 0
        silent.writer.end_turn()
        assert silent.append(record(1))[0].index == 1


def test_a_lock_on_the_head_that_nobody_lets_go_is_unavailable_and_not_for_ever(
    postgres_log_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_SECONDS", 1)
    with open_log(postgres_log_url) as log:
        with psycopg.connect(postgres_log_url) as rude:
            rude.execute("SELECT * FROM head FOR UPDATE")
            with pytest.raises(UnavailableError, match="lock"):
                log.append(record(0))
        assert log.append(record(0))[0].index == 0


def test_a_commit_whose_answer_was_lost_is_found_by_its_key(postgres_log_url: str) -> None:
    """The transaction took place, the writer was told otherwise: the repeat is the same entry."""
    with open_log(postgres_log_url) as log:
        assert isinstance(log.writer, PostgresWriter)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PostgresWriter, "commit", _commit_and_fall(PostgresWriter.commit))
            with pytest.raises(UnavailableError):
                log.append(record(0))
        (answer,) = log.append(record(0))
        assert (answer.index, answer.created) == (0, False)
        assert log.append(record(1))[0].index == 1


def _commit_and_fall(commit: object) -> object:
    def fall(writer: PostgresWriter, batch: object) -> None:
        commit(writer, batch)  # type: ignore[operator] # the method
        writer.close()
        raise StoreFailedError("the connection is lost")

    return fall


def test_two_logs_in_one_database_keep_apart(postgres_log_url: str) -> None:
    with open_log(postgres_log_url) as log:
        log.append(record(0, payloads=1))
        other = PostgresWriter(Postgres(postgres_log_url), origin="other.test/audit", vkey="key")
        with closing(other):
            assert (log.log_id, other.log_id) == (1, 2)
            assert other.head().size == 0


def test_a_server_that_takes_a_statement_and_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own time limits do not run while it is stopped, and TCP finds nothing wrong."""
    for name in ("WRITE_SECONDS", "ANSWER_GRACE_SECONDS"):
        monkeypatch.setattr(postgres, name, 1)
    monkeypatch.setitem(postgres._NETWORK, "connect_timeout", 2)
    with own_postgres() as server, open_log(server.url()) as log:
        log.append(record(0))
        stopped = [server.process.pid, *server.processes()] if server.process else []
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        with pytest.raises(UnavailableError):
            log.append(record(1))
        for process in stopped:
            os.kill(process, signal.SIGCONT)
        assert log.append(record(1))[0].index == 1


@pytest.mark.parametrize("acknowledged", [2, 3])
def test_a_database_that_went_back_is_not_signed_on_from(
    postgres_databases: Databases, postgres_log_url: str, acknowledged: int
) -> None:
    """A standby that lagged took over, or a backup was put back, while this process remembers what it acknowledged."""
    name = name_of(postgres_log_url)
    with open_log(postgres_log_url) as remembering:
        remembering.append(record(0))
        _drop_connections(postgres_log_url)
        postgres_databases.run(f'CREATE DATABASE "{name}_old" TEMPLATE "{name}"')
        for number in range(1, acknowledged):
            remembering.append(record(number))
        postgres_databases.drop(postgres_log_url)
        postgres_databases.run(f'ALTER DATABASE "{name}_old" RENAME TO "{name}"')
        with open_log(postgres_log_url) as fresh:
            # Of two entries: as many as were acknowledged, or fewer.
            fresh.append(record(10))
            with suppress(UnavailableError, DataLossError):  # its connection was cut
                remembering.append(record(11))
            with pytest.raises(DataLossError, match=f"not the {acknowledged} that were acknowledged"):
                remembering.append(record(11))
            fresh.append(record(12), record(13))
            with pytest.raises(DataLossError, match=f"not the {acknowledged} that were acknowledged"):
                remembering.append(record(11))
            assert fresh.append(record(14))[0].index == 4

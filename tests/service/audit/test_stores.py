"""What holds of a log in either database: it never signs what it did not write, and goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from kala.audit import canonical
from kala.audit.checkpoint import Checkpoint
from kala.audit.columns import DERIVED, derived
from kala.audit.merkle import CompactRange, leaf_hash
from kala.audit.note import Signer
from kala.audit.receipt import verify_receipt
from kala.audit.times import parse_time
from kala.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
)
from services.audit.reading.query import Condition
from services.audit.storage.store import Column
from tests.fakes import audit_log
from tests.fakes.audit_log import KEK, NOW, ORIGIN, LogFile, is_url, open_log, record, signer


@pytest.fixture
def log(log_database: str) -> Iterator[LogFile]:
    with open_log(log_database) as opened:
        yield opened


def execute(database: str, statement: str, values: tuple[Column, ...] = ()) -> list[tuple[Column, ...]]:
    """One statement by whoever has the database but not the keys; `zeroblob(n)` and `?` are spelled for either."""
    if is_url(database):
        spelled = statement.replace("?", "%s").replace("zeroblob(", "audit_zeros(")
        with psycopg.connect(database) as postgres:
            postgres.execute(
                "CREATE OR REPLACE FUNCTION audit_zeros(n integer) RETURNS bytea LANGUAGE sql "
                "RETURN decode(repeat('00', n), 'hex')"
            )
            cursor = postgres.execute(spelled.encode(), values)
            return cursor.fetchall() if cursor.description else []
    with closing(sqlite3.connect(database)) as file, file:
        return file.execute(statement, values).fetchall()


@pytest.mark.parametrize("sizes", [(1,) * 5, (255, 1, 1), (256,), (257, 300), (600, 1)])
def test_a_reopened_log_continues_its_tree(log_database: str, sizes: tuple[int, ...]) -> None:
    numbers = itertools.count()
    for size in sizes:
        with open_log(log_database) as log:
            answers = log.append(*(record(next(numbers)) for _ in range(size)))
            assert [verify_receipt(one.proof, [signer().verifier]).index for one in answers] == [
                one.index for one in answers
            ]
    with open_log(log_database) as log:
        tree = CompactRange()
        for index in range(sum(sizes)):
            entry = log.reader.entry(index)
            assert entry is not None
            assert entry.idem == index.to_bytes(16, "big")
            tree.append(leaf_hash(entry.leaf))
        assert tree.root() == log.reader.head().root


def test_a_repeat_in_a_group_is_found_after_the_rollback_not_inside_the_failed_transaction(
    log: LogFile,
) -> None:
    """A look-up inside the failed transaction sees its own uncommitted rows and acknowledges what is then lost."""
    log.append(record(1))
    outcomes = log.write([[record(0)], [record(1)], [record(2)]])
    answers = [outcome[0] for outcome in outcomes]  # type: ignore[index] # none failed
    assert [(one.index, one.created) for one in answers] == [(1, True), (0, False), (2, True)]
    assert log.reader.head().size == 3
    assert all(verify_receipt(one.proof, [signer().verifier]).index == one.index for one in answers)


def test_a_record_refused_for_its_key_leaves_its_neighbours_in_place(log: LogFile) -> None:
    log.append(record(0))
    clash = record(7, key=(0).to_bytes(16, "big"))
    first, second, third = log.write([[record(1)], [record(2), clash], [record(3)]])
    assert isinstance(second, AlreadyExistsError)
    assert [answers[0].index for answers in (first, third)] == [1, 2]  # type: ignore[index] # not errors
    assert log.append(record(2))[0].created


def test_a_repeat_with_other_content_is_refused_and_with_the_same_content_is_the_same(log: LogFile) -> None:
    log.append(record(0, payloads=2))
    assert not log.append(record(0, payloads=2))[0].created
    other = record(0, payloads=2)
    other.payloads[0].data = b"secret canary 1"
    with pytest.raises(AlreadyExistsError):
        log.append(other)


def test_time_never_runs_backwards_in_the_log(log: LogFile) -> None:
    log.clock = iter([NOW + 50, NOW + 10, NOW + 60])
    for number in range(3):
        log.append(record(number))
    leaves = [json.loads(log.reader.entry(index).leaf) for index in range(3)]  # type: ignore[union-attr] # they exist
    assert [parse_time(leaf["recorded_at"]) for leaf in leaves] == [NOW + 50, NOW + 50, NOW + 60]
    assert log.reader.index_at(NOW + 51) == 2


def test_a_name_with_a_nul_is_logged_as_it_is(log: LogFile) -> None:
    """PostgreSQL's text cannot hold one; the leaf can, and a record must never be stuck for it."""
    odd = record(0)
    odd.model.served = "model\0x"
    log.append(odd)
    entry = log.reader.entry(0)
    assert entry is not None
    assert json.loads(entry.leaf)["model"]["served"] == "model\0x"


def test_a_log_is_not_opened_with_another_key_of_its_name(log_database: str) -> None:
    """It would sign on, and everyone who holds the first key would then call the log tampered with."""
    with open_log(log_database) as log:
        log.append(record(0))
    with pytest.raises(FailedPreconditionError, match="is signed by"):
        LogFile(log_database, seed=b"z" * 32)


def test_a_log_is_not_opened_with_another_key_encryption_key(
    log_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would start, and then fail every record of every subject it knows."""
    with open_log(log_database) as log:
        log.append(record(0, payloads=1))
    monkeypatch.setattr(audit_log, "KEK", b"z" * 32)
    with pytest.raises(FailedPreconditionError, match="wrapped by key"):
        LogFile(log_database)
    monkeypatch.setattr(audit_log, "KEK", KEK)
    with open_log(log_database) as log:
        assert log.append(record(1, payloads=1))[0].created


def forge_an_entry(database: str) -> None:
    """Adds an entry and moves the head to it, as whoever can write the database but cannot sign."""
    ((size, edge, leaf),) = execute(
        database, 'SELECT size, "range", leaf FROM head JOIN entry ON idx = size - 1'
    )
    assert isinstance(size, int)
    assert isinstance(edge, bytes)
    assert isinstance(leaf, bytes)
    value = {**json.loads(leaf), "idempotency_key": "ff" * 16, "actor": "ab" * 32}
    forged = canonical.encode(value)
    tree = CompactRange.from_bytes(size, edge)
    tree.append(leaf_hash(forged))
    row = (1, size, forged, leaf_hash(forged), *derived(value))
    columns = ", ".join(("log_id", "idx", "leaf", "leaf_hash", *DERIVED))
    execute(database, f"INSERT INTO entry ({columns}) VALUES ({', '.join('?' * len(row))})", row)
    execute(
        database,
        'UPDATE head SET size = ?, root = ?, "range" = ?',
        (tree.size, tree.root(), tree.to_bytes()),
    )


def test_an_entry_added_beside_the_log_is_never_signed_at_a_start(log_database: str) -> None:
    with open_log(log_database) as log:
        log.append(record(0))
    forge_an_entry(log_database)
    with pytest.raises(DataLossError, match="no checkpoint signs the 2 entries"):
        LogFile(log_database)


def test_an_entry_added_beside_a_running_log_is_never_signed(log: LogFile) -> None:
    log.append(record(0))
    forge_an_entry(str(log.path))
    for number in (1, 2):
        with pytest.raises(DataLossError, match="no checkpoint signs"):
            log.append(record(number))
    assert log.reader.head().size == 2


@pytest.mark.parametrize(
    ("note", "problem"),
    [
        ("no note", "not a signed note"),
        (signer().sign(Checkpoint(ORIGIN, 1, bytes(32)).text()), "does not sign the log's head"),
        (Signer.of(ORIGIN, b"z" * 32).sign(Checkpoint(ORIGIN, 2, bytes(32)).text()), "not signed by"),
    ],
    ids=["nonsense", "another head", "another key"],
)
def test_a_head_under_a_checkpoint_that_does_not_sign_it_is_refused(
    log_database: str, note: str, problem: str
) -> None:
    with open_log(log_database) as log:
        log.append(record(0))
    forge_an_entry(log_database)
    execute(log_database, "INSERT INTO checkpoint SELECT 1, 2, root, ? FROM head", (note,))
    with pytest.raises(DataLossError, match=problem):
        LogFile(log_database)


def test_one_subject_s_damaged_key_does_not_stop_the_records_of_others(log_database: str) -> None:
    with open_log(log_database) as log:
        log.append(record(0, payloads=1))
    execute(log_database, "UPDATE subject_key SET wrapped = zeroblob(60)")
    with open_log(log_database) as log:
        damaged, other = log.write([[record(1, payloads=1)], [record(2)]])
    assert isinstance(damaged, DataLossError)
    assert [answer.index for answer in other] == [1]  # type: ignore[union-attr] # not an error


def test_a_key_destroyed_beside_a_running_log_seals_nothing_more(log: LogFile) -> None:
    """An erasure, perhaps of another replica, moves the head's key epoch; the writer then forgets what it remembers."""
    log.append(record(0, payloads=1))
    (before,) = execute(str(log.path), "SELECT key_id FROM subject_key")
    execute(str(log.path), "UPDATE subject_key SET wrapped = NULL, erased_at = 1")
    execute(str(log.path), "UPDATE head SET key_epoch = key_epoch + 1")
    log.append(record(1, payloads=1))
    (row,) = log.reader.payloads(1)
    assert row.key_id != before[0]
    key = log.reader.key(row.key_id)
    assert key is not None
    assert key.wrapped is not None


def test_a_rival_s_append_is_noticed_before_anything_is_written(log: LogFile) -> None:
    log.append(record(0))
    execute(str(log.path), "UPDATE head SET size = 5")
    with pytest.raises(DataLossError):
        log.append(record(1))
    assert log.reader.entry(1) is log.reader.entry(5) is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE head SET root = zeroblob(32)",
        'UPDATE head SET "range" = zeroblob(64)',
        "DELETE FROM tile WHERE level = 1",
        "UPDATE tile SET data = zeroblob(32) WHERE level = 1",
    ],
)
def test_a_log_whose_tree_is_damaged_does_not_start(log_database: str, statement: str) -> None:
    with open_log(log_database) as log:
        log.append(*(record(number) for number in range(300)))
    execute(log_database, statement)
    with pytest.raises(DataLossError):
        LogFile(log_database)


@pytest.mark.parametrize("table", ["entry", "checkpoint"])
@pytest.mark.parametrize("change", ["UPDATE {} SET log_id = 2", "DELETE FROM {}"], ids=["update", "delete"])
def test_the_database_itself_refuses_to_change_an_entry_or_a_checkpoint(
    log: LogFile, table: str, change: str
) -> None:
    log.append(record(0))
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match="never changed"):
        execute(str(log.path), change.format(table))


def test_a_query_finds_by_each_kind_of_column_in_either_order(log: LogFile) -> None:
    log.append(*(record(number) for number in range(50)))
    conditions = [Condition("model", ("model-1", "model-2")), Condition("law", (3,))]
    found = log.reader.query(conditions, first=10, last=45, limit=3, descending=True)
    expected = [n for n in range(44, 9, -1) if n % 3 and n % 5 == 3][:3]
    assert [entry.index for entry in found] == expected
    (one,) = log.reader.query(
        [Condition("trace_id", (f"{7:032x}",))], first=0, last=50, limit=9, descending=False
    )
    assert one.idem == (7).to_bytes(16, "big")


def test_missing_numbers_and_intents_without_an_outcome_are_found(log: LogFile) -> None:
    intent, outcome = record(0, kind="chat.intent"), record(1)
    outcome.intent = intent.idempotency_key
    lonely = record(5, kind="chat.intent")
    log.append(intent, outcome, lonely)
    found = log.reader.gaps(last=3, intents_before=NOW + 10**9, limit=10, offset=0)
    assert [(gap.index, gap.is_intent, gap.before, gap.sequence) for gap in found] == [
        (2, False, 2, 6),
        (2, True, 0, 6),
    ]
    assert log.reader.gaps(last=3, intents_before=NOW + 10**9, limit=10, offset=1) == found[1:]
    only = [Condition("tenant", ("other",))]
    assert log.reader.gaps(only, last=3, intents_before=NOW + 10**9, limit=10, offset=0) == []


def test_counts_leave_out_what_is_unset_and_refuse_what_is_no_column(log: LogFile) -> None:
    log.append(*(record(number) for number in range(6)))
    assert log.reader.counts("law", 1) == [("0", 1), ("1", 1), ("2", 1), ("3", 1), ("4", 1)]
    assert log.reader.counts("tool", 0) == []
    with pytest.raises(InvalidArgumentError, match="derived"):
        log.reader.counts("leaf; DROP TABLE entry", 0)


def test_only_kinds_whose_plaintext_is_there_are_told(log: LogFile) -> None:
    log.append(record(0, payloads=3), record(1), record(2, payloads=1))
    assert log.reader.kept_kinds([0, 1, 2]) == {0: ["released", "request"], 2: ["request"]}
    assert [row.kind for row in log.reader.payloads(0)] == ["derived", "released", "request"]


def test_the_path_of_a_file_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.audit.config import AuditSettings
    from services.audit.storage.stores import open_log_store

    monkeypatch.setenv("HOME", str(tmp_path))
    with closing(open_log_store(AuditSettings(database="~/logs/audit.db"), signer())) as store:
        assert store.open_reader().head().size == 0
    assert (tmp_path / "logs" / "audit.db").exists()

"""Any change to a log's content is noticed, and the first bad entry is named."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kala.audit.checkpoint import Checkpoint
from kala.audit.columns import DERIVED
from kala.audit.database import verify_database
from kala.audit.leaf import MAX_LEAF_BYTES
from kala.audit.merkle import leaf_hash
from kala.audit.note import Signer
from kala.audit.verify import LogChecker, LogReport, TamperedError, UnverifiableError, verify_leaves
from tests.fakes.audit_log import NOW, ORIGIN, fill, open_log, record, signer

SIZES = (1, 2, 30, 200, 60, 7)
TOTAL = sum(SIZES)
TRUSTED = [signer().verifier]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "audit.db"
    fill(path, SIZES, payloads=2)
    return path


@pytest.fixture
def log(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "audit.db"))


@pytest.fixture
def database(log: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(log, isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        yield connection


def first_bad(log: Path, pinned: str | None = None) -> int | None:
    with pytest.raises(TamperedError) as caught:
        verify_database(log, TRUSTED, pinned=pinned)
    return caught.value.first_bad_index


def changed(value: object) -> object:
    """The value with one bit of one byte flipped."""
    match value:
        case None:
            return 1
        case int():
            return value ^ 1
        case str():
            return chr(ord(value[0]) ^ 1) + value[1:] if value else "x"
        case bytes():
            middle = len(value) // 2
            return value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :]
    raise AssertionError(value)


def test_an_untouched_log_is_accepted_with_everything_counted(log: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_database(log, TRUSTED, on_progress=lambda done, total: seen.append((done, total)))
    assert isinstance(report, LogReport)
    assert (report.entries, report.checkpoints, report.payloads, report.payloads_erased) == (
        TOTAL,
        len(SIZES),
        2 * TOTAL,
        0,
    )
    assert report.checkpoint.size == TOTAL
    assert seen[-1] == (TOTAL, TOTAL)


@pytest.mark.parametrize("column", ["leaf", "leaf_hash", *DERIVED])
@pytest.mark.parametrize("index", [0, 3, 150, TOTAL - 1])
def test_a_changed_entry_is_named(log: Path, database: sqlite3.Connection, column: str, index: int) -> None:
    (value,) = database.execute(f"SELECT {column} FROM entry WHERE idx = ?", (index,)).fetchone()
    database.execute(f"UPDATE entry SET {column} = ? WHERE idx = ?", (changed(value), index))
    database.close()
    assert first_bad(log) == index


@pytest.mark.parametrize("index", [0, 150, TOTAL - 1])
def test_a_changed_payload_is_named_by_its_entry(log: Path, database: sqlite3.Connection, index: int) -> None:
    where = "WHERE idx = ? AND kind = 'request'"
    (value,) = database.execute(f"SELECT ciphertext FROM payload {where}", (index,)).fetchone()
    database.execute(f"UPDATE payload SET ciphertext = ? {where}", (changed(value), index))
    database.close()
    assert first_bad(log) == index


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("DELETE FROM payload WHERE idx = 5 AND kind = 'request'", 5),
        ("UPDATE payload SET kind = 'other' WHERE idx = 5 AND kind = 'request'", 5),
        ("UPDATE payload SET key_id = 'other' WHERE idx = 5 AND kind = 'request'", 5),
        ("UPDATE payload SET idx = 9000 WHERE idx = 5", 5),
        (
            "INSERT INTO payload SELECT log_id, 9000, kind, key_id, ciphertext FROM payload WHERE idx = 5",
            TOTAL,
        ),
        (
            "INSERT INTO payload SELECT log_id, 5, 'third', key_id, ciphertext FROM payload WHERE idx = 6 AND kind = 'request'",
            5,
        ),
        ("UPDATE payload SET kind = x'ff' WHERE idx = 5 AND kind = 'request'", 5),
        ("UPDATE payload SET ciphertext = 7 WHERE idx = 5 AND kind = 'request'", 5),
        ("DELETE FROM entry WHERE idx = 40", 40),
        ("DELETE FROM entry WHERE idx = 0", 0),
        (f"DELETE FROM entry WHERE idx = {TOTAL - 1}", TOTAL - 1),
        (
            "UPDATE entry SET idx = CASE idx WHEN 10 THEN -11 WHEN 11 THEN -10 END WHERE idx IN (10, 11); UPDATE entry SET idx = -idx WHERE idx < 0",
            10,
        ),
        ("UPDATE entry SET leaf = 'text' WHERE idx = 3", 3),
        ("UPDATE head SET size = size + 1", TOTAL),
        ("UPDATE head SET size = 7", 7),
        ("DELETE FROM head", TOTAL),
        ("UPDATE head SET root = zeroblob(32)", TOTAL - 1),
        ('UPDATE head SET "range" = zeroblob(32)', TOTAL - 1),
        ("UPDATE head SET recorded_at = recorded_at + 1", TOTAL - 1),
        ("DELETE FROM checkpoint", 0),
        (f"DELETE FROM checkpoint WHERE size = {TOTAL}", TOTAL - 7),
        ("UPDATE checkpoint SET root = zeroblob(32) WHERE size = 33", 32),
        ("UPDATE checkpoint SET size = 34 WHERE size = 33", 33),
        ("UPDATE checkpoint SET note = replace(note, char(8212), '-') WHERE size = 33", 32),
        ("UPDATE checkpoint SET note = x'00' WHERE size = 33", 33),
        ("UPDATE checkpoint SET note = (SELECT note FROM checkpoint WHERE size = 3) WHERE size = 33", 32),
        ("UPDATE tile SET data = zeroblob(8192) WHERE level = 0", 0),
        (
            "UPDATE tile SET data = CAST(substr(data, 1, 3200) || zeroblob(32) || substr(data, 3233) AS BLOB) WHERE level = 0",
            100,
        ),
        ("UPDATE tile SET width = 255 WHERE level = 0", 0),
        ("DELETE FROM tile WHERE level = 0", 0),
        ("UPDATE tile SET data = zeroblob(32) WHERE level = 1", 0),
        ("DELETE FROM tile WHERE level = 1", 0),
        ("INSERT INTO tile VALUES (1, 0, 5, 256, zeroblob(8192))", None),
        ("UPDATE log SET vkey = replace(vkey, 'A', 'B')", 0),
        ("UPDATE log SET origin = 'other'", 0),
        # Rows that no proof covers, and that a careless look-up would find.
        *(
            (
                f"CREATE TEMP TABLE copy AS SELECT * FROM {table}; UPDATE copy SET log_id = 2; INSERT INTO {table} SELECT * FROM copy",
                None,
            )
            for table in ("log", "head", "entry", "checkpoint", "payload")
        ),
    ],
)
def test_a_changed_table_is_noticed(
    log: Path, database: sqlite3.Connection, change: str, expected: int | None
) -> None:
    database.executescript(change)
    database.close()
    assert first_bad(log) == expected


def test_a_rewritten_entry_whose_hashes_were_made_to_fit_breaks_the_signed_root(
    log: Path, database: sqlite3.Connection
) -> None:
    """The strongest insider without the signing key: everything recomputed but the signatures."""
    from kala.audit import canonical
    from kala.audit.columns import derived

    (leaf,) = database.execute("SELECT leaf FROM entry WHERE idx = 100").fetchone()
    value = canonical.decode(leaf)
    assert isinstance(value, dict)
    value["tenant"] = "nobody"
    data = canonical.encode(value)
    columns = ", ".join(f"{name} = ?" for name in DERIVED)
    database.execute(
        f"UPDATE entry SET leaf = ?, leaf_hash = ?, {columns} WHERE idx = 100",
        (data, leaf_hash(data), *derived(value)),
    )
    database.execute("DELETE FROM tile")
    database.close()
    # Entries 33 to 232 were signed together; the first of them is as far as the signatures reach.
    assert first_bad(log) in {0, 33}


def test_a_cut_tail_is_noticed_through_a_pinned_checkpoint_alone(
    log: Path, database: sqlite3.Connection
) -> None:
    pinned = verify_database(log, TRUSTED).checkpoint_note
    size = TOTAL - SIZES[-1]
    (root,) = database.execute("SELECT root FROM checkpoint WHERE size = ?", (size,)).fetchone()
    (recorded_at,) = database.execute("SELECT recorded_at FROM entry WHERE idx = ?", (size - 1,)).fetchone()
    with open_log(log.with_name("other.db")) as other:
        for start, step in ((0, 200), (200, size - 200)):
            other.append(*(record(number) for number in range(start, start + step)))
    database.executescript(
        f"DELETE FROM entry WHERE idx >= {size}; DELETE FROM payload WHERE idx >= {size}; DELETE FROM checkpoint WHERE size > {size}"
    )
    hashes = [row[0] for row in database.execute("SELECT leaf_hash FROM entry ORDER BY idx")]
    from kala.audit.merkle import CompactRange

    tree = CompactRange()
    for digest in hashes:
        tree.append(digest)
    database.execute(
        'UPDATE head SET size = ?, root = ?, "range" = ?, recorded_at = ?',
        (size, root, tree.to_bytes(), recorded_at),
    )
    database.close()
    assert verify_database(log, TRUSTED).entries == size
    assert first_bad(log, pinned) == size


def test_a_fork_signed_by_the_log_s_own_key_is_noticed_through_a_pinned_checkpoint(
    log: Path, tmp_path: Path
) -> None:
    pinned = verify_database(log, TRUSTED).checkpoint_note
    fill(tmp_path / "fork.db", [TOTAL + 5])
    assert verify_database(tmp_path / "fork.db", TRUSTED).entries == TOTAL + 5
    assert first_bad(tmp_path / "fork.db", pinned) == 0


def test_a_pinned_checkpoint_of_before_is_accepted(log: Path) -> None:
    with open_log(log) as grown:
        before = grown.append(record(TOTAL))[0].note
        grown.append(record(TOTAL + 1))
    assert verify_database(log, TRUSTED, pinned=before).entries == TOTAL + 2


@pytest.mark.parametrize(
    "pinned", ["", "nonsense", Signer.of(ORIGIN, b"x" * 32).sign(Checkpoint(ORIGIN, 1, b"r" * 32).text())]
)
def test_a_pinned_checkpoint_that_cannot_be_used_is_no_verdict_on_the_log(log: Path, pinned: str) -> None:
    with pytest.raises(UnverifiableError, match="pinned"):
        verify_database(log, TRUSTED, pinned=pinned)


def test_another_key_is_unverifiable_not_tampered(log: Path) -> None:
    with pytest.raises(UnverifiableError, match="none of the given keys"):
        verify_database(log, [Signer.of("other.test", b"x" * 32).verifier])


def test_a_key_of_the_same_name_that_did_not_sign_is_refused(log: Path) -> None:
    with pytest.raises(TamperedError):
        verify_database(log, [Signer.of(ORIGIN, b"x" * 32).verifier])


def test_what_is_no_log_is_unverifiable(tmp_path: Path, log: Path) -> None:
    with pytest.raises(UnverifiableError, match="not a file"):
        verify_database(tmp_path / "missing.db", TRUSTED)
    with pytest.raises(UnverifiableError, match="public key"):
        verify_database(log, [])
    with open_log(tmp_path / "empty.db"):
        pass
    with pytest.raises(UnverifiableError, match="no checkpoint"):
        verify_database(tmp_path / "empty.db", TRUSTED)


def test_a_log_without_its_row_is_unverifiable(log: Path, database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM log")
    database.close()
    with pytest.raises(UnverifiableError, match="holds no log"):
        verify_database(log, TRUSTED)


def test_progress_is_told_while_a_long_log_is_verified(tmp_path: Path) -> None:
    fill(tmp_path / "audit.db", [1_200])
    seen: list[tuple[int, int]] = []
    verify_database(
        tmp_path / "audit.db",
        TRUSTED,
        on_progress=lambda done, total: seen.append((done, total)),
        check_integrity=False,
    )
    assert seen == [(1_000, 1_200), (1_200, 1_200)]


@pytest.mark.parametrize(
    "leaf",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"schema":"kala.audit.leaf.v1"}',
        b'{"schema":"kala.audit.leaf.v1"' + b" " * MAX_LEAF_BYTES + b"}",
    ],
    ids=ascii,
)
def test_a_leaf_that_cannot_be_read_is_named(leaf: bytes) -> None:
    with pytest.raises(TamperedError, match="entry 0: "):
        LogChecker(TRUSTED).take(leaf, leaf_hash(leaf))


@pytest.mark.parametrize(
    "commitments",
    [
        None,
        7,
        [7],
        [{}],
        [{"kind": [], "ciphertext_sha256": None}],
        [{"kind": "released", "ciphertext_sha256": None}] * 2,
    ],
    ids=str,
)
def test_a_leaf_with_malformed_commitments_is_named(tmp_path: Path, commitments: object) -> None:
    """Whoever rewrites a leaf and its hash must get a verdict, not a traceback."""
    with open_log(tmp_path / "audit.db") as log:
        log.append(record(0))
        entry = log.reader.entry(0)
    assert entry is not None
    value = {**json.loads(entry.leaf), "commitments": commitments}
    with pytest.raises(TamperedError, match="entry 0: the leaf"):
        LogChecker(TRUSTED).take(json.dumps(value).encode())
    del value["commitments"]
    with pytest.raises(TamperedError, match="entry 0: the leaf"):
        LogChecker(TRUSTED).take(json.dumps(value).encode())


def test_an_entry_recorded_before_the_one_that_precedes_it_is_named(tmp_path: Path) -> None:
    leaves = []
    for number, now in enumerate((NOW + 5, NOW)):
        with open_log(tmp_path / f"{number}.db") as log:
            log.clock = iter([now])
            log.append(record(number))
            entry = log.reader.entry(0)
            assert entry is not None
            leaves.append(entry.leaf)
    checker = LogChecker(TRUSTED)
    checker.take(leaves[0])
    with pytest.raises(TamperedError, match="entry 1: it was recorded before"):
        checker.take(leaves[1])


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    path.write_bytes(b"not a database" * 1_000)
    assert first_bad(path) == 0


def test_an_erased_payload_is_counted_and_the_log_still_verifies(
    log: Path, database: sqlite3.Connection
) -> None:
    database.execute("UPDATE payload SET ciphertext = NULL WHERE idx = 5")
    database.close()
    report = verify_database(log, TRUSTED)
    assert (report.payloads, report.payloads_erased) == (2 * TOTAL - 2, 2)


def test_leaves_alone_are_verified_against_a_checkpoint(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit.db") as log:
        note = log.append(*(record(number) for number in range(5)))[-1].note
        leaves = [entry.leaf for index in range(5) if (entry := log.reader.entry(index)) is not None]
    assert verify_leaves(leaves, note, TRUSTED).entries == 5
    with pytest.raises(TamperedError, match="entry 4: a checkpoint covers 5 entries"):
        verify_leaves(leaves[:4], note, TRUSTED)
    with pytest.raises(TamperedError, match="do not lead to the signed root"):
        verify_leaves([leaves[1], leaves[0], *leaves[2:]], note, TRUSTED)
    with pytest.raises(TamperedError, match="entry 2"):
        verify_leaves([*leaves[:2], b"{}"], note, TRUSTED)


def test_an_index_that_lost_an_entry_names_it(original: Path, tmp_path: Path) -> None:
    data, path = original.read_bytes(), tmp_path / "audit.db"
    with closing(sqlite3.connect(original)) as connection:
        (key,) = connection.execute("SELECT idem FROM entry WHERE idx = 2").fetchone()
    places = [match.start() for match in re.finditer(re.escape(key), data)]
    named = []
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            verify_database(path, TRUSTED)
        except TamperedError as error:
            named.append(error.first_bad_index)
    # In its row and in its index; what an unused part of a page still holds of it is not read by anyone.
    assert named == [2, 2]

"""A damaged file of the log: what it says is noticed to be changed, or is what it was; and what a running log leaves."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kala.audit.database import verify_database
from kala.audit.verify import TamperedError, UnverifiableError
from kala.errors import VerificationError
from tests.fakes.audit_log import fill, open_log, record, signer

SIZES = (1, 2, 30, 200, 60, 7)
TRUSTED = [signer().verifier]
FLIPS = int(os.environ.get("KALA_TEST_FLIPS", "250"))
CONTENT = ("log", "head", "entry", "checkpoint", "payload", "tile")


def content_of(path: Path) -> object:
    """All rows of the log's tables, or None when they cannot be read."""
    try:
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
            return [
                connection.execute(
                    f"SELECT * FROM {table} NOT INDEXED ORDER BY 1, 2, 3"
                    if table not in {"log", "head"}
                    else f"SELECT * FROM {table}"
                ).fetchall()
                for table in CONTENT
            ]
    except (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError):
        return None


def uncovered(content: object) -> object:
    """The content without what the verifier documents as not covered."""
    if not isinstance(content, list):
        return content
    log, head, entry, checkpoint, payload, tile = content
    return [
        [row[:3] for row in log],
        [(row[:4], row[5:]) for row in head],
        entry,
        checkpoint,
        payload,
        tile,
    ]


def schema_text(path: Path) -> set[int]:
    """The places of the file that spell the schema."""
    data, places = path.read_bytes(), set[int]()
    with closing(sqlite3.connect(path)) as connection:
        for (text,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"):
            start = data.index(text.encode())
            places |= set(range(start, start + len(text.encode())))
    return places


def is_accepted(path: Path) -> bool:
    try:
        verify_database(path, TRUSTED)
    except (VerificationError, UnverifiableError):
        return False
    return True


def test_no_flipped_bit_of_the_file_changes_content_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    fill(path, SIZES, payloads=2)
    data = bytearray(path.read_bytes())
    expected = uncovered(content_of(path))
    rng = random.Random(20261121)
    noticed = 0
    for _ in range(FLIPS):
        place, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        data[place] ^= bit
        path.write_bytes(data)
        data[place] ^= bit
        if is_accepted(path):
            assert uncovered(content_of(path)) == expected, f"byte {place}, bit {bit}"
        else:
            noticed += 1
    # Half of the file is unused space; a verifier that rejects little would show here.
    assert noticed > FLIPS // 4


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_no_flipped_bit_in_any_byte_but_the_schema_s_changes_content_unnoticed(
    tmp_path: Path, part: int
) -> None:
    path = tmp_path / "audit.db"
    fill(path, (1, 2, 17), payloads=1)
    data = bytearray(path.read_bytes())
    expected, schema = uncovered(content_of(path)), schema_text(path)
    rng = random.Random(part)
    for place in range(part, len(data), 8):
        if place in schema:
            # Not covered, as the verifier says: it may change what a column is called, and no row.
            continue
        bit = 1 << rng.randrange(8)
        data[place] ^= bit
        path.write_bytes(data)
        data[place] ^= bit
        assert not is_accepted(path) or uncovered(content_of(path)) == expected, f"byte {place}, bit {bit}"


def test_a_damaged_wal_loses_the_newest_entries_and_the_pinned_checkpoint_shows_it(tmp_path: Path) -> None:
    path, copy = tmp_path / "audit.db", tmp_path / "copy.db"
    with open_log(path) as log:
        for number in range(20):
            note = log.append(record(number))[0].note
        # What kill -9 leaves: the file and its WAL.
        shutil.copy(path, copy)
        wal = bytearray(path.with_name("audit.db-wal").read_bytes())
    wal[len(wal) // 2] ^= 1
    copy.with_name("copy.db-wal").write_bytes(wal)
    shown = verify_database(copy, TRUSTED)
    assert 0 < shown.entries < 20
    with pytest.raises(TamperedError) as caught:
        verify_database(copy, TRUSTED, pinned=note)
    assert caught.value.first_bad_index == shown.entries


def test_closing_the_log_leaves_all_of_it_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    fill(path, [3])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["audit.db", "audit.db.lock"]
    assert verify_database(path, TRUSTED).entries == 3


def test_a_log_in_use_is_verified_as_of_one_moment(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with open_log(path) as log:
        log.append(record(0), record(1))
        assert verify_database(path, TRUSTED).entries == 2
        log.append(record(2))
        assert verify_database(path, TRUSTED).entries == 3

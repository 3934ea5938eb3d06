"""The durable spool: in order, encrypted, bounded, and unharmed by a process that dies while writing."""

from __future__ import annotations

import os
import random
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kala.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from services.common.secret_keys import load_or_create_secret_key, load_secret_key
from services.common.spool import MAX_RECORD_BYTES, Spool, SpoolFullError
from tests.fakes.spools import ALL, KEY, fail, opened, records, waiting


def test_records_wait_in_order_and_survive_a_new_process(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append(records(3))
        spool.append(records(2, 3))
        assert (len(spool), waiting(spool)) == (5, records(5))
    with opened(tmp_path) as spool:
        assert (len(spool), waiting(spool)) == (5, records(5))
        spool.append(records(1, 5))
        assert waiting(spool) == records(6)


def test_what_is_dropped_is_gone_and_its_files_are_deleted(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes=200) as spool:
        for record in records(20):
            spool.append([record])
        files = len(list(tmp_path.glob("*.spool")))
        assert files > 3
        spool.drop(10)
        assert waiting(spool) == records(10, 10)
        assert len(list(tmp_path.glob("*.spool"))) < files
        spool.drop(10)
        assert (len(spool), spool.bytes_used, list(tmp_path.glob("*.spool"))) == (0, 0, [])
        spool.append(records(1))
        assert waiting(spool) == records(1)


def test_peek_takes_whole_records_up_to_a_size_and_at_least_one(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append([b"x" * 1_000] * 5)
        assert len(spool.peek(100, 2_500)) == 2
        assert len(spool.peek(100, 1)) == 1
        assert len(spool.peek(3, ALL)) == 3


def test_nothing_readable_is_on_disk(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append([b"a secret canary"])
        assert all(b"canary" not in path.read_bytes() for path in tmp_path.iterdir())
        assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_a_full_spool_takes_nothing_and_says_so(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=4_000, segment_bytes=1_000) as spool:
        spool.append([b"x" * 1_000] * 3)
        with pytest.raises(SpoolFullError) as caught:
            spool.append([b"x" * 1_000])
        assert caught.value.reason == "AUDIT_UNAVAILABLE"
        assert (len(spool), spool.has_room) == (3, True)
        spool.drop(3)
        spool.append([b"x" * 1_000])


@pytest.mark.parametrize("lost", [1, 5, 30, 60, 100])
def test_a_torn_tail_loses_only_what_was_never_acknowledged(tmp_path: Path, lost: int) -> None:
    with opened(tmp_path) as spool:
        spool.append(records(5))
        (path,) = tmp_path.glob("*.spool")
        acknowledged = path.stat().st_size
        spool.append([b"y" * 100])
    os.truncate(path, path.stat().st_size - lost)
    assert path.stat().st_size > acknowledged
    with opened(tmp_path) as spool:
        assert waiting(spool) == records(5)
        spool.append(records(1, 5))
    with opened(tmp_path) as spool:
        assert waiting(spool) == records(6)


def test_every_length_that_a_crash_can_leave_is_readable(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with opened(source) as spool:
        sizes = []
        for record in records(6):
            spool.append([record])
            sizes.append(spool.bytes_used)
    (path,) = source.glob("*.spool")
    data = path.read_bytes()
    for length in range(len(data) + 1):
        copy = tmp_path / f"{length}"
        copy.mkdir()
        (copy / path.name).write_bytes(data[:length])
        with opened(copy) as spool:
            assert waiting(spool) == records(sum(size <= length for size in sizes))
        shutil.rmtree(copy)


def test_what_a_crash_of_the_machine_left_as_zeros_is_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append(records(2))
    (path,) = tmp_path.glob("*.spool")
    data = path.read_bytes()
    for tail in (bytes(500), data[-60:-30] + bytes(4096)):
        path.write_bytes(data + tail)
        with opened(tmp_path) as spool:
            assert waiting(spool) == records(2)


def test_garbage_after_the_last_record_stops_the_start(tmp_path: Path) -> None:
    """It is no torn write, so it may be what is left of an acknowledged record."""
    with opened(tmp_path) as spool:
        spool.append(records(2))
    (path,) = tmp_path.glob("*.spool")
    with path.open("ab") as file:
        file.write(random.Random(1).randbytes(500))
    with pytest.raises(DataLossError, match="is damaged"), opened(tmp_path):
        pass


def test_no_flipped_bit_of_an_acknowledged_record_loses_it_in_silence(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for record in records(3):
            spool.append([record])
    (path,) = tmp_path.glob("*.spool")
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(DataLossError, match="is damaged"), opened(tmp_path):
            pass


def test_segments_cannot_change_places_or_go_missing_between_others(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes=100) as spool:
        for record in records(4):
            spool.append([record])
    first, second, third, _ = (
        path.rename(path.with_suffix(".kept")) for path in sorted(tmp_path.glob("*.spool"))
    )
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.kept")}
    last = b"".join(data for path, data in kept.items() if path not in {first, second, third})
    for order in ((second, first, third), (first, third), (first, first, third)):
        for path in tmp_path.glob("*.spool"):
            path.unlink()
        for number, path in enumerate(order, 1):
            (tmp_path / f"{number:012d}.spool").write_bytes(kept[path])
        (tmp_path / "000000000004.spool").write_bytes(last)
        with pytest.raises(DataLossError, match="is damaged"), opened(tmp_path):
            pass


def test_segments_that_lost_whole_frames_at_their_end_do_not_fit_the_next_one(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes=150) as spool:
        spool.append(records(1))
        whole = spool.bytes_used
        for record in records(3, 1):
            spool.append([record])
    first, *_ = sorted(tmp_path.glob("*.spool"))
    assert first.stat().st_size > whole
    os.truncate(first, whole)
    with pytest.raises(DataLossError, match="is damaged"), opened(tmp_path):
        pass


def test_a_record_that_no_message_could_carry_is_refused_before_it_is_acknowledged(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append([bytes(MAX_RECORD_BYTES)])
        with pytest.raises(InvalidArgumentError, match="at most"):
            spool.append([bytes(MAX_RECORD_BYTES + 1)])
    with opened(tmp_path) as spool:
        assert len(spool) == 1


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_a_segment_that_cannot_be_begun_can_be_begun_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with opened(tmp_path) as spool:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(SpoolFullError, match="No space left"):
                spool.append([b"lost"])
        assert (len(spool), spool.bytes_used) == (0, 0)
        spool.append(records(2))
        assert waiting(spool) == records(2)


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "copy.spool").write_bytes(b"mine")
    with opened(tmp_path) as spool:
        assert len(spool) == 0
    assert (tmp_path / "copy.spool").exists()


def test_its_size_can_be_asked_while_another_thread_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda _descriptor: None)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with opened(tmp_path, segment_bytes=64) as spool, ThreadPoolExecutor(1) as thread:
            written = thread.submit(_fill, spool)
            while not written.done():
                assert spool.has_room
            written.result()
    finally:
        sys.setswitchinterval(before)


def _fill(spool: Spool) -> None:
    for _ in range(500):
        spool.append(records(3))
        spool.drop(2)


def test_a_record_that_was_changed_or_moved_is_noticed(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes=100) as spool:
        for record in records(4):
            spool.append([record])
    first, second, *_ = sorted(tmp_path.glob("*.spool"))
    original = first.read_bytes()
    first.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(DataLossError, match="is damaged"), opened(tmp_path):
        pass
    first.write_bytes(original[:40] + second.read_bytes()[40:])
    with pytest.raises(DataLossError, match="is damaged"), opened(tmp_path):
        pass
    first.write_bytes(b"x" * 10)
    with pytest.raises(DataLossError, match="is damaged"), opened(tmp_path):
        pass


def test_another_key_does_not_open_it(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append(records(1))
    with pytest.raises(DataLossError, match="key is not the one"):
        Spool(tmp_path, b"o" * 32)


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(FailedPreconditionError, match="another process"):
        Spool(tmp_path, KEY)


def test_a_refused_record_is_kept_aside(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.set_aside(b"first")
        spool.set_aside(b"second")
        assert len(spool) == 0
    with opened(tmp_path / "rejected") as aside:
        assert waiting(aside) == [b"first", b"second"]


def test_a_write_that_fails_leaves_the_spool_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as spool:
        spool.append(records(2))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(SpoolFullError, match="No space left"):
                spool.append([b"lost"])
        spool.append(records(1, 2))
        assert waiting(spool) == records(3)
    with opened(tmp_path) as spool:
        assert waiting(spool) == records(3)


def test_a_disk_that_fails_to_undo_a_write_too_loses_nothing_once_it_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the failed write left is cut off before the next one; it would hide whatever follows it."""
    with opened(tmp_path) as spool:
        spool.append(records(2))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            patch.setattr(os, "ftruncate", fail)
            for _ in range(2):
                with pytest.raises(SpoolFullError, match="No space left"):
                    spool.append([b"lost"])
        spool.append(records(1, 2))
        assert waiting(spool) == records(3)
    with opened(tmp_path) as spool:
        assert waiting(spool) == records(3)


def test_a_secret_key_is_made_once_and_refused_when_others_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = load_or_create_secret_key(path)
    assert load_secret_key(path) == load_or_create_secret_key(path) == key
    path.chmod(0o644)
    with pytest.raises(FailedPreconditionError, match="chmod 600"):
        load_secret_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(FailedPreconditionError, match="32 bytes"):
        load_secret_key(path)
    with pytest.raises(FailedPreconditionError, match="cannot be read"):
        load_secret_key(tmp_path / "missing")


def test_processes_that_start_at_once_get_one_secret_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(30):
            with ThreadPoolExecutor(4) as threads:
                assert len(set(threads.map(load_or_create_secret_key, [path] * 4))) == 1
            assert list(tmp_path.iterdir()) == [path]
            path.unlink()
    finally:
        sys.setswitchinterval(before)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPreconditionError, match="cannot be read"):
        load_or_create_secret_key(path)

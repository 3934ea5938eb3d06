"""The durable spool: in order, encrypted, bounded, and unharmed by a process that dies while writing."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from kala.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, UnavailableError
from services.common.secret_keys import load_or_create_secret_key, load_secret_key
from services.common.spool import MAX_RECORD_BYTES, Spool, SpoolFullError

KEY = b"k" * 32
ALL = 1 << 30


@contextmanager
def opened(directory: Path, **options: int) -> Iterator[Spool]:
    spool = Spool(directory, KEY, **options)
    try:
        yield spool
    finally:
        spool.close()


def waiting(spool: Spool) -> list[bytes]:
    return spool.peek(100_000, ALL)


def records(count: int, start: int = 0) -> list[bytes]:
    return [b"record %d" % number for number in range(start, start + count)]


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
            patch.setattr(os, call, _fail)
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
            patch.setattr(os, "fdatasync", _fail)
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
            patch.setattr(os, "fdatasync", _fail)
            patch.setattr(os, "ftruncate", _fail)
            for _ in range(2):
                with pytest.raises(SpoolFullError, match="No space left"):
                    spool.append([b"lost"])
        spool.append(records(1, 2))
        assert waiting(spool) == records(3)
    with opened(tmp_path) as spool:
        assert waiting(spool) == records(3)


def _keep_segments(path: Path, *, missing_ok: bool = False) -> None:
    if path.suffix == ".spool":
        _fail()
    elif path.exists() or not missing_ok:
        os.remove(path)  # noqa: PTH107 - unlink is what is replaced


def _fail(*_arguments: object) -> None:
    raise OSError(28, "No space left on device")


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


def _shouted(record: bytes) -> bytes:
    return record.upper()


def test_a_rewritten_spool_keeps_order_and_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path / "s", segment_bytes=300) as spool:
        for number in range(8):
            spool.append([b"record %d %s" % (number, b"x" * 50)])
        spool.drop(3)
        spool.set_aside(b"aside")
        assert spool.rewrite(lambda record: record.replace(b"record 5", b"rec")) == 1
        spool.append([b"after"])
        expected = [b"record 3", b"record 4", b"rec xx", b"record 6", b"record 7", b"after"]
        assert [
            record[: len(start)] for record, start in zip(spool.peek(9, 9_999), expected, strict=True)
        ] == expected
        used = spool.bytes_used
    with opened(tmp_path / "s") as again:
        assert [
            record[: len(start)] for record, start in zip(again.peek(9, 9_999), expected, strict=True)
        ] == expected
        assert again.bytes_used == used
        again.drop(6)
    assert list((tmp_path / "s").glob("*.spool")) == []


def test_a_rewrite_leaves_no_file_that_holds_an_old_record(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as spool:
        spool.append([b"one", b"two"])
        spool.drop(1)  # its frame is still in the file
        old = {path.read_bytes() for path in (tmp_path / "s").glob("*.spool")}
        assert spool.rewrite(lambda record: record) == 0
        assert not old & {path.read_bytes() for path in (tmp_path / "s").iterdir()}
        assert spool.peek(2, 100) == [b"two"]


@pytest.mark.parametrize("deleted", [(), (0,), (1,), (0, 2)], ids=str)
def test_a_crash_while_a_rewrite_deletes_what_it_replaced_leaves_the_new_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: tuple[int, ...]
) -> None:
    """The disk may keep the deletions in any order."""
    directory = tmp_path / "s"
    with opened(directory, segment_bytes=100) as spool:
        for number in range(4):
            spool.append([b"record %d" % number * 5])
        names = sorted(directory.glob("*.spool"))
        assert len(names) > 2
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", lambda *_arguments, **_options: None)
            spool.rewrite(_shouted)
    for place in deleted:
        names[place].unlink()
    with opened(directory) as again:
        assert again.peek(9, 9_999) == [b"RECORD %d" % number * 5 for number in range(4)]
    assert not any(name.exists() for name in names)


def test_a_rewrite_that_the_disk_does_not_take_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "s") as spool:
        spool.append([b"one", b"two"])
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", _fail)
            with pytest.raises(SpoolFullError, match="cannot be written"):
                spool.rewrite(_shouted)
        spool.append([b"three"])
        assert spool.peek(9, 999) == [b"one", b"two", b"three"]
    with opened(tmp_path / "s") as again:
        assert again.peek(9, 999) == [b"one", b"two", b"three"]


def test_a_rewrite_keeps_what_lies_beyond_a_limit_that_was_lowered(tmp_path: Path) -> None:
    records = [b"record %d" % number * 20 for number in range(20)]
    with opened(tmp_path / "s") as spool:
        spool.append(records)
    with opened(tmp_path / "s", max_bytes=500) as spool:
        assert spool.rewrite(lambda record: record) == 0
        assert spool.peek(99, ALL) == records


def test_a_rewrite_is_done_only_when_the_old_files_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An erasure is certified when this returns; one that could not delete must not be forgotten by its repeat."""
    directory = tmp_path / "s"
    with opened(directory) as spool:
        spool.append([b"one", b"two"])
        old = {path.read_bytes() for path in directory.glob("*.spool")}
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", _keep_segments)
            with pytest.raises(UnavailableError):
                spool.rewrite(_shouted)
        spool.rewrite(_shouted)
        assert not old & {path.read_bytes() for path in directory.iterdir()}
        assert spool.peek(9, 999) == [b"ONE", b"TWO"]
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", _keep_segments)
            with pytest.raises(UnavailableError):
                spool.drop(2)
        assert spool.rewrite(_shouted) == 0
        assert list(directory.glob("*.spool")) == []

"""A spool is written anew without an erased person's records: whole, in order, and never half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kala.errors import UnavailableError
from services.common.spool import SpoolFullError
from tests.fakes.spools import ALL, fail, opened


def _keep_segments(path: Path, *, missing_ok: bool = False) -> None:
    if path.suffix == ".spool":
        fail()
    elif path.exists() or not missing_ok:
        os.remove(path)  # noqa: PTH107 - unlink is what is replaced


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
            patched.setattr(os, "fsync", fail)
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

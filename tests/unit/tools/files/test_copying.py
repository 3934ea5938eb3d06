"""Verified files go into a run; what it made comes back under quota and zones, and nothing that is no plain file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, PermissionDeniedError
from services.tools.files.copying import MAX_SKIPPED, copy_in, place, take_back
from services.tools.files.model import Reference, WriteMode
from services.tools.files.volume import Volume
from services.tools.policy.model import Zone
from services.tools.policy.zones import Zones

from .conftest import Place


def _put(volume: Volume, **files: bytes) -> None:
    for path, data in files.items():
        volume.write(path, data, mode=WriteMode.REPLACE)


def _references(volume: Volume, *paths: str) -> Sequence[Reference]:
    return [volume.reference(path) for path in paths]


def _reasons(skipped: Sequence[object]) -> str:
    return "; ".join(str(one) for one in skipped)


class TestCopyingIn:
    def test_only_the_named_files_are_seen(self, volume: Volume, run_directory: Place) -> None:
        _put(volume, a=b"first", b=b"second")
        volume.write("c/d.py", b"third", mode=WriteMode.REPLACE)
        copied = copy_in(volume, _references(volume, "a", "c/d.py"), run_directory.descriptor)
        assert (run_directory.path / "c/d.py").read_bytes() == b"third"
        assert {path.name for path in run_directory.path.rglob("*")} == {"a", "c", "d.py"}
        assert set(copied.known) == {"a", "c/d.py"}

    @pytest.mark.parametrize("content", [b"fIrst", b"first!", b"firs", b""])
    def test_a_file_that_is_not_what_was_cleared_stops_it(
        self, volume: Volume, run_directory: Place, content: bytes
    ) -> None:
        _put(volume, a=b"first")
        references = _references(volume, "a")
        _put(volume, a=content)
        with pytest.raises(FailedPreconditionError, match="'a' is not what was cleared") as failure:
            copy_in(volume, references, run_directory.descriptor)
        assert failure.value.reason == "FILE_CHANGED"

    def test_a_file_that_grew_is_not_copied_to_its_end(self, volume: Volume, run_directory: Place) -> None:
        _put(volume, a=b"x" * 9_000)
        with pytest.raises(FailedPreconditionError, match="not what was cleared"):
            copy_in(volume, [Reference("a", b"\0" * 32, 10)], run_directory.descriptor)
        assert (run_directory.path / "a").stat().st_size <= 11

    def test_a_file_that_is_gone_says_so(self, volume: Volume, run_directory: Place) -> None:
        with pytest.raises(NotFoundError, match="there is no 'a'"):
            copy_in(volume, [Reference("a", b"\0" * 32, 1)], run_directory.descriptor)

    def test_a_link_is_not_copied(
        self, volume: Volume, inside: Place, outside: Path, run_directory: Place
    ) -> None:
        (inside.path / "link").symlink_to(outside / "secret.txt")
        digest = hashlib.sha256((outside / "secret.txt").read_bytes()).digest()
        with pytest.raises(FailedPreconditionError):
            copy_in(volume, [Reference("link", digest, 22)], run_directory.descriptor)
        assert list(run_directory.path.iterdir()) == []

    def test_a_file_outside_the_readable_zones_is_refused(self, volume: Volume, run_directory: Place) -> None:
        _put(volume, a=b"first")
        references = _references(volume, "a")
        volume.rights = Zones([Zone("out", read=True)])
        with pytest.raises(PermissionDeniedError, match="no right to read 'a'"):
            copy_in(volume, references, run_directory.descriptor)

    def test_a_path_out_of_the_workspace_names_its_place(self, volume: Volume, run_directory: Place) -> None:
        with pytest.raises(InvalidArgumentError, match=r"files\[0\].name: must not hold the segment '\.\.'"):
            copy_in(volume, [Reference("../a", b"", 0)], run_directory.descriptor)

    def test_a_file_named_twice_is_refused(self, volume: Volume, run_directory: Place) -> None:
        with pytest.raises(InvalidArgumentError, match=r"files\[1\].name: names 'a' again"):
            copy_in(volume, [Reference("a", b"", 0)] * 2, run_directory.descriptor)

    def test_too_many_files_name_the_limit(self, volume: Volume, run_directory: Place) -> None:
        references = [Reference(str(number), b"", 0) for number in range(1025)]
        with pytest.raises(InvalidArgumentError, match="files: names 1025 files, at most 1024"):
            copy_in(volume, references, run_directory.descriptor)

    def test_files_of_the_services_own_making_are_placed(self, run_directory: Place) -> None:
        place(run_directory.descriptor, [("a/b.py", b"one"), ("a/c.py", b"two")])
        assert (run_directory.path / "a/c.py").read_bytes() == b"two"

    def test_placed_files_do_not_leave_the_directory(self, run_directory: Place) -> None:
        with pytest.raises(InvalidArgumentError, match="files"):
            place(run_directory.descriptor, [("../b.py", b"one")])


class TestTakingBack:
    def test_new_and_changed_files_come_back_and_unchanged_ones_stay(
        self, volume: Volume, run_directory: Place
    ) -> None:
        _put(volume, kept=b"kept", changed=b"old", unseen=b"unseen")
        copied = copy_in(volume, _references(volume, "kept", "changed"), run_directory.descriptor)
        (run_directory.path / "changed").write_bytes(b"new")
        (run_directory.path / "out").mkdir()
        (run_directory.path / "out/made").write_bytes(b"made")
        changes = take_back(volume, copied, run_directory.descriptor)
        assert [(one.path, one.size) for one in changes.written] == [("changed", 3), ("out/made", 4)]
        assert changes.written[0].sha256 == hashlib.sha256(b"new").digest()
        assert (changes.deleted, changes.skipped) == ((), ())
        contents = {path: volume.read(path).data for path in ("kept", "changed", "unseen", "out/made")}
        assert contents == {"kept": b"kept", "changed": b"new", "unseen": b"unseen", "out/made": b"made"}

    def test_what_the_run_deleted_goes(self, volume: Volume, run_directory: Place) -> None:
        _put(volume, a=b"first", unseen=b"unseen")
        copied = copy_in(volume, _references(volume, "a"), run_directory.descriptor)
        (run_directory.path / "a").unlink()
        assert take_back(volume, copied, run_directory.descriptor).deleted == ("a",)
        assert [entry.path for entry in volume.entries()] == [b"unseen"]

    def test_a_file_in_place_of_a_directory_of_the_workspace_is_skipped(
        self, volume: Volume, run_directory: Place
    ) -> None:
        volume.write("a/b", b"x", mode=WriteMode.REPLACE)
        copied = copy_in(volume, [], run_directory.descriptor)
        (run_directory.path / "a").write_bytes(b"file")
        changes = take_back(volume, copied, run_directory.descriptor)
        assert "'a' is not a regular file" in _reasons(changes.skipped)
        assert volume.read("a/b").data == b"x"

    def test_nothing_but_plain_files_comes_back(
        self, volume: Volume, run_directory: Place, outside: Path
    ) -> None:
        copied = copy_in(volume, [], run_directory.descriptor)
        (run_directory.path / "link").symlink_to(outside / "secret.txt")
        (run_directory.path / "directory").symlink_to(outside)
        os.mkfifo(run_directory.path / "pipe")
        (run_directory.path / "hard").hardlink_to(outside / "secret.txt")
        (run_directory.path / "setuid").write_bytes(b"x")
        (run_directory.path / "setuid").chmod(0o4755)
        (run_directory.path / os.fsdecode(b"\xff")).write_bytes(b"x")
        changes = take_back(volume, copied, run_directory.descriptor)
        assert changes.written == ()
        assert [one.path for one in changes.skipped] == ["directory", "hard", "link", "pipe", "setuid", "�"]
        assert list(volume.entries()) == []

    def test_rights_of_a_program_are_kept_and_no_others(
        self, volume: Volume, inside: Place, run_directory: Place
    ) -> None:
        copied = copy_in(volume, [], run_directory.descriptor)
        (run_directory.path / "tool").write_bytes(b"#!")
        (run_directory.path / "tool").chmod(0o777)
        take_back(volume, copied, run_directory.descriptor)
        assert (inside.path / "tool").stat().st_mode & 0o7777 == 0o700
        (run_directory.path / "tool").unlink()
        copy_in(volume, _references(volume, "tool"), run_directory.descriptor)
        assert (run_directory.path / "tool").stat().st_mode & 0o7777 == 0o700

    def test_what_somebody_else_changed_meanwhile_is_not_overwritten(
        self, volume: Volume, run_directory: Place
    ) -> None:
        _put(volume, a=b"old a", b=b"old b")
        copied = copy_in(volume, _references(volume, "a", "b"), run_directory.descriptor)
        _put(volume, a=b"theirs", b=b"theirs", c=b"theirs")
        (run_directory.path / "a").write_bytes(b"the run's")
        (run_directory.path / "b").unlink()
        (run_directory.path / "c").write_bytes(b"the run's")
        changes = take_back(volume, copied, run_directory.descriptor)
        assert (changes.written, changes.deleted) == ((), ())
        assert [one.path for one in changes.skipped] == ["a", "b", "c"]
        assert "changed meanwhile by somebody else" in changes.skipped[0].reason
        assert {volume.read(path).data for path in "abc"} == {b"theirs"}

    def test_a_file_that_was_there_unseen_is_replaced(self, volume: Volume, run_directory: Place) -> None:
        _put(volume, a=b"of the run before")
        copied = copy_in(volume, [], run_directory.descriptor)
        (run_directory.path / "a").write_bytes(b"of this run")
        take_back(volume, copied, run_directory.descriptor)
        assert volume.read("a").data == b"of this run"

    def test_what_does_not_fit_is_skipped_with_the_quota(self, volume: Volume, run_directory: Place) -> None:
        copied = copy_in(volume, [], run_directory.descriptor)
        (run_directory.path / "a").write_bytes(b"x" * 6_000)
        (run_directory.path / "b").write_bytes(b"x" * 6_000)
        (run_directory.path / "c").write_bytes(b"x" * 4_000)
        changes = take_back(volume, copied, run_directory.descriptor)
        assert [one.path for one in changes.written] == ["a", "c"]
        assert "its quota is 10000" in _reasons(changes.skipped)
        assert volume.account.used_bytes == 10_000

    def test_a_file_of_holes_does_not_fill_the_disk(self, volume: Volume, run_directory: Place) -> None:
        copied = copy_in(volume, [], run_directory.descriptor)
        with (run_directory.path / "holes").open("wb") as file:
            file.truncate(1 << 40)
        changes = take_back(volume, copied, run_directory.descriptor)
        assert "quota" in _reasons(changes.skipped)

    def test_a_given_file_that_became_holes_is_not_read_to_its_end(
        self, volume: Volume, run_directory: Place
    ) -> None:
        _put(volume, a=b"old")
        copied = copy_in(volume, _references(volume, "a"), run_directory.descriptor)
        os.truncate(run_directory.path / "a", 1 << 40)
        changes = take_back(volume, copied, run_directory.descriptor)
        assert "quota" in _reasons(changes.skipped)
        assert volume.read("a").data == b"old"

    def test_files_outside_the_zones_are_skipped(self, volume: Volume, run_directory: Place) -> None:
        _put(volume, a=b"old", b=b"old")
        references = _references(volume, "a", "b")
        volume.rights = Zones([Zone("", read=True), Zone("out", read=True, write=True)])
        copied = copy_in(volume, references, run_directory.descriptor)
        (run_directory.path / "a").write_bytes(b"new")
        (run_directory.path / "b").unlink()
        (run_directory.path / "out").mkdir()
        (run_directory.path / "out/c").write_bytes(b"new")
        changes = take_back(volume, copied, run_directory.descriptor)
        assert [one.path for one in changes.written] == ["out/c"]
        assert [one.path for one in changes.skipped] == ["a", "b"]
        assert volume.read("a").data == volume.read("b").data == b"old"

    def test_the_host_directory_never_comes_back(self, volume: Volume, run_directory: Place) -> None:
        copied = copy_in(volume, [], run_directory.descriptor)
        (run_directory.path / "host").mkdir()
        (run_directory.path / "host/a").write_bytes(b"x")
        assert take_back(volume, copied, run_directory.descriptor).written == ()

    def test_a_file_that_cannot_be_read_is_skipped(
        self, volume: Volume, run_directory: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copied = copy_in(volume, [], run_directory.descriptor)
        (run_directory.path / "a").write_bytes(b"x")

        def fail(descriptor: int, size: int, offset: int) -> bytes:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "pread", fail)
        changes = take_back(volume, copied, run_directory.descriptor)
        assert (changes.written, changes.skipped[0].reason) == ((), "Input/output error")

    def test_a_thousand_links_are_counted_not_listed(self, volume: Volume, run_directory: Place) -> None:
        copied = copy_in(volume, [], run_directory.descriptor)
        for number in range(MAX_SKIPPED + 10):
            (run_directory.path / f"{number:03}").symlink_to("nowhere")
        skipped = take_back(volume, copied, run_directory.descriptor).skipped
        assert (len(skipped), skipped[-1].reason) == (MAX_SKIPPED + 1, "and 10 more")

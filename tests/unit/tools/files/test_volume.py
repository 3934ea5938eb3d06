"""The files of a workspace: whole writes, quota, zones, and nothing opened that is not a plain file."""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kala.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from services.tools.files.model import FileKind, Removed, WriteMode
from services.tools.files.tree import empty, walk
from services.tools.files.volume import MAX_PART_BYTES, MAX_WRITE_BYTES, Account, Volume
from services.tools.policy.model import Zone
from services.tools.policy.zones import Zones

from .conftest import Place

REPLACE = WriteMode.REPLACE


def _listed(volume: Volume, path: str = "", *, recursive: bool = False) -> dict[str, FileKind]:
    infos = [volume.info(entry, with_digest=False) for entry in volume.entries(path, recursive=recursive)]
    return {info.path: info.kind for info in infos}


def _measured(volume: Volume) -> tuple[int, int]:
    entries = list(walk(volume.root))
    return sum(entry.size for entry in entries), len(entries)


class TestReading:
    def test_a_small_file_comes_whole_with_its_digest(self, volume: Volume) -> None:
        volume.write("a.txt", b"hello", mode=REPLACE)
        part = volume.read("a.txt")
        assert (part.data, part.next_offset) == (b"hello", None)
        assert part.file.sha256 == hashlib.sha256(b"hello").digest()

    def test_a_part_says_where_the_next_begins(self, volume: Volume) -> None:
        volume.write("a.txt", b"hello", mode=REPLACE)
        first = volume.read("a.txt", max_bytes=3)
        assert (first.data, first.next_offset, first.file.sha256, first.file.size) == (b"hel", 3, b"", 5)
        second = volume.read("a.txt", offset=3, max_bytes=3)
        assert (second.data, second.next_offset, second.file.sha256) == (b"lo", None, b"")

    def test_beyond_the_end_there_is_nothing(self, volume: Volume) -> None:
        volume.write("a.txt", b"hello", mode=REPLACE)
        part = volume.read("a.txt", offset=99)
        assert (part.data, part.next_offset) == (b"", None)

    def test_an_empty_file_has_the_digest_of_nothing(self, volume: Volume) -> None:
        volume.write("a.txt", b"", mode=REPLACE)
        assert volume.read("a.txt").file.sha256 == hashlib.sha256(b"").digest()

    def test_a_file_that_is_not_there_says_so(self, volume: Volume) -> None:
        with pytest.raises(NotFoundError, match=r"there is no 'a/b\.txt' in the workspace"):
            volume.read("a/b.txt")

    def test_a_directory_is_not_read(self, volume: Volume) -> None:
        volume.write("a/b.txt", b"x", mode=REPLACE)
        with pytest.raises(FailedPreconditionError, match="'a' is not a regular file"):
            volume.read("a")

    def test_a_link_is_never_followed(self, volume: Volume, inside: Place, outside: Path) -> None:
        (inside.path / "link").symlink_to(outside / "secret.txt")
        with pytest.raises(FailedPreconditionError, match="leads through a link"):
            volume.read("link")

    def test_a_path_out_of_the_workspace_names_the_field(self, volume: Volume) -> None:
        with pytest.raises(InvalidArgumentError, match=r"path: must not hold the segment '\.\.'"):
            volume.read("../outside/secret.txt")

    @pytest.mark.parametrize("max_bytes", [-1, MAX_PART_BYTES + 1])
    def test_too_large_a_part_names_the_limit(self, volume: Volume, max_bytes: int) -> None:
        with pytest.raises(InvalidArgumentError, match="max_bytes: must be 1 to 2097152"):
            volume.read("a.txt", max_bytes=max_bytes)

    def test_a_negative_offset_is_refused(self, volume: Volume) -> None:
        with pytest.raises(InvalidArgumentError, match="offset"):
            volume.read("a.txt", offset=-1)


class TestWriting:
    def test_missing_directories_are_made(self, volume: Volume, inside: Place) -> None:
        written = volume.write("a/b/c.txt", b"hello", mode=WriteMode.CREATE)
        assert (inside.path / "a/b/c.txt").read_bytes() == b"hello"
        assert (written.created, written.file.size) == (True, 5)
        assert written.file.sha256 == hashlib.sha256(b"hello").digest()

    def test_a_file_that_is_there_is_not_made_again(self, volume: Volume) -> None:
        volume.write("a.txt", b"old", mode=WriteMode.CREATE)
        with pytest.raises(AlreadyExistsError, match=r"'a\.txt' is there already; write with REPLACE"):
            volume.write("a.txt", b"new", mode=WriteMode.CREATE)
        assert volume.read("a.txt").data == b"old"

    def test_replacing_says_that_nothing_new_was_made(self, volume: Volume) -> None:
        volume.write("a.txt", b"old", mode=REPLACE)
        assert not volume.write("a.txt", b"new", mode=REPLACE).created
        assert volume.read("a.txt").data == b"new"

    def test_appending_adds_to_the_end(self, volume: Volume) -> None:
        assert volume.write("log", b"one ", mode=WriteMode.APPEND).created
        written = volume.write("log", b"two", mode=WriteMode.APPEND)
        assert volume.read("log").data == b"one two"
        assert written.file.sha256 == hashlib.sha256(b"one two").digest()

    def test_a_reader_of_the_old_file_keeps_seeing_it_whole(self, volume: Volume, inside: Place) -> None:
        volume.write("a.txt", b"old content", mode=REPLACE)
        with (inside.path / "a.txt").open("rb") as reader:
            first = reader.read(3)
            volume.write("a.txt", b"something new", mode=REPLACE)
            assert first + reader.read() == b"old content"

    def test_the_expected_digest_must_hold(self, volume: Volume) -> None:
        volume.write("a.txt", b"old", mode=REPLACE)
        with pytest.raises(FailedPreconditionError, match=r"'a\.txt' is not what `expected_sha256` says"):
            volume.write("a.txt", b"new", mode=REPLACE, expected_sha256=hashlib.sha256(b"other").digest())
        volume.write("a.txt", b"new", mode=REPLACE, expected_sha256=hashlib.sha256(b"old").digest())
        assert volume.read("a.txt").data == b"new"

    def test_a_digest_is_never_that_of_a_missing_file(self, volume: Volume) -> None:
        with pytest.raises(FailedPreconditionError, match="expected_sha256"):
            volume.write("a.txt", b"new", mode=REPLACE, expected_sha256=hashlib.sha256(b"").digest())

    def test_a_digest_of_another_length_names_the_field(self, volume: Volume) -> None:
        with pytest.raises(InvalidArgumentError, match="expected_sha256: must be empty or 32 bytes"):
            volume.write("a.txt", b"new", mode=REPLACE, expected_sha256=b"short")

    def test_too_many_bytes_name_the_limit(self, volume: Volume) -> None:
        with pytest.raises(InvalidArgumentError, match=f"data: .*at most {MAX_WRITE_BYTES}"):
            volume.write("a.txt", b"x" * (MAX_WRITE_BYTES + 1), mode=REPLACE)

    def test_a_file_in_place_of_a_directory_is_named(self, volume: Volume) -> None:
        volume.write("a", b"x", mode=REPLACE)
        with pytest.raises(FailedPreconditionError, match="a part of 'a/b' is no directory"):
            volume.write("a/b", b"x", mode=REPLACE)

    def test_a_directory_is_not_written_over(self, volume: Volume) -> None:
        volume.write("a/b", b"x", mode=REPLACE)
        with pytest.raises(FailedPreconditionError, match="not a regular file"):
            volume.write("a", b"x", mode=REPLACE)

    def test_a_link_is_neither_followed_nor_replaced(
        self, volume: Volume, inside: Place, outside: Path
    ) -> None:
        (inside.path / "link").symlink_to(outside / "new.txt")
        (inside.path / "directory").symlink_to(outside)
        for path in ("link", "directory/new.txt"):
            with pytest.raises(FailedPreconditionError):
                volume.write(path, b"x", mode=REPLACE)
        assert [found.name for found in outside.iterdir()] == ["secret.txt"]

    def test_a_full_disk_says_so_and_leaves_nothing(
        self, volume: Volume, staging: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ResourceExhaustedError, match="the disk that holds the workspaces is full"):
            volume.write("a/b.txt", b"x", mode=REPLACE)
        assert list(staging.path.iterdir()) == []
        assert (volume.account.used_bytes, volume.account.inodes) == (0, 0)

    @pytest.mark.parametrize("content", [b"too long for it", b"short"])
    def test_a_source_that_changes_while_it_is_copied_leaves_the_old_file(
        self, volume: Volume, staging: Place, content: bytes
    ) -> None:
        volume.write("a", b"old", mode=REPLACE)
        with pytest.raises(FailedPreconditionError, match="'a' changed while it was copied"):
            volume.put("a", [content, b""], size=8)
        assert (volume.read("a").data, list(staging.path.iterdir())) == (b"old", [])

    def test_a_socket_is_named_as_what_it_is_not(
        self, volume: Volume, inside: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(inside.path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("sock")
            with pytest.raises(FailedPreconditionError, match="'sock' is not a regular file"):
                volume.read("sock")


class TestQuota:
    def test_more_than_the_quota_names_both_figures(self, volume: Volume, account: Account) -> None:
        volume.write("a", b"x" * 9_000, mode=REPLACE)
        with pytest.raises(ResourceExhaustedError, match="would hold 10001 bytes and its quota is 10000"):
            volume.write("b", b"x" * 1_001, mode=REPLACE)
        assert (account.used_bytes, account.inodes) == (9_000, 1)

    def test_replacing_counts_the_difference_only(self, volume: Volume) -> None:
        volume.write("a", b"x" * 9_000, mode=REPLACE)
        volume.write("a", b"y" * 10_000, mode=REPLACE)
        assert volume.account.used_bytes == 10_000

    def test_appending_counts_what_is_there(self, volume: Volume) -> None:
        volume.write("a", b"x" * 9_000, mode=REPLACE)
        with pytest.raises(ResourceExhaustedError, match="would hold 10001 bytes"):
            volume.write("a", b"x" * 1_001, mode=WriteMode.APPEND)
        assert volume.read("a").file.size == 9_000

    def test_empty_files_and_directories_are_bounded_too(self, volume: Volume) -> None:
        volume.account.max_inodes = 3
        volume.write("a/b/c", b"", mode=REPLACE)
        with pytest.raises(ResourceExhaustedError, match="4 files and directories and at most 3 are allowed"):
            volume.write("d", b"", mode=REPLACE)

    def test_what_shrinks_is_taken_although_the_quota_is_passed(self, volume: Volume) -> None:
        volume.write("a", b"x" * 9_000, mode=REPLACE)
        volume.account.quota_bytes = 100
        volume.write("a", b"x" * 8_000, mode=REPLACE)
        assert volume.account.used_bytes == 8_000


class TestDeleting:
    def test_a_file_goes(self, volume: Volume, inside: Place) -> None:
        volume.write("a", b"12345", mode=REPLACE)
        assert volume.delete("a") == Removed(1, 5)
        assert list(inside.path.iterdir()) == []

    def test_a_directory_that_is_not_empty_stays(self, volume: Volume) -> None:
        volume.write("a/b", b"12345", mode=REPLACE)
        with pytest.raises(FailedPreconditionError, match="'a' is not empty; set `recursive`"):
            volume.delete("a")
        assert volume.read("a/b").data == b"12345"

    def test_a_directory_goes_with_what_is_in_it(self, volume: Volume, inside: Place, staging: Place) -> None:
        volume.write("a/b/c", b"12345", mode=REPLACE)
        volume.write("a/d", b"678", mode=REPLACE)
        assert volume.delete("a", recursive=True) == Removed(4, 8)
        assert [*inside.path.iterdir(), *staging.path.iterdir()] == []

    def test_a_link_goes_and_not_what_it_points_to(
        self, volume: Volume, inside: Place, outside: Path
    ) -> None:
        (inside.path / "link").symlink_to(outside)
        volume.delete("link", recursive=True)
        assert (outside / "secret.txt").exists()

    def test_nothing_is_deleted_through_a_link(self, volume: Volume, inside: Place, outside: Path) -> None:
        (inside.path / "link").symlink_to(outside)
        with pytest.raises(FailedPreconditionError):
            volume.delete("link/secret.txt")
        assert (outside / "secret.txt").exists()

    def test_what_is_not_there_says_so(self, volume: Volume) -> None:
        with pytest.raises(NotFoundError, match="there is no 'a'"):
            volume.delete("a")

    def test_the_workspace_itself_is_not_deleted(self, volume: Volume) -> None:
        with pytest.raises(InvalidArgumentError, match="path: must be 1 to 1024 bytes"):
            volume.delete("", recursive=True)


class TestListing:
    def test_names_come_by_path(self, volume: Volume) -> None:
        for path in ("b", "a/c", "a-b"):
            volume.write(path, b"x", mode=REPLACE)
        assert list(_listed(volume)) == ["a", "a-b", "b"]
        assert list(_listed(volume, recursive=True)) == ["a", "a-b", "a/c", "b"]
        assert list(_listed(volume, "a")) == ["a/c"]

    def test_links_are_listed_as_what_they_are(self, volume: Volume, inside: Place) -> None:
        (inside.path / "link").symlink_to("/etc/passwd")
        volume.write("hard-1", b"x", mode=REPLACE)
        (inside.path / "hard-2").hardlink_to(inside.path / "hard-1")
        assert set(_listed(volume).values()) == {FileKind.OTHER}

    def test_digests_come_when_asked_for(self, volume: Volume) -> None:
        volume.write("a", b"hello", mode=REPLACE)
        [entry] = volume.entries()
        assert volume.info(entry, with_digest=True).sha256 == hashlib.sha256(b"hello").digest()
        assert volume.info(entry, with_digest=False).sha256 == b""

    def test_a_file_that_went_away_meanwhile_has_no_digest(self, volume: Volume) -> None:
        volume.write("a", b"hello", mode=REPLACE)
        [entry] = volume.entries()
        volume.delete("a")
        assert volume.info(entry, with_digest=True).sha256 == b""

    def test_a_name_that_is_not_utf_8_is_shown_replaced(self, volume: Volume, inside: Place) -> None:
        (inside.path / os.fsdecode(b"\xff")).write_bytes(b"hello")
        [entry] = volume.entries()
        info = volume.info(entry, with_digest=True)
        assert (info.path, info.kind, info.sha256) == (
            "�",
            FileKind.REGULAR,
            hashlib.sha256(b"hello").digest(),
        )

    def test_a_file_is_no_directory_to_list(self, volume: Volume) -> None:
        volume.write("a", b"x", mode=REPLACE)
        with pytest.raises(FailedPreconditionError, match="no directory"):
            volume.entries("a")

    def test_a_directory_that_is_not_there_says_so(self, volume: Volume) -> None:
        with pytest.raises(NotFoundError):
            volume.entries("a")

    def test_the_depth_is_bounded(self, volume: Volume) -> None:
        volume.write("/".join(["d"] * 70), b"x", mode=REPLACE)
        assert max(path.count("/") + 1 for path in _listed(volume, recursive=True)) == 64


class TestZones:
    @pytest.fixture
    def zoned(self, volume: Volume) -> Volume:
        for path in ("in/a", "out/a", "out/keep/a", "top"):
            volume.write(path, b"old", mode=REPLACE)
        volume.rights = Zones(
            [
                Zone("in", read=True),
                Zone("out", read=True, write=True, delete=True),
                Zone("out/keep", read=True),
                Zone("drop", write=True),
            ]
        )
        return volume

    def test_reading_needs_the_right_to_read(self, zoned: Volume) -> None:
        assert zoned.read("in/a").data == b"old"
        with pytest.raises(PermissionDeniedError, match="zones give no right to read 'top'"):
            zoned.read("top")

    def test_writing_needs_the_right_to_write(self, zoned: Volume) -> None:
        zoned.write("out/b", b"new", mode=REPLACE)
        with pytest.raises(PermissionDeniedError, match="zones give no right to write 'in/a'"):
            zoned.write("in/a", b"new", mode=REPLACE)
        assert zoned.read("in/a").data == b"old"

    def test_a_zone_that_is_only_written_is_written(self, zoned: Volume) -> None:
        assert zoned.write("drop/a", b"new", mode=REPLACE).created

    def test_deleting_needs_the_right_to_delete(self, zoned: Volume) -> None:
        zoned.delete("out/a")
        with pytest.raises(PermissionDeniedError, match="zones give no right to delete 'in/a'"):
            zoned.delete("in/a")

    def test_a_directory_with_something_that_may_not_go_stays_whole(self, zoned: Volume) -> None:
        with pytest.raises(PermissionDeniedError, match="no right to delete 'out/keep"):
            zoned.delete("out", recursive=True)
        assert set(_listed(zoned, "out", recursive=True)) == {"out/a", "out/keep", "out/keep/a"}

    def test_the_top_may_be_hidden(self, zoned: Volume) -> None:
        with pytest.raises(PermissionDeniedError, match="no right to list 'the top of the workspace'"):
            zoned.entries()

    def test_what_may_not_be_read_is_not_listed(self, zoned: Volume) -> None:
        zoned.rights = Zones([Zone("", read=True), Zone("out")])
        assert set(_listed(zoned, recursive=True)) == {"in", "in/a", "top"}


class TestHostDirectory:
    @pytest.fixture
    def hosted(self, inside: Place, staging: Place, run_directory: Place, volume: Volume) -> Volume:
        (run_directory.path / "src").mkdir()
        (run_directory.path / "src/main.py").write_bytes(b"print()")
        return Volume(
            root=inside.descriptor,
            staging=staging.descriptor,
            account=volume.account,
            rights=volume.rights,
            host=run_directory.descriptor,
        )

    def test_its_files_are_read_under_host(self, hosted: Volume) -> None:
        assert hosted.read("host/src/main.py").data == b"print()"

    def test_it_is_listed_but_not_walked_from_the_top(self, hosted: Volume) -> None:
        assert _listed(hosted, recursive=True) == {"host": FileKind.DIRECTORY}

    def test_it_is_walked_when_asked_for(self, hosted: Volume) -> None:
        assert list(_listed(hosted, "host", recursive=True)) == ["host/src", "host/src/main.py"]
        assert list(_listed(hosted, "host/src")) == ["host/src/main.py"]

    def test_its_digests_come_when_asked_for(self, hosted: Volume) -> None:
        [entry] = hosted.entries("host/src")
        assert hosted.info(entry, with_digest=True).sha256 == hashlib.sha256(b"print()").digest()

    def test_nothing_in_it_is_changed(self, hosted: Volume, run_directory: Place) -> None:
        with pytest.raises(PermissionDeniedError, match="shown read-only"):
            hosted.write("host/new", b"x", mode=REPLACE)
        with pytest.raises(PermissionDeniedError, match="shown read-only"):
            hosted.delete("host/src", recursive=True)
        assert (run_directory.path / "src/main.py").exists()

    def test_links_in_it_are_not_followed(self, hosted: Volume, run_directory: Place, outside: Path) -> None:
        (run_directory.path / "link").symlink_to(outside)
        with pytest.raises(FailedPreconditionError):
            hosted.read("host/link/secret.txt")


NAMES = st.sampled_from(["a", "b", "a/b", "a/b/c", "d/e", "d"])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), NAMES, st.sampled_from(list(WriteMode)), st.integers(0, 6_000)),
        st.tuples(st.just("delete"), NAMES, st.booleans(), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_the_account_is_always_what_is_there(
    volume: Volume, operations: list[tuple[str, str, object, int]]
) -> None:
    empty(volume.root)
    volume.account = replace(volume.account, used_bytes=0, inodes=0, max_inodes=6)
    for verb, path, how, size in operations:
        try:
            if verb == "write":
                assert isinstance(how, WriteMode)
                volume.write(path, b"x" * size, mode=how)
            else:
                volume.delete(path, recursive=bool(how))
        except KalaError:
            pass
        assert (volume.account.used_bytes, volume.account.inodes) == _measured(volume)
        assert volume.account.used_bytes <= volume.account.quota_bytes
        assert volume.account.inodes <= volume.account.max_inodes

"""Trees that a hostile program made are walked and deleted without recursion and with few descriptors."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

import pytest

from kala.errors import ResourceExhaustedError
from services.tools.files.beneath import closing, open_directory
from services.tools.files.model import FileKind
from services.tools.files.tree import empty, walk

from .conftest import Place

# Deeper than Python's own recursion reaches.
DEEP = 1_100


def _dig(top: int, depth: int) -> None:
    directory = os.dup(top)
    for _ in range(depth):
        os.mkdir("d", 0o700, dir_fd=directory)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = below
    with closing(os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=directory)) as file:
        os.write(file, b"1234567")
    os.close(directory)


def test_a_tree_deeper_than_recursion_is_walked_as_far_as_paths_can_be_asked_for_and_deleted(
    inside: Place,
) -> None:
    _dig(inside.descriptor, DEEP)
    assert max(entry.path.count(b"/") + 1 for entry in walk(inside.descriptor)) == 1024 // 2 + 1
    assert empty(inside.descriptor) == (DEEP + 1, 7)
    assert list(inside.path.iterdir()) == []


def test_a_deep_tree_needs_few_descriptors(inside: Place) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _dig(inside.descriptor, 60)
    free = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        assert len(list(walk(inside.descriptor))) == 61
        assert empty(inside.descriptor) == (61, 7)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_every_kind_of_name_is_told_apart_and_none_is_followed(inside: Place) -> None:
    (inside.path / "directory").mkdir()
    (inside.path / "file").write_bytes(b"123")
    (inside.path / "link").symlink_to("/etc")
    (inside.path / "hard-1").write_bytes(b"")
    (inside.path / "hard-2").hardlink_to(inside.path / "hard-1")
    os.mkfifo(inside.path / "pipe")
    kinds = {entry.path: (entry.kind, entry.size) for entry in walk(inside.descriptor)}
    assert kinds == {
        b"directory": (FileKind.DIRECTORY, 0),
        b"file": (FileKind.REGULAR, 3),
        b"link": (FileKind.OTHER, 4),
        b"hard-1": (FileKind.OTHER, 0),
        b"hard-2": (FileKind.OTHER, 0),
        b"pipe": (FileKind.OTHER, 0),
    }


def test_names_that_are_not_utf_8_are_walked_and_deleted(inside: Place) -> None:
    directory = inside.path / os.fsdecode(b"\xff")
    directory.mkdir()
    (directory / os.fsdecode(b"\xfe")).write_bytes(b"1")
    assert {entry.path for entry in walk(inside.descriptor)} == {b"\xff", b"\xff/\xfe"}
    assert empty(inside.descriptor) == (2, 1)


def test_the_walk_stops_at_the_asked_depth(inside: Place) -> None:
    (inside.path / "a/b/c").mkdir(parents=True)
    assert {entry.path for entry in walk(inside.descriptor, max_depth=2)} == {b"a", b"a/b"}
    assert {entry.path for entry in walk(inside.descriptor, b"a", max_depth=1)} == {b"a/b"}


def test_more_names_than_are_allowed_say_so(inside: Place) -> None:
    for number in range(11):
        (inside.path / str(number)).touch()
    with pytest.raises(ResourceExhaustedError, match="more than 10 names"):
        list(walk(inside.descriptor, max_names=10))


def test_the_walk_of_what_is_no_directory_fails(inside: Place) -> None:
    (inside.path / "file").touch()
    with pytest.raises(NotADirectoryError):
        list(walk(inside.descriptor, b"file"))


def test_a_directory_that_goes_away_meanwhile_is_passed_over(inside: Place) -> None:
    (inside.path / "a").mkdir()
    (inside.path / "b").mkdir()
    found = walk(inside.descriptor)
    first = next(found)
    (inside.path / "a").rmdir()
    (inside.path / "b").rmdir()
    assert {first.path, *(entry.path for entry in found)} == {b"a", b"b"}


def test_a_file_that_goes_away_meanwhile_is_passed_over(
    inside: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inside.path / "a").touch()
    scandir = os.scandir

    def late(directory: int) -> contextlib.AbstractContextManager[list[os.DirEntry[str]]]:
        with scandir(directory) as names:
            found = list(names)
        (inside.path / "a").unlink()
        return contextlib.nullcontext(found)

    monkeypatch.setattr(os, "scandir", late)
    assert list(walk(inside.descriptor)) == []


def test_links_are_deleted_and_what_they_point_to_stays(inside: Place, run_directory: Place) -> None:
    (run_directory.path / "kept").write_bytes(b"kept")
    (inside.path / "link").symlink_to(run_directory.path)
    empty(inside.descriptor)
    assert (run_directory.path / "kept").read_bytes() == b"kept"


def test_a_link_in_place_of_the_trash_is_not_entered(inside: Place, run_directory: Place) -> None:
    (inside.path / "trash").symlink_to(run_directory.path)
    with pytest.raises(OSError):
        open_directory(inside.descriptor, b"trash")

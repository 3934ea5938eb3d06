import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.tools.sandbox.landlock import directory
from services.tools.sandbox.landlock.directory import clear, held_below

DEEP = 3_000


@pytest.fixture
def place(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    clear(descriptor)
    os.close(descriptor)


def dig(place: int, depth: int) -> None:
    """Make a directory in a directory in …, deeper than any path reaches."""
    current = os.dup(place)
    for _ in range(depth):
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    descriptor = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current)
    os.write(descriptor, b"x" * 8192)
    os.close(descriptor)
    os.close(current)


def test_files_and_directories_are_counted_with_the_blocks_they_take(tmp_path: Path, place: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "b").write_bytes(b"x" * 100_000)
    (tmp_path / "d" / "sparse").touch()
    os.truncate(tmp_path / "d" / "sparse", 1 << 40)
    held = held_below(place, most_inodes=1000)
    assert held.inodes == 5
    assert 200_000 <= held.disk_bytes < 400_000


def test_a_tree_deeper_than_any_path_is_counted_and_cleared(tmp_path: Path, place: int) -> None:
    dig(place, DEEP)
    assert held_below(place, most_inodes=2 * DEEP).inodes == DEEP + 1
    clear(place)
    assert list(tmp_path.iterdir()) == []


def test_counting_ends_soon_after_there_are_too_many(tmp_path: Path, place: int) -> None:
    for number in range(50):
        (tmp_path / str(number)).touch()
    assert held_below(place, most_inodes=10).inodes == 11


def test_links_are_counted_and_deleted_and_never_followed(tmp_path: Path, place: int) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "loop").symlink_to("loop")
    assert held_below(place, most_inodes=100).inodes == 2
    clear(place)
    assert list(tmp_path.iterdir()) == []
    assert (outside / "kept").read_text() == "kept"


def test_a_directory_that_forbids_looking_hides_nothing(tmp_path: Path, place: int) -> None:
    (tmp_path / "closed" / "in").mkdir(parents=True)
    (tmp_path / "closed" / "in" / "file").write_bytes(b"x" * 50_000)
    (tmp_path / "closed" / "in").chmod(0)
    (tmp_path / "closed").chmod(0)
    held = held_below(place, most_inodes=100)
    assert held.inodes == 3
    assert held.disk_bytes >= 50_000


def test_what_forbids_everything_is_cleared(tmp_path: Path, place: int) -> None:
    (tmp_path / "closed" / "in").mkdir(parents=True)
    (tmp_path / "closed" / "in" / "file").touch(mode=0)
    (tmp_path / "closed" / "in").chmod(0)
    (tmp_path / "closed").chmod(0)
    os.mkfifo(tmp_path / "pipe")
    tmp_path.chmod(0)
    clear(place)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_is_cleared_too(tmp_path: Path, place: int) -> None:
    clear(place)
    assert held_below(place, most_inodes=10).inodes == 0
    assert tmp_path.is_dir()


@pytest.mark.parametrize("trick", ["deleted", "moved"])
def test_a_directory_that_goes_away_while_it_is_looked_into_hides_no_other(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch, trick: str
) -> None:
    """It ended the look: a program that did so all the time had no limit on its disk."""
    for name in ("a", "b", "c"):
        (tmp_path / "all" / name / "below").mkdir(parents=True)
        (tmp_path / "all" / name / "file").write_bytes(b"x" * 50_000)
    enter = directory._Count.enter
    tricked = False

    def entering(count: directory._Count, descriptor: int, name: str = "") -> directory._Level:
        nonlocal tricked
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name == "below" and not tricked:
            tricked = True
            if trick == "deleted":
                path.rmdir()
            else:
                path.rename(tmp_path / "elsewhere")
        return enter(count, descriptor, name)

    monkeypatch.setattr(directory._Count, "enter", entering)
    held = held_below(place, most_inodes=100)
    assert tricked
    assert held.disk_bytes >= 150_000

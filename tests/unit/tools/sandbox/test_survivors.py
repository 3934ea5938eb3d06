import signal
from pathlib import Path

import pytest

from services.tools.sandbox.survivors import SurvivorsError, descendants, end_descendants


def proc(place: Path, *processes: tuple[int, int, str, str]) -> Path:
    """Write a /proc with (pid, parent, state, name)."""
    for pid, parent, state, name in processes:
        (place / str(pid)).mkdir()
        (place / str(pid) / "stat").write_bytes(f"{pid} ({name}) {state} {parent} 1 1".encode())
    (place / "meminfo").write_text("")
    (place / "99").mkdir()  # gone between the listing and the look
    return place


def test_descendants_are_found_at_any_depth_and_nobody_else(tmp_path: Path) -> None:
    place = proc(
        tmp_path, (10, 1, "S", "keeper"), (11, 10, "S", "sh"), (12, 11, "R", "x"), (13, 1, "S", "other")
    )
    assert descendants(10, proc=place) == {11, 12}


def test_a_name_that_imitates_the_format_misleads_nobody(tmp_path: Path) -> None:
    place = proc(tmp_path, (10, 1, "S", "keeper"), (11, 10, "S", "a) R 1 (b) Z 1 ("))
    assert descendants(10, proc=place) == {11}


def test_a_zombie_is_not_living_but_its_children_are_found(tmp_path: Path) -> None:
    place = proc(tmp_path, (10, 1, "S", "keeper"), (11, 10, "Z", "dead"), (12, 11, "S", "orphan"))
    assert descendants(10, proc=place) == {12}


class ForkBomb:
    """Processes that fork at every look until they are stopped, and whose dead make room for more."""

    def __init__(self, room: int) -> None:
        self.running = {1}
        self.stopped: set[int] = set()
        self._room = room
        self._next = 2
        self.killed_while_running = 0

    def find(self, root: int) -> frozenset[int]:
        for _ in list(self.running):
            if len(self.running) + len(self.stopped) < self._room:
                self.running.add(self._next)
                self._next += 1
        return frozenset(self.running | self.stopped)

    def send(self, pid: int, number: int) -> None:
        if number == signal.SIGSTOP:
            self.running.discard(pid)
            self.stopped.add(pid)
        elif pid in self.stopped:
            self.stopped.discard(pid)
        else:
            self.killed_while_running += 1
            raise ProcessLookupError


def test_a_fork_bomb_is_stopped_before_it_is_killed() -> None:
    bomb = ForkBomb(room=64)
    end_descendants(10, find=bomb.find, send=bomb.send, pause=lambda: None)
    assert bomb.running == set()
    assert bomb.stopped == set()
    assert bomb.killed_while_running == 0


def test_processes_that_cannot_be_ended_are_told_about() -> None:
    with pytest.raises(SurvivorsError, match="below 10"):
        end_descendants(10, find=lambda _: frozenset({5}), send=lambda *_: None, pause=lambda: None)


def test_what_ends_by_itself_meanwhile_is_no_error() -> None:
    looks = iter([frozenset({5}), frozenset({5}), frozenset[int]()])

    def gone(pid: int, number: int) -> None:
        raise ProcessLookupError

    end_descendants(10, find=lambda _: next(looks), send=gone, pause=lambda: None)

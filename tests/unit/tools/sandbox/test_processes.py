"""What a sandbox's processes used, also those that nobody waited for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.tools.sandbox.launcher.processes import Processes, Spent

TICKS = os.sysconf("SC_CLK_TCK")
PARENT, CHILD, OTHER = ("2", b"100"), ("3", b"200"), ("3", b"300")


def test_what_a_dead_process_used_stays_in_the_sum() -> None:
    spent = Spent()
    assert spent.all_with({PARENT: 1, CHILD: 30}) == 31
    assert spent.all_with({PARENT: 1}) == 31
    assert spent.all_with({PARENT: 2}) == 32


def test_another_process_with_a_dead_ones_number_is_another() -> None:
    spent = Spent()
    spent.all_with({CHILD: 30})
    assert spent.all_with({OTHER: 5}) == 35
    assert spent.all_with({OTHER: 6}) == 36


def test_a_process_that_one_look_missed_counts_once() -> None:
    spent = Spent()
    spent.all_with({PARENT: 1, CHILD: 30})
    spent.all_with({PARENT: 1})
    assert spent.all_with({PARENT: 1, CHILD: 31}) == 32
    assert spent.all_with({PARENT: 1}) == 32


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    yield found
    found.close()


def seen(place: Path, pid: int, *, used: int, of_children: int = 0) -> None:
    """Write a process that used so many seconds."""
    fields = ["0"] * 50
    fields[11], fields[13], fields[17], fields[19] = str(used * TICKS), str(of_children * TICKS), "1", "77"
    (place / str(pid)).mkdir(exist_ok=True)
    (place / str(pid) / "stat").write_text(f"{pid} (name) {' '.join(fields)}")


def gone(place: Path, pid: int) -> None:
    (place / str(pid) / "stat").unlink()


def test_children_that_nobody_waits_for_are_not_forgotten(tmp_path: Path, processes: Processes) -> None:
    """With SIGCHLD ignored, a program that let one child after another work never came to its limit of CPU time."""
    seen(tmp_path, 2, used=0)
    for child in range(3, 8):
        seen(tmp_path, child, used=10)
        processes.look(0)
        gone(tmp_path, child)
    assert processes.look(0).cpu_seconds == 50


def test_a_child_that_is_waited_for_counts_once(tmp_path: Path, processes: Processes) -> None:
    seen(tmp_path, 2, used=1)
    seen(tmp_path, 3, used=10)
    processes.look(0)
    gone(tmp_path, 3)
    seen(tmp_path, 2, used=1, of_children=11)
    assert processes.look(0).cpu_seconds == 12

"""Find and end every process below another one, where no namespace does it at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
# A fork that runs between two looks is seen by the next; the limit on processes bounds how many such looks there are.
_MAX_ROUNDS: Final = 10_000
_PAUSE_SECONDS: Final = 0.001


class SurvivorsError(RuntimeError):
    """Processes are left that could not be ended."""


def descendants(root: int, *, proc: Path = _PROC) -> frozenset[int]:
    """List the living processes below `root`, however deep; a zombie is not living, but its children are found."""
    children: dict[int, list[tuple[int, bool]]] = {}
    for pid, parent, zombie in _processes(proc):
        children.setdefault(parent, []).append((pid, zombie))
    found: set[int] = set()
    seen: set[int] = {root}
    open_ends = [root]
    while open_ends:
        for pid, zombie in children.get(open_ends.pop(), ()):
            if pid not in seen:
                seen.add(pid)
                open_ends.append(pid)
                if not zombie:
                    found.add(pid)
    return frozenset(found)


def children(root: int, *, proc: Path = _PROC) -> frozenset[int]:
    """List the direct children of `root`, dead ones that nobody reaped included."""
    return frozenset(pid for pid, parent, _ in _processes(proc) if parent == root)


def end_descendants(
    root: int,
    *,
    find: Callable[[int], frozenset[int]] = descendants,
    send: Callable[[int, int], None] = os.kill,
    reap: Callable[[], None] = lambda: None,
    pause: Callable[[], None] = lambda: time.sleep(_PAUSE_SECONDS),
) -> None:
    """Stop every process below `root` until no new one shows up, then kill them all, and again until none is left.

    Stopping first matters: a killed process makes room under the limit on processes for another one's fork. `root` must be a
    subreaper, so that orphans stay below it; `reap` is called so that it can collect the dead, `pause` so that they can die.

    Raises:
        SurvivorsError: some are left after very many rounds.
    """
    for _ in range(_MAX_ROUNDS):
        stopped: set[int] = set()
        while fresh := find(root) - stopped:
            for pid in fresh:
                _signal(send, pid, signal.SIGSTOP)
            stopped |= fresh
        if not stopped:
            return
        for pid in stopped:
            _signal(send, pid, signal.SIGKILL)
        reap()
        pause()
    raise SurvivorsError(f"processes below {root} are left after {_MAX_ROUNDS} rounds of killing")


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        send(pid, number)
    except ProcessLookupError:
        return


def _processes(proc: Path) -> Iterator[tuple[int, int, bool]]:
    """Give (pid, its parent, whether it is a zombie) of every process."""
    for entry in proc.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The name is in parentheses and may contain anything, a parenthesis too.
        state, parent, *_ = stat[stat.rindex(b")") + 2 :].split(b" ", 2)
        yield int(entry.name), int(parent), state in {b"Z", b"X"}

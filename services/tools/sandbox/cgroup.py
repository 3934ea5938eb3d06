"""Control groups, where this process may make some below its own: limits on memory and processes that cannot be outrun.

Both versions are served: v2 with one tree, v1 with one tree per controller. What is found is believed only after a
process was really stopped by each limit.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError

MEMORY: Final = "memory"
PROCESSES: Final = "pids"
_NEEDED: Final = (MEMORY, PROCESSES)
_PREFIX: Final = "kala-run-"
# v2 allows no process in a group whose children have controllers, so the service's own move here.
_OWN: Final = "kala-service"
_MIB: Final = 1024 * 1024
_PROBE_BYTES: Final = 16 * _MIB
_PROBE_TOUCHES: Final = 64 * _MIB
_PAGE: Final = 4096


class CgroupUnavailableError(FailedPreconditionError):
    """No group may be made here, or its limits do not bind."""

    default_reason = "CGROUP_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Files:
    """What the files of one version are called."""

    version: int
    memory: str
    # Together with memory and swap, where swap is counted; it is optional.
    swap: str
    swap_is_in_sum: bool
    events: str


V1: Final = Files(1, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", True, "memory.oom_control")
V2: Final = Files(2, "memory.max", "memory.swap.max", False, "memory.events")


class Group:
    """One run's group. Owns its directories."""

    def __init__(self, files: Files, parts: Mapping[str, Path]) -> None:
        self._files = files
        self._parts = parts

    def limit(self, *, memory_bytes: int, processes: int) -> None:
        """Set both limits.

        Raises:
            OSError: one could not be set; the run must not go on.
        """
        memory = self._parts[MEMORY]
        _write(memory / self._files.memory, memory_bytes)
        swap = memory / self._files.swap
        if swap.exists():
            _write(swap, memory_bytes if self._files.swap_is_in_sum else 0)
        _write(self._parts[PROCESSES] / "pids.max", processes)

    def put(self, pid: int) -> None:
        """Move a process into it, with all its threads; what it starts follows.

        Raises:
            OSError: it could not be moved; the run must not go on.
        """
        for part in set(self._parts.values()):
            _write(part / "cgroup.procs", pid)

    @property
    def killed_for_memory(self) -> bool:
        """Say whether a process of it was killed since it needed more memory."""
        return _counted(self._parts[MEMORY] / self._files.events, "oom_kill") > 0

    @property
    def refused_a_process(self) -> bool:
        """Say whether a process or thread was refused since there were enough."""
        return _counted(self._parts[PROCESSES] / "pids.events", "max") > 0

    def remove(self) -> bool:
        """Give it back; False while a process of it is still dying."""
        for part in set(self._parts.values()):
            try:
                part.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True


class Groups:
    """Where groups are made."""

    def __init__(self, files: Files, parents: Mapping[str, Path]) -> None:
        self._files = files
        self._parents = parents
        self._leaving: list[Group] = []

    @property
    def version(self) -> int:
        """1 or 2."""
        return self._files.version

    def make(self) -> Group:
        """Make an empty group.

        Raises:
            OSError: it may not be made.
        """
        self._leaving = [group for group in self._leaving if not group.remove()]
        name = _PREFIX + secrets.token_hex(8)
        group = Group(
            self._files, {controller: parent / name for controller, parent in self._parents.items()}
        )
        try:
            for parent in set(self._parents.values()):
                (parent / name).mkdir()
        except OSError:
            group.remove()
            raise
        return group

    def leave(self, group: Group) -> None:
        """Remove a group, now or when its last process is gone."""
        if not group.remove():
            self._leaving.append(group)


def open_groups(
    *, own: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mountinfo"), probe: bool = True
) -> Groups:
    """Find where groups may be made, and try that their limits bind.

    Raises:
        CgroupUnavailableError: says which step did not work.
    """
    try:
        groups = _find(_own_groups(own.read_text()), _mounts(mounts.read_text()))
    except OSError as error:
        raise CgroupUnavailableError(
            f"no control group can be made below this process's own ({error}): "
            "start the service with a delegated one, for instance Delegate=yes in its systemd unit"
        ) from error
    if probe:
        _try(groups)
    return groups


def _find(own: Mapping[str, str], mounts: Iterable[tuple[str, str, Path]]) -> Groups:
    """Give the first version that has both controllers; {"": path} of `own` is v2's."""
    places: dict[str, Path] = {}
    for controllers, root, place in mounts:
        for controller in controllers.split(","):
            if controller in own and own[controller].startswith(root):
                places.setdefault(controller, place / own[controller].removeprefix(root).lstrip("/"))
    if all(controller in places for controller in _NEEDED):
        return Groups(V1, {controller: places[controller] for controller in _NEEDED})
    if "" in places and _served(places[""] / "cgroup.controllers"):
        return Groups(V2, dict.fromkeys(_NEEDED, _delegated(places[""])))
    raise CgroupUnavailableError(
        "the controllers for memory and processes are not there: mount cgroup2, or delegate them to the service"
    )


def _served(controllers: Path) -> bool:
    return set(_NEEDED) <= set(controllers.read_text().split())


def _delegated(place: Path) -> Path:
    """Let the children of a v2 group have both controllers; this process and its parent move aside for that."""
    enabled = place / "cgroup.subtree_control"
    if not _served(enabled):
        (place / _OWN).mkdir(exist_ok=True)
        for pid in (os.getppid(), os.getpid()):
            _write(place / _OWN / "cgroup.procs", pid)
        enabled.write_text(" ".join(f"+{controller}" for controller in _NEEDED))
    return place


def _own_groups(text: str) -> dict[str, str]:
    """Read /proc/self/cgroup: the path by controller, v2's under ""."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), path)
    return found


def _mounts(text: str) -> list[tuple[str, str, Path]]:
    """Read /proc/self/mountinfo: controllers ("" for v2), root and place of every cgroup file system."""
    found = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        root, place = fields.split(" ")[3:5]
        if kind == "cgroup2":
            found.append(("", root, Path(place)))
        elif kind == "cgroup":
            found.append((options, root, Path(place)))
    return found


def _try(groups: Groups) -> None:
    """Let a process of our own run into each limit."""
    for what, processes, act in (("processes", 1, _fork), ("memory", 8, _touch)):
        try:
            group = groups.make()
        except OSError as error:
            raise CgroupUnavailableError(
                f"no control group can be made ({error}): start the service with a delegated one"
            ) from error
        try:
            group.limit(memory_bytes=_PROBE_BYTES, processes=processes)
            ended = _run_in(group, act)
        except OSError as error:
            raise CgroupUnavailableError(f"the limit on {what} cannot be set: {error}") from error
        finally:
            groups.leave(group)
        if ended == 0:
            raise CgroupUnavailableError(
                f"the limit on {what} does not bind in the control group made for a try"
            )


def _run_in(group: Group, act: Callable[[], None]) -> int:
    """Give how a process that acted in the group ended; 0 when nothing stopped it.

    Raises:
        OSError: it could not be moved into the group.
    """
    waiting, go = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go)
            if os.read(waiting, 1):
                act()
            os._exit(0)
        finally:
            os._exit(1)
    try:
        group.put(pid)
        os.write(go, b"+")
    finally:
        os.close(go)
        os.close(waiting)
        ended = os.waitpid(pid, 0)[1]
    return ended


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _touch() -> None:
    block = bytearray(_PROBE_TOUCHES)
    for offset in range(0, len(block), _PAGE):
        block[offset] = 1


def _counted(events: Path, name: str) -> int:
    """Give a counter of an events file; 0 where there is none."""
    with suppress(OSError):
        for line in events.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _write(path: Path, value: int) -> None:
    path.write_text(str(value))

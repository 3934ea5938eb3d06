"""One sandbox from its start to its last process: made, ready, given to a run, ended. Used once."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final

from services.tools.sandbox.cgroup import Group, Groups
from services.tools.sandbox.landlock.directory import held_below, remove
from services.tools.sandbox.launcher import limits as process_limits
from services.tools.sandbox.launcher.plan import Containment, Shape, SpawnPlan
from services.tools.sandbox.launcher.processes import (
    Processes,
    Seen,
    Stored,
    stored,
    tasks_of_this_user,
)
from services.tools.sandbox.launcher.spawn import spawn
from services.tools.sandbox.launcher.verdict import Totals, Verdict, exceeded, judge
from services.tools.sandbox.model import Language, Limits, Status, Usage
from services.tools.sandbox.stubs import READY
from services.tools.sandbox.survivors import descendants

_INFO_BYTES: Final = 4096
_ERROR_BYTES: Final = 2048
_KIB: Final = 1024
_LIKELIEST_VICTIM: Final = "1000"
# A file that goes away spoils one look; a second of them is a program's doing.
_MOST_BLIND_LOOKS: Final = 40


class Stage(Enum):
    """How far a sandbox is."""

    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    ENDED = "ended"


class Slot:
    """A sandbox and everything that this process holds of it."""

    def __init__(
        self,
        shape: Shape,
        plan: SpawnPlan,
        *,
        clock: Callable[[], float] = time.monotonic,
        groups: Groups | None = None,
    ) -> None:
        self.shape = shape
        self.stage = Stage.STARTING
        # Of the run that it was given to.
        self.run: int | None = None
        self.limits: Limits | None = None
        self.warm = False
        self._plan = plan
        # A tier whose own processes cannot be told from the run's is not bounded as a whole.
        self._groups = groups if plan.counts_tasks else None
        self._group: Group | None = None
        self._clock = clock
        # Since when it is expected to go on: since it was begun, and once a run has it, since then.
        self.expected_since = clock()
        self.sampled_at = 0.0
        self._began: float | None = None
        self._verdict: Verdict | None = None
        self._processes: Processes | None = None
        self._stub = 0
        self._own_threads = 1
        self._cpu_before = 0.0
        self._cpu = 0.0
        self._peak_memory = 0
        self._peak_tasks = 0
        self._stored = Stored(0, 0, full=False)
        self._blind_looks = 0
        self.workspace = -1
        self._scratch: tuple[int, ...] = ()
        self.first = -1
        self._first_pid = 0
        self._pid, self.ends = spawn(plan)
        self.outer = os.pidfd_open(self._pid)

    @property
    def pids(self) -> frozenset[int]:
        """The processes that it is known by: the one that was started, and the first inside once it stands."""
        return frozenset({self._pid, self._first_pid or self._pid})

    def look_ready(self) -> bool:
        """Take what the stub said; say whether it is ready now.

        Raises:
            OSError: the sandbox does not stand as planned; it must be killed.
        """
        said = os.read(self.ends.stdout, len(READY))
        if said != READY:
            raise OSError("the sandbox ended before it was ready")
        self._first_pid = self._find_first()
        self.first = os.pidfd_open(self._first_pid)
        self._stub = self._find_stub()
        self.workspace = self._open(self._plan.workspace)
        for path in self._plan.scratch:
            self._scratch += (self._open(path),)
        if self._plan.proc is not None:
            find = partial(descendants, self._pid) if self._is_subtree else None
            self._processes = Processes(self._open(self._plan.proc), find)
        Path(f"/proc/{self._stub}/oom_score_adj").write_text(_LIKELIEST_VICTIM)
        # Nothing of this changes while the stub waits for the code.
        before = self._look_at_processes()
        self._own_threads = max(1, before.tasks)
        self._cpu_before = before.cpu_seconds
        self.stage = Stage.READY
        return True

    @property
    def _is_subtree(self) -> bool:
        return self._plan.containment is Containment.SUBTREE

    def _find_first(self) -> int:
        if self._plan.info_descriptor is None:
            return self._pid
        text = os.read(self.ends.info, _INFO_BYTES)
        os.close(self.ends.info)
        self.ends.info = -1
        try:
            return int(json.loads(text)["child-pid"])
        except (ValueError, KeyError, TypeError) as error:
            raise OSError("the sandbox did not say which process is its first") from error

    def _open(self, path: str) -> int:
        """Open a directory as the sandbox sees it."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return os.open(f"/proc/{self._stub}/root{path}", flags)

    def _writable(self) -> tuple[int, ...]:
        return (self.workspace, *self._scratch)

    def _find_stub(self) -> int:
        children = Path(f"/proc/{self._first_pid}/task/{self._first_pid}/children").read_text().split()
        return int(children[0]) if children else self._first_pid

    def give(self, run: int, limits: Limits) -> tuple[int, ...]:
        """Limit the waiting stub for a run; give the descriptors that belong to the service from now on.

        Raises:
            OSError: a limit could not be put; the sandbox must be killed.
        """
        # Where there is no namespace of users, the kernel counts every thread that the service's user has.
        counted = tasks_of_this_user() - 1 if self._is_subtree else self._own_threads
        process_limits.put(self._stub, self.shape.language, limits, counted)
        self._bound(limits)
        self.run, self.limits, self.stage = run, limits, Stage.RUNNING
        self.expected_since = self._clock()
        ends = self.ends
        return (ends.stdin, ends.stdout, ends.stderr, ends.code, self.workspace, self.first)

    def _bound(self, limits: Limits) -> None:
        """Put the stub into a control group of its own, where there are some."""
        if self._groups is None:
            return
        self._group = self._groups.make()
        processes = limits.processes + self._own_threads - 1 + self._spare_threads
        self._group.limit(memory_bytes=limits.memory_bytes, processes=processes)
        self._group.put(self._stub)

    @property
    def _spare_threads(self) -> int:
        return process_limits.NODE_OWN_THREADS if self.shape.language is Language.JAVASCRIPT else 0

    def begin(self) -> None:
        """Start the clocks: the code goes in now."""
        if self._began is None:
            self._began = self.sampled_at = self._clock()

    @property
    def began(self) -> bool:
        """Say whether the code went in."""
        return self._began is not None

    def watch(self) -> Verdict | None:
        """Look at what the run uses, and end it when that is too much."""
        if self.limits is None or self._verdict is not None or not self.began:
            return None
        sees_files, sees_processes = self._sees(self._measure), self._sees(self._look)
        self._blind_looks = 0 if sees_files and sees_processes else self._blind_looks + 1
        verdict = (
            self._hidden()
            or self._crowded(self.limits)
            or self._out_of_memory(self.limits)
            or exceeded(self.limits, self._seconds(), self._totals())
        )
        if verdict is not None:
            self.kill(verdict)
        return verdict

    def _hidden(self) -> Verdict | None:
        """End a run that cannot be looked at: one that keeps it from being seen would have no limit."""
        if self._blind_looks < _MOST_BLIND_LOOKS:
            return None
        reason = "what it holds could not be measured many times in a row"
        return Verdict(Status.ERROR, reason, signal=signal.SIGKILL)

    def _crowded(self, limits: Limits) -> Verdict | None:
        """Name the limit on processes where the kernel counts other runs' too, and one that ends makes room for another."""
        if not self._is_subtree or self._peak_tasks <= limits.processes + self._spare_threads:
            return None
        reason = f"had more than {limits.processes} processes and threads, its limit"
        return Verdict(Status.PROCESSES, reason, signal=signal.SIGKILL)

    def _out_of_memory(self, limits: Limits) -> Verdict | None:
        """Name the limit on memory where the kernel ended a process of the run for it."""
        if self._group is None or not self._group.killed_for_memory:
            return None
        reason = f"held more than {limits.memory_bytes} bytes of memory, its limit"
        return Verdict(Status.MEMORY, reason, signal=signal.SIGKILL)

    @staticmethod
    def _sees(look: Callable[[], None]) -> bool:
        """Look, and say whether that could be done; one look does not depend on the other."""
        try:
            look()
        except OSError:
            return False
        return True

    def _look(self) -> None:
        self._add(self._look_at_processes())

    def _look_at_processes(self) -> Seen:
        if self._processes is None:
            return Seen(0.0, 0, 0)
        most = self.limits.memory_bytes - self._in_memory if self.limits else 1 << 62
        return self._processes.look(most)

    def _measure(self) -> None:
        if self.workspace >= 0:
            self._stored = self._stored_now()

    def _stored_now(self) -> Stored:
        if self._plan.host_directory is None:
            return stored(self._writable())
        most = self.limits.inodes if self.limits else 0
        held = [held_below(directory, most_inodes=most) for directory in self._writable()]
        return Stored(sum(part.disk_bytes for part in held), sum(part.inodes for part in held), full=False)

    @property
    def _in_memory(self) -> int:
        """The bytes of what was written that are memory."""
        return self._stored.disk_bytes if self._plan.host_directory is None else 0

    def _add(self, seen: Seen) -> None:
        self._cpu = max(self._cpu, seen.cpu_seconds - self._cpu_before)
        held = max(0, seen.memory_bytes - self._plan.overhead_bytes)
        self._peak_memory = max(self._peak_memory, held + self._in_memory)
        if self._plan.counts_tasks:
            self._peak_tasks = max(self._peak_tasks, seen.tasks - self._own_threads + 1)

    def _seconds(self) -> float:
        return 0.0 if self._began is None else self._clock() - self._began

    def _totals(self) -> Totals:
        return Totals(self._cpu, self._peak_memory, self._peak_tasks, self._stored)

    def usage(self) -> Usage:
        """Give what the run used so far."""
        return Usage(
            wall_seconds=self._seconds(),
            cpu_seconds=self._cpu,
            peak_memory_bytes=self._peak_memory or None,
            peak_processes=max(1, self._peak_tasks) if self._plan.counts_tasks else None,
            disk_bytes=self._stored.disk_bytes,
            inodes=self._stored.inodes,
        )

    def kill(self, verdict: Verdict | None = None) -> None:
        """End every process at once; the first verdict stands."""
        self._verdict = self._verdict or verdict
        for descriptor in (self.first, self.outer):
            if descriptor >= 0:
                with suppress(ProcessLookupError):
                    # A keeper ends what it keeps before itself.
                    kept = self._is_subtree and descriptor == self.outer
                    signal.pidfd_send_signal(descriptor, signal.SIGTERM if kept else signal.SIGKILL)

    def error_text(self) -> str:
        """Give what a sandbox that never stood wrote to stderr."""
        with suppress(OSError):
            return os.read(self.ends.stderr, _ERROR_BYTES).decode("utf-8", "replace").strip()
        return ""

    def finish(self) -> tuple[Verdict, Usage]:
        """Reap what is dead, all of it; say how the run ended."""
        code, spent, most = self._reap()
        with suppress(OSError):
            self._measure()
        self._cpu = max(self._cpu, spent - self._cpu_before)
        if not self._peak_memory:
            self._peak_memory = most
        self.stage = Stage.ENDED
        if self._verdict is not None:
            return self._verdict, self.usage()
        if self.limits is None or not self.began:
            return Verdict(Status.SETUP_FAILED, "the sandbox ended before any code ran"), self.usage()
        verdict = self._out_of_memory(self.limits) or judge(code, self.limits, self._totals())
        if verdict.status is Status.ERROR and self._group is not None and self._group.refused_a_process:
            reason = f"failed with all {self.limits.processes} processes and threads in use"
            verdict = replace(verdict, status=Status.PROCESSES, reason=reason)
        return verdict, self.usage()

    def _reap(self) -> tuple[int, float, int]:
        """Give the exit status, the CPU seconds and the largest process's bytes of all that was reaped."""
        code, seconds, most = 0, 0.0, 0
        for pid in {self._pid, self._first_pid or self._pid}:
            # The first process is this one's child only when its parent died before it.
            with suppress(ChildProcessError):
                reaped, status, used = os.wait4(pid, os.WNOHANG)
                if reaped:
                    seconds += used.ru_utime + used.ru_stime
                    most = max(most, used.ru_maxrss * _KIB)
                    if pid == self._pid:
                        code = os.waitstatus_to_exitcode(status)
        return code, seconds, most

    def close(self) -> None:
        """Give back every descriptor that is not given away, and directories of the host that never were."""
        if self._plan.host_directory is not None and self.run is None:
            with suppress(OSError):
                remove(self._plan.host_directory)
        if self._group is not None and self._groups is not None:
            self._groups.leave(self._group)
        self.ends.close()
        for descriptor in (*self._writable(), self.first, self.outer):
            if descriptor >= 0:
                os.close(descriptor)
        self.workspace = self.first = self.outer = -1
        self._scratch = ()
        if self._processes is not None:
            self._processes.close()
            self._processes = None

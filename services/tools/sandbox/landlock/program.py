"""The process above a confined program: it starts it, collects its orphans, and leaves nothing of it alive.

Run by its path with `python -I -S PARENT INFO CONFINEMENT`, from the launcher only. In the manner of bwrap it writes
`{"child-pid": …}` to the descriptor INFO, and its exit code is the program's (128 + n for signal n).
It stays outside the confinement, so the program cannot signal it. SIGTERM ends the program and all it left; so does the end of
the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

# Isolated interpreters know no path to our packages.
sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from services.tools.sandbox.landlock.confinement import Confinement, execute
from services.tools.sandbox.survivors import end_descendants

SETUP_FAILED_CODE: Final = 125
_KILLED_CODE: Final = 128
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_MESSAGE_BYTES: Final = 4096
# A program that inherited that would not end as it expects.
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class Keeper:
    """One confined program, from fork to the death of its last descendant."""

    def __init__(self, confinement: Confinement, info: int) -> None:
        self._confinement = confinement
        self._info = info
        self._child = 0
        self._status: int | None = None

    def run(self) -> int:
        """Give the exit code; nothing of the program lives when this returns."""
        woken, failures = self._start()
        try:
            message = self._watch(woken, failures)
        finally:
            end_descendants(os.getpid(), reap=self._reap)
        self._reap()
        if message:
            os.write(sys.stderr.fileno(), b"landlock: " + message + b"\n")
            return SETUP_FAILED_CODE
        if self._status is None or os.WIFSIGNALED(self._status):
            number = signal.SIGKILL if self._status is None else os.WTERMSIG(self._status)
            return _KILLED_CODE + number
        return os.WEXITSTATUS(self._status)

    def _start(self) -> tuple[int, int]:
        """Fork the program's process; give the descriptors that tell of signals and of a failed set-up."""
        woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        failures, failed = os.pipe2(os.O_CLOEXEC)
        self._child = os.fork()
        if self._child == 0:
            self._become(failed)
        os.close(failed)
        for descriptor in self._confinement.descriptors:
            os.close(descriptor)
        os.write(self._info, json.dumps({"child-pid": self._child}).encode())
        os.close(self._info)
        return woken, failures

    def _become(self, failed: int) -> NoReturn:
        """Turn this fork into the program; tell why not and end otherwise."""
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD, *_IGNORED_BY_PYTHON):
                signal.signal(number, signal.SIG_DFL)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setsid()
            os.close(self._info)
            execute(self._confinement)
        except BaseException as error:  # noqa: BLE001 - the edge of a process: whatever it was, nothing may be executed
            with contextlib.suppress(OSError):
                os.write(failed, f"{type(error).__name__}: {error}".encode()[:_MESSAGE_BYTES])
        os._exit(SETUP_FAILED_CODE)

    def _watch(self, woken: int, failures: int) -> bytes:
        """Wait for the program's end or for SIGTERM; give the reason where it was never executed."""
        message = b""
        waiting = [woken, failures]
        while True:
            for ready in select.select(waiting, [], [])[0]:
                if ready == failures:
                    message = os.read(failures, _MESSAGE_BYTES)
                    waiting.remove(failures)
                elif signal.SIGTERM in os.read(woken, _MESSAGE_BYTES):
                    return message
            self._reap()
            if self._status is not None and failures not in waiting:
                return message

    def _reap(self) -> None:
        """Collect every child that has ended, the program's orphans among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._child:
                self._status = status


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _close_all_but(kept: set[int]) -> None:
    first = 0
    for descriptor in sorted(kept):
        # An empty range below descriptor 0 would be taken for all of them.
        if first < descriptor:
            os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def main(parent: int, info: int, text: str) -> int:
    """Run one program; see the module."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:
        # It ended before this process could ask to be told.
        return SETUP_FAILED_CODE
    confinement = Confinement.from_json(text)
    _close_all_but({0, 1, 2, info, *confinement.descriptors})
    return Keeper(confinement, info).run()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))

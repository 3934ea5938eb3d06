"""Processes are known by pid and start time, so that nobody else's process is ever signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from kala.suite.processes import ProcessId, resident_bytes, stop

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]


def test_a_process_knows_itself() -> None:
    me = ProcessId.of(os.getpid())
    assert me is not None
    assert me.is_alive()
    assert (resident_bytes(me.pid) or 0) > 1_000_000


def test_a_recycled_pid_is_never_signalled() -> None:
    with subprocess.Popen(SLEEP) as process:
        somebody_else = ProcessId(process.pid, "another start")
        assert not somebody_else.is_alive()
        assert not somebody_else.send(signal.SIGKILL)
        stop(somebody_else, grace_seconds=0.1)
        assert process.poll() is None
        process.kill()


def test_stopping_ends_a_process_that_listens_to_sigterm() -> None:
    with subprocess.Popen(SLEEP) as process:
        found = ProcessId.of(process.pid)
        assert found is not None
        stop(found, grace_seconds=5)
        assert process.wait(5) == -signal.SIGTERM


def test_stopping_kills_what_ignores_sigterm_after_its_grace() -> None:
    with subprocess.Popen(STUBBORN, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = ProcessId.of(process.pid)
        assert found is not None
        started = time.monotonic()
        stop(found, grace_seconds=0.2)
        assert process.wait(5) == -signal.SIGKILL
        assert time.monotonic() - started < 5


def test_a_zombie_counts_as_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    found = ProcessId.of(process.pid)
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is None:
        pass
    assert ProcessId.of(process.pid) is None
    assert found is None or not found.is_alive()
    process.wait()

"""Starting, finding and stopping a suite from another process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Final

from kala.suite.layout import StateLayout
from kala.suite.lock import is_locked
from kala.suite.logfiles import last_lines, open_log, size_of
from kala.suite.ports import LOOPBACK
from kala.suite.processes import stop, wait_until
from kala.suite.record import Phase, SuiteRecord, read_record, running_suite
from kala.suite.supervisor import START_SECONDS, STOP_GRACE_SECONDS, STOP_ORDER, StartFailedError

SUPERVISOR: Final = "supervisor"

_START_WAIT_SECONDS: Final = START_SECONDS + 15.0
"""A little longer than the supervisor's own patience, so that its own words are the ones reported."""

_STOP_WAIT_SECONDS: Final = STOP_GRACE_SECONDS * len(STOP_ORDER) + 5.0


@dataclass(frozen=True, slots=True)
class Launched:
    """A suite that runs in a process of its own."""

    record: SuiteRecord
    process: subprocess.Popen[bytes] | None
    """The supervisor, when this call started it; None when one was running already."""


def start_detached(
    layout: StateLayout,
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    lifeline: IO[bytes] | int | None = None,
    is_ephemeral: bool = False,
) -> Launched:
    """Start a suite in the background and return when it is ready; one that runs there already is returned as it is.

    With a `lifeline` (the reading end of a pipe) the suite stops when the pipe's other end closes; an ephemeral one deletes
    its state directory after an orderly stop.
    Raises StartFailedError with the last words of the part that did not come up.
    """
    if (running := wait_for_running(layout)) is not None:
        return Launched(running, None)
    layout.create()
    log_path = layout.log_file(SUPERVISOR)
    offset = size_of(log_path)
    command = [sys.executable, "-m", "kala.suite", "--state", str(layout.root), "--host", host]
    command += [] if port is None else ["--port", str(port)]
    command += [] if lifeline is None else ["--until-stdin-closes"]
    command += ["--ephemeral"] if is_ephemeral else []
    with open_log(log_path) as log:
        process = subprocess.Popen(  # noqa: S603 - our own module; arguments are a path and numbers
            command,
            stdin=subprocess.DEVNULL if lifeline is None else lifeline,
            stdout=log,
            stderr=log,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
    record = _wait_for(layout, process)
    if record is None:
        lines = last_lines(log_path, count=12, since=offset) or ["the supervisor ended without a word"]
        raise StartFailedError("\n".join(lines))
    return Launched(record, process if record.supervisor.pid == process.pid else None)


def _wait_for(layout: StateLayout, process: subprocess.Popen[bytes]) -> SuiteRecord | None:
    """The record once the suite is ready; None when its supervisor ended first."""

    def ready_record() -> SuiteRecord | None:
        record = running_suite(layout)
        return record if record is not None and record.phase is Phase.READY else None

    wait_until(
        lambda: process.poll() is not None or ready_record() is not None, timeout_seconds=_START_WAIT_SECONDS
    )
    if (record := ready_record()) is not None:
        return record
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_WAIT_SECONDS)
    # Somebody else may have started one in the same moment; ours then ended with "a suite is running".
    return wait_for_running(layout)


def wait_for_running(layout: StateLayout) -> SuiteRecord | None:
    """The suite that runs here, once it is ready; None when none runs or the one that started did not come up."""

    def settled() -> bool:
        record = running_suite(layout)
        return (record is None and not is_locked(layout)) or (
            record is not None and record.phase is Phase.READY
        )

    wait_until(settled, timeout_seconds=_START_WAIT_SECONDS)
    record = running_suite(layout)
    return record if record is not None and record.phase is Phase.READY else None


def stop_suite(layout: StateLayout) -> list[str]:
    """Stop the suite of this state directory and whatever a killed supervisor left; returns what was stopped."""
    record = read_record(layout)
    if record is None:
        return []
    stopped = []
    if record.supervisor.is_alive():
        stopped = [SUPERVISOR, *record.pids]
        stop(record.supervisor, grace_seconds=_STOP_WAIT_SECONDS)
    for name in STOP_ORDER:
        part = record.parts.get(name)
        if part is not None and part.process is not None and part.process.is_alive():
            stop(part.process, grace_seconds=STOP_GRACE_SECONDS)
            stopped += [] if name in stopped else [name]
    return stopped


@contextlib.contextmanager
def private_suite(layout: StateLayout, *, environment: Mapping[str, str]) -> Iterator[SuiteRecord]:
    """A suite that lives for one `with` block, its state with it, and not longer than this process even when that is killed."""
    reading, writing = os.pipe()
    # It is never written to: the suite stops when it closes, with this process at the latest.
    with os.fdopen(writing, "wb", buffering=0) as lifeline:
        try:
            launched = start_detached(
                layout, port=0, environment=environment, lifeline=reading, is_ephemeral=True
            )
        except BaseException:
            # Also of Ctrl-C while it starts: whoever removes the directory next must find nothing that runs in it.
            lifeline.close()
            stop_suite(layout)
            wait_until(lambda: not is_locked(layout), timeout_seconds=_STOP_WAIT_SECONDS)
            raise
        finally:
            os.close(reading)
        try:
            yield launched.record
        finally:
            stop_suite(layout)
            if launched.process is not None:
                launched.process.wait()

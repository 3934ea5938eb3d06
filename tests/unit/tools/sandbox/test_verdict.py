"""How a run's end is named."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from services.tools.sandbox.launcher.processes import Stored
from services.tools.sandbox.launcher.verdict import Totals, Verdict, exceeded, judge
from services.tools.sandbox.model import Limits, Status

LIMITS = Limits(
    wall_seconds=10,
    cpu_seconds=5,
    memory_bytes=1000,
    processes=8,
    open_files=16,
    disk_bytes=500,
    inodes=20,
    file_bytes=100,
    output_bytes=100,
    artifacts=1,
    artifact_bytes=1,
)
EMPTY = Stored(0, 0, full=False)
LITTLE = Totals(cpu_seconds=1, peak_memory_bytes=100, peak_tasks=1, stored=EMPTY)


@pytest.mark.parametrize(
    ("seconds", "totals", "status"),
    [
        (10.0, LITTLE, Status.TIMEOUT),
        (1.0, replace(LITTLE, cpu_seconds=5.0), Status.CPU),
        (1.0, replace(LITTLE, peak_memory_bytes=1001), Status.MEMORY),
        (1.0, replace(LITTLE, stored=Stored(501, 0, full=False)), Status.DISK),
        (1.0, replace(LITTLE, stored=Stored(0, 21, full=False)), Status.INODES),
    ],
    ids=["wall", "cpu", "memory", "disk", "inodes"],
)
def test_a_run_over_a_limit_is_ended_for_it(seconds: float, totals: Totals, status: Status) -> None:
    verdict = exceeded(LIMITS, seconds, totals)
    assert verdict is not None
    assert verdict.status is status
    assert verdict.signal == signal.SIGKILL
    assert "its limit" in verdict.reason


def test_a_run_at_its_limits_goes_on() -> None:
    full = Totals(4.9, 1000, 8, Stored(500, 20, full=True))
    assert exceeded(LIMITS, 9.9, full) is None


@pytest.mark.parametrize(
    ("code", "totals", "verdict"),
    [
        (0, LITTLE, Verdict(Status.OK, "", exit_code=0)),
        (0, replace(LITTLE, stored=Stored(500, 1, full=True)), Verdict(Status.OK, "", exit_code=0)),
        (3, LITTLE, Verdict(Status.ERROR, "ended with exit code 3", exit_code=3)),
        (200, LITTLE, Verdict(Status.ERROR, "ended with exit code 200", exit_code=200)),
        (134, LITTLE, Verdict(Status.ERROR, "ended with signal 6 (SIGABRT)", signal=6)),
        (-9, LITTLE, Verdict(Status.ERROR, "ended with signal 9 (SIGKILL)", signal=9)),
        (152, LITTLE, Verdict(Status.CPU, "used 5 s of CPU time, its limit", signal=24)),
        (153, LITTLE, Verdict(Status.DISK, "a file grew over 100 bytes, its limit", signal=25)),
        (
            1,
            replace(LITTLE, stored=Stored(500, 1, full=True)),
            Verdict(Status.DISK, "failed with all 500 bytes of its disk full", exit_code=1),
        ),
        (
            1,
            replace(LITTLE, peak_tasks=8),
            Verdict(Status.PROCESSES, "failed with all 8 processes and threads in use", exit_code=1),
        ),
        (
            1,
            replace(LITTLE, peak_memory_bytes=1001),
            Verdict(Status.MEMORY, "held more than 1000 bytes of memory, its limit", exit_code=1),
        ),
    ],
)
def test_the_exit_status_and_what_was_used_name_the_end(code: int, totals: Totals, verdict: Verdict) -> None:
    assert judge(code, LIMITS, totals) == verdict


def test_one_process_that_fails_did_not_run_into_a_limit_of_one_process() -> None:
    assert judge(1, replace(LIMITS, processes=1), LITTLE).status is Status.ERROR

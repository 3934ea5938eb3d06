"""Scans in processes of their own: what hostile source, dead workers and crowds come to."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kala.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError
from services.tools.code.engines.every import code_engines
from services.tools.code.model import ScanOptions, ScanReport, SourceFile
from services.tools.code.validate import validate
from services.tools.scanning import WAITING_PER_WORKER, Scanning
from tests.service.tools.conftest import until

INSECURE = "import subprocess\n\ndef run(request):\n    subprocess.run(request.args['command'], shell=True)\n"
# Takes minutes: more calls than can be judged one beside the other.
SLOW = "f(a)\n" * 200_000
GREEDY = "x = [\n" + "a,\n" * 100_000 + "]\n"
# Opens a scanner, says which process it has, and stays.
HOST = """
import asyncio
from services.tools.code.model import ScanOptions, SourceFile
from services.tools.scanning import Scanning

async def main():
    scanning = Scanning()
    await scanning.scan([SourceFile("a.py", "")], ScanOptions())
    print(*scanning.pids, flush=True)
    await scanning.scan([SourceFile("a.py", "f(a)\\n" * 200_000)], ScanOptions())

asyncio.run(main())
"""
ONE = ScanOptions()


@pytest.fixture
async def scanning() -> AsyncIterator[Scanning]:
    found = Scanning()
    yield found
    await found.aclose()


def classes(report: ScanReport) -> set[int]:
    return {number for finding in report.findings for number in finding.cwe}


async def worker_of(scanning: Scanning) -> int:
    """Wait for the worker that stands ready."""
    await scanning.scan([SourceFile("a.py", "")], ONE)
    await until(lambda: bool(scanning.pids))
    return scanning.pids[0]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def scans(pid: int) -> None:
    """Wait until the worker is at it: it has the file, and uses the processor."""

    def ticks() -> int:
        user, system = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[11:13]
        return int(user) + int(system)

    began = ticks()
    await until(lambda: ticks() > began + 10)


async def test_a_worker_says_what_a_scan_in_this_process_says(scanning: Scanning) -> None:
    files = [SourceFile("b.py", INSECURE), SourceFile("a.py", "def (:\n"), SourceFile("c.py", "s = 'ä€'\n")]
    here, there = validate(files, ONE, code_engines()), await scanning.scan(files, ONE)
    assert there.findings == here.findings
    assert there.problems == here.problems
    assert (there.engines, there.rules_digest) == (here.engines, here.rules_digest)


async def test_a_file_that_takes_too_long_is_a_problem_and_the_others_are_scanned() -> None:
    scanning = Scanning(file_seconds=3)
    try:
        before = await worker_of(scanning)
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.05)
                beats += 1

        beating = asyncio.create_task(beat())
        files = [SourceFile("a.py", SLOW), SourceFile("b.py", INSECURE)]
        report = await scanning.scan(files, ONE)
        beating.cancel()
        assert [problem.path for problem in report.problems] == ["a.py"]
        assert "3 s, the limit for one file; split it" in report.problems[0].message
        assert 78 in classes(report)
        assert beats > 10, "the event loop stood still"
        assert is_gone(before)
    finally:
        await scanning.aclose()


async def test_only_hostile_files_still_say_who_looked() -> None:
    scanning = Scanning(file_seconds=2)
    try:
        report = await scanning.scan([SourceFile("a.py", SLOW)], ONE)
        assert report.problems
        assert report.engines
        assert report.rules_digest
    finally:
        await scanning.aclose()


async def test_the_time_of_a_call_ends_it_with_the_file_named(scanning: Scanning) -> None:
    await worker_of(scanning)
    files = [SourceFile("a.py", SLOW)]
    with pytest.raises(DeadlineExceededError, match=r"a\.py: the 1\.0 s for this call"):
        await scanning.with_scan(lambda scan: scan(files), ONE, within_seconds=1)


async def test_a_worker_that_is_killed_ends_its_scan_and_the_next_one_works(scanning: Scanning) -> None:
    pid = await worker_of(scanning)
    running = asyncio.create_task(scanning.scan([SourceFile("a.py", SLOW)], ONE))
    await scans(pid)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match=r"while it scanned a\.py; try again"):
        await running
    assert 78 in classes(await scanning.scan([SourceFile("a.py", INSECURE)], ONE))


async def test_a_worker_is_not_taken_for_greedy_because_its_parent_is() -> None:
    # A process that is started inherits the peak of what started it in one of the kernel's counters.
    held = bytearray(b"x") * (600 << 20)
    scanning = Scanning()
    try:
        pid = await worker_of(scanning)
        await scanning.scan([SourceFile("a.py", INSECURE)], ONE)
        await until(lambda: bool(scanning.pids))
        assert scanning.pids == (pid,)
    finally:
        await scanning.aclose()
        del held


async def test_a_file_that_breaks_the_interpreter_is_a_problem(scanning: Scanning) -> None:
    pid = await worker_of(scanning)
    running = asyncio.create_task(scanning.scan([SourceFile("a.py", SLOW)], ONE))
    await scans(pid)
    os.kill(pid, signal.SIGSEGV)
    report = await running
    assert [problem.message for problem in report.problems] == [
        "broke the interpreter that read it; split it or simplify it"
    ]


async def test_a_scan_whose_caller_went_away_stops(scanning: Scanning) -> None:
    pid = await worker_of(scanning)
    running = asyncio.create_task(scanning.scan([SourceFile("a.py", SLOW)], ONE))
    await scans(pid)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: is_gone(pid))
    assert 78 in classes(await scanning.scan([SourceFile("a.py", INSECURE)], ONE))


async def test_a_repair_whose_caller_went_away_stops(scanning: Scanning) -> None:
    pid = await worker_of(scanning)
    files = [SourceFile("a.py", SLOW)]
    work = scanning.with_scan(lambda scan: [scan(files) for _ in range(50)], ONE)
    running = asyncio.create_task(work)
    await scans(pid)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 30)
    assert (await scanning.scan([SourceFile("a.py", "")], ONE)).rules_digest


async def test_more_calls_than_may_wait_are_told_when_to_come_back(scanning: Scanning) -> None:
    await worker_of(scanning)
    files = [SourceFile("a.py", SLOW)]
    running = [asyncio.create_task(scanning.scan(files, ONE)) for _ in range(WAITING_PER_WORKER + 1)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError) as caught:
        await scanning.scan(files, ONE)
    assert caught.value.retry_after_seconds
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert (await scanning.scan([SourceFile("a.py", "")], ONE)).rules_digest


async def test_workers_end_with_the_service(scanning: Scanning) -> None:
    pid = await worker_of(scanning)
    await scanning.aclose()
    assert is_gone(pid)
    with pytest.raises(UnavailableError, match="closing"):
        await scanning.scan([SourceFile("a.py", "")], ONE)


async def test_a_file_that_needs_too_much_memory_is_a_problem_and_the_others_are_scanned() -> None:
    scanning = Scanning(memory_bytes=128 * 1024 * 1024)
    try:
        report = await scanning.scan([SourceFile("a.py", GREEDY), SourceFile("b.py", INSECURE)], ONE)
        assert [problem.path for problem in report.problems] == ["a.py"]
        assert "a scan may have; split it" in report.problems[0].message
        assert 78 in classes(report)
    finally:
        await scanning.aclose()


async def test_no_worker_outlives_a_service_that_is_killed_while_it_scans() -> None:
    host = await asyncio.create_subprocess_exec(sys.executable, "-c", HOST, stdout=asyncio.subprocess.PIPE)
    assert host.stdout is not None
    pid = int(await asyncio.wait_for(host.stdout.readline(), 120))
    host.kill()
    await host.wait()
    await until(lambda: is_gone(pid) or state_of(pid) == "Z")


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"

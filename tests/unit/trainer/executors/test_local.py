"""The local executor starts real processes, of its own, and leaves none behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from kala.trainer.v1 import job_pb2
from services.trainer.executors import local
from services.trainer.executors.local import LocalExecutor, end_leftover
from services.trainer.executors.model import Task
from services.trainer.work.bounds import holder_of
from services.trainer.work.log_lines import LogReader

HOLDS = """
import os, signal, subprocess, sys, time
from pathlib import Path
from services.trainer.work.bounds import hold_folder, watch_lifeline
folder = Path(sys.argv[-1])
watch_lifeline()
with hold_folder(folder):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "pids").write_text(f"{os.getpid()} {child.pid}")
    print("at work", flush=True)
    time.sleep(600)
"""
SHOWS = "import os; print(sorted(os.environ)); print('threads', os.environ['OMP_NUM_THREADS'])"


async def attached(_: str) -> None:
    raise AssertionError("it runs nowhere else")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch):
    """Let the executor run a program in the place of the work's module."""
    begin = asyncio.create_subprocess_exec

    def put(program: str) -> None:
        async def started(python: str, *_: str, **options):
            return await begin(python, "-c", program, str(_[-1]), **options)

        monkeypatch.setattr(local.asyncio, "create_subprocess_exec", started)

    return put


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


async def until(holds) -> None:
    for _ in range(1_000):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to that")


def task(folder: Path) -> Task:
    return Task(folder, 2, job_pb2.Placement())


async def test_a_process_sees_no_secret_and_its_output_becomes_lines(tmp_path: Path, runs) -> None:
    runs(SHOWS)
    executor = LocalExecutor(
        environ={"PATH": os.environ["PATH"], "KALA_GATEWAY_KEY": "s", "AWS_SECRET_ACCESS_KEY": "s"}
    )
    ended = await executor.run(task(tmp_path), attached)
    assert ended.exit_code == 0
    names, threads = [line.text for line in LogReader(tmp_path).read()]
    assert "KALA_GATEWAY_KEY" not in names
    assert "AWS_SECRET_ACCESS_KEY" not in names
    assert threads == "threads 2"


async def test_a_crash_is_told_with_its_last_words(tmp_path: Path, runs) -> None:
    runs("import os, sys; sys.stderr.write('no end of line'); sys.stderr.flush(); os.abort()")
    ended = await LocalExecutor().run(task(tmp_path), attached)
    assert ended.exit_code == -signal.SIGABRT
    assert "no end of line" in ended.last_lines


async def test_lines_of_any_length_and_bytes_do_not_hold_it_up(tmp_path: Path, runs) -> None:
    runs("import sys; sys.stdout.buffer.write(b'\\xff' * 300000 + b'\\n' + b'after\\n')")
    ended = await LocalExecutor().run(task(tmp_path), attached)
    assert ended.exit_code == 0
    assert [line.text for line in LogReader(tmp_path).read()][-1] == "after"


async def test_cancelling_ends_the_process_and_what_it_started(tmp_path: Path, runs) -> None:
    runs(
        HOLDS.replace("time.sleep(600)\n", "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)\n")
    )
    running = asyncio.create_task(LocalExecutor(grace_seconds=0.3).run(task(tmp_path), attached))
    await until((tmp_path / "pids").exists)
    await until(lambda: len((tmp_path / "pids").read_text().split()) == 2)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not any(is_alive(pid) for pid in pids))
    assert holder_of(tmp_path) is None


async def test_a_process_ends_when_its_service_is_gone(tmp_path: Path, runs) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from services.trainer.executors import local\n"
        "from services.trainer.executors.model import Task\n"
        "from kala.trainer.v1 import job_pb2\n"
        "begin = asyncio.create_subprocess_exec\n"
        f"program = {HOLDS!r}\n"
        "async def started(python, *rest, **options):\n"
        "    return await begin(python, '-c', program, rest[-1], **options)\n"
        "local.asyncio.create_subprocess_exec = started\n"
        "async def attached(_): pass\n"
        "task = Task(Path(sys.argv[1]), 1, job_pb2.Placement())\n"
        "asyncio.run(local.LocalExecutor().run(task, attached))\n"
    )
    service = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(tmp_path))
    await until((tmp_path / "pids").exists)
    await until(lambda: len((tmp_path / "pids").read_text().split()) == 2)
    service.kill()
    await service.wait()
    await until(lambda: holder_of(tmp_path) is None)
    # Its own child is nobody's to end; it would sleep on.
    os.kill(int((tmp_path / "pids").read_text().split()[1]), signal.SIGKILL)


async def test_what_an_earlier_service_left_at_work_is_ended_first(tmp_path: Path) -> None:
    left = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDS, str(tmp_path), start_new_session=True, stdout=asyncio.subprocess.DEVNULL
    )
    await until(lambda: holder_of(tmp_path) == left.pid)
    end_leftover(tmp_path)
    assert await left.wait() == -signal.SIGKILL
    assert holder_of(tmp_path) is None

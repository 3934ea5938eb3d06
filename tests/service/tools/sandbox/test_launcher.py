"""The launcher as a process: what happens when it, its pool or its machine fails, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from kala.errors import KalaError, UnavailableError
from services.tools.sandbox.bubblewrap.tier import open_bubblewrap
from services.tools.sandbox.client import MAX_RESTARTS, LauncherSandbox, LauncherSettings
from services.tools.sandbox.model import Ended, Language, Output, SetupFailedError, Status
from tests.sandbox_runs import (
    MIB,
    alive,
    bubblewrap,
    descendants_of,
    execute,
    held_by,
    job,
    needs_bubblewrap,
    program_of,
    runs,
    until,
)
from tests.tools_runtime import unprivileged_directory, unprivileged_python

pytestmark = needs_bubblewrap
PYTHON, SHELL = Language.PYTHON, Language.SHELL
FLATNESS_ROUNDS = 10_000


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[LauncherSandbox]:
    async with bubblewrap() as opened:
        yield opened


async def test_when_the_launcher_is_killed_its_runs_end_as_lost_and_nothing_survives(
    sandbox: LauncherSandbox,
) -> None:
    source = "setsid sleep 223123 & echo up; exec sleep 223123"
    begun = [await sandbox.start(job(SHELL, source)) for _ in range(2)]
    streams = [run.events() for run in begun]
    for stream in streams:
        await anext(stream)
    _kill_launcher(sandbox)
    for stream in streams:
        ended = [event async for event in stream][-1]
        assert isinstance(ended, Ended)
        assert ended.status is Status.LAUNCHER_LOST
    assert not alive("223123")
    for run in begun:
        await run.aclose()


async def test_a_launcher_that_dies_while_a_run_starts_asks_to_try_again(sandbox: LauncherSandbox) -> None:
    starting = asyncio.create_task(sandbox.start(job(PYTHON, "print(1)")))
    await asyncio.sleep(0)
    _kill_launcher(sandbox)
    with pytest.raises(UnavailableError, match="before any of the code ran"):
        await starting


async def test_the_next_run_gets_a_new_launcher(sandbox: LauncherSandbox) -> None:
    before = sandbox.launcher_pid
    _kill_launcher(sandbox)
    await _until_lost(sandbox, before)
    assert (await execute(sandbox, SHELL, "echo back")).stdout == "back\n"
    assert sandbox.launcher_pid != before


async def test_a_launcher_that_keeps_dying_is_not_started_for_ever(sandbox: LauncherSandbox) -> None:
    for _ in range(MAX_RESTARTS):
        assert (await execute(sandbox, SHELL, "echo back")).stdout == "back\n"
        before = sandbox.launcher_pid
        _kill_launcher(sandbox)
        await _until_lost(sandbox, before)
    with pytest.raises(UnavailableError, match="died 5 times") as refused:
        await sandbox.start(job(SHELL, "echo 1"))
    assert refused.value.retry_after_seconds is not None
    assert refused.value.retry_after_seconds > 0


async def test_waiting_sandboxes_die_with_the_launcher() -> None:
    async with bubblewrap({PYTHON: 2, SHELL: 1}) as sandbox:
        await sandbox.wait_parked(PYTHON, 2)
        await sandbox.wait_parked(SHELL, 1)
        children = descendants_of(sandbox.launcher_pid)
        assert len(children) >= 3 * 2
        before = sandbox.launcher_pid
        _kill_launcher(sandbox)
        await _until_lost(sandbox, before)
        await until(lambda: not any(map(runs, children)))


async def test_closing_the_tier_ends_runs_waiting_sandboxes_and_the_launcher() -> None:
    async with bubblewrap({PYTHON: 1}) as sandbox:
        await sandbox.wait_parked(PYTHON)
        run = await sandbox.start(job(SHELL, "echo up; exec sleep 223124"))
        await anext(run.events())
        children = descendants_of(sandbox.launcher_pid)
        launcher = sandbox.launcher_pid
    assert launcher is not None
    await until(lambda: not any(map(runs, {launcher, *children})))
    with pytest.raises(KalaError, match="closed"):
        await sandbox.start(job(SHELL, "echo 1"))


async def test_a_service_that_is_killed_takes_everything_with_it() -> None:
    with unprivileged_directory() as directory:
        program = await asyncio.create_subprocess_exec(
            *unprivileged_python(), "-c", _SERVICE, str(directory), stdout=asyncio.subprocess.PIPE
        )
        assert program.stdout is not None
        assert (await program.stdout.readline()) == b"running\n"
        # It said "up" before it became the program that sleeps.
        await until(lambda: alive("223125"))
        children = descendants_of(program.pid)
        program.kill()
        await program.wait()
        await until(lambda: not any(map(runs, children)) and not alive("223125"))
        program.stdout._transport.close()  # type: ignore[attr-defined]  # asyncio closes it late


_SERVICE = """
import asyncio, sys
from pathlib import Path
from services.tools.sandbox.bubblewrap.tier import open_bubblewrap
from services.tools.sandbox.client import LauncherSettings
from services.tools.sandbox.model import Job, Language
from tests.sandbox_runs import LIMITS
async def main():
    sandbox = await open_bubblewrap(LauncherSettings(Path(sys.argv[1])))
    run = await sandbox.start(Job(Language.SHELL, b"echo up; exec sleep 223125", LIMITS))
    await anext(run.events())
    print("running", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_waiting_sandbox_that_dies_is_replaced() -> None:
    async with bubblewrap({SHELL: 1}) as sandbox:
        await sandbox.wait_parked(SHELL)
        for pid in descendants_of(sandbox.launcher_pid):
            if program_of(pid) == "bash":
                os.kill(pid, signal.SIGKILL)
        await until(lambda: not sandbox.parked[SHELL])
        await sandbox.wait_parked(SHELL)
        assert (await execute(sandbox, SHELL, "echo fine")).stdout == "fine\n"


async def test_a_full_disk_of_the_service_is_a_failed_set_up_with_its_reason() -> None:
    settings = LauncherSettings(Path("/proc/nowhere"), python=tuple(unprivileged_python()))
    with pytest.raises(SetupFailedError, match="could not be written to /proc/nowhere"):
        await open_bubblewrap(settings)


async def test_a_launcher_that_ends_while_sandboxes_are_made_leaves_none_of_them() -> None:
    for pause in range(12):
        async with bubblewrap({SHELL: 4}) as sandbox:
            launcher = sandbox.launcher_pid
            await asyncio.sleep(pause / 1000)
            begun = descendants_of(launcher)
        await until(partial(_are_gone, begun))


def _are_gone(pids: set[int]) -> bool:
    return not any(map(runs, pids))


async def test_a_launcher_that_cannot_start_is_a_failed_set_up() -> None:
    with unprivileged_directory() as directory:
        settings = LauncherSettings(Path(directory), python=("/bin/false",))
        with pytest.raises(SetupFailedError, match="launcher"):
            await open_bubblewrap(settings)


# Sends the descriptor of a pipe through sockets that nobody reads, until the kernel has enough of it.
_CROWD = """
import array, os, socket, sys
end, _ = os.pipe()
sent = array.array("i", [end] * 250)
pairs = []
try:
    while True:
        pairs.append(socket.socketpair())
        for _ in range(4):
            pairs[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sent)])
except OSError as error:
    print(error.errno, flush=True)
sys.stdin.read()
"""


@contextmanager
def descriptors_limited(most: int) -> Iterator[None]:
    """Let what is started meanwhile begin with so many descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_run_that_fills_sockets_with_descriptors_keeps_no_other_from_starting() -> None:
    """The kernel counts them per user: with 4,096 in one run and 1,024 here, the launcher died of it with all its runs."""
    with descriptors_limited(1024):
        async with bubblewrap() as sandbox:
            crowding = await sandbox.start(
                job(
                    PYTHON,
                    _CROWD.replace("sys.stdin.read()", "__import__('time').sleep(50)"),
                    open_files=4096,
                )
            )
            events = crowding.events()
            assert isinstance(await anext(events), Output)
            beside = await execute(sandbox, PYTHON, "print(1)")
            assert beside.ended.status is Status.OK
            await crowding.aclose()


async def test_a_user_with_too_many_descriptors_on_their_way_costs_one_run_and_no_launcher() -> None:
    limited = ("/usr/bin/prlimit", "--nofile=1024:1024", "--", *unprivileged_python())
    crowding = ("/usr/bin/prlimit", "--nofile=1200:1200", "--", *unprivileged_python(), "-c", _CROWD)
    crowd = subprocess.Popen(crowding, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: ASYNC220 - starts at once
    with crowd, unprivileged_directory() as directory:
        assert crowd.stdout is not None
        assert await asyncio.to_thread(crowd.stdout.readline)
        directory.chmod(0o755)
        sandbox = await open_bubblewrap(LauncherSettings(directory, pool={}, python=limited))
        try:
            launcher = sandbox.launcher_pid
            with pytest.raises(SetupFailedError, match="too many descriptors"):
                await execute(sandbox, PYTHON, "print(1)")
            crowd.kill()
            await asyncio.to_thread(crowd.wait)
            assert (await execute(sandbox, PYTHON, "print(1)")).ended.status is Status.OK
            assert sandbox.launcher_pid == launcher
        finally:
            await sandbox.aclose()


async def test_many_runs_leave_processes_descriptors_and_mounts_as_they_were() -> None:
    await _run_flat(150)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_ten_thousand_runs_leave_everything_as_it_was() -> None:
    await _run_flat(FLATNESS_ROUNDS)


async def _run_flat(rounds: int) -> None:
    """Run twice in turn, cold and warm; what is held after the first tenth is held at the end."""
    async with bubblewrap({SHELL: 1}) as sandbox:
        await _many(sandbox, rounds // 10)
        counts, memory = await _held(sandbox)
        await _many(sandbox, rounds)
        counts_after, memory_after = await _held(sandbox)
    assert counts_after == counts
    # Some pages may move; a leak of 100 bytes a run would show.
    assert memory_after - memory < max(MIB, rounds * 100)


async def _many(sandbox: LauncherSandbox, rounds: int) -> None:
    waiting = iter(range(rounds))

    async def client() -> None:
        for _ in waiting:
            result = await execute(sandbox, SHELL, "echo x > f; echo ok")
            assert result.stdout == "ok\n"

    await asyncio.gather(client(), client())


async def _held(sandbox: LauncherSandbox) -> tuple[dict[str, int], int]:
    await sandbox.wait_parked(SHELL)
    gc.collect()
    return held_by(sandbox.launcher_pid)


def _kill_launcher(sandbox: LauncherSandbox) -> None:
    assert sandbox.launcher_pid is not None
    os.kill(sandbox.launcher_pid, signal.SIGKILL)


async def _until_lost(sandbox: LauncherSandbox, pid: int | None) -> None:
    await until(lambda: sandbox.launcher_pid != pid)

"""The bubblewrap tier with a real launcher and real sandboxes, as a user without rights."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kala.errors import ResourceExhaustedError
from services.tools.sandbox.client import LauncherSandbox
from services.tools.sandbox.model import Language, SetupFailedError, Status
from services.tools.sandbox.selftest import self_test
from tests.sandbox_runs import LIMITS, MIB, alive, bubblewrap, execute, job, needs_bubblewrap

pytestmark = needs_bubblewrap
PYTHON, JAVASCRIPT, SHELL = Language.PYTHON, Language.JAVASCRIPT, Language.SHELL


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[LauncherSandbox]:
    async with bubblewrap() as opened:
        yield opened


async def test_the_tier_holds_every_probe_of_the_self_test(sandbox: LauncherSandbox) -> None:
    report = await self_test(sandbox)
    assert report.held, report.failures


@pytest.mark.parametrize(
    ("language", "source"),
    [
        (PYTHON, "import os, sys; print(sys.stdin.read(), *sys.argv[1:], os.environ['COLOUR'], os.getcwd())"),
        (
            JAVASCRIPT,
            "console.log(require('fs').readFileSync(0, 'utf8'), ...process.argv.slice(2), process.env.COLOUR, process.cwd())",
        ),
        (SHELL, 'echo "$(cat)" "$@" "$COLOUR" "$PWD"'),
    ],
    ids=["python", "javascript", "shell"],
)
async def test_a_program_gets_its_stdin_arguments_and_variables(
    sandbox: LauncherSandbox, language: Language, source: str
) -> None:
    result = await execute(
        sandbox,
        language,
        source,
        stdin=b"from stdin",
        arguments=("it's", 'a "b"\n\\c', "ä $x"),
        environment=(("COLOUR", "blau\u00e9"),),
    )
    assert result.stdout == 'from stdin it\'s a "b"\n\\c ä $x blau\u00e9 /workspace\n'
    assert result.ended.status is Status.OK
    assert result.ended.exit_code == 0
    assert result.ended.reason == ""


@pytest.mark.parametrize(
    ("language", "source", "told"),
    [
        (
            PYTHON,
            "x = 1\n\nraise ValueError('why')",
            'File "main.py", line 3, in <module>\n    raise ValueError',
        ),
        (PYTHON, "x = (\n", 'File "main.py", line 1'),
        (JAVASCRIPT, "\nthrow new Error('why')", "/workspace/main.js:2"),
        (SHELL, "\n\nnosuchprogram\nexit 1", "/main.sh: line 3: nosuchprogram"),
    ],
    ids=["python", "python-syntax", "javascript", "shell"],
)
async def test_an_error_names_the_programs_own_lines(
    sandbox: LauncherSandbox, language: Language, source: str, told: str
) -> None:
    result = await execute(sandbox, language, source)
    assert told in result.stderr
    assert result.ended.status is Status.ERROR
    assert result.ended.exit_code == 1


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(
    ("language", "source"),
    [
        (PYTHON, "import os; print(sorted(os.listdir('/proc/self/fd')))"),
        (SHELL, "ls -l /proc/self/fd | grep -c -E 'pipe|socket|memfd|deleted'"),
    ],
    ids=["python", "shell"],
)
async def test_code_finds_no_descriptor_but_the_standard_streams(
    language: Language, source: str, *, warm: bool
) -> None:
    expected = {PYTHON: "['0', '1', '2', '3']\n", SHELL: "3\n"}
    # A descriptor that a careless service left open to its children.
    stray, other = os.pipe()
    os.set_inheritable(stray, True)
    try:
        async with bubblewrap({language: 1} if warm else None) as sandbox:
            if warm:
                await sandbox.wait_parked(language)
            # The fourth of Python's is the one that lists them.
            result = await execute(sandbox, language, source)
    finally:
        os.close(stray)
        os.close(other)
    assert result.stdout == expected[language]
    assert result.warm is warm


async def test_the_workspace_is_empty_and_files_come_and_go_through_its_descriptor(
    sandbox: LauncherSandbox,
) -> None:
    def prepare(workspace: int) -> None:
        assert os.listdir(workspace) == []
        descriptor = os.open("in.txt", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=workspace)
        os.fchmod(descriptor, 0o644)
        os.write(descriptor, b"given")
        os.close(descriptor)

    run = await sandbox.start(job(SHELL, "cat in.txt; echo made > out.txt; echo x > $TMPDIR/y"), prepare)
    async for _ in run.events():
        pass
    descriptor = os.open("out.txt", os.O_RDONLY, dir_fd=run.workspace())
    assert os.read(descriptor, 100) == b"made\n"
    os.close(descriptor)
    assert sorted(os.listdir(run.workspace())) == ["in.txt", "out.txt"]  # noqa: PTH208 - by descriptor
    await run.aclose()


async def test_a_run_whose_files_cannot_be_prepared_never_begins(sandbox: LauncherSandbox) -> None:
    def prepare(_workspace: int) -> None:
        raise PermissionError("not yours")

    with pytest.raises(PermissionError, match="not yours"):
        await sandbox.start(job(PYTHON, "print(1)"), prepare)
    assert (await execute(sandbox, PYTHON, "print(2)")).stdout == "2\n"


async def test_a_host_directory_is_shown_read_only_as_the_current_directory(
    sandbox: LauncherSandbox,
) -> None:
    shown = Path("/usr/share/doc/bash")
    result = await execute(sandbox, SHELL, "pwd; ls | wc -l; touch x", host_directory=str(shown))
    assert result.stdout.split() == ["/workspace/host", str(len(os.listdir(shown)))]  # noqa: PTH208 - a count
    assert "Read-only file system" in result.stderr


async def test_a_host_directory_that_is_not_there_is_a_failed_set_up(sandbox: LauncherSandbox) -> None:
    with pytest.raises(SetupFailedError, match="nowhere"):
        await sandbox.start(job(SHELL, "echo 1", host_directory="/nowhere"))


LIMIT_CASES = {
    "wall": (SHELL, "sleep 600", {"wall_seconds": 0.3}, Status.TIMEOUT, "0.3 s"),
    "cpu": (PYTHON, "while True: pass", {"cpu_seconds": 0.3}, Status.CPU, "CPU"),
    "cpu-of-all": (
        PYTHON,
        "import os\nfor _ in range(2): os.fork()\nwhile True: pass",
        {"cpu_seconds": 1},
        Status.CPU,
        "CPU",
    ),
    # A parent that ignores their end is not told what its children used.
    "cpu-of-those-that-nobody-waits-for": (
        PYTHON,
        (
            "import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
            "while True:\n    if not os.fork():\n        while time.process_time() < 0.3: pass\n        os._exit(0)\n"
            "    try: os.wait()\n    except ChildProcessError: pass"
        ),
        {"cpu_seconds": 1},
        Status.CPU,
        "CPU",
    ),
    "memory": (
        PYTHON,
        "import time\nb = b'x' * (300 << 20)\ntime.sleep(600)",
        {"memory_bytes": 200 * MIB},
        Status.MEMORY,
        "memory",
    ),
    "memory-of-all": (
        PYTHON,
        "import os, time\nfor _ in range(3): os.fork()\nb = b'x' * (50 << 20)\ntime.sleep(600)",
        {"memory_bytes": 200 * MIB},
        Status.MEMORY,
        "memory",
    ),
    "memory-of-node": (
        JAVASCRIPT,
        "const a = []; for (;;) a.push(Buffer.alloc(10 << 20, 1))",
        {"memory_bytes": 200 * MIB},
        Status.MEMORY,
        "memory",
    ),
    "memory-as-files": (
        SHELL,
        "head -c 30000000 /dev/zero > a; head -c 30000000 /dev/zero > /tmp/b; sleep 600",
        {"memory_bytes": 40 * MIB},
        Status.MEMORY,
        "memory",
    ),
    "processes": (
        PYTHON,
        "import os, time\nwhile True:\n    try:\n        if not os.fork(): time.sleep(600)\n    except OSError:\n        time.sleep(0.5)\n        raise",
        {"processes": 8},
        Status.PROCESSES,
        "8 processes",
    ),
    "disk": (
        PYTHON,
        "open('x', 'wb').write(b'x' * (65 << 20))",
        {"file_bytes": 200 * MIB},
        Status.DISK,
        "disk",
    ),
    "disk-of-all": (
        SHELL,
        "head -c 50000000 /dev/zero > a; head -c 50000000 /dev/zero > /tmp/b; sleep 600",
        {},
        Status.DISK,
        "wrote more",
    ),
    "file": (SHELL, "exec head -c 2000000 /dev/zero > x", {"file_bytes": MIB}, Status.DISK, "a file"),
    "inodes": (
        PYTHON,
        "import itertools\nfor i in itertools.count(): open(f'f{i}', 'w').close()",
        {"inodes": 100},
        Status.INODES,
        "100 files",
    ),
    "output": (SHELL, "yes", {"output_bytes": 50_000}, Status.OUTPUT, "50000 bytes"),
    "output-of-both": (
        SHELL,
        "head -c 30000 /dev/zero; head -c 30000 /dev/zero >&2",
        {"output_bytes": 50_000},
        Status.OUTPUT,
        "50000 bytes",
    ),
}


@pytest.mark.parametrize(
    ("language", "source", "limits", "status", "reason"), LIMIT_CASES.values(), ids=LIMIT_CASES.keys()
)
async def test_a_run_over_a_limit_ends_with_the_limits_name(
    sandbox: LauncherSandbox,
    language: Language,
    source: str,
    limits: dict[str, float],
    status: Status,
    reason: str,
) -> None:
    result = await execute(sandbox, language, source, **limits)
    assert result.ended.status is status, result
    assert reason in result.ended.reason
    assert len(result.stdout) + len(result.stderr) <= limits.get("output_bytes", LIMITS.output_bytes)
    assert result.ended.output_truncated is (status is Status.OUTPUT)


async def test_limits_of_the_kernel_fail_a_call_and_not_the_run(sandbox: LauncherSandbox) -> None:
    source = """
import os, resource, signal
def refused(name, act):
    try:
        act()
    except (OSError, MemoryError, ValueError) as error:
        print(name, type(error).__name__, flush=True)
def fork_many():
    for _ in range(100):
        if not os.fork():
            signal.pause()
def open_many():
    for _ in range(1000):
        os.open("/dev/null", 0)
refused("address space", lambda: bytearray(2 << 30))
refused("a sparse file", lambda: os.truncate("s", 1 << 40))
refused("a higher limit", lambda: resource.setrlimit(resource.RLIMIT_NPROC, (4096, 4096)))
refused("forks", fork_many)
refused("open files", open_many)
"""

    def prepare(workspace: int) -> None:
        os.close(os.open("s", os.O_CREAT | os.O_RDWR, 0o600, dir_fd=workspace))

    result = await execute(sandbox, PYTHON, source, prepare)
    assert result.stdout.splitlines() == [
        "address space MemoryError",
        "a sparse file OSError",
        "a higher limit ValueError",
        "forks BlockingIOError",
        "open files OSError",
    ]
    assert result.ended.status is Status.OK


async def test_a_signal_of_its_own_making_is_told(sandbox: LauncherSandbox) -> None:
    result = await execute(sandbox, PYTHON, "import os; os.abort()")
    assert (result.ended.status, result.ended.signal, result.ended.exit_code) == (Status.ERROR, 6, None)


async def test_usage_is_sampled_and_summed_up(sandbox: LauncherSandbox) -> None:
    source = """
import os, time
open("kept", "wb").write(b"x" * 1_000_000)
child = os.fork()
block = b"x" * (40 << 20)
end = time.process_time() + 0.3
while time.process_time() < end: pass
if not child: os._exit(0)
os.wait()
time.sleep(1.2)
print("done")
"""
    result = await execute(sandbox, PYTHON, source)
    usage = result.ended.usage
    assert result.samples >= 1
    assert 1 < usage.wall_seconds < LIMITS.wall_seconds
    assert usage.cpu_seconds is not None
    assert 0.5 <= usage.cpu_seconds < usage.wall_seconds * 2
    assert usage.peak_memory_bytes is not None
    assert 80 * MIB < usage.peak_memory_bytes < 200 * MIB
    assert usage.peak_processes == 2
    assert usage.disk_bytes is not None
    assert 1_000_000 <= usage.disk_bytes < 1_100_000
    assert usage.inodes == 1
    assert usage.output_bytes == len("done\n")


async def test_what_a_run_leaves_behind_dies_with_it(sandbox: LauncherSandbox) -> None:
    result = await execute(
        sandbox, SHELL, "nohup setsid sleep 123123 > /dev/null 2>&1 & disown; echo started"
    )
    assert result.ended.status is Status.OK
    assert not alive("123123")


async def test_a_killed_run_leaves_nothingalive(sandbox: LauncherSandbox) -> None:
    source = "trap '' TERM INT HUP; for i in 1 2 3; do (while :; do sleep 123124; done) & done; echo up; wait"
    run = await sandbox.start(job(SHELL, source))
    events = run.events()
    await anext(events)
    await run.kill()
    async for event in events:
        last = event
    assert last.status is Status.CANCELLED  # type: ignore[union-attr]  # the last event is the end
    assert not alive("123124")
    await run.aclose()


async def test_closing_a_run_ends_it(sandbox: LauncherSandbox) -> None:
    run = await sandbox.start(job(SHELL, "echo up; exec sleep 123125"))
    await anext(run.events())
    await run.aclose()
    assert not alive("123125")


async def test_a_caller_that_goes_away_while_it_closes_a_run_leaves_nothing() -> None:
    async with bubblewrap(max_running=1) as sandbox:
        run = await sandbox.start(job(SHELL, "echo up; exec sleep 123127"))
        await anext(run.events())
        closing = asyncio.create_task(run.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await run.aclose()
        assert not alive("123127")
        assert (await execute(sandbox, SHELL, "echo free")).stdout == "free\n"


async def test_a_caller_that_goes_away_while_a_run_starts_leaves_nothing(sandbox: LauncherSandbox) -> None:
    for _ in range(5):
        task = asyncio.create_task(sandbox.start(job(SHELL, "exec sleep 123126")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await execute(sandbox, SHELL, "echo fine")).stdout == "fine\n"
    assert not alive("123126")


async def test_a_slow_reader_slows_the_run_and_loses_nothing(sandbox: LauncherSandbox) -> None:
    run = await sandbox.start(job(SHELL, "head -c 900000 /dev/zero; echo end >&2"))
    seen = 0
    async for event in run.events():
        seen += len(getattr(event, "data", b""))
        if seen < 100_000:
            await asyncio.sleep(0.01)
    assert seen == 900_000 + len("end\n")
    await run.aclose()


async def test_when_all_sandboxes_are_taken_the_answer_says_when_to_come_again() -> None:
    async with bubblewrap(max_running=2) as sandbox:
        runs = [await sandbox.start(job(SHELL, "exec sleep 600")) for _ in range(2)]
        with pytest.raises(ResourceExhaustedError, match="all 2 sandboxes") as refused:
            await sandbox.start(job(SHELL, "echo 1"))
        assert refused.value.retry_after_seconds is not None
        assert refused.value.retry_after_seconds > 0
        await runs[0].aclose()
        assert (await execute(sandbox, SHELL, "echo 1")).stdout == "1\n"
        await runs[1].aclose()


async def test_output_that_is_no_text_arrives_as_it_is(sandbox: LauncherSandbox) -> None:
    run = await sandbox.start(job(PYTHON, "import os; os.write(1, bytes(range(256)))"))
    data = b"".join([getattr(event, "data", b"") async for event in run.events()])
    assert data == bytes(range(256))
    await run.aclose()


async def test_a_large_program_arrives_whole(sandbox: LauncherSandbox) -> None:
    result = await execute(sandbox, PYTHON, "x = '" + "a" * 900_000 + "'\nprint(len(x))")
    assert result.stdout == "900000\n"


async def test_twenty_runs_at_a_time_do_not_mix(sandbox: LauncherSandbox) -> None:
    async def one(number: int) -> str:
        source = f"open('f','w').write('{number}'); import time; time.sleep(0.05); print(open('f').read())"
        return (await execute(sandbox, PYTHON, source)).stdout.strip()

    first = await asyncio.gather(*(one(number) for number in range(10)))
    second = await asyncio.gather(*(one(number) for number in range(10, 20)))
    assert [*first, *second] == [str(number) for number in range(20)]


async def test_a_ready_sandbox_is_used_once_and_replaced() -> None:
    async with bubblewrap({PYTHON: 1}) as sandbox:
        source = "import os; print(os.listdir('/workspace'), os.listdir('/tmp')); open('/tmp/left', 'w'); open('left', 'w')"
        for _ in range(3):
            await sandbox.wait_parked(PYTHON)
            result = await execute(sandbox, PYTHON, source)
            assert result.warm
            assert result.stdout == "[] []\n"


async def test_another_disk_than_the_pools_means_a_sandbox_of_its_own() -> None:
    async with bubblewrap({PYTHON: 1}) as sandbox:
        await sandbox.wait_parked(PYTHON)
        result = await execute(sandbox, PYTHON, "print(1)", disk_bytes=MIB)
        assert not result.warm
        assert result.stdout == "1\n"

"""One whole run of a suite with tiny parts: prepared, recorded, stopped, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError
from kala.suite import suite as suite_module
from kala.suite.control import stop_suite, wait_for_running
from kala.suite.layout import StateLayout
from kala.suite.lock import SuiteRunningError, is_locked, suite_lock
from kala.suite.parts import Wiring
from kala.suite.ports import PortClaims
from kala.suite.processes import ProcessId
from kala.suite.record import (
    Condition,
    PartRecord,
    Phase,
    SuiteRecord,
    read_record,
    running_suite,
    write_record,
)
from kala.suite.suite import SuiteOptions, require_packages, run_suite
from kala.suite.supervisor import Limits, Part, StartFailedError
from kala.suite.tools_home import ToolsHome

SLEEPER = "import pathlib, time; pathlib.Path(__file__).with_suffix('.up').touch(); time.sleep(60)"
REFUSER = "import sys; sys.stderr.write('KALA_X: bad\\n'); sys.exit(2)"


@pytest.fixture
def layout(tmp_path: Path) -> StateLayout:
    return StateLayout.at(tmp_path / "state")


@pytest.fixture(autouse=True)
def optional_parts_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of this file makes a home for tools or the trainer on this machine."""

    def off(*_: object, **__: object) -> ToolsHome:
        raise FailedPreconditionError("no sandbox here")

    monkeypatch.setattr(suite_module, "tools_home", off)
    monkeypatch.setattr(suite_module, "trainer_home", off)


def with_parts(monkeypatch: pytest.MonkeyPatch, folder: Path, **programs: str) -> None:
    """Let the suite consist of small programs instead of KALA's services."""

    def parts_of(wiring: Wiring, _: PortClaims) -> list[Part]:
        return [part_of(name, text, wiring) for name, text in programs.items()]

    def part_of(name: str, text: str, wiring: Wiring) -> Part:
        (folder / f"tiny_{name}.py").write_text(text)
        up = folder / f"tiny_{name}.up"
        up.unlink(missing_ok=True)

        async def probe() -> bool:
            return up.exists()

        path = os.pathsep.join([str(folder), str(Path(__file__).parents[3])])
        return Part(name, f"tiny_{name}", {**wiring.ambient, "PYTHONPATH": path}, probe)

    monkeypatch.setattr(suite_module, "parts_of", parts_of)


def options(layout: StateLayout) -> SuiteOptions:
    return SuiteOptions(layout, port=0, limits=Limits(start_seconds=20, stop_grace_seconds=5))


async def test_a_run_is_recorded_from_start_to_stop(
    layout: StateLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parts(monkeypatch, tmp_path, audit=SLEEPER, gateway=SLEEPER)
    seen: list[SuiteRecord] = []

    async def ready(record: SuiteRecord) -> None:
        seen.append(record)
        assert running_suite(layout) == record
        assert wait_for_running(layout) == record
        assert is_locked(layout)
        with pytest.raises(SuiteRunningError):
            await run_suite(options(layout), on_ready=ready, say=print)
        os.kill(os.getpid(), signal.SIGTERM)

    await run_suite(options(layout), on_ready=ready, say=print)
    assert seen[0].phase is Phase.READY
    assert set(seen[0].pids) == {"audit", "gateway"}
    assert not seen[0].gateway_url.endswith(":0")
    last = read_record(layout)
    assert last is not None
    assert last.phase is Phase.STOPPING
    conditions = {part.condition for part in last.parts.values()} - {Condition.OFF}
    assert conditions == {Condition.STOPPED}
    assert not is_locked(layout)


async def test_a_run_that_fails_says_why_in_its_record(
    layout: StateLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parts(monkeypatch, tmp_path, audit=SLEEPER, ethics=REFUSER)

    async def never(_: SuiteRecord) -> None:
        pytest.fail("it must not become ready")

    with pytest.raises(StartFailedError, match="KALA_X: bad"):
        await run_suite(options(layout), on_ready=never, say=print)
    record = read_record(layout)
    assert record is not None
    assert record.phase is Phase.FAILED
    assert "KALA_X: bad" in (record.problem or "")


async def test_it_stops_when_its_owner_says_so(
    layout: StateLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parts(monkeypatch, tmp_path, audit=SLEEPER)
    ready = asyncio.Event()

    async def on_ready(_: SuiteRecord) -> None:
        ready.set()

    async def owner(stop: asyncio.Event) -> None:
        await ready.wait()
        stop.set()

    await run_suite(options(layout), on_ready=on_ready, say=print, stop_when=owner)
    record = read_record(layout)
    assert record is not None
    assert record.parts["audit"].condition is Condition.STOPPED


async def test_what_a_killed_supervisor_left_is_ended_before_a_new_start(
    layout: StateLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parts(monkeypatch, tmp_path, audit=SLEEPER)
    layout.create()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as orphan:  # noqa: ASYNC220 - takes no time
        process = ProcessId.of(orphan.pid)
        assert process is not None
        left = SuiteRecord(
            phase=Phase.READY,
            supervisor=ProcessId(os.getpid(), "an earlier process of this pid"),
            gateway_url="http://127.0.0.1:1",
            sockets=layout.run,
            started_at="2026-01-01T00:00:00+00:00",
            parts={"audit": PartRecord(process, Condition.READY)},
        )
        write_record(layout, left)

        async def ready(_: SuiteRecord) -> None:
            assert orphan.poll() == -signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)

        await run_suite(options(layout), on_ready=ready, say=print)


def test_stopping_ends_orphans_too_and_a_second_time_nothing(layout: StateLayout) -> None:
    layout.create()
    assert stop_suite(layout) == []
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as orphan:
        process = ProcessId.of(orphan.pid)
        assert process is not None
        record = SuiteRecord(
            phase=Phase.READY,
            supervisor=ProcessId(os.getpid(), "an earlier process of this pid"),
            gateway_url="http://127.0.0.1:1",
            sockets=layout.run,
            started_at="2026-01-01T00:00:00+00:00",
            parts={"ethics": PartRecord(process, Condition.READY)},
        )
        write_record(layout, record)
        assert stop_suite(layout) == ["ethics"]
        assert orphan.wait(5) == -signal.SIGTERM
    assert stop_suite(layout) == []


async def test_a_port_that_is_taken_and_was_asked_for_is_named(layout: StateLayout) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(FailedPreconditionError, match=f"port {port} is taken"):
            await run_suite(SuiteOptions(layout, port=port), on_ready=_unreachable, say=print)


async def _unreachable(_: SuiteRecord) -> None:
    pytest.fail("it must not become ready")


def test_missing_packages_are_named_with_the_command_that_brings_them() -> None:
    with pytest.raises(FailedPreconditionError, match=r"no_such_package is missing.*kala-suite\[suite\]"):
        require_packages(["grpc", "no_such_package"])


def test_waiting_for_a_suite_that_does_not_come_ends(layout: StateLayout) -> None:
    assert wait_for_running(layout) is None
    layout.create()
    with suite_lock(layout):
        assert is_locked(layout)
    assert wait_for_running(layout) is None


def test_the_detached_supervisor_reports_a_failure_by_exit_code(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    done = subprocess.run(
        [sys.executable, "-m", "kala.suite", "--state", str(tmp_path / "state")],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "is not a directory" in done.stderr or "cannot be made" in done.stderr
    assert "Traceback" not in textwrap.dedent(done.stderr)


async def test_a_suite_without_tools_is_ready_and_says_why_they_are_off(
    layout: StateLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_parts(monkeypatch, tmp_path, audit=SLEEPER)
    seen: list[SuiteRecord] = []

    async def ready(record: SuiteRecord) -> None:
        seen.append(record)
        os.kill(os.getpid(), signal.SIGTERM)

    await run_suite(options(layout), on_ready=ready, say=print)
    assert seen[0].phase is Phase.READY
    assert seen[0].parts["tools"] == PartRecord(None, Condition.OFF, problem="no sandbox here")

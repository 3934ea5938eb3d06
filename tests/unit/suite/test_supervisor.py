"""The supervisor with real, tiny processes: together up, up again after a crash, down in order, no orphans."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kala.suite.layout import StateLayout
from kala.suite.processes import ProcessId, wait_until
from kala.suite.record import Condition, PartRecord, Phase
from kala.suite.supervisor import Limits, Part, StartFailedError, Supervisor

SERVER = """
    import os, pathlib, signal, sys, time
    name = os.environ["PART"]
    where = pathlib.Path(os.environ["WHERE"])
    def stop(*_):
        with (where / "stopped").open("a") as file:
            file.write(name + "\\n")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    (where / f"{name}.pid").write_text(str(os.getpid()))
    while True:
        time.sleep(60)
"""
REFUSER = """
    import sys
    sys.stderr.write("KALA_X_ADRESS: unknown variable\\n")
    sys.exit(2)
"""
CRASHER = "raise SystemExit('no such module')"
STUBBORN = SERVER.replace(
    "signal.signal(signal.SIGTERM, stop)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
)


@dataclass
class Journal:
    """Remembers every change."""

    phases: list[Phase] = field(default_factory=list)
    parts: Mapping[str, PartRecord] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, phase: Phase, parts: Mapping[str, PartRecord]) -> None:
        self.phases.append(phase)
        self.parts = dict(parts)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


@dataclass
class Stage:
    """A place with small programs to supervise."""

    root: Path
    journal: Journal = field(default_factory=Journal)
    said: list[str] = field(default_factory=list)

    def part(self, name: str, program: str = SERVER, prelude: tuple[str, ...] = ()) -> Part:
        module = f"program_{name}"
        (self.root / f"{module}.py").write_text(textwrap.dedent(program))
        pid_file = self.root / f"{name}.pid"

        async def probe() -> bool:
            return pid_file.exists()

        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.root), str(Path(__file__).parents[3])]),
            "PART": name,
            "WHERE": str(self.root),
        }
        return Part(name, module, environment, probe, prelude)

    def supervisor(self, *parts: Part, grace_seconds: float = 10) -> Supervisor:
        layout = StateLayout.at(self.root / "state")
        layout.create()
        limits = Limits(start_seconds=20, stop_grace_seconds=grace_seconds)
        return Supervisor(layout, parts, self.journal, self.said.append, limits)

    def stopped(self) -> list[str]:
        return (self.root / "stopped").read_text().split()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def then(action: Callable[[], Awaitable[None]], stop: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def ready() -> None:
        await action()
        stop.set()

    return ready


async def nothing() -> None:
    pass


async def test_parts_stop_in_the_order_in_which_they_need_each_other(stage: Stage) -> None:
    stop = asyncio.Event()
    parts = [stage.part(name) for name in ("audit", "ethics", "gateway", "inference")]
    await stage.supervisor(*parts).run(stop, then(nothing, stop))
    assert stage.stopped() == ["gateway", "inference", "ethics", "audit"]
    assert stage.journal.phases[0] is Phase.STARTING
    assert Phase.READY in stage.journal.phases
    assert {part.condition for part in stage.journal.parts.values()} == {Condition.STOPPED}


async def test_a_killed_part_comes_back(stage: Stage) -> None:
    stop = asyncio.Event()

    async def kill_and_wait() -> None:
        victim = stage.journal.parts["ethics"].process
        assert victim is not None
        (stage.root / "ethics.pid").unlink()
        victim.send(signal.SIGKILL)
        await stage.journal.until(
            lambda: (
                stage.journal.parts["ethics"].restarts == 1
                and stage.journal.parts["ethics"].condition is Condition.READY
            )
        )
        assert stage.journal.parts["ethics"].process != victim

    await stage.supervisor(stage.part("audit"), stage.part("ethics")).run(stop, then(kill_and_wait, stop))
    assert any("SIGKILL" in line for line in stage.said)
    assert stage.journal.parts["audit"].restarts == 0


async def test_a_part_that_refuses_its_configuration_fails_the_start_with_its_own_words(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.part("audit"), stage.part("ethics", REFUSER))
    with pytest.raises(StartFailedError, match=r"(?s)ethics did not start.*KALA_X_ADRESS: unknown variable"):
        await supervisor.run(asyncio.Event(), nothing)
    assert stage.journal.parts["ethics"].restarts == 0
    assert stage.journal.parts["audit"].condition is Condition.STOPPED


async def test_a_part_that_crashes_at_every_start_is_reported_after_three_tries(stage: Stage) -> None:
    with pytest.raises(StartFailedError, match="no such module"):
        await stage.supervisor(stage.part("ethics", CRASHER)).run(asyncio.Event(), nothing)
    assert stage.journal.parts["ethics"].restarts == 3


async def test_what_ignores_sigterm_is_killed_after_its_grace(stage: Stage) -> None:
    stop = asyncio.Event()
    await stage.supervisor(stage.part("audit", STUBBORN), grace_seconds=0.3).run(stop, then(nothing, stop))
    assert any("killing it" in line for line in stage.said)
    assert ProcessId.of(int((stage.root / "audit.pid").read_text())) is None


async def test_a_prelude_runs_once_before_the_first_start_only(stage: Stage) -> None:
    (stage.root / "prepare.py").write_text(
        "import sys, pathlib; file = pathlib.Path(sys.argv[1]); file.write_text(file.read_text() + 'x' if file.exists() else 'x')"
    )
    stop = asyncio.Event()
    mark = stage.root / "prepared"

    async def kill_and_wait() -> None:
        assert mark.read_text() == "x"
        victim = stage.journal.parts["gateway"].process
        assert victim is not None
        victim.send(signal.SIGKILL)
        await stage.journal.until(lambda: stage.journal.parts["gateway"].restarts == 1)

    part = stage.part("gateway", prelude=("prepare", str(mark)))
    await stage.supervisor(part).run(stop, then(kill_and_wait, stop))
    assert mark.read_text() == "x"


async def test_told_to_stop_while_starting_it_stops_what_it_started(stage: Stage) -> None:
    stop = asyncio.Event()
    part = stage.part("audit", "import time\ntime.sleep(60)")
    asyncio.get_running_loop().call_later(0.3, stop.set)
    await stage.supervisor(part).run(stop, nothing)
    assert stage.journal.parts["audit"].condition is Condition.STOPPED


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_killing_the_parent_ends_its_children(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(textwrap.dedent(SERVER))
    parent = textwrap.dedent(
        """
        import os, subprocess, sys, time
        subprocess.Popen([sys.executable, "-m", "kala.suite.child", str(os.getpid()), "sleeper"], start_new_session=True)
        time.sleep(60)
        """
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])]),
        "PART": "sleeper",
        "WHERE": str(tmp_path),
    }
    with subprocess.Popen([sys.executable, "-c", parent], env=environment) as process:
        pid_file = tmp_path / "sleeper.pid"
        assert wait_until(lambda: pid_file.exists() and pid_file.read_text() != "", timeout_seconds=20)
        child = ProcessId.of(int(pid_file.read_text()))
        assert child is not None
        process.kill()
    assert wait_until(lambda: not child.is_alive(), timeout_seconds=10)


async def test_a_suite_comes_up_without_an_optional_part_and_keeps_its_last_words(stage: Stage) -> None:
    stop = asyncio.Event()
    parts = [stage.part("audit"), replace(stage.part("tools", REFUSER), is_optional=True)]
    await stage.supervisor(*parts).run(stop, then(nothing, stop))
    assert Phase.READY in stage.journal.phases
    assert stage.journal.parts["tools"].condition is Condition.REFUSED
    assert "KALA_X_ADRESS: unknown variable" in stage.journal.parts["tools"].problem
    assert any("KALA_X_ADRESS" in said for said in stage.said)


async def test_an_optional_part_that_is_slow_does_not_stop_the_others(stage: Stage) -> None:
    stop = asyncio.Event()

    async def never() -> bool:
        return False

    slow = replace(stage.part("tools"), is_optional=True, probe=never)
    supervisor = stage.supervisor(stage.part("audit"), slow)
    supervisor.limits = Limits(start_seconds=3, stop_grace_seconds=10)
    await supervisor.run(stop, then(nothing, stop))
    assert Phase.READY in stage.journal.phases
    assert any("goes on without it" in said for said in stage.said)

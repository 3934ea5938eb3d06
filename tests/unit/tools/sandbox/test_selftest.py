"""The self-test: what a tier must show, and every way in which it can fail to."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from kala.errors import ResourceExhaustedError
from services.tools.sandbox.model import Ended, Job, Prepare, Run, Status, Strength, Tier
from services.tools.sandbox.probes.bait import survivors
from services.tools.sandbox.probes.cases import PROBES, RUNS, Probe, Scope
from services.tools.sandbox.selftest import SelfTest, self_test
from tests.fakes.scripted_sandbox import Answer, ScriptedRun, ScriptedSandbox, holds

PLAIN = Probe("plain", "does nothing", "plain")


def everything(_language: object) -> bool:
    return True


async def one(answer: Answer, probe: Probe = PLAIN) -> SelfTest:
    sandbox = ScriptedSandbox(lambda _: answer)
    return await self_test(sandbox, probes=[probe], available=everything)


async def test_a_tier_that_holds_every_probe_holds() -> None:
    result = await self_test(ScriptedSandbox(), available=everything)
    assert result.held
    assert len(result.cases) >= 18
    assert {"network", "host_file", "pid_visibility", "user_namespace", "fork_limit", "timeout"} <= {
        case.id for case in result.cases
    }
    assert result.start_seconds is not None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(Answer(b"HELD a\nESCAPED b\n"), "ESCAPED b", id="it got something"),
        pytest.param(Answer(b""), "said nothing", id="it said nothing"),
        pytest.param(Answer(b"Traceback\n", Status.ERROR, 1), "ended as error", id="it broke"),
        pytest.param(Answer(status=Status.TIMEOUT), "ended as timeout", id="it took too long"),
        pytest.param(Answer(b"HELD" + b"x" * 70_000), "bytes of output", id="it was not stopped"),
    ],
)
async def test_a_probe_that_is_not_shown_to_hold_does_not_hold(answer: Answer, words: str) -> None:
    result = await one(answer)
    assert not result.held
    assert words in result.failures[0].detail


async def test_a_secret_in_the_output_is_an_escape_whatever_the_program_says() -> None:
    def leak(job: Job) -> Answer:
        path = job.arguments[0].split('"secret_path": "')[1].split('"')[0]
        return Answer(b"HELD " + Path(path).read_bytes())

    result = await self_test(ScriptedSandbox(leak), probes=[PLAIN], available=everything)
    assert "secret of the host" in result.failures[0].detail


def kill_canary(words: dict[str, str]) -> None:
    os.kill(int(words["canary_pid"]), signal.SIGKILL)


def plant(words: dict[str, str]) -> None:
    Path(words["directory"], "planted").touch()


def overwrite(words: dict[str, str]) -> None:
    Path(words["secret_path"]).write_text("mine", encoding="ascii")


def send_datagram(words: dict[str, str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.sendto(b"x", (words["host"], int(words["udp_port"])))


def connect(words: dict[str, str]) -> None:
    with socket.create_connection((words["host"], int(words["tcp_port"]))):
        pass


def connect_abstract(words: dict[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect("\0" + words["abstract_name"])


def connect_file(words: dict[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(words["socket_path"])


@pytest.mark.parametrize(
    "touch", [kill_canary, plant, overwrite, send_datagram, connect, connect_abstract, connect_file]
)
async def test_bait_that_was_touched_is_an_escape_although_every_probe_says_held(touch) -> None:
    import json

    def escape(job: Job) -> Answer:
        if job.arguments:
            touch(json.loads(job.arguments[0]))
        return holds(job)

    probes = [PLAIN, replace(PLAIN, id="second"), replace(PLAIN, id="third")]
    result = await self_test(ScriptedSandbox(escape), probes=probes, available=everything)
    assert not result.held


async def test_a_tier_in_which_nothing_runs_holds_nothing() -> None:
    class Full(ScriptedSandbox):
        async def start(self, job: Job, prepare: Prepare | None = None) -> Run:
            raise ResourceExhaustedError("all slots are taken")

    result = await self_test(Full(), available=everything)
    assert [case.id for case in result.cases] == ["runs"]
    assert "all slots are taken" in result.failures[0].detail


async def test_no_probe_is_no_proof() -> None:
    assert not (await self_test(ScriptedSandbox(), available=lambda _: False)).held
    assert not SelfTest(()).held


async def test_events_without_an_end_are_no_end() -> None:
    class Lost(ScriptedSandbox):
        async def start(self, job: Job, prepare: Prepare | None = None) -> Run:
            class Endless(ScriptedRun):
                async def events(self):
                    async for event in super().events():
                        if not isinstance(event, Ended):
                            yield event

            return Endless(self.isolation, job, holds(job), prepare)

    result = await self_test(Lost(), probes=[PLAIN], available=everything)
    assert "without an end" in result.failures[0].detail


async def test_files_must_go_in_and_come_back() -> None:
    result = await one(Answer(b"HELD from stdin hello\n", Status.ERROR, 7), RUNS)
    assert "did not come back" in result.failures[0].detail


def test_a_daemon_that_stays_is_found_by_its_name() -> None:
    assert survivors("k00112233445566") == []
    assert os.getpid() in survivors(Path("/proc/self/comm").read_text(encoding="ascii").strip())


def test_probes_ask_only_what_says_something_about_the_kernel_that_answers() -> None:
    assert Scope.SHARED_KERNEL.covers(Strength.STANDARD)
    assert not Scope.SHARED_KERNEL.covers(Strength.STRONG)
    assert Scope.OWN_KERNEL.covers(Strength.STRONG)
    assert not Scope.OWN_KERNEL.covers(Strength.WEAK)
    assert len({probe.id for probe in PROBES}) == len(PROBES)


async def test_a_strong_tier_must_have_a_kernel_of_its_own() -> None:
    sandbox = ScriptedSandbox(tier=Tier.RUNSC, strength=Strength.STRONG)
    ids = {case.id for case in (await self_test(sandbox, available=everything)).cases}
    assert "own_kernel" in ids
    assert "user_namespace" not in ids

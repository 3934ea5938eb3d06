"""What the sandbox costs: a run beside the bare start of the same interpreter with the same flags, in turn, in one run.

From `Sandbox.start` to the end of all output and the word that no process lives. Bare is `subprocess.run`: start, output, end.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.ethics import Goal
from bench.measure import Arm
from kala.suite.runtime_copy import runtime_for
from services.tools.sandbox.bubblewrap.tier import open_bubblewrap
from services.tools.sandbox.client import LauncherSandbox, LauncherSettings
from services.tools.sandbox.model import Ended, Job, Language, Limits, Status

UID: Final = 65532
MIB: Final = 1024 * 1024
LIMITS: Final = Limits(
    wall_seconds=60,
    cpu_seconds=30,
    memory_bytes=512 * MIB,
    processes=32,
    open_files=256,
    disk_bytes=64 * MIB,
    inodes=10_000,
    file_bytes=64 * MIB,
    output_bytes=MIB,
    artifacts=10,
    artifact_bytes=MIB,
)
PROGRAMS: Final = {
    Language.PYTHON: "print(1)",
    Language.SHELL: "echo 1",
    Language.JAVASCRIPT: "console.log(1)",
}
BARE: Final = {
    Language.PYTHON: ["/usr/bin/python3", "-I", "-S", "-c"],
    Language.SHELL: ["/bin/bash", "--norc", "--noprofile", "-c"],
    Language.JAVASCRIPT: ["/usr/bin/node", "-e"],
}
# Spins on two cores and more, ignoring what it can ignore.
STUBBORN: Final = b"import os\nfor _ in range(3): os.fork()\nwhile True: pass"
KILLS: Final = 40
CLIENTS: Final = 2
WINDOW_SECONDS: Final = 5.0
SETTLE_SECONDS: Final = 0.03


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that was measured."""

    loads: tuple[float, float]
    # By language: bare, cold, warm.
    starts: dict[str, tuple[Arm, Arm, Arm]]
    # Python runs per second with two clients: bare, pool, no pool; the best of the rounds.
    rates: tuple[float, float, float]
    kills_ms: tuple[float, ...]


def measure(rounds: int, requests: int) -> Figures:
    """Measure everything; a few minutes."""
    folder = Path(tempfile.mkdtemp(prefix="kala-bench-sandbox-"))
    folder.chmod(0o755)
    try:
        return asyncio.run(_measure(folder, rounds, max(10, requests // 4)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _measure(folder: Path, rounds: int, requests: int) -> Figures:
    load = os.getloadavg()[0]
    warm = await _open(folder / "warm", dict.fromkeys(Language, 1))
    cold = await _open(folder / "cold", {})
    starts = {language.value: await _starts(language, warm, cold, rounds, requests) for language in PROGRAMS}
    rates = await _rates(warm, cold, rounds)
    kills = [await _kill(cold) for _ in range(KILLS)]
    await warm.aclose()
    await cold.aclose()
    return Figures((load, os.getloadavg()[0]), starts, rates, tuple(sorted(kills)))


async def _open(state: Path, pool: dict[Language, int]) -> LauncherSandbox:
    python: tuple[str, ...] = (sys.executable,)
    if os.geteuid() == 0:
        runtime = runtime_for(UID, distribution="kala-suite", extra="tools", module="kala.errors")
        variables = [f"{name}={value}" for name, value in runtime.environment.items()]
        switch = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "--", "env"]
        python = (*switch, *variables, str(runtime.python))
    return await open_bubblewrap(
        LauncherSettings(state, pool=pool, pool_disk_bytes=LIMITS.disk_bytes, python=python)
    )


async def _starts(
    language: Language, warm: LauncherSandbox, cold: LauncherSandbox, rounds: int, requests: int
) -> tuple[Arm, Arm, Arm]:
    taken: dict[str, list[list[float]]] = {"bare": [], "cold": [], "warm": []}
    for _ in range(rounds):
        for times in taken.values():
            times.append([])
        for _ in range(requests):
            taken["bare"][-1].append(bare(language))
            taken["cold"][-1].append(await _run(cold, language))
            await warm.wait_parked(language)
            # The refill is over, and so is what it woke.
            await asyncio.sleep(SETTLE_SECONDS)
            taken["warm"][-1].append(await _run(warm, language))
    arms = [Arm.of_rounds(name, times) for name, times in taken.items()]
    return arms[0], arms[1], arms[2]


def bare(language: Language) -> float:
    """Milliseconds of the interpreter alone."""
    began = time.perf_counter()
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    subprocess.run([*BARE[language], PROGRAMS[language]], capture_output=True, check=True, env=environment)
    return (time.perf_counter() - began) * 1000


async def _run(sandbox: LauncherSandbox, language: Language) -> float:
    began = time.perf_counter()
    run = await sandbox.start(Job(language, PROGRAMS[language].encode(), LIMITS))
    ended = [event async for event in run.events()][-1]
    elapsed = (time.perf_counter() - began) * 1000
    await run.aclose()
    if not isinstance(ended, Ended) or ended.status is not Status.OK:
        raise SystemExit(f"a run of the bench failed: {ended}")
    return elapsed


async def _kill(sandbox: LauncherSandbox) -> float:
    run = await sandbox.start(Job(Language.PYTHON, STUBBORN, LIMITS))
    await asyncio.sleep(0.1)
    began = time.perf_counter()
    await run.kill()
    async for _ in run.events():
        pass
    elapsed = (time.perf_counter() - began) * 1000
    await run.aclose()
    return elapsed


async def _rates(warm: LauncherSandbox, cold: LauncherSandbox, rounds: int) -> tuple[float, float, float]:
    async def alone() -> float:
        return await asyncio.to_thread(bare, Language.PYTHON)

    async def pooled() -> float:
        return await _run(warm, Language.PYTHON)

    async def unpooled() -> float:
        return await _run(cold, Language.PYTHON)

    best = [0.0, 0.0, 0.0]
    for _ in range(max(1, rounds // 2)):
        for index, act in enumerate((alone, pooled, unpooled)):
            best[index] = max(best[index], await _rate(act))
    return best[0], best[1], best[2]


async def _rate(act: Callable[[], Awaitable[float]]) -> float:
    until = time.perf_counter() + WINDOW_SECONDS

    async def client() -> int:
        done = 0
        while time.perf_counter() < until:
            await act()
            done += 1
        return done

    return sum(await asyncio.gather(*(client() for _ in range(CLIENTS)))) / WINDOW_SECONDS


def goals(figures: Figures) -> list[Goal]:
    """The goals of the issue beside what was reached; "times" are of the bare interpreter."""
    ratio = {
        (language, arm.name): arm.p50_ms / arms[0].p50_ms
        for language, arms in figures.starts.items()
        for arm in arms
    }
    alone, pooled, _ = figures.rates
    return [
        Goal("warm Python", ratio["python", "warm"], 0.6, "times"),
        Goal("cold Python", ratio["python", "cold"], 2.0, "times"),
        Goal("warm bash", ratio["shell", "warm"], 1.0, "times"),
        Goal("warm node", ratio["javascript", "warm"], 1.0, "times"),
        Goal(f"throughput, {CLIENTS} clients", pooled / alone, 0.75, "times", is_floor=True),
        Goal("kill to no survivors, p99", figures.kills_ms[int(len(figures.kills_ms) * 0.99)], 100, "ms"),
    ]


def lines(figures: Figures) -> list[str]:
    """The section in Markdown."""
    before, after = figures.loads
    alone, pooled, unpooled = figures.rates
    report = ["## Sandbox", "", f"Load {before:.1f} before, {after:.1f} after.", ""]
    report += ["| goal | limit | reached | |", "| --- | --- | --- | --- |"]
    for goal in goals(figures):
        sign = "≥" if goal.is_floor else "≤"
        met = "yes" if goal.is_met else "**missed**"
        report.append(
            f"| {goal.name} | {sign} {goal.limit:g} {goal.unit} | {goal.reached:.2f} {goal.unit} | {met} |"
        )
    report += ["", "| language | how | p50 ms | p95 ms | of bare, p50 |", "| --- | --- | --- | --- | --- |"]
    for language, arms in figures.starts.items():
        for arm in arms:
            ratio = arm.p50_ms / arms[0].p50_ms
            report.append(f"| {language} | {arm.name} | {arm.p50_ms:.1f} | {arm.p95_ms:.1f} | {ratio:.2f} |")
    report += ["", f"- Python a second: bare {alone:.1f}, with the pool {pooled:.1f}, without {unpooled:.1f}"]
    return report


def document(figures: Figures) -> dict[str, Any]:  # Any: what JSON holds
    """The section as JSON."""
    return asdict(figures) | {"goals": [asdict(goal) | {"is_met": goal.is_met} for goal in goals(figures)]}

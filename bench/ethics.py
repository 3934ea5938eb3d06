"""The ethics section of `make bench`: what one judgement costs, beside its goals and beside the bare network.

`python -m bench --only ethics` runs it alone. Every part runs in a process of its own, over texts that no cache has
seen, and in turn with its baseline; the machine's moods fall on both alike.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.ethics_inside import (
    CALLERS,
    LONG_TOKENS,
    PLAIN,
    SHORT_TOKENS,
    Check,
    Rate,
    Stream,
    output_stream,
    single_checks,
    throughput,
)
from bench.ethics_outside import Process, process
from services.ethics.classifier.calibration import MODEL_FILE
from services.ethics.config import default_constitution_dir

MEGABYTE: Final = 1_000_000
MAX_CORES: Final = 2
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Goal:
    """What the issue asks for, and what came out; `limit` is a floor where `is_floor`, or else a ceiling."""

    name: str
    reached: float
    limit: float
    unit: str
    is_floor: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it came out within the limit."""
        return self.reached >= self.limit if self.is_floor else self.reached <= self.limit


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that was measured; `checks` by the number of cores."""

    machine: str
    loads: tuple[float, float]
    checks: dict[int, list[Check]]
    rates: list[Rate]
    streams: list[Stream]
    process: Process
    weights_mb: float


def measure(rounds: int, requests: int) -> Figures:
    """Measure everything; a few minutes."""
    load = os.getloadavg()[0]
    cores = sorted(os.sched_getaffinity(0))[:MAX_CORES]
    checks = {
        count: _held_to(cores[:count], single_checks, count, rounds, requests)
        for count in range(1, len(cores) + 1)
    }
    rates = _held_to(cores, throughput, rounds, requests * 2)
    streams = _held_to(cores, output_stream, rounds)
    outside = _held_to(cores, process, requests)
    weights = (default_constitution_dir() / MODEL_FILE).stat().st_size / MEGABYTE
    return Figures(_machine(), (load, os.getloadavg()[0]), checks, rates, streams, outside, weights)


def goals(figures: Figures) -> list[Goal]:
    """The goals of the issue beside what was reached."""
    one = {(check.tokens, check.arm.name): check.arm for check in figures.checks[1]}
    long = [arm for (tokens, _), arm in one.items() if tokens == LONG_TOKENS]
    single, *views = [arm for arm in long if arm.name.startswith("request")]
    rate = {item.name: item.per_second for item in figures.rates}
    at_once = rate[f"two workers, {CALLERS} callers"]
    one_by_one, queued = rate["one worker, one caller"], rate[f"one worker, {CALLERS} callers"]
    return [
        Goal(f"{SHORT_TOKENS} tokens on one core, p50", one[SHORT_TOKENS, "request"].p50_ms, 5, "ms"),
        Goal("256 tokens on one core, one view, p95", single.p95_ms, 20, "ms"),
        *(Goal(f"256 tokens on one core, {arm.name}, p95", arm.p95_ms, 45, "ms") for arm in views),
        Goal(f"{CALLERS} callers, two workers on two cores, of one worker with one caller", at_once / one_by_one, 1.8, "times", is_floor=True),
        Goal(f"the same of one worker with {CALLERS} callers", at_once / queued, 1.8, "times", is_floor=True),
        *(Goal(f"output, {item.name}, CPU per token", item.cpu_ms_per_token, 0.6, "ms") for item in figures.streams[1:]),
        Goal("memory after load", figures.process.loaded_memory_mib, 300, "MiB"),
        Goal("start", figures.process.start_seconds, 2, "s"),
        Goal("weights", figures.weights_mb, 40, "MB"),
    ]  # fmt: skip


def lines(figures: Figures) -> list[str]:
    """The section in Markdown."""
    before, after = figures.loads
    return [
        "## Ethics",
        "",
        f"{figures.machine}; load {before:.1f} before, {after:.1f} after.",
        "",
        *_goal_table(figures),
        "",
        *_check_table(figures),
        "",
        *_rate_table(figures),
        "",
        "| output of 1,000 tokens | CPU ms per token | allowed |",
        "| --- | --- | --- |",
        *(f"| {item.name} | {item.cpu_ms_per_token:.3f} | {item.allowed:.0%} |" for item in figures.streams),
        "",
        f"- start to SERVING: {figures.process.start_seconds:.2f} s",
        f"- memory after the start: {figures.process.memory_mib:.0f} MiB",
        f"- after {figures.process.checks} checks: {figures.process.loaded_memory_mib:.0f} MiB, {figures.process.peak_memory_mib:.0f} MiB at its highest",
        f"- weights: {figures.weights_mb:.1f} MB",
    ]


def document(figures: Figures) -> dict[str, Any]:  # Any: what JSON holds
    """The section as JSON."""
    checks = [
        {
            "cores": cores,
            "tokens": check.tokens,
            "arm": check.arm.name,
            "p50_ms": check.arm.p50_ms,
            "p95_ms": check.arm.p95_ms,
            "p99_ms": check.arm.p99_ms,
            "cpu_ms": check.cpu_ms,
            "passes": check.passes,
            "read_tokens": check.read_tokens,
            "allowed": check.allowed,
        }
        for cores, found in figures.checks.items()
        for check in found
    ]
    return asdict(figures) | {
        "checks": checks,
        "goals": [asdict(goal) | {"is_met": goal.is_met} for goal in goals(figures)],
    }


def _goal_table(figures: Figures) -> Iterator[str]:
    yield "| goal | limit | reached | |"
    yield "| --- | --- | --- | --- |"
    for goal in goals(figures):
        sign = "≥" if goal.is_floor else "≤"
        met = "yes" if goal.is_met else "**missed**"
        yield f"| {goal.name} | {sign} {goal.limit:g} {goal.unit} | {goal.reached:.2f} {goal.unit} | {met} |"


def _check_table(figures: Figures) -> Iterator[str]:
    yield "| cores | tokens | what | p50 ms | p95 ms | CPU p50 ms | CPU of the bare call's | passes | tokens read | allowed |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for cores, found in figures.checks.items():
        bare = {check.tokens: check.cpu_ms for check in found if check.arm.name == PLAIN}
        for check in found:
            arm = check.arm
            read = (
                f"{check.passes:.1f} | {check.read_tokens:.0f} | {check.allowed:.0%}"
                if check.passes
                else "– | – | –"
            )
            yield (
                f"| {cores} | {check.tokens} | {arm.name} | {arm.p50_ms:.2f} | {arm.p95_ms:.2f}"
                f" | {check.cpu_ms:.2f} | {check.cpu_ms / bare[check.tokens]:.2f} | {read} |"
            )


def _rate_table(figures: Figures) -> Iterator[str]:
    yield f"| {SHORT_TOKENS} tokens on two cores | texts per second |"
    yield "| --- | --- |"
    for item in figures.rates:
        yield f"| {item.name} | {item.per_second:.0f} |"


def _held_to(cores: list[int], measured: Callable[..., Result], *arguments: int) -> Result:
    """The result of a function in a new process that may use these cores only, its threads included."""
    with ProcessPoolExecutor(1, get_context("spawn"), os.sched_setaffinity, (0, cores)) as pool:
        return pool.submit(measured, *arguments).result()


def _machine() -> str:
    models = (
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return (
        f"{next(models, platform.machine())}, {os.cpu_count()} virtual cores,"
        f" Python {platform.python_version()}, onnxruntime {version('onnxruntime')}"
    )

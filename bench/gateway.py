"""The gateway section of `make bench`: the whole guarded path beside LiteLLM proxy and the Portkey gateway, in one run.

`python -m bench --only gateway` runs it alone. Every arm is a set of real processes before the same static upstream and
is asked in every round, in turn; only ratios within a run count.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.gateway_arms import DIRECT, GUARDED_PARTS, KALA, LITELLM, RULES, Arms, running_arms
from bench.gateway_load import (
    Memory,
    Rate,
    SlowStreams,
    Streamed,
    direct_of,
    latencies,
    memory,
    rates,
    slow_streams,
    stream_times,
)
from bench.measure import Arm as Latency

MEMORY_REQUESTS: Final = 10_000
SLOW_STREAMS: Final = 1_000
STREAM_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked."""

    rounds: int = 7
    requests: int = 100
    memory_requests: int = MEMORY_REQUESTS
    slow_streams: int = SLOW_STREAMS


@dataclass(frozen=True, slots=True)
class Goal:
    """What the issue asks for, and what came out; `limit` is a floor where `is_floor`, or else a ceiling."""

    name: str
    limit: float
    reached: float
    is_floor: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it came out within the limit."""
        return self.reached >= self.limit if self.is_floor else self.reached <= self.limit


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that was measured; `loads` are the machine's before and after."""

    loads: tuple[float, float]
    latencies: Sequence[Latency]
    rates: Sequence[Rate]
    streams: Sequence[Streamed]
    memories: Sequence[Memory]
    slow: SlowStreams | None


def measure(folder: Path, sizes: Sizes) -> Figures:
    """Measure everything; some ten minutes."""
    load = os.getloadavg()[0]
    with running_arms(folder) as arms, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measured(arms, sizes, load))


async def _measured(arms: Arms, sizes: Sizes, load: float) -> Figures:
    everyone = list(arms.all.values())
    memories = []
    answers = await latencies(everyone, rounds=sizes.rounds, requests=sizes.requests)
    throughput = await rates(everyone, rounds=3, requests=sizes.requests * 4)
    streamed = await stream_times(arms, rounds=STREAM_ROUNDS)
    if sizes.memory_requests:
        memories = [
            await memory(arm, sizes.memory_requests if arm.name == KALA else sizes.memory_requests // 4)
            for arm in everyone
            if arm.pids
        ]
    slow = await slow_streams(arms, sizes.slow_streams) if sizes.slow_streams else None
    return Figures((load, os.getloadavg()[0]), answers, throughput, streamed, memories, slow)


def goals(figures: Figures) -> list[Goal]:
    """The goals of the issue beside what was reached; those against a peer only where it ran."""
    return [*_peer_goals(figures), *_own_goals(figures)]


def _peer_goals(figures: Figures) -> Iterator[Goal]:
    added = _added(figures)
    if LITELLM not in added:
        return
    peer = added[LITELLM]
    yield Goal("added p50 without the classifier, of LiteLLM's", 0.8, added[RULES] / peer)
    yield Goal("added p50 with it, of LiteLLM's (stretch 1.0)", 1.5, added[KALA] / peer)
    rate = {(item.name, item.connections): item.per_second for item in figures.rates}
    for name, limit, words in ((RULES, 1.5, "without the classifier"), (KALA, 0.7, "with it (stretch 1.0)")):
        for connections in sorted({item.connections for item in figures.rates}):
            share = rate[name, connections] / rate[LITELLM, connections]
            yield Goal(
                f"answers a second, {connections} connections, {words}, of LiteLLM's",
                limit,
                share,
                is_floor=True,
            )
    held = {item.name: item.end_mib for item in figures.memories}
    if LITELLM in held:
        yield Goal("memory, of LiteLLM's (stretch 1.0)", 1.4, held[KALA] / held[LITELLM])


def _own_goals(figures: Figures) -> Iterator[Goal]:
    for item in figures.streams:
        if item.name == KALA:
            direct = direct_of(figures.streams, item.pace)
            yield Goal(
                f"longest gap, {item.pace}, grows by, ms", 20, item.longest_gap_ms - direct.longest_gap_ms
            )
    for held in figures.memories:
        if held.name == KALA:
            growth = 100 * (held.end_mib / held.half_mib - 1)
            yield Goal(f"memory over the last half of {held.requests} requests grows by, %", 2, growth)
    if figures.slow is not None:
        yield Goal("slow streams that were dropped", 0, figures.slow.number - figures.slow.whole)
        yield Goal("health beside them, p99, ms", 100, figures.slow.health_p99_ms)


def _added(figures: Figures) -> dict[str, float]:
    direct = next(arm.p50_ms for arm in figures.latencies if arm.name == DIRECT)
    return {arm.name: arm.p50_ms - direct for arm in figures.latencies if arm.name != DIRECT}


def lines(figures: Figures) -> list[str]:
    """The section in Markdown."""
    before, after = figures.loads
    return [
        "## Gateway",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; load {before:.1f} before, {after:.1f} after.",
        "",
        *_goal_table(figures),
        "",
        *_answer_table(figures),
        "",
        *_rate_table(figures),
        "",
        *_stream_table(figures),
        "",
        *_memory_lines(figures),
    ]


def document(figures: Figures) -> dict[str, Any]:  # Any: what JSON holds
    """The section as JSON."""
    answers = [{"arm": arm.name, "p50_ms": arm.p50_ms, "p99_ms": arm.p99_ms} for arm in figures.latencies]
    return {
        "loads": figures.loads,
        "latencies": answers,
        "rates": [asdict(item) for item in figures.rates],
        "streams": [asdict(item) for item in figures.streams],
        "memories": [asdict(item) for item in figures.memories],
        "slow": None if figures.slow is None else asdict(figures.slow),
        "goals": [asdict(goal) | {"is_met": goal.is_met} for goal in goals(figures)],
    }


def _goal_table(figures: Figures) -> Iterator[str]:
    yield "| goal | limit | reached | |"
    yield "| --- | --- | --- | --- |"
    for goal in goals(figures):
        sign = "≥" if goal.is_floor else "≤"
        met = "yes" if goal.is_met else "**missed**"
        yield f"| {goal.name} | {sign} {goal.limit:g} | {goal.reached:.2f} | {met} |"


def _answer_table(figures: Figures) -> Iterator[str]:
    added = _added(figures)
    yield "| one whole answer | p50 ms | p99 ms | added p50 ms | of LiteLLM's added |"
    yield "| --- | --- | --- | --- | --- |"
    for arm in figures.latencies:
        more = added.get(arm.name, 0.0)
        share = f"{more / added[LITELLM]:.2f}" if LITELLM in added and more else "–"
        yield f"| {arm.name} | {arm.p50_ms:.2f} | {arm.p99_ms:.2f} | {more:.2f} | {share} |"


def _rate_table(figures: Figures) -> Iterator[str]:
    rate = {(item.name, item.connections): item.per_second for item in figures.rates}
    yield "| answers a second | connections | | of LiteLLM's |"
    yield "| --- | --- | --- | --- |"
    for (name, connections), per_second in rate.items():
        peer = rate.get((LITELLM, connections))
        yield f"| {name} | {connections} | {per_second:.0f} | {f'{per_second / peer:.2f}' if peer else '–'} |"


def _stream_table(figures: Figures) -> Iterator[str]:
    yield "| stream | pace | first words ms | added ms | longest gap ms | grows by ms |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for item in figures.streams:
        direct = direct_of(figures.streams, item.pace)
        first, gap = item.first_ms - direct.first_ms, item.longest_gap_ms - direct.longest_gap_ms
        yield (
            f"| {item.name} | {item.pace} | {item.first_ms:.1f} | {first:.1f}"
            f" | {item.longest_gap_ms:.1f} | {gap:.1f} |"
        )


def _memory_lines(figures: Figures) -> Iterator[str]:
    for item in figures.memories:
        parts = ""
        if len(item.parts_mib) == len(GUARDED_PARTS):
            named = zip(GUARDED_PARTS, item.parts_mib, strict=True)
            parts = f" ({', '.join(f'{name} {mib:.0f}' for name, mib in named)})"
        yield (
            f"- memory of {item.name} (PSS): {item.first_mib:.0f} MiB, {item.half_mib:.0f} at half of"
            f" {item.requests} requests, {item.end_mib:.0f} after them{parts}"
        )
    if (slow := figures.slow) is not None:
        yield (
            f"- {slow.number} slow streams at once: {slow.whole} whole; health {slow.health_p50_ms:.1f} ms at the"
            f" median, {slow.health_p99_ms:.1f} ms at the 99th percentile"
        )

"""What is measured of the gateway's arms: answers, rates, streams, memory and a thousand slow streams at once."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.gateway_arms import DIRECT, KALA, PORTKEY, Arm, Arms
from bench.http_load import Connection, one_by_one, rate, streams
from bench.measure import Arm as Latency
from bench.paced_upstream import PACES, set_pace

CONNECTIONS: Final = (8, 32)
WARM_UP: Final = 30
# Of each of the paces that a reader sees.
STREAM_PACES: Final = ("paced", "typed")
STREAMS: Final = 5
MEMORY_CONNECTIONS: Final = 8
PROBE_SECONDS: Final = 0.1
STREAMS_A_SECOND: Final = 100
MIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Rate:
    """Answers a second over so many connections; the median of the rounds."""

    name: str
    connections: int
    per_second: float


@dataclass(frozen=True, slots=True)
class Streamed:
    """Streams of one arm at one pace, in milliseconds: the medians of the first words and of the longest gaps."""

    name: str
    pace: str
    first_ms: float
    longest_gap_ms: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Proportional set size of an arm's processes, in MiB: before, at half and after so many requests."""

    name: str
    requests: int
    first_mib: float
    half_mib: float
    end_mib: float
    parts_mib: tuple[float, ...]
    """At the end, by process."""


@dataclass(frozen=True, slots=True)
class SlowStreams:
    """So many streams at once on one gateway, and how long its health took meanwhile."""

    number: int
    whole: int
    health_p50_ms: float
    health_p99_ms: float


async def latencies(arms: Sequence[Arm], *, rounds: int, requests: int) -> list[Latency]:
    """One request after the other, every arm in every round."""
    samples: dict[str, list[list[float]]] = {arm.name: [] for arm in arms}
    for number in range(rounds + 1):
        for arm in arms:
            taken = await one_by_one(arm.whole, requests if number else WARM_UP)
            if number:
                samples[arm.name].append(taken)
    return [Latency.of_rounds(name, by_round) for name, by_round in samples.items()]


async def rates(arms: Sequence[Arm], *, rounds: int, requests: int) -> list[Rate]:
    """Callers that never pause, every arm in every round; the first round warms up."""
    found: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        for connections in CONNECTIONS:
            for arm in arms:
                per_second = await rate(arm.whole, connections=connections, requests=requests)
                if number:
                    found.setdefault((arm.name, connections), []).append(per_second)
    return [
        Rate(name, connections, statistics.median(values)) for (name, connections), values in found.items()
    ]


async def stream_times(arms: Arms, *, rounds: int) -> list[Streamed]:
    """First words and longest gaps of streams at both paces; an arm that cannot stream is left out."""
    found = []
    for pace in STREAM_PACES:
        set_pace(arms.paced, pace)
        firsts: dict[str, list[float]] = {}
        gaps: dict[str, list[float]] = {}
        for _ in range(rounds):
            for arm in arms.all.values():
                try:
                    seen = await streams(arm.streamed, STREAMS)
                except (RuntimeError, OSError, EOFError):
                    if arm.name != PORTKEY:
                        raise
                    continue
                firsts.setdefault(arm.name, []).extend(stream.first_seconds for stream in seen)
                gaps.setdefault(arm.name, []).extend(stream.longest_gap_seconds for stream in seen)
        found += [
            Streamed(name, pace, statistics.median(firsts[name]) * 1000, statistics.median(gaps[name]) * 1000)
            for name in firsts
        ]
    return found


async def memory(arm: Arm, requests: int) -> Memory:
    """How much an arm's processes hold, and whether it stays so."""
    first = pss_mib(arm.pids)
    await rate(arm.whole, connections=MEMORY_CONNECTIONS, requests=requests // 2)
    half = pss_mib(arm.pids)
    await rate(arm.whole, connections=MEMORY_CONNECTIONS, requests=requests // 2)
    parts = tuple(pss_mib([pid]) for pid in arm.pids)
    return Memory(arm.name, requests, first, half, pss_mib(arm.pids), parts)


async def slow_streams(arms: Arms, number: int) -> SlowStreams:
    """Open so many slow streams, and ask for the gateway's health while they run."""
    arm = arms.all[KALA]
    set_pace(arms.paced, "slow")
    await asyncio.sleep(0)

    async def one(at: int) -> bool:
        await asyncio.sleep(at / STREAMS_A_SECOND)
        try:
            connection = await Connection.to(arm.streamed.url)
            stream = await connection.stream(arm.streamed.next())
        except (RuntimeError, OSError, EOFError):
            return False
        connection.close()
        return stream.is_whole

    running = [asyncio.ensure_future(one(at)) for at in range(number)]
    probe = await Connection.to(arm.whole.url)
    taken = []
    while not all(stream.done() for stream in running):
        taken.append(await probe.get("/healthz") * 1000)
        await asyncio.sleep(PROBE_SECONDS)
    probe.close()
    taken.sort()
    whole = sum(stream.result() for stream in running)
    return SlowStreams(number, whole, statistics.median(taken), taken[int(len(taken) * 0.99) - 1])


def pss_mib(pids: Iterable[int]) -> float:
    """Proportional set size of processes with their children: pages that several share count once (proc(5))."""
    found = list(pids)
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return sum(_pss_kib(pid) for pid in found) / MIB


def _pss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pss:")))


def hold_back_ms(pace: str, characters: int) -> float:
    """How long the upstream takes for so many characters."""
    chosen = PACES[pace]
    return characters / chosen.piece_chars * chosen.gap_seconds * 1000


def direct_of(found: Sequence[Streamed], pace: str) -> Streamed:
    """The bare upstream at a pace."""
    return next(item for item in found if item.name == DIRECT and item.pace == pace)

"""What the bounds of the hold-back cost and give: CPU of the checks, the first words' delay, the longest gap.

`python -m bench.hold_back` prints the tables of docs/performance.md. The real check reads an answer that comes at a
given rate; time is counted, not waited for: a check takes the CPU time that it took (all threads), and the next
message waits for it. So other work on the machine changes little, and no figure holds what a network adds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from bench.ethics_inside import Subject
from gateway.generation import HoldBounds
from services.ethics.bench import Bench
from services.ethics.output_check import Channel
from services.ethics.output_stream import OutputStream

TOKEN_CHARS: Final = 4
ANSWER_TOKENS: Final = 500
RATES: Final = (30, 100, 400)
"""Tokens a second: a large local model, a small one, a server with a card."""
CHARACTERS: Final = (4, 64, 256)
MILLISECONDS: Final = (5, 12, 25, 50)
MESSAGE_SECONDS: Final = 0.0004
"""CPU of one message to ethics and its answer, of both sides together."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one answer, or the medians of several."""

    messages: float
    cpu_ms_per_token: float
    first_ms: float
    """From the first token to the first words that leave."""
    gap_ms: float
    """The longest time in which nothing leaves, from the first words to the last."""


@dataclass(slots=True)
class Clock:
    """Plays one answer: text comes at its rate, checks take what they take, one after the other."""

    stream: OutputStream
    bounds: HoldBounds
    waiting: list[str] = field(default_factory=list)
    since: float | None = None
    busy_until: float = 0.0
    cpu: float = 0.0
    messages: int = 0
    released: int = 0
    left_at: list[float] = field(default_factory=list)

    async def check(self, now: float, *, is_flush: bool) -> None:
        """Send what waits."""
        text, self.waiting = "".join(self.waiting), []
        began = time.process_time()
        progress = [await self.stream.feed(Channel.TEXT, 0, text)] if text else []
        if is_flush:
            progress += [further for *_, further in await self.stream.flush()]
        self.note(now, time.process_time() - began, max((p.released_chars for p in progress), default=0))

    async def finish(self, now: float) -> None:
        """Send the rest and the end."""
        text, self.waiting = "".join(self.waiting), []
        began = time.process_time()
        await self.stream.feed(Channel.TEXT, 0, text)
        ends = await self.stream.finish()
        self.note(now, time.process_time() - began, ends[0][2].released_chars if ends else 0)

    def note(self, now: float, spent: float, released: int) -> None:
        """Count one message, whose answer comes when all before it are answered."""
        self.messages += 1
        self.cpu += spent + MESSAGE_SECONDS
        self.busy_until = max(now, self.busy_until) + spent + MESSAGE_SECONDS
        if released > self.released:
            self.released = released
            self.left_at.append(self.busy_until)


async def play(bench: Bench, answer: str, rate: float, bounds: HoldBounds) -> Figures | None:
    """One answer at a rate under the bounds; None where the judges stopped it, which made-up answers meet at times."""
    clock, now = Clock(bench.open_stream("Say something, please."), bounds), 0.0
    timer: float | None = None
    tokens = list(_tokens(answer))
    for number, token in enumerate(tokens):
        now = number / rate
        while timer is not None and timer <= now:
            # One flush at a time: the next waits for the end of the one before.
            due = max(timer, clock.busy_until)
            if due > now:
                timer = due
                break
            timer = None
            await clock.check(due, is_flush=True)
        clock.waiting.append(token)
        if sum(map(len, clock.waiting)) >= bounds.characters:
            await clock.check(now, is_flush=False)
        timer = now + bounds.seconds if timer is None else timer
    await clock.finish(now)
    if clock.stream.is_over:
        return None
    gaps = [after - before for before, after in zip(clock.left_at, clock.left_at[1:], strict=False)]
    return Figures(
        clock.messages,
        clock.cpu * 1000 / len(tokens),
        clock.left_at[0] * 1000,
        max(gaps, default=0.0) * 1000,
    )


def _tokens(text: str) -> Iterator[str]:
    for start in range(0, len(text), TOKEN_CHARS):
        yield text[start : start + TOKEN_CHARS]


def table(subject: Subject, bench: Bench, rate: int, rounds: int) -> Iterator[str]:
    """The rows of one judge and rate."""
    yield "| characters | milliseconds | messages | CPU ms per token | first words ms | longest gap ms |"
    yield "| --- | --- | --- | --- | --- | --- |"
    with asyncio.Runner() as runner:
        for milliseconds in MILLISECONDS:
            for characters in CHARACTERS:
                bounds = HoldBounds(characters, milliseconds / 1000)
                runs: list[Figures] = []
                while len(runs) < rounds:
                    answer = subject.text.answer(ANSWER_TOKENS)
                    if (run := runner.run(play(bench, answer, rate, bounds))) is not None:
                        runs.append(run)
                yield (
                    f"| {characters} | {milliseconds} "
                    f"| {statistics.median(run.messages for run in runs):.0f} "
                    f"| {statistics.median(run.cpu_ms_per_token for run in runs):.3f} "
                    f"| {statistics.median(run.first_ms for run in runs):.0f} "
                    f"| {statistics.median(run.gap_ms for run in runs):.0f} |"
                )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="answers of which the median is taken")
    rounds = parser.parse_args().rounds
    subject = Subject()
    for name, bench in (("rules alone", subject.rules), ("all judges", subject.bench(1))):
        for rate in RATES:
            lines = [f"\n{name}, {rate} tokens a second\n", *table(subject, bench, rate, rounds)]
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

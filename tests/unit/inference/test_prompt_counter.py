"""Counting for the model in process keeps to one thread, whoever asks and however often."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services.inference.pythia.prompt_counter import PromptCounter
from services.inference.pythia.weights import Weights


class StuckCounter(PromptCounter):
    """Counts only when it is let."""

    def __init__(self) -> None:
        super().__init__(Weights(Path(), 64, b""))
        self.gate = threading.Event()

    def _encoded(self, encode: Callable[[Any], Sequence[int]]) -> Sequence[int]:
        self.gate.wait(10)
        return [1, 2, 3]


async def test_many_counts_leave_the_threads_of_everything_else() -> None:
    # The loop has a few dozen threads for all: names are looked up and schemas checked in them.
    counter = StuckCounter()
    counts = [asyncio.create_task(counter.text("Hello")) for _ in range(200)]
    await asyncio.sleep(0)
    try:
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 5) == "free"
    finally:
        counter.gate.set()
    assert await asyncio.gather(*counts) == [3] * 200

"""How fast a run is, how long it will take and how much memory it had."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from google.protobuf.duration_pb2 import Duration

WINDOW_STEPS: Final = 10
# The kernel tells kilobytes; macOS tells bytes.
RSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024


class Pace:
    """Speed over the last ten steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=WINDOW_STEPS + 1)

    def step(self, tokens: int) -> None:
        """Take note of a step that ends now."""
        self._steps.append((self._clock(), tokens))

    def tokens_per_second(self) -> float:
        """Tokens that bore loss, of all workers."""
        return sum(tokens for _, tokens in list(self._steps)[1:]) / max(self._span(), 1e-9)

    def seconds_per_step(self) -> float:
        """Nought before the first step."""
        return self._span() / max(1, len(self._steps) - 1)

    def _span(self) -> float:
        return self._steps[-1][0] - self._steps[0][0]


def remaining(seconds_per_step: float, steps: int) -> Duration:
    """Time to the end at this pace."""
    duration = Duration()
    duration.FromMilliseconds(round(1000 * seconds_per_step * steps))
    return duration


def peak_memory_bytes() -> int:
    """Most memory so far: the GPU's where one computes, else the process's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT

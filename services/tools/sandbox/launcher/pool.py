"""Which sandboxes wait for code. Each is used once; a new one is made when nobody waits for the processor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from services.tools.sandbox.launcher.plan import Shape
from services.tools.sandbox.launcher.slot import Slot
from services.tools.sandbox.model import Language

# While a run lasts longer than this, the pool is filled beside it.
REFILL_DELAY_SECONDS: Final = 0.2
_FIRST_BACKOFF_SECONDS: Final = 1.0
_LONGEST_BACKOFF_SECONDS: Final = 60.0
# Sandboxes made at one time for the pool.
_AT_ONCE: Final = 1


class Pool:
    """Ready sandboxes by shape. It holds none of a host directory."""

    def __init__(self, sizes: Mapping[Language, int], disk_bytes: int) -> None:
        self._sizes = {Shape(language, disk_bytes): size for language, size in sizes.items() if size > 0}
        self._parked: dict[Shape, list[Slot]] = {shape: [] for shape in self._sizes}
        self._coming: set[Slot] = set()
        self._taken_at: float | None = None
        self._not_before = 0.0
        self._backoff = _FIRST_BACKOFF_SECONDS
        self.parked: set[Slot] = set()

    def take(self, shape: Shape) -> Slot | None:
        """Give the ready sandbox that waited longest."""
        waiting = self._parked.get(shape)
        if not waiting:
            return None
        slot = waiting.pop(0)
        self.parked.discard(slot)
        return slot

    def claim(self, shape: Shape) -> Slot | None:
        """Give a sandbox that is still being made for the pool."""
        for slot in self._coming:
            if slot.shape == shape:
                self._coming.discard(slot)
                return slot
        return None

    def wanted(self, now: float, *, busy: bool) -> Shape | None:
        """Name what to make next, or None: while runs are busy, only after they had the processor for a while."""
        if not busy:
            self._taken_at = None
        elif self._taken_at is None:
            self._taken_at = now
        if len(self._coming) >= _AT_ONCE or now < self._not_before:
            return None
        if self._taken_at is not None and now < self._taken_at + REFILL_DELAY_SECONDS:
            return None
        on_their_way = Counter(slot.shape for slot in self._coming)
        for shape, size in self._sizes.items():
            if len(self._parked[shape]) + on_their_way[shape] < size:
                return shape
        return None

    def count(self) -> dict[str, int]:
        """Give how many are ready, by language."""
        return {shape.language.value: len(slots) for shape, slots in self._parked.items()}

    def patience(self, now: float) -> float:
        """Give the seconds until `wanted` may say something else by itself; -1 when it will not."""
        return self._not_before - now if self._not_before > now else -1.0

    def coming(self, slot: Slot) -> None:
        """Remember a sandbox that is being made."""
        self._coming.add(slot)

    def park(self, slot: Slot) -> None:
        """Keep a ready one."""
        self._coming.discard(slot)
        self._parked[slot.shape].append(slot)
        self.parked.add(slot)
        self._backoff = _FIRST_BACKOFF_SECONDS

    def lost(self, slot: Slot, now: float) -> None:
        """Forget one that ended without having been used, and wait before the next try."""
        self._coming.discard(slot)
        self.parked.discard(slot)
        if slot in self._parked.get(slot.shape, ()):
            self._parked[slot.shape].remove(slot)
        self.failed(now)

    def failed(self, now: float) -> None:
        """Wait before the next try, each time longer."""
        self._not_before = now + self._backoff
        self._backoff = min(self._backoff * 2, _LONGEST_BACKOFF_SECONDS)

"""A bulkhead: the requests that one backend may hold, so that a slow one cannot hold them all.  Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Bulkhead:
    """Places for the requests that run at one backend or wait for a connection to it; nobody waits for a place."""

    places: int
    taken: int = 0

    def enter(self) -> bool:
        """Take a place; False where all are taken."""
        if self.taken >= self.places:
            return False
        self.taken += 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        self.taken -= 1

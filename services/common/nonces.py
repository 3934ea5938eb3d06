"""A bounded memory of used nonces that refuses when it is full, so that pressure never opens a door to replay."""

from __future__ import annotations

from collections import deque
from typing import Final

from kala.errors import ClearanceError

# At 60 s of life and 5 s of tolerance this allows 1,000 guarded calls a second for one replica, in about 10 MB.
DEFAULT_CAPACITY: Final = 65_536


class NonceCache:
    """Remembers each nonce until it could not be valid any more. Not for several threads."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._used: set[bytes] = set()
        self._order: deque[tuple[float, bytes]] = deque()
        self._forgotten_until = float("-inf")

    def __len__(self) -> int:
        return len(self._used)

    def claim(self, nonce: bytes, *, forget_at: float, now: float) -> None:
        """Marks a nonce as used; raises ClearanceError when it was used before or when nothing more can be remembered.

        Times are Unix seconds. Nonces are forgotten in the order they were claimed, never before their own time.
        A clock that steps forth and back makes forgotten ones valid again: whatever could be among them is refused.
        """
        self._forget(now)
        if forget_at <= self._forgotten_until:
            raise ClearanceError(
                "the clearance may have been used before this machine's clock was set back; ask for a new one",
                reason="CLEARANCE_REPLAYED",
            )
        if nonce in self._used:
            raise ClearanceError(
                "the clearance was used before; ask for a new one", reason="CLEARANCE_REPLAYED"
            )
        if len(self._used) >= self._capacity:
            raise ClearanceError(
                f"more than {self._capacity} clearances are in use; retry in a minute or add a replica",
                reason="CLEARANCE_CACHE_FULL",
                retry_after_seconds=60,
            )
        self._used.add(nonce)
        self._order.append((forget_at, nonce))

    def _forget(self, now: float) -> None:
        while self._order and self._order[0][0] < now:
            forget_at, nonce = self._order.popleft()
            self._used.discard(nonce)
            self._forgotten_until = max(self._forgotten_until, forget_at)

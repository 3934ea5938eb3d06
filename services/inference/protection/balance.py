"""Shares the work among hosts that can stand in for each other.  Pure: same input, same order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Host:
    """A host in its place of the chain; hosts of one `group` serve the same model and follow each other."""

    name: str
    group: tuple[str, ...]
    weight: float = 1.0
    """Share of the work, above 0."""
    in_flight: int = 0
    turn: float = 0.0
    """When its turn is, in the virtual time of its group; see Turns."""


def balanced(hosts: Iterable[Host]) -> list[Host]:
    """Order the hosts of each group by load, then by turn, then as they came; groups keep their places."""
    ordered: list[Host] = []
    for _, group in groupby(hosts, key=lambda host: host.group):
        # The load is what a host holds against what it can hold: two requests at weight 2 are as one at weight 1.
        ordered += sorted(group, key=lambda host: (host.in_flight / host.weight, host.turn))
    return ordered


class Turns:
    """Whose turn it is among idle hosts: start-time fair queueing, so that weights also hold for one request at a time.

    A host that was away does not catch up: its turn is never before the group's present.
    """

    def __init__(self) -> None:
        self._present: dict[tuple[str, ...], float] = {}
        self._next: dict[tuple[str, tuple[str, ...]], float] = {}

    def of(self, name: str, group: tuple[str, ...]) -> float:
        """Give a host's turn."""
        return max(self._next.get((name, group), 0.0), self._present.get(group, 0.0))

    def taken(self, name: str, group: tuple[str, ...], weight: float) -> None:
        """Note that a host got a request."""
        start = self.of(name, group)
        self._present[group] = start
        self._next[name, group] = start + 1 / weight

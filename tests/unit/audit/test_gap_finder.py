"""Gaps found in one pass are those that a look at the whole log finds, within bounded memory."""

from __future__ import annotations

import random

from services.audit.reading.gap_finder import GapFinder, Hole, Mark

BOOT = b"bootboot"


def mark(
    index: int,
    sequence: int = 0,
    kind: str = "service.event",
    *,
    intent: int | None = None,
    producer: str = "gateway-0",
) -> Mark:
    key = index.to_bytes(16, "big")
    named = None if intent is None else intent.to_bytes(16, "big")
    return Mark(index, kind, key, named, producer, BOOT, sequence or index + 1, 1_000 + index)


def found(*marks: Mark, **bounds: int) -> GapFinder:
    finder = GapFinder(**bounds)
    for one in marks:
        finder.see(one)
    return finder


def test_an_intent_is_open_until_an_outcome_names_it() -> None:
    finder = found(
        mark(0, kind="chat.intent"),
        mark(1, kind="tool.intent", intent=0),
        mark(2, kind="chat.intent"),
        mark(3, kind="tool.outcome", intent=1),
        mark(4, kind="record.refused", intent=0),
    )
    assert finder.unmatched(before=9_999) == (2, [0, 2])
    assert finder.unmatched(before=1_002) == (1, [0])
    finder.see(mark(5, kind="chat.outcome", intent=0))
    assert finder.unmatched(before=9_999) == (1, [2])


def test_an_outcome_that_comes_first_still_closes_its_intent() -> None:
    finder = found(mark(0, kind="tool.outcome", intent=1), mark(1, kind="tool.intent"))
    assert finder.unmatched(before=9_999) == (0, [])


def test_a_hole_is_a_run_of_numbers_and_shrinks_as_they_come() -> None:
    finder = found(mark(0, 3), mark(1, 4), mark(2, 9))
    assert finder.holes() == (
        2,
        [Hole("gateway-0", BOOT, 1, 2), Hole("gateway-0", BOOT, 5, 8)],
    )
    finder.see(mark(3, 6))
    assert finder.holes()[0] == 3
    for number in (1, 2, 5, 7, 8, 8):
        finder.see(mark(9, number))
    assert finder.holes() == (0, [])


def test_every_start_of_a_producer_counts_for_itself() -> None:
    finder = found(mark(0, 1), mark(1, 2, producer="tools"))
    assert finder.holes() == (1, [Hole("tools", BOOT, 1, 1)])


def test_what_is_forgotten_stays_counted() -> None:
    finder = found(*(mark(index, kind="chat.intent") for index in range(5)), max_open=2)
    assert finder.unmatched(before=9_999) == (5, [3, 4])
    finder = found(*(mark(index, 2, producer=f"tools-{index}") for index in range(5)), max_streams=2)
    assert finder.holes()[0] == 5
    assert [hole.producer for hole in finder.holes()[1]] == ["tools-3", "tools-4"]
    finder = found(*(mark(index, kind="chat.outcome", intent=99 - index) for index in range(5)), max_early=2)
    finder.see(mark(99, kind="chat.intent"))
    finder.see(mark(95, kind="chat.intent"))
    assert finder.unmatched(before=9_999) == (1, [99])


def test_any_order_of_numbers_leaves_the_numbers_that_are_missing() -> None:
    rng = random.Random(5)
    for _ in range(200):
        numbers = rng.sample(range(1, 30), rng.randrange(1, 25))
        finder = found(*(mark(index, number) for index, number in enumerate(numbers)))
        missing = {number for hole in finder.holes()[1] for number in range(hole.first, hole.last + 1)}
        assert missing == set(range(1, max(numbers))) - set(numbers)
